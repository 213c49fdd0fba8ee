"""Frames drawn by the visualizer of the config, into a video."""

import sys
from pathlib import Path

import cv2
import mmcv
from mmcv.transforms import Compose
from mmengine.utils import track_iter_progress

from mmdet.apis import inference_detector, init_detector
from mmdet.registry import VISUALIZERS

model = init_detector('config.py', 'weights.pth', device='cpu')
model.cfg.test_dataloader.dataset.pipeline[0].type = 'mmdet.LoadImageFromNDArray'
test_pipeline = Compose(model.cfg.test_dataloader.dataset.pipeline)
visualizer = VISUALIZERS.build(model.cfg.visualizer)
visualizer.dataset_meta = model.dataset_meta

frames = [cv2.imread(str(path)) for path in sorted(Path(sys.argv[1]).iterdir())]
writer = cv2.VideoWriter('out.mp4', cv2.VideoWriter_fourcc(*'mp4v'), 5, (frames[0].shape[1], frames[0].shape[0]))
changed = 0
for frame in track_iter_progress(frames):
    result = inference_detector(model, frame, test_pipeline=test_pipeline)
    rgb = mmcv.imconvert(frame, 'bgr', 'rgb')
    visualizer.add_datasample(
        name='video', image=rgb, data_sample=result, draw_gt=False, show=False, pred_score_thr=0.0
    )
    drawn = visualizer.get_image()
    changed += int(drawn.shape == frame.shape and (drawn != rgb).any())
    writer.write(drawn[..., ::-1])
writer.release()
print(f'\n{changed} of {len(frames)} frames drawn')
