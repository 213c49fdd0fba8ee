"""Features of detected boxes, from a model's parts; then its proposals, as mmdetection's RPN gives them."""

import sys

import mmcv
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate

from mmdet.apis import init_detector
from mmdet.structures.bbox import bbox2roi, get_box_tensor, scale_boxes
from mmdet.utils import get_test_pipeline_cfg

model = init_detector('config.py', 'weights.pth', device='cpu')
kept = {}
model.neck.register_forward_hook(lambda module, given, out: kept.update(maps=out))
model.roi_head.bbox_head.shared_fcs[-1].register_forward_hook(lambda module, given, out: kept.update(vectors=out))
steps = get_test_pipeline_cfg(model.cfg)
steps[0].type = 'mmdet.LoadImageFromNDArray'
data = pseudo_collate([Compose(steps)(dict(img=mmcv.imread(sys.argv[1]), img_id=0))])
with torch.no_grad():
    result = model.test_step(data)[0]
    data = model.data_preprocessor(data, False)
    maps = model.extract_feat(data['inputs'])
    same = all(torch.equal(a, b) for a, b in zip(maps, kept['maps']))
    boxes = get_box_tensor(result.pred_instances.bboxes)
    rois = bbox2roi([scale_boxes(boxes.clone(), result.scale_factor)])
    extractor = model.roi_head.bbox_roi_extractor
    features = extractor(maps[: extractor.num_inputs], rois)
    if model.roi_head.with_shared_head:
        features = model.roi_head.shared_head(features)
    scores, deltas = model.roi_head.bbox_head(features)
print(len(boxes), len(kept['vectors']), same)
print(features.shape[1] == extractor.out_channels, scores.shape[1] == model.roi_head.bbox_head.num_classes + 1,
      kept['vectors'].shape[1] == model.roi_head.bbox_head.cls_last_dim)  # fmt: skip
try:
    model.rpn_head.predict(maps, data['data_samples'], rescale=False)
except ValueError as error:
    print(error)
