"""Drawn detections, of a test run and in validation."""

from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from mmdet.config.errors import UserError
from mmdet.config.output import output_files
from mmdet.registry import HOOKS
from mmdet.visualization.visualizer import DetVisualizer, draw_file, read_image


def _identity(image) -> tuple:
    """Two entries of an annotation file may name one image."""
    return str(image.get('img_path')), image.get('img_id')


@HOOKS.register_module()
class DetVisualizationHook(Hook):
    """Draw the detections of a test run into files, and some of each validation beside the log.

    Args:
        out_dir: folder for the drawings of a test run, placed by `output_files`; None draws nothing.
        score_thr: minimum score to draw.
        draw: draw in validation, ground truth beside predictions, into the run's visualizer; and a test run into
            `test_out_dir`.
        interval: of validation's batches, whose first image is drawn.
        backend_args, wait_time: mmdetection's; they change nothing.
    """

    def __init__(self, out_dir: str | None = None, score_thr: float = 0.3, draw: bool = False,
                 test_out_dir: str | None = None, show: bool = False, interval: int = 50, wait_time: float = 0,
                 backend_args: dict | None = None):
        if show:
            raise UserError('DetVisualizationHook draws into files: give test_out_dir=FOLDER (or --show-dir), no show')
        self.draw, self.interval = draw, interval
        self.out_dir, self.score_thr = out_dir or (test_out_dir if draw else None), score_thr
        self.places: dict[tuple, Path] = {}

    def before_test(self, runner: Runner) -> None:
        if self.out_dir is not None:
            dataset = runner.test_dataloader.dataset
            images = [_identity(dataset.get_data_info(i)) for i in range(len(dataset))]
            self.places = dict(zip(images, output_files([path for path, _ in images], self.out_dir)))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.out_dir is None:
            return
        meta, visualizer = runner.test_dataloader.dataset.metainfo, runner.visualizer
        visualizer.dataset_meta = meta  # mmengine gives it to rank 0 alone
        for sample in outputs:
            place = self.places[_identity(sample)]
            if type(visualizer) in (Visualizer, DetVisualizer):
                classes, palette = meta.get('classes') or (), meta.get('palette')
                draw_file(sample.img_path, sample, place, classes, self.score_thr, palette)
            else:  # one of the user's
                visualizer.add_datasample(
                    place.name, read_image(sample.img_path), sample, draw_gt='bboxes' in sample.get('gt_instances', ()),
                    pred_score_thr=self.score_thr, out_file=str(place), step=batch_idx,
                )  # fmt: skip

    @master_only
    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.draw and batch_idx % self.interval == 0:
            sample = outputs[0]
            runner.visualizer.add_datasample(
                f'val_img_{batch_idx}', read_image(sample.img_path), sample, draw_gt='bboxes' in sample.gt_instances,
                pred_score_thr=self.score_thr, step=runner.iter,
            )  # fmt: skip

    @master_only
    def after_test(self, runner: Runner) -> None:
        if self.out_dir is not None:
            runner.logger.info(f'Drawn detections: {self.out_dir}')
