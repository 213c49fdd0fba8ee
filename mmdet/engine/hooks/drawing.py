"""Drawn detections of a test run."""

import os
from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.config.errors import UserError
from mmdet.registry import HOOKS
from mmdet.visualization.visualizer import draw_file


@HOOKS.register_module()
class DetVisualizationHook(Hook):
    """Draw the detections of a test run.

    Args:
        out_dir: folder for the drawn images, under their own names (and folders, where they come from several); None
            draws nothing.
        score_thr: minimum score to draw.
        draw, test_out_dir: mmdet 3's way to name the folder; its other options change nothing here.
    """

    def __init__(self, out_dir: str | None = None, score_thr: float = 0.3, draw: bool = False,
                 test_out_dir: str | None = None, show: bool = False, interval: int = 50, wait_time: float = 0,
                 backend_args: dict | None = None):
        if show or (draw and not (out_dir or test_out_dir)):
            raise UserError('DetVisualizationHook draws into files: give test_out_dir=FOLDER (or --show-dir), no show')
        self.out_dir, self.score_thr = out_dir or (test_out_dir if draw else None), score_thr
        self.root = ''

    def before_test(self, runner: Runner) -> None:
        if self.out_dir is not None:
            dataset = runner.test_dataloader.dataset
            folders = {Path(dataset.get_data_info(i)['img_path']).absolute().parent for i in range(len(dataset))}
            self.root = os.path.commonpath(folders)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.out_dir is None:
            return
        # not the visualizer's: mmengine gives its meta to rank 0 alone
        classes = runner.test_dataloader.dataset.metainfo.get('classes') or ()
        for sample in outputs:
            path = Path(sample.img_path).absolute()
            draw_file(path, sample, Path(self.out_dir) / path.relative_to(self.root), classes, self.score_thr)

    @master_only
    def after_test(self, runner: Runner) -> None:
        if self.out_dir is not None:
            runner.logger.info(f'Drawn detections: {self.out_dir}')
