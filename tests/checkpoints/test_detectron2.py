"""Files with detectron2's and caffe2's names: what they are turned into, and what the models then detect."""

import pickle

import cv2
import known_keys as known
import numpy as np
import pytest
import torch
from detectron2_reference import detect
from mmengine.config import Config
from pycocotools import mask as coco_mask

from mmdet.apis import inference_detector, init_detector
from mmdet.checkpoints import (
    Checkpoint,
    backbone_weights,
    convert,
    load_checkpoint,
    read_checkpoint,
)
from mmdet.config.errors import UserError
from mmdet.registry import MODELS

CLASSES = 5
SCALE = (200, 120)
# name of the config in configs/detectron2: keys
MODEL_KEYS = {
    'faster_rcnn_r50_fpn': known.detectron2_rcnn(),
    'mask_rcnn_r50_fpn': known.detectron2_rcnn(mask=True),
    'cascade_mask_rcnn_r50_fpn': known.detectron2_rcnn(mask=True, stages=3),
    'retinanet_r50_fpn': known.detectron2_retinanet(),
}
# Gain of a layer over a He initialisation that lets detections be many, varied and of all levels.
GAINS = {
    'objectness_logits': 0.3, 'anchor_deltas': 0.03, 'roi_heads.cls_score': 0.25, 'roi_heads.bbox_pred': 0.06,
    'head.cls_score': 0.3, 'head.bbox_pred': 0.04, 'predictor': 0.2, 'p6': 10.0, 'p7': 20.0,
}  # fmt: skip


def pickled(path, content: dict) -> str:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return str(path)


def shape_of(key: str) -> tuple[int, ...]:
    """Shape of a weight of a thin model: 8 channels in the stem, 16 in the FPN and heads, 32 hidden units."""
    part, layer = key.removesuffix('.norm').split('.')[-3:-1], key.split('.')[-2]
    if layer == 'norm':
        return shape_of(key.rpartition('.norm')[0] + '.weight')[:1]
    if key.startswith('backbone.bottom_up.stem'):
        return 8, 3, 7, 7
    if key.startswith('backbone.bottom_up.'):
        stage, block = int(key.split('.')[2][3]), int(part[0])
        width, out = 8 * 2 ** (stage - 2), 32 * 2 ** (stage - 2)
        before = out if block else (8 if stage == 2 else out // 2)
        return {
            'shortcut': (out, before, 1, 1), 'conv1': (width, before, 1, 1), 'conv2': (width, width, 3, 3),
            'conv3': (out, width, 1, 1),
        }[layer]  # fmt: skip
    if 'fpn_lateral' in layer:
        return 16, 8 * 2 ** int(layer[-1]), 1, 1
    dense, agnostic = key.startswith('head.'), 'box_predictor.' in key and layer in key.split('.')[3:4]
    return {
        'p6': (16, 256, 3, 3), 'objectness_logits': (3, 16, 1, 1), 'anchor_deltas': (12, 16, 1, 1),
        'fc1': (32, 16 * 49), 'fc2': (32, 32), 'deconv': (16, 16, 2, 2), 'predictor': (CLASSES, 16, 1, 1),
        'cls_score': (9 * CLASSES, 16, 3, 3) if dense else (CLASSES + 1, 32),
        'bbox_pred': (36, 16, 3, 3) if dense else (4 if agnostic else 4 * CLASSES, 32),
    }.get(layer, (16, 16, 3, 3))  # fmt: skip


def random_file(keys: list[str]) -> dict[str, np.ndarray]:
    """float32 arrays for the keys of a thin model; what is no weight gets zeros."""
    random = np.random.RandomState(0)
    state = {}
    for key in keys:
        layer, name = key.split('.')[-2:] if '.' in key else ('', key)
        if 'cell_anchors' in key or key.startswith('pixel'):
            array = np.zeros(3)
        elif name == 'running_var':
            array = random.uniform(0.5, 1.5, shape_of(key))
        elif name in ('running_mean', 'bias'):
            array = random.normal(0, 0.1, shape_of(key.replace(name, 'weight'))[:1])
            if key == 'head.cls_score.bias':
                array -= 3
            elif 'deconv' in key:
                array = random.normal(0, 0.1, 16)
        elif layer == 'norm':
            quiet = 'conv3' in key or 'shortcut' in key
            array = random.uniform(0.5, 1.5, shape_of(key)) * (0.5 if quiet else 1)
        else:
            shape = shape_of(key)
            gain = GAINS.get(layer) or GAINS.get(f'{key.split(".")[0]}.{layer}')
            array = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
            if 'stem' in key:
                array /= 57
            elif gain:  # without what all inputs have in common, lest one class wins everywhere
                array = gain * (array - array.mean(1, keepdims=True))
        state[key] = array.astype(np.float32)
    return state


def thin(name: str) -> Config:
    cfg = Config.fromfile(f'configs/detectron2/{name}.py', lazy_import=False)
    model = cfg.model
    model.backbone.base_channels = 8
    model.neck.update(in_channels=[32, 64, 128, 256], out_channels=16)
    if 'rpn_head' in model:
        model.rpn_head.update(in_channels=16, feat_channels=16)
        heads = model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.update(in_channels=16, fc_out_channels=32, num_classes=CLASSES)
        if 'mask_head' in model.roi_head:
            model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=CLASSES)
    else:
        model.bbox_head.update(in_channels=16, feat_channels=16, num_classes=CLASSES)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = SCALE
    return cfg


@pytest.mark.parametrize('name', MODEL_KEYS)
def test_same_detections(name, real_data, tmp_path):
    """A pickle as the model zoo's, on a photograph, against tests/checkpoints/detectron2_reference.py."""
    image = cv2.imread(str(sorted((real_data / 'photos').glob('*.jpg'))[0]))
    image = cv2.resize(image, (231, 157), interpolation=cv2.INTER_AREA)
    state = random_file(MODEL_KEYS[name])
    path = pickled(tmp_path / 'model_final.pkl', dict(model=state, __author__='Detectron2 Model Zoo'))
    model = init_detector(thin(name), path, device='cpu').double()
    found = inference_detector(model, image).pred_instances
    double = {key: torch.from_numpy(value).double() for key, value in state.items()}
    dense = 'retinanet' in name
    boxes, scores, labels, masks = detect(double, image, SCALE, clip_first=dense)

    assert 20 < len(boxes) == len(found) and len(set(labels)) >= 3
    order = nearest(found, boxes, labels)
    assert sorted(order) == list(range(len(found)))
    pixels = np.abs(found.bboxes.numpy()[order] - boxes).max()
    score = np.abs(found.scores.numpy()[order] - scores).max()
    print(f'{name}: {len(boxes)} detections, boxes to {pixels:.0e} px, scores to {score:.0e}')
    assert pixels < 1e-3 and score < 1e-4
    if masks is not None:
        drawn = coco_mask.decode([found.masks[i] for i in order]).transpose(2, 0, 1).astype(bool)
        differing = (drawn != np.array(masks)).sum()
        print(f'masks: {differing} of {np.sum(masks)} pixels differ')
        assert differing <= 1e-3 * np.sum(masks) > 0
    if dense:  # detectron2 clips after NMS, which touches what lies across the border
        boxes, _, labels, _ = detect(double, image, SCALE)
        apart = np.abs(found.bboxes.numpy()[nearest(found, boxes, labels)] - boxes).max(1)
        print(f'clipped after NMS: {(apart < 1e-3).sum()} of {len(boxes)} boxes are the same')
        assert (apart < 1e-3).mean() > 0.8


def nearest(found, boxes: np.ndarray, labels: np.ndarray) -> list[int]:
    """For each box the row of the nearest detection of its class."""
    apart = np.abs(found.bboxes.numpy()[None] - boxes[:, None]).max(-1)
    return np.where(found.labels.numpy()[None] == labels[:, None], apart, np.inf).argmin(1).tolist()


def test_old_files_hold_what_is_no_weight(tmp_path):
    for keys, name in (
        (known.detectron2_rcnn(old=True), 'faster_rcnn_r50_fpn'),
        (known.detectron2_retinanet(old=True), 'retinanet_r50_fpn'),
    ):
        path = pickled(tmp_path / 'model_final.pkl', dict(model=random_file(keys)))
        converted = convert(read_checkpoint(path))
        assert converted.source == 'detectron2' and len(converted.dropped) == 7
        load_checkpoint(MODELS.build(thin(name).model), path)


def test_group_norm_everywhere():
    keys = known.detectron2_rcnn(mask=True, norm='gn')
    state = convert({key: torch.zeros(1) for key in keys}).state_dict
    expected = known.mmdet_backbone(norm='gn') + known.mmdet_fpn(norm='gn') + known.mmdet_rpn()
    expected += known.mmdet_box_head(convs=4, fcs=1, norm='gn') + known.mmdet_mask_head(norm='gn')
    assert sorted(state) == sorted(expected)


@pytest.mark.parametrize('norm', known.CAFFE2_NORMS)
def test_caffe2_backbone(norm, tmp_path):
    pairs = known.caffe2_backbone(norm)
    blobs = {old: np.full(2, i, np.float32) for i, (old, _) in enumerate(pairs)}
    extra = dict(fc1000_w=np.ones((2, 2)), fc1000_b=np.ones(2), conv1_b=np.zeros(2), conv1_w_momentum=np.zeros(2))
    path = pickled(tmp_path / 'R-50.pkl', dict(blobs={**blobs, **extra}))
    checkpoint = read_checkpoint(path)
    converted = convert(checkpoint)
    assert converted.source == 'caffe2 backbone' and converted.dropped.keys() == extra.keys()
    wanted = known.mmdet_backbone(norm='gn' if norm == 'gn' else 'bn')
    assert sorted(converted.state_dict) == sorted(k for k in wanted if not k.endswith('num_batches_tracked'))
    state = backbone_weights(checkpoint)
    assert all(state[new][0] == i for i, (_, new) in enumerate(pairs))


def test_caffe2_affine_norm_is_a_batch_norm():
    """Its statistics were folded into scale and shift."""
    blobs = dict(conv1_w=torch.zeros(1), res_conv1_bn_s=torch.rand(64), res_conv1_bn_b=torch.rand(64))
    norm = torch.nn.BatchNorm2d(64).eval()
    state = {k: v for k, v in backbone_weights(Checkpoint(blobs, 'R-50.pkl')).items() if k.startswith('bn1.')}
    norm.load_state_dict({key.removeprefix('bn1.'): value for key, value in state.items()})
    x = torch.randn(1, 64, 2, 2)
    expected = x * blobs['res_conv1_bn_s'][:, None, None] + blobs['res_conv1_bn_b'][:, None, None]
    torch.testing.assert_close(norm(x), expected)


def test_what_has_no_counterpart_is_refused_in_one_line(tmp_path):
    c4 = {'backbone.stem.conv1.weight': torch.zeros(1), 'roi_heads.res5.0.conv1.weight': torch.zeros(1)}
    keypoints = {key: torch.zeros(1) for key in known.detectron2_rcnn()}
    keypoints['roi_heads.keypoint_head.conv_fcn1.weight'] = torch.zeros(1)
    for state, message in ((c4, 'without FPN'), (keypoints, 'no counterpart.*keypoint_head')):
        with pytest.raises(UserError, match=message):
            convert(state)
    detectron = dict(conv1_w=np.zeros(1, np.float32), fpn_inner_res5_2_sum_w=np.zeros(1, np.float32))
    path = pickled(tmp_path / 'model_final.pkl', dict(blobs=detectron))
    with pytest.raises(UserError, match='backbone alone .backbone of a Caffe2 detector'):
        load_checkpoint(MODELS.build(thin('faster_rcnn_r50_fpn').model), path)
