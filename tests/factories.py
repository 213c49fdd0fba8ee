"""Small models and made-up data for tests: one place that knows how to shrink a recipe.

N images, G objects of an image; boxes are xyxy in pixels.
"""

import contextlib
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torch import nn

from mmdet.config.load import load_config
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.masks import BitmapMasks
from projects.demo.shapes import write_shapes

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
# Models that tests train on emulated devices.
KINDS = ['mask_rcnn', 'faster_rcnn', 'cascade_mask_rcnn', 'retinanet', 'rpn']
# ResNet-18 in the place of ResNet-50, as options of a config file.
RESNET18 = {
    'model.backbone.depth': 18, 'model.backbone.init_cfg': None, 'model.neck.in_channels': [64, 128, 256, 512],
}  # fmt: skip


def command_line(options: dict) -> list[str]:
    """Options of a config as ``--cfg-options`` takes them."""
    return [f'{key}={",".join(map(str, v)) if isinstance(v, (list, tuple)) else v}' for key, v in options.items()]


def model_cfg(name: str) -> ConfigDict:
    """The model of configs/_base_/models/NAME_r50_fpn.py, from random weights."""
    cfg = Config.fromfile(CONFIGS / '_base_' / 'models' / f'{name}_r50_fpn.py', lazy_import=False).model
    cfg.backbone.init_cfg = None
    return cfg


def small_cfg(
    name: str,
    depth: int = 18,
    width: int = 64,
    channels: int = 32,
    hidden: int = 64,
    num_classes: int | None = 3,
    samples: int = 64,
) -> ConfigDict:
    """`model_cfg` with fewer channels.

    Args:
        depth, width: of the ResNet, and channels of its first stage.
        channels: of the neck and the heads' convolutions, in the place of 256.
        hidden: of the heads' linear layers, in the place of 1024.
        num_classes: None keeps the recipe's 80.
        samples: RoIs that are trained on, of each image.
    """
    cfg = model_cfg(name)
    cfg.backbone.update(depth=depth, base_channels=width)
    _shrink(cfg, channels, hidden, num_classes)
    expansion = 4 if depth >= 50 else 1
    cfg.neck.in_channels = [width * expansion * 2**stage for stage in range(4)]
    rcnn = cfg.train_cfg.get('rcnn', [])
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.num = samples
    return cfg


def _shrink(part: dict, channels: int, hidden: int, num_classes: int | None) -> None:
    for key in ('in_channels', 'feat_channels', 'out_channels', 'conv_out_channels'):
        if part.get(key) == 256:
            part[key] = channels
    if 'fc_out_channels' in part:
        part['fc_out_channels'] = hidden
    if 'num_classes' in part and num_classes is not None:
        part['num_classes'] = num_classes
    for value in part.values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                _shrink(inner, channels, hidden, num_classes)


def two_stage_cfg(kind: str = 'mask', norm_cfg: dict | None = None) -> ConfigDict:
    """A Faster ('faster') or Mask R-CNN ('mask') with `norm_cfg` where configs/cbn has it: neck and 4conv1fc heads."""
    cfg = small_cfg(f'{kind}_rcnn', channels=64, hidden=128)
    cfg.neck.norm_cfg = norm_cfg
    cfg.roi_head.bbox_head.update(type='Shared4Conv1FCBBoxHead', conv_out_channels=64, norm_cfg=norm_cfg)
    if kind == 'mask':
        cfg.roi_head.mask_head.norm_cfg = norm_cfg
    return cfg


def build(cfg: dict, seed: int = 0) -> nn.Module:
    """A model of this config, its random weights by `seed`."""
    torch.manual_seed(seed)
    return MODELS.build(cfg)


def quick_detector(kind: str, norm_cfg: dict | None = None) -> nn.Module:
    """One of `KINDS` that finds something untrained; by default with CBN or GN in the neck."""
    cfg = small_cfg(kind, channels=64, hidden=128, num_classes=None, samples=32)
    default = dict(type='CBN', buffer_num=2) if kind == 'mask_rcnn' else dict(type='GN', num_groups=8)
    cfg.neck.norm_cfg = norm_cfg or default
    if 'rpn_proposal' in cfg.train_cfg:
        cfg.train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=100)
    if kind != 'rpn':
        cfg.test_cfg.get('rcnn', cfg.test_cfg).update(score_thr=0.0, max_per_img=5)
    return build(cfg.to_dict())


def tiny_detector(kind: str) -> nn.Module:
    """One of `KINDS` with CBN in the neck, for a forward pass in a blink."""
    cfg = small_cfg(kind, width=16, channels=16, hidden=32, samples=16)
    cfg.neck.norm_cfg = dict(type='CBN', buffer_num=2)
    if 'rpn_proposal' in cfg.train_cfg:
        cfg.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    return build(cfg.to_dict())


def batch(counts: list[int], height: int = 96, width: int = 128, ignored: int = 0, seed: int = 0) -> dict:
    """What a data loader gives: noise, with that many objects (and `ignored` ones) of three classes in each image."""
    generator = torch.Generator().manual_seed(seed)
    samples, images = [], []
    for index, count in enumerate(counts):
        boxes = torch.rand(count + ignored, 4, generator=generator) * 50
        boxes[:, 2:] += boxes[:, :2] + 20
        boxes[:, 0::2].clamp_(max=width)
        boxes[:, 1::2].clamp_(max=height)
        masks = np.zeros((count, height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes[:count].int().tolist()):
            mask[y1:y2, x1:x2] = 1
        size = (height, width)
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=index))
        labels = torch.randint(0, 3, (count + ignored,), generator=generator)
        sample.gt_instances = InstanceData(
            bboxes=boxes[:count], labels=labels[:count], masks=BitmapMasks(masks, height, width)
        )
        sample.ignored_instances = InstanceData(bboxes=boxes[count:], labels=labels[count:])
        samples.append(sample)
        images.append(torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8))
    return dict(inputs=images, data_samples=samples)


def train_and_predict(
    model: nn.Module, data: dict, dtype: torch.dtype | None = None, scale: float = 1.0
) -> tuple[dict, list, list]:
    """Three steps of SGD: the last one's losses, the weights, and what is found afterwards.

    With a `dtype` under autocast, the loss times `scale` as half precision wants it.
    """
    optimizer, device = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), next(model.parameters()).device.type
    for seed in range(3):
        torch.manual_seed(seed)
        with contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype):
            losses = model.train()(**model.data_preprocessor(data, True), mode='loss')
            loss, log = model.parse_losses(losses)
        optimizer.zero_grad()
        (loss * scale).backward()
        for p in model.parameters():
            if p.grad is not None:
                p.grad /= scale
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
    with torch.no_grad():
        samples = model.eval()(**model.data_preprocessor(data, False), mode='predict')
    return log, [p.detach() for p in model.parameters()], [sample.pred_instances for sample in samples]


def write_detector(folder: Path) -> None:
    """Write config.py, weights.pth of an untrained thin Mask R-CNN, and shapes/ of four classes (96 x 96 pixels)."""
    write_shapes(folder / 'shapes', train=4, val=2, size=96)
    cfg = load_config(CONFIGS / 'demo' / 'mask_rcnn_r18_fpn_cbn_shapes.py')
    cfg.model = small_cfg('mask_rcnn', width=16, num_classes=4, samples=16)
    cfg.model.neck.norm_cfg = dict(type='CBN', buffer_num=2)
    cfg.model.test_cfg.rpn.update(max_per_img=20)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.custom_hooks = []
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        next(step for step in loader.dataset.pipeline if step['type'] == 'Resize').scale = (96, 96)
    for key in ('data_root', 'train_pipeline', 'test_pipeline'):
        cfg.pop(key, None)
    (folder / 'config.py').write_text(cfg.pretty_text.replace('data/shapes', 'shapes'))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model.to_dict())
    nn.init.constant_(model.roi_head.mask_head.conv_logits.bias, 9.0)  # masks that fill their boxes
    meta = dict(dataset_meta=dict(classes=('circle', 'square', 'triangle', 'star')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'weights.pth')
