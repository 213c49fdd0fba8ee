"""Drawn detections of a test run."""

from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.config.errors import UserError
from mmdet.config.output import output_files
from mmdet.registry import HOOKS
from mmdet.visualization.visualizer import draw_file


def _identity(image) -> tuple:
    """Two entries of an annotation file may name one image."""
    return str(image.get('img_path')), image.get('img_id')


@HOOKS.register_module()
class DetVisualizationHook(Hook):
    """Draw the detections of a test run.

    Args:
        out_dir: folder for the drawings, placed by `output_files`; None draws nothing.
        score_thr: minimum score to draw.
        draw, test_out_dir: mmdet 3's way to name the folder; its other options change nothing here.
    """

    def __init__(self, out_dir: str | None = None, score_thr: float = 0.3, draw: bool = False,
                 test_out_dir: str | None = None, show: bool = False, interval: int = 50, wait_time: float = 0,
                 backend_args: dict | None = None):
        if show or (draw and not (out_dir or test_out_dir)):
            raise UserError('DetVisualizationHook draws into files: give test_out_dir=FOLDER (or --show-dir), no show')
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
        # not the visualizer's: mmengine gives its meta to rank 0 alone
        classes = runner.test_dataloader.dataset.metainfo.get('classes') or ()
        for sample in outputs:
            draw_file(sample.img_path, sample, self.places[_identity(sample)], classes, self.score_thr)

    @master_only
    def after_test(self, runner: Runner) -> None:
        if self.out_dir is not None:
            runner.logger.info(f'Drawn detections: {self.out_dir}')
