"""A large image in patches of sahi's, merged by NMS, as mmdetection's demo does it."""

import sys

import mmcv
from mmcv.transforms import Compose
from sahi.slicing import slice_image

from mmdet.apis import inference_detector, init_detector
from mmdet.registry import VISUALIZERS
from mmdet.utils import get_test_pipeline_cfg
from mmdet.utils.large_image import merge_results_by_nms, shift_predictions

model = init_detector('config.py', 'weights.pth', device='cpu', cfg_options={})
steps = get_test_pipeline_cfg(model.cfg)
steps[0].type = 'mmdet.LoadImageFromNDArray'
image = mmcv.imread(sys.argv[1])
height, width = image.shape[:2]
sliced = slice_image(sys.argv[1], slice_height=64, slice_width=64, auto_slice_resolution=False,
                     overlap_height_ratio=0.25, overlap_width_ratio=0.25)  # fmt: skip
results = []
for start in range(0, len(sliced), 2):
    patches = [piece['image'][..., ::-1].copy() for piece in sliced[start : start + 2]]
    results.extend(inference_detector(model, patches, test_pipeline=Compose(steps)))
offsets = sliced.starting_pixels
whole = shift_predictions(results, offsets, src_image_shape=(height, width))
nms_cfg = dict(type='nms', iou_threshold=0.25)
merged = merge_results_by_nms(results, offsets, src_image_shape=(height, width), nms_cfg=nms_cfg)
visualizer = VISUALIZERS.build(model.cfg.visualizer)
visualizer.dataset_meta = model.dataset_meta
visualizer.add_datasample('merged', image[..., ::-1], data_sample=merged, draw_gt=False, out_file='merged.png')
print(len(sliced), len(merged.pred_instances) < len(whole), merged.pred_instances.masks.shape[1:] == (height, width))
