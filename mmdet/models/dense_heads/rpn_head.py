"""Region proposal network.

N images, L levels of H_l x W_l positions, A anchors per position, M = sum over levels of H_l * W_l * A anchors of an
image, G ground-truth boxes, P proposals; boxes are xyxy in pixels of the padded input.
"""

from functools import partial

import torch
from torch import Tensor, nn

from mmdet.config.contracts import on_first_call
from mmdet.config.overrides import refuse_overrides
from mmdet.layers import conv_norm, conv_stack, init_conv
from mmdet.models import contracts
from mmdet.models.dense_heads.common import (
    ELSEWHERE,
    PROPOSAL_KEYS,
    TRAIN_KEYS,
    batch_rows,
    flatten_levels,
    look_at_parts,
    sample_anchors,
)
from mmdet.models.detections import keep_best, number_kept
from mmdet.models.initialize import BaseModule
from mmdet.models.settings import check_channels, check_keys, weight_positives
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import Target


@MODELS.register_module()
@refuse_overrides('extend/head.md', **ELSEWHERE)
class RPNHead(BaseModule):
    """Objectness and box deltas for every anchor (Faster R-CNN, section 3.1).

    Args:
        num_convs: 3x3 convolutions before the two 1x1 outputs.
        loss_cls: of logits (S, 1) and labels (S,), 0 for an object and 1 for the background, as of any loss that knows
            one class; with ``use_sigmoid=False`` logits (S, 2) of object and background, compared by a softmax.
        reg_decoded_bbox: `loss_bbox` compares boxes in pixels (IoU losses) instead of deltas.
        train_cfg: dict(assigner, sampler[, allowed_border, pos_weight]); see `trained_anchors`.
        test_cfg: dict(nms_pre, nms, max_per_img, min_bbox_size[, nms_across_levels]), used for the proposals in
            training too unless the detector's train_cfg has rpn_proposal. NMS acts on each level by itself, or with
            ``nms_across_levels=True`` on all of them together.
    """

    compiles = dict(outputs='images')

    @classmethod
    def needs(cls, cfg: dict) -> dict[str, tuple[str, ...]]:
        """Keys of train_cfg and test_cfg that have no default."""
        return dict(train_cfg=('assigner',), test_cfg=('nms', 'max_per_img'))

    def __init__(
        self,
        in_channels: int,
        feat_channels: int = 256,
        num_convs: int = 1,
        anchor_generator: dict = dict(
            type='AnchorGenerator', scales=[8, 16, 32], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder: dict = dict(type='DeltaXYWHBBoxCoder'),
        loss_cls: dict = dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox: dict = dict(type='SmoothL1Loss', beta=1 / 9),
        reg_decoded_bbox: bool = False,
        init_cfg: dict | list[dict] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        check_keys('train_cfg.rpn', train_cfg, TRAIN_KEYS)
        check_keys('test_cfg.rpn', test_cfg, PROPOSAL_KEYS)
        self.reg_decoded_bbox = reg_decoded_bbox
        self.train_cfg = train_cfg or {}
        self.in_channels = in_channels
        self.anchor_generator = TASK_UTILS.build(anchor_generator)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.softmax = not getattr(self.loss_cls, 'use_sigmoid', True)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.test_cfg = test_cfg
        if train_cfg is not None:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            self.sampler = TASK_UTILS.build(train_cfg.get('sampler') or dict(type='PseudoSampler'))
        on_first_call(self.loss_cls, 'forward', contracts.object_loss)
        look_at_parts(self)
        if num_convs == 1:
            self.rpn_conv = nn.Conv2d(in_channels, feat_channels, 3, padding=1)
        else:
            self.rpn_conv = nn.Sequential(*conv_stack(num_convs, in_channels, feat_channels))
        num_anchors = self.anchor_generator.num_base_anchors
        self.rpn_cls = nn.Conv2d(feat_channels, num_anchors * (2 if self.softmax else 1), 1)
        self.rpn_reg = nn.Conv2d(feat_channels, num_anchors * 4, 1)
        for module in self.modules():
            init_conv(module, partial(nn.init.normal_, std=0.01))

    def outputs(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Logits (N, M) and deltas (N, M, 4)."""
        if isinstance(self.rpn_conv, nn.Conv2d):
            hidden = [conv_norm(self.rpn_conv, None, x, relu=True) for x in features]
        else:
            hidden = [self.rpn_conv(x) for x in features]  # its blocks end in ReLU
        logits = [self.rpn_cls(x) for x in hidden]
        if self.softmax:  # of two outputs it is the sigmoid of their difference
            objects, background = flatten_levels(logits, 2).unbind(-1)
            logits = objects - background
        else:
            logits = flatten_levels(logits, 1).squeeze(-1)
        return logits, flatten_levels([self.rpn_reg(x) for x in hidden], 4)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits (N, M), deltas (N, M, 4) and the anchors of each level."""
        check_channels(self, features, [self.in_channels] * len(features))
        logits, deltas = self.outputs(features)
        anchors = self.anchor_generator.grid_priors([x.shape[-2:] for x in features], device=features[0].device)
        return logits, deltas, anchors

    def loss(self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], targets: list[Target]) -> dict:
        """Both losses, averaged over all sampled anchors of the batch.

        Args: logits (N, M), deltas (N, M, 4) and the anchors of each level, as `forward` gives them.
        """
        anchors = torch.cat(anchors)
        sampled = [self.sample(anchors, target) for target in targets]
        positive = batch_rows([rows for rows, _, _ in sampled], len(anchors))
        negative = batch_rows([rows for _, rows, _ in sampled], len(anchors))
        matched_boxes = torch.cat([boxes for _, _, boxes in sampled])
        logits = logits.flatten().index_select(0, torch.cat([positive, negative]))[:, None]
        deltas = deltas.flatten(0, 1).index_select(0, positive)
        boxes = anchors[positive % len(anchors)]
        pred, box_targets = self.bbox_coder.compared(boxes, deltas, matched_boxes, self.reg_decoded_bbox)
        labels = (torch.arange(len(logits), device=logits.device) >= len(positive)).long()  # 1: the background
        weight = weight_positives(labels == 0, self.train_cfg.get('pos_weight', -1))
        if self.softmax:  # the background's logit may be 0, where the other is their difference
            logits = torch.cat([logits, torch.zeros_like(logits)], dim=1)
        return dict(
            loss_rpn_cls=self.loss_cls(logits, labels, weight, avg_factor=len(logits)),
            loss_rpn_bbox=self.loss_bbox(pred, box_targets, avg_factor=len(logits)),
        )

    @torch.no_grad()
    def sample(self, anchors: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the positive and negative anchors trained on, and the positives' ground-truth boxes."""
        positive, negative, gt_index = sample_anchors(
            anchors, target, self.assigner, self.sampler, self.train_cfg.get('allowed_border')
        )
        return positive, negative, target.boxes[gt_index]

    @torch.no_grad()
    def predict(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: list[Tensor],
        image_shapes: list[tuple[int, int]],
        cfg: dict | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Proposals (P, 4) and their scores (P,) of each image, best first, P <= max_per_img."""
        cfg = cfg or self.test_cfg
        # The nms_pre best of each level, for the whole batch at once.
        best, levels, start = [], [], 0
        for level, level_anchors in enumerate(anchors):
            end = start + level_anchors.shape[0]
            count = number_kept(cfg.get('nms_pre', -1), end - start)
            best.append(logits[:, start:end].topk(count, dim=1).indices + start)
            levels.append(torch.full((count,), level, device=logits.device))
            start = end
        best, levels = torch.cat(best, dim=1), torch.cat(levels)
        scores = logits.gather(1, best).float().sigmoid()
        deltas = deltas.gather(1, best[..., None].expand(-1, -1, 4)).float()
        boxes = self.bbox_coder.decode(torch.cat(anchors)[best], deltas)
        proposals = []
        for image_boxes, image_scores, shape in zip(boxes, scores, image_shapes):
            image_boxes = self.bbox_coder.clip(image_boxes, shape)
            # Boxes clipped to nothing are dropped; a diverged (NaN) delta is, too.
            valid = (self.bbox_coder.sides(image_boxes) > cfg.get('min_bbox_size', 0)).all(dim=1).nonzero().squeeze(1)
            image_boxes, image_scores = image_boxes[valid], image_scores[valid]
            groups = torch.zeros_like(valid) if cfg.get('nms_across_levels', False) else levels[valid]
            keep, kept_scores = keep_best(image_boxes, image_scores, groups, cfg)
            proposals.append((image_boxes[keep], kept_scores))
        return proposals
