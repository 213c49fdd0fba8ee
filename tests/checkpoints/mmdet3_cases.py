"""What is shown to mmdetection 3.3 (by record_mmdet3.py) and to this project (by test_mmdet3.py).

Imported on both sides, so nothing here imports a package called mmdet. Weights come from the names of the state dict's
keys alone: only the names, not the weights, need to agree.
"""

import zlib
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData

_CAFFE = dict(
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(norm_cfg=dict(requires_grad=False), style='caffe'),
)
_GN = dict(type='GN', num_groups=32, requires_grad=True)
_WS = dict(type='ConvWS')


def _gn(**conv) -> dict:
    return dict(
        backbone=dict(norm_cfg=_GN, **conv),
        neck=dict(norm_cfg=_GN, **conv),
        roi_head=dict(
            bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=_GN, **conv),
            mask_head=dict(norm_cfg=_GN, **conv),
        ),
    )


def _decoded(loss: str, weight: float) -> dict:
    head = dict(reg_decoded_bbox=True, loss_bbox=dict(_delete_=True, type=loss, loss_weight=weight))
    return dict(roi_head=dict(bbox_head=head))


_X101 = dict(backbone=dict(type='ResNeXt', depth=101, groups=32, base_width=4))
_SOFT_NMS = dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))))
_OHEM = dict(train_cfg=dict(rcnn=dict(sampler=dict(type='OHEMSampler'))))

# Where our recipes differ from mmdetection's: it leaves anchors in the padding untrained, and in Mask R-CNN every
# object has a positive proposal if one overlaps it by half.
_NO_PADDING = dict(allowed_border=-1)
RECIPES = dict(
    FasterRCNN=dict(train_cfg=dict(rpn=_NO_PADDING)),
    MaskRCNN=dict(train_cfg=dict(rpn=_NO_PADDING, rcnn=dict(assigner=dict(match_low_quality=True)))),
)
# name: (config of mmdetection 3.3, our config, what makes ours the same[, what changes both]).
_OPTIONS = dict(
    neck=dict(add_extra_convs='on_output', relu_before_extra_convs=True, no_norm_on_lateral=True, norm_cfg=_GN),
    rpn_head=dict(num_convs=2, reg_decoded_bbox=True, loss_bbox=dict(_delete_=True, type='DIoULoss', loss_weight=2.0)),
    roi_head=dict(
        bbox_roi_extractor=dict(finest_scale=40, roi_layer=dict(sampling_ratio=2, aligned=False)),
        bbox_head=dict(
            type='ConvFCBBoxHead', num_shared_convs=1, num_cls_convs=1, num_reg_convs=1, num_cls_fcs=1, num_reg_fcs=1,
            conv_out_channels=256, with_avg_pool=True, reg_class_agnostic=True,
            loss_cls=dict(class_weight=[1.0, 2.0, 0.5, 1.0, 3.0, 0.7]),
            loss_bbox=dict(_delete_=True, type='BalancedL1Loss', alpha=0.4, gamma=1.4, beta=0.8),
        ),
        mask_head=dict(class_agnostic=True, num_convs=2),
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=3, pos_weight=2.0, assigner=dict(gt_max_assign_all=False, neg_iou_thr=(0.05, 0.3))),
        rcnn=dict(pos_weight=1.5),
    ),
    test_cfg=dict(rpn=dict(min_bbox_size=12), rcnn=dict(mask_thr_binary=0.4, nms=dict(class_agnostic=True))),
)  # fmt: skip
_RETINA_OPTIONS = dict(
    neck=dict(add_extra_convs='on_lateral', upsample_cfg=dict(mode='bilinear')),
    bbox_head=dict(
        norm_cfg=_GN, conv_cfg=_WS, stacked_convs=2, reg_decoded_bbox=True,
        anchor_generator=dict(center_offset=0.5, ratios=[0.7, 1.4]),
        loss_cls=dict(gamma=1.5, alpha=0.4), loss_bbox=dict(_delete_=True, type='IoULoss', mode='square'),
    ),
    train_cfg=dict(pos_weight=3.0, allowed_border=8),
    test_cfg=dict(nms_pre=100, min_bbox_size=8, nms=dict(iou_threshold=0.4)),
)  # fmt: skip
_LIBRA = dict(
    neck=[
        dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
        dict(type='BFP', in_channels=256, num_levels=5, refine_level=2, refine_type='non_local'),
    ],
    roi_head=dict(bbox_head=dict(
        loss_bbox=dict(_delete_=True, type='BalancedL1Loss', alpha=0.5, gamma=1.5, beta=1.0, loss_weight=1.0)
    )),
)  # fmt: skip
_FASTER = 'faster_rcnn/faster_rcnn_r50_fpn_1x'
_MASK = 'mask_rcnn/mask_rcnn_r50_fpn_1x'
CASES = {
    'faster_rcnn_r50': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', _FASTER, {}),
    'faster_rcnn_r101': ('faster_rcnn/faster-rcnn_r101_fpn_1x_coco', 'faster_rcnn/faster_rcnn_r101_fpn_1x', {}),
    'faster_rcnn_ohem': ('faster_rcnn/faster-rcnn_r50_fpn_ohem_1x_coco', _FASTER, _OHEM),
    'faster_rcnn_iou': (
        'faster_rcnn/faster-rcnn_r50_fpn_iou_1x_coco', _FASTER, _decoded('IoULoss', 10.0)),
    'faster_rcnn_giou': (
        'faster_rcnn/faster-rcnn_r50_fpn_giou_1x_coco', _FASTER, _decoded('GIoULoss', 10.0)),
    'faster_rcnn_ciou': (
        'faster_rcnn/faster-rcnn_r50_fpn_ciou_1x_coco', _FASTER, _decoded('CIoULoss', 12.0)),
    'faster_rcnn_bounded_iou': (
        'faster_rcnn/faster-rcnn_r50_fpn_bounded-iou_1x_coco', _FASTER,
        _decoded('BoundedIoULoss', 10.0)),
    'faster_rcnn_soft_nms': (
        'faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco', _FASTER, _SOFT_NMS),
    'mask_rcnn_r50': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco', _MASK, {}),
    'mask_rcnn_r50_caffe': ('mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco', _MASK, _CAFFE),
    'mask_rcnn_x101': ('mask_rcnn/mask-rcnn_x101-32x4d_fpn_1x_coco', _MASK, _X101),
    'mask_rcnn_gn': (
        'gn/mask-rcnn_r50_fpn_gn-all_2x_coco', _MASK,
        dict(_gn(), data_preprocessor=_CAFFE['data_preprocessor'])),
    'mask_rcnn_gn_ws': (
        'gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco', _MASK, _gn(conv_cfg=_WS)),
    'cascade_rcnn_r50': ('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco', 'cascade_rcnn/cascade_rcnn_r50_fpn_1x', {}),
    'cascade_mask_rcnn_r50': (
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco', 'cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x', {}),
    'mask_rcnn_options': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco', _MASK, {}, _OPTIONS),
    'retinanet_options': (
        'retinanet/retinanet_r50_fpn_1x_coco', 'retinanet/retinanet_r50_fpn_1x', {}, _RETINA_OPTIONS),
    'libra_faster_rcnn': ('libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco', _FASTER, _LIBRA),
    'retinanet_r50': ('retinanet/retinanet_r50_fpn_1x_coco', 'retinanet/retinanet_r50_fpn_1x', {}),
    'rpn_r50': ('rpn/rpn_r50_fpn_1x_coco', 'rpn/rpn_r50_fpn_1x', {}),
    'fast_rcnn_r50': ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco', 'fast_rcnn/fast_rcnn_r50_fpn_1x', {}),
}  # fmt: skip


def merge(cfg: dict, changes: dict) -> None:
    """Recursive update in place, with mmengine's ``_delete_``."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(cfg.get(key), dict) and not value.get('_delete_'):
            merge(cfg[key], value)
        else:
            cfg[key] = {k: v for k, v in value.items() if k != '_delete_'} if isinstance(value, dict) else value


def narrow(model: dict) -> None:
    """Make a model of the usual depth thin, for small recordings: 8 channels in the stem, 16 in the heads."""
    model['backbone']['base_channels'] = 8
    necks = model['neck'] if isinstance(model['neck'], list) else [model['neck']]
    necks[0].update(in_channels=[32, 64, 128, 256], out_channels=16)
    for neck in necks[1:]:
        neck['in_channels'] = 16
    if 'rpn_head' in model:
        model['rpn_head'].update(in_channels=16, feat_channels=16)
    if 'bbox_head' in model:
        model['bbox_head'].update(in_channels=16, feat_channels=16, num_classes=5)
    roi_head = model.get('roi_head', {})
    heads = roi_head.get('bbox_head', [])
    for head in heads if isinstance(heads, list) else [heads]:
        head.update(in_channels=16, fc_out_channels=32, num_classes=5)
        if 'conv_out_channels' in head:
            head['conv_out_channels'] = 16
    if 'mask_head' in roi_head:
        roi_head['mask_head'].update(in_channels=16, conv_out_channels=16, num_classes=5)
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        if name in roi_head:
            roi_head[name]['out_channels'] = 16
    for part in (model['backbone'], *necks, *(heads if isinstance(heads, list) else [heads]),
                 model.get('bbox_head', {}), roi_head.get('mask_head', {})):  # fmt: skip
        if part.get('norm_cfg') and 'num_groups' in part['norm_cfg']:
            part['norm_cfg'] = dict(part['norm_cfg'], num_groups=4)


def sample_everything(model: dict) -> None:
    """Let nothing be left to chance: samplers take all candidates (OHEM its hardest); few detections are reported."""
    train, test = model['train_cfg'], model['test_cfg']
    rcnn = train.get('rcnn', [])
    for part in (train.get('rpn'), *(rcnn if isinstance(rcnn, list) else [rcnn])):
        if part:
            hard = part['sampler']['type'] == 'OHEMSampler'
            part['sampler'].update(**(dict(num=60) if hard else dict(num=10**6, pos_fraction=1.0, neg_pos_ub=-1)))
    if 'rpn_proposal' in train:
        train['rpn_proposal'].update(max_per_img=200)
    if 'rpn' in test:
        test['rpn'].update(max_per_img=200)
    if model.get('type') == 'RPN':
        test['rpn'].update(max_per_img=50)
    (test.get('rcnn') or test).update(**({} if model.get('type') == 'RPN' else dict(max_per_img=30)))


# Gain of each layer over a He initialisation of its fan-in, so that detections are many and varied.
_GAINS = {
    'rpn_cls': 0.35, 'rpn_reg': 0.05, 'fc_cls': 0.3, 'fc_reg': 0.06, 'conv_logits': 0.2, 'retina_cls': 0.6,
    'retina_reg': 0.08,
}  # fmt: skip


def fill_weights(model: torch.nn.Module) -> None:
    """Give every entry of a model's state dict values that depend on its key and shape alone."""
    state = model.state_dict()
    std = float(model.data_preprocessor.std.mean())
    for key, value in state.items():
        key = key.replace('bbox_head.rpn_', 'rpn_head.rpn_')  # mmdetection's RPN calls it so
        random = np.random.RandomState(zlib.crc32(key.encode()))
        layer, name = key.split('.')[-2:]
        if name == 'num_batches_tracked':
            continue
        if name == 'running_var':
            array = random.uniform(0.5, 1.5, value.shape)
        elif name in ('running_mean', 'bias'):
            array = random.normal(0, 0.1, value.shape)
            if layer == 'retina_cls':
                array -= 3
        elif value.dim() == 1:  # a norm's scale; the residual branches are quiet
            array = random.uniform(0.5, 1.5, value.shape) * (0.2 if layer in ('bn3', 'gn3') else 1.0)
        else:
            gain = std / 57 if key == 'backbone.conv1.weight' else _GAINS.get(layer, 0.7 if '_convs' in key else 1.0)
            array = random.normal(0, gain * (2 / np.prod(value.shape[1:])) ** 0.5, value.shape)
        value.copy_(torch.from_numpy(array))


def made_up_images() -> list[np.ndarray]:
    """Two images (h, w, 3) uint8 of waves and rectangles."""
    images = []
    for seed, (height, width) in enumerate([(160, 224), (190, 150)]):
        random = np.random.RandomState(seed)
        y, x = np.mgrid[:height, :width]
        image = np.full((height, width, 3), 128.0)
        for _ in range(6):
            fy, fx, phase = random.uniform(-0.2, 0.2), random.uniform(-0.2, 0.2), random.uniform(0, 6)
            image += 25 * np.sin(fy * y + fx * x + phase)[..., None] * random.uniform(-1, 1, 3)
        for _ in range(8):
            top, left = random.randint(0, height - 20), random.randint(0, width - 20)
            bottom, right = top + random.randint(15, 90), left + random.randint(15, 90)
            image[top:bottom, left:right] += random.uniform(-80, 80, 3)
        images.append(image.clip(0, 255).round().astype(np.uint8))
    return images


def photos(folder: Path, names: list[str], height: int) -> list[np.ndarray]:
    """Photographs (h, w, 3) uint8 BGR, resized to about this height."""
    images = []
    for name in names:
        image = cv2.imread(str(folder / name))
        width = round(image.shape[1] * height / image.shape[0])
        images.append(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    return images


def metainfo(image: np.ndarray, img_id: int) -> dict:
    """As if the image had been enlarged by about 5/4 before."""
    height, width = image.shape[:2]
    original = round(height / 1.25), round(width / 1.25)
    return dict(
        img_id=img_id, img_shape=(height, width), ori_shape=original,
        scale_factor=(width / original[1], height / original[0]),
    )  # fmt: skip


def ground_truth(image: np.ndarray, img_id: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Boxes (G, 4), labels (G,) and masks (G, h, w) of ellipses in the boxes."""
    height, width = image.shape[:2]
    random = np.random.RandomState(100 + img_id)
    boxes, masks = [], []
    y, x = np.mgrid[:height, :width] + 0.5
    for _ in range(6):
        w, h = random.uniform(0.1, 0.7) * width, random.uniform(0.1, 0.7) * height
        left, top = random.uniform(0, width - w), random.uniform(0, height - h)
        boxes.append([left, top, left + w, top + h])
        masks.append(((x - left - w / 2) / w) ** 2 + ((y - top - h / 2) / h) ** 2 < 0.25)
    labels = random.randint(0, 5, len(boxes))
    return torch.tensor(boxes, dtype=torch.float32), torch.from_numpy(labels), np.array(masks, dtype=np.uint8)


def proposals(image: np.ndarray, img_id: int) -> torch.Tensor:
    """Boxes (120, 4) for Fast R-CNN: the ground truth moved about, and others."""
    height, width = image.shape[:2]
    random = np.random.RandomState(200 + img_id)
    near = ground_truth(image, img_id)[0].numpy().repeat(10, axis=0) + random.normal(0, 4, (60, 4))
    size = np.array([width, height, width, height])
    far = np.concatenate([random.uniform(0, 0.5, (60, 2)), random.uniform(0.5, 1, (60, 2))], axis=1) * size
    boxes = np.concatenate([near, far]).clip(0, size)
    return torch.from_numpy(boxes[(boxes[:, 2:] - boxes[:, :2] > 2).all(1)]).float()


def run(model: torch.nn.Module, images: list[np.ndarray], mode: str, sample_type: type, masks_type: type):
    """What the model gives in `mode` for a loader's batch; DetDataSample and BitmapMasks are the side's own."""
    samples = []
    for img_id, image in enumerate(images):
        boxes, labels, masks = ground_truth(image, img_id)
        sample = sample_type(metainfo=metainfo(image, img_id))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=masks_type(masks, *image.shape[:2]))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        if type(model).__name__ == 'FastRCNN':  # others of mmdetection's would take them as well
            sample.proposals = InstanceData(bboxes=proposals(image, img_id))
        samples.append(sample)
    inputs = [torch.from_numpy(p).permute(2, 0, 1).contiguous() for p in images]
    return model(**model.data_preprocessor(dict(inputs=inputs, data_samples=samples), mode == 'loss'), mode=mode)
