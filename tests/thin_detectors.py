"""Detectors small enough to train in a test, and three steps of training."""

import contextlib
from pathlib import Path

import torch
from mmengine.config import Config

from mmdet.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
KINDS = ['mask_rcnn', 'faster_rcnn', 'cascade_mask_rcnn', 'retinanet', 'rpn']


def build(kind: str, norm_cfg: dict | None = None):
    """A ResNet-18 detector with narrow heads that finds something untrained; by default with CBN or GN in the neck."""
    cfg = Config.fromfile(CONFIGS / f'_base_/models/{kind}_r50_fpn.py', lazy_import=False).model
    default = dict(type='CBN', buffer_num=2) if kind == 'mask_rcnn' else dict(type='GN', num_groups=8)
    cfg.backbone.update(depth=18, init_cfg=None)
    cfg.neck.update(in_channels=[64, 128, 256, 512], out_channels=64, norm_cfg=norm_cfg or default)

    def narrow(part):
        for key in ('in_channels', 'feat_channels', 'out_channels', 'conv_out_channels'):
            if part.get(key) == 256:
                part[key] = 64
        if part.get('fc_out_channels'):
            part['fc_out_channels'] = 128
        for value in part.values():
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, dict):
                    narrow(inner)

    narrow(cfg)
    if 'rcnn' in cfg.train_cfg:
        cfg.train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=100)
        for stage in cfg.train_cfg.rcnn if isinstance(cfg.train_cfg.rcnn, list) else [cfg.train_cfg.rcnn]:
            stage.sampler.num = 32
    test_cfg = cfg.test_cfg.get('rcnn', cfg.test_cfg)
    if kind != 'rpn':
        test_cfg.update(score_thr=0.0, max_per_img=5)
    torch.manual_seed(0)
    return MODELS.build(cfg.to_dict())


def run(model, data, dtype: torch.dtype | None = None, scale: float = 1.0) -> tuple[dict, list, list]:
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
