"""A test run drawn by a visualizer of one's own, and a preprocessor with options of mmdetection's configs."""

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

from mmdet.registry import VISUALIZERS
from mmdet.visualization import DetLocalVisualizer

names = []


@VISUALIZERS.register_module()
class Framed(DetLocalVisualizer):
    def add_datasample(self, name, image, data_sample=None, draw_gt=True, draw_pred=True, show=False, wait_time=0,
                       out_file=None, pred_score_thr=0.3, step=0):  # fmt: skip
        names.append(name)
        image = np.pad(image, ((8, 8), (8, 8), (0, 0)))
        super().add_datasample(name, image, data_sample, draw_gt, draw_pred, show, wait_time, out_file,
                               pred_score_thr, step)  # fmt: skip


cfg = Config.fromfile('config.py')
cfg.work_dir, cfg.load_from = 'work', 'weights.pth'
cfg.visualizer = dict(type='Framed', name='visualizer', vis_backends=[dict(type='LocalVisBackend')])
cfg.default_hooks.visualization = dict(type='DetVisualizationHook', draw=True, test_out_dir='drawn')
cfg.model.data_preprocessor.update(pad_mask=True, pad_seg=False, boxtype2tensor=True)
cfg.test_dataloader.dataset.pipeline.insert(-1, dict(type='LoadAnnotations', with_bbox=True, with_seg=False))
Runner.from_cfg(cfg).test()
print(len(names), names[0].endswith(('.jpg', '.png')))
