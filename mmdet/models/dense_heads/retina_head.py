"""RetinaNet's head: classes and boxes at every position of every level.

N images, L levels of H_l x W_l positions, A anchors per position, M = sum over levels of H_l * W_l * A anchors of an
image, C classes (C itself is the background), G ground-truth boxes; boxes are xyxy in pixels of the padded input.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.layers import conv_stack, init_conv
from mmdet.models.dense_heads.common import (
    ELSEWHERE,
    TEST_KEYS,
    TRAIN_KEYS,
    batch_rows,
    best_pairs,
    detections_of,
    flatten_levels,
    look_at_parts,
    sample_anchors,
)
from mmdet.models.detections import Detections
from mmdet.models.initialize import BaseModule
from mmdet.models.settings import check_channels, check_keys, weight_positives
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import Target


@MODELS.register_module()
@refuse_overrides('extend/head.md', **ELSEWHERE)
class RetinaHead(BaseModule):
    """Two towers of convolutions, shared by the levels, for class scores and box deltas (arXiv 1708.02002).

    Args:
        stacked_convs: 3x3 convolutions of each tower.
        reg_decoded_bbox: `loss_bbox` compares boxes in pixels (IoU losses) instead of deltas.
        train_cfg: dict(assigner[, sampler=dict(type='PseudoSampler'), allowed_border, pos_weight]), see
            `trained_anchors`.
        test_cfg: dict(score_thr, nms_pre, nms, max_per_img[, min_bbox_size]).
    """

    compiles = dict(outputs='images')

    @classmethod
    def needs(cls, cfg: dict) -> dict[str, tuple[str, ...]]:
        """Keys of train_cfg and test_cfg that have no default."""
        return dict(train_cfg=('assigner',), test_cfg=('score_thr', 'nms', 'max_per_img'))

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        feat_channels: int = 256,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        anchor_generator: dict = dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder: dict = dict(type='DeltaXYWHBBoxCoder'),
        loss_cls: dict = dict(type='FocalLoss'),
        loss_bbox: dict = dict(type='L1Loss'),
        reg_decoded_bbox: bool = False,
        init_cfg: dict | list[dict] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        check_keys('train_cfg', train_cfg, TRAIN_KEYS)
        check_keys('test_cfg', test_cfg, (*TEST_KEYS, 'score_thr'))
        self.train_cfg = train_cfg or {}
        self.num_classes = num_classes
        self.reg_decoded_bbox = reg_decoded_bbox
        self.in_channels = in_channels
        self.anchor_generator = TASK_UTILS.build(anchor_generator)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        if not getattr(self.loss_cls, 'use_sigmoid', True):
            raise UserError(f'RetinaHead: loss_cls={loss_cls} needs use_sigmoid=True, an anchor has a logit a class')
        self.loss_bbox = MODELS.build(loss_bbox)
        self.test_cfg = test_cfg
        if train_cfg is not None:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            self.sampler = TASK_UTILS.build(train_cfg.get('sampler', dict(type='PseudoSampler')))
        look_at_parts(self)

        num_anchors = self.anchor_generator.num_base_anchors
        channels = feat_channels if stacked_convs else in_channels
        tower = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.cls_convs = conv_stack(stacked_convs, in_channels, feat_channels, **tower)
        self.reg_convs = conv_stack(stacked_convs, in_channels, feat_channels, **tower)
        self.retina_cls = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        towers = (block.conv for block in (*self.cls_convs, *self.reg_convs))
        for conv in (*towers, self.retina_cls, self.retina_reg):
            init_conv(conv, partial(nn.init.normal_, std=0.01))
        # Every anchor starts at score 0.01, else the many negatives' loss would drown everything.
        nn.init.constant_(self.retina_cls.bias, -math.log(99))

    def outputs(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Logits (N, M, C) and deltas (N, M, 4)."""
        logits, deltas = [], []
        for x in features:
            cls = reg = x
            for conv in self.cls_convs:
                cls = conv(cls)
            for conv in self.reg_convs:
                reg = conv(reg)
            logits.append(self.retina_cls(cls))
            deltas.append(self.retina_reg(reg))
        return flatten_levels(logits, self.num_classes), flatten_levels(deltas, 4)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits (N, M, C), deltas (N, M, 4) and the anchors of each level."""
        check_channels(self, features, [self.in_channels] * len(features))
        logits, deltas = self.outputs(features)
        anchors = self.anchor_generator.grid_priors([x.shape[-2:] for x in features], device=features[0].device)
        return logits, deltas, anchors

    def loss(self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], targets: list[Target]) -> dict:
        """Both losses, divided by the number of positive anchors of the batch.

        Args: logits (N, M, C), deltas (N, M, 4) and the anchors of each level, as `forward` gives them.
        """
        anchors = torch.cat(anchors)
        sampled = [self.sample(anchors, target) for target in targets]
        positive = batch_rows([rows for rows, _, _ in sampled], len(anchors))
        negative = batch_rows([rows for _, rows, _ in sampled], len(anchors))
        gt_labels = torch.cat([target.labels[index] for (_, _, index), target in zip(sampled, targets)])
        gt_boxes = torch.cat([target.boxes[index] for (_, _, index), target in zip(sampled, targets)])
        # All anchors, with weight 0 for those not sampled: nearly all are, and to pick them out is a copy.
        logits = logits.flatten(0, 1)
        labels = gt_labels.new_full((len(logits),), self.num_classes).index_copy(0, positive, gt_labels)
        is_sampled = logits.new_zeros(len(logits)).index_fill(0, torch.cat([positive, negative]), 1.0)
        weight = weight_positives(labels < self.num_classes, self.train_cfg.get('pos_weight', -1))
        boxes = anchors[positive % len(anchors)]
        deltas = deltas.flatten(0, 1).index_select(0, positive)
        pred, box_targets = self.bbox_coder.compared(boxes, deltas, gt_boxes, self.reg_decoded_bbox)
        weight = is_sampled if weight is None else is_sampled * weight
        return dict(
            loss_cls=self.loss_cls(logits, labels, weight, avg_factor=len(positive)),
            loss_bbox=self.loss_bbox(pred, box_targets, avg_factor=len(positive)),
        )

    @torch.no_grad()
    def sample(self, anchors: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the positive and negative anchors, and the ground truth of each positive."""
        return sample_anchors(anchors, target, self.assigner, self.sampler, self.train_cfg.get('allowed_border'))

    @torch.no_grad()
    def predict(self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], metas: list[dict]) -> list[Detections]:
        """Detections of each image in its original pixels."""
        sizes = [level.shape[0] for level in anchors]
        anchors = torch.cat(anchors)
        return [self._predict_image(*outputs, anchors, sizes, meta) for *outputs, meta in zip(logits, deltas, metas)]

    def _predict_image(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, sizes: list[int], meta: dict
    ) -> Detections:
        """Of one image, from logits (M, C) and deltas (M, 4); `sizes` are the anchors of each level."""
        cfg = self.test_cfg
        threshold = _logit(cfg['score_thr'])  # no need of all scores
        best, anchor, labels = best_pairs(logits, threshold, sizes, cfg.get('nms_pre', -1))
        scores = best.float().sigmoid()
        return detections_of(self.bbox_coder, anchors[anchor], deltas[anchor], scores, labels, meta, cfg)


def _logit(score: float) -> float:
    return math.log(score / (1 - score)) if 0 < score < 1 else math.copysign(math.inf, score - 0.5)
