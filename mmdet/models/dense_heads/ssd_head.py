"""SSD's head: classes and boxes at every position of every level.

N images, L levels of H_l x W_l positions, A_l anchors per position of level l, M = sum over levels of
H_l * W_l * A_l anchors of an image, C classes (C itself is the background), P positive anchors of an image, G
ground-truth boxes; boxes are xyxy in pixels of the padded input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.config.overrides import refuse_overrides
from mmdet.layers import init_conv
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
from mmdet.models.settings import check_channels, check_keys
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import Target


@MODELS.register_module()
@refuse_overrides('extend/head.md', **ELSEWHERE)
class SSDHead(BaseModule):
    """One convolution of each level for class scores and one for box deltas (arXiv 1512.02325).

    Args:
        in_channels: of each level.
        reg_decoded_bbox: the loss compares boxes in pixels instead of deltas.
        train_cfg: dict(assigner[, sampler=dict(type='PseudoSampler'), allowed_border, pos_weight, neg_pos_ratio=3,
            smoothl1_beta=1.0]): of an image's negatives the `neg_pos_ratio` times as many as its positives train whose
            loss is largest.
        test_cfg: dict(score_thr, nms, max_per_img[, nms_pre, min_bbox_size]).
    """

    compiles = dict(outputs='images')

    @classmethod
    def needs(cls, cfg: dict) -> dict[str, tuple[str, ...]]:
        """Keys of train_cfg and test_cfg that have no default."""
        return dict(train_cfg=('assigner',), test_cfg=('score_thr', 'nms', 'max_per_img'))

    def __init__(
        self,
        num_classes: int = 80,
        in_channels: tuple[int, ...] = (512, 1024, 512, 256, 256, 256),
        anchor_generator: dict = dict(
            type='SSDAnchorGenerator',
            input_size=300,
            basesize_ratio_range=(0.15, 0.9),
            strides=[8, 16, 32, 64, 100, 300],
            ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        ),
        bbox_coder: dict = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
        reg_decoded_bbox: bool = False,
        init_cfg: dict | list[dict] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        check_keys('train_cfg', train_cfg, (*TRAIN_KEYS, 'neg_pos_ratio', 'smoothl1_beta'))
        check_keys('test_cfg', test_cfg, (*TEST_KEYS, 'score_thr'))
        self.train_cfg = train_cfg or {}
        self.test_cfg = test_cfg
        self.num_classes = num_classes
        self.in_channels = list(in_channels)
        self.reg_decoded_bbox = reg_decoded_bbox
        self.anchor_generator = TASK_UTILS.build(anchor_generator)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        if train_cfg is not None:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            self.sampler = TASK_UTILS.build(train_cfg.get('sampler', dict(type='PseudoSampler')))
        look_at_parts(self)
        counts = self.anchor_generator.num_base_priors
        self.cls_convs = _output_convs(self.in_channels, [count * (num_classes + 1) for count in counts])
        self.reg_convs = _output_convs(self.in_channels, [count * 4 for count in counts])

    def outputs(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Logits (N, M, C + 1) and deltas (N, M, 4)."""
        logits = _flatten([conv(x) for conv, x in zip(self.cls_convs, features)], self.num_classes + 1)
        return logits, _flatten([conv(x) for conv, x in zip(self.reg_convs, features)], 4)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits (N, M, C + 1), deltas (N, M, 4) and the anchors of each level."""
        check_channels(self, features, self.in_channels)
        logits, deltas = self.outputs(features)
        anchors = self.anchor_generator.grid_priors([x.shape[-2:] for x in features], device=features[0].device)
        return logits, deltas, anchors

    def loss(self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], targets: list[Target]) -> dict:
        """Both losses, divided by the number of positive anchors of the batch.

        Args: logits (N, M, C + 1), deltas (N, M, 4) and the anchors of each level, as `forward` gives them.
        """
        anchors = torch.cat(anchors)
        sampled = [self.sample(anchors, target) for target in targets]
        gt_labels = torch.cat([target.labels[index] for (_, _, index), target in zip(sampled, targets)])
        gt_boxes = torch.cat([target.boxes[index] for (_, _, index), target in zip(sampled, targets)])
        positive = batch_rows([rows for rows, _, _ in sampled], len(anchors))
        boxes, deltas = anchors[positive % len(anchors)], deltas.flatten(0, 1).index_select(0, positive)
        pred, box_targets = self.bbox_coder.compared(boxes, deltas, gt_boxes, self.reg_decoded_bbox)
        loss_bbox = F.smooth_l1_loss(pred, box_targets, reduction='sum', beta=self.train_cfg.get('smoothl1_beta', 1.0))
        count = max(len(positive), 1)
        return dict(loss_cls=self._class_losses(logits, sampled, gt_labels) / count, loss_bbox=loss_bbox / count)

    def _class_losses(self, logits: Tensor, sampled: list[tuple[Tensor, Tensor, Tensor]], gt_labels: Tensor) -> Tensor:
        """Sum of the cross entropy of the positives, with labels (sum of P,), and of each image's hard negatives."""
        weight = self.train_cfg.get('pos_weight', -1)
        total = logits.sum() * 0  # connected, also where nothing is trained
        for image, (positive, negative, _), labels in zip(
            logits, sampled, gt_labels.split([len(rows) for rows, _, _ in sampled])
        ):
            losses = F.cross_entropy(
                image[negative].float(), labels.new_full((len(negative),), self.num_classes), reduction='none'
            )
            hard = losses.topk(min(int(self.train_cfg.get('neg_pos_ratio', 3) * len(positive)), len(negative)))
            of_objects = F.cross_entropy(image[positive].float(), labels, reduction='sum')
            total = total + hard.values.sum() + (of_objects * weight if weight > 0 else of_objects)
        return total

    @torch.no_grad()
    def sample(self, anchors: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the positive and negative anchors, and the ground truth of each positive."""
        return sample_anchors(anchors, target, self.assigner, self.sampler, self.train_cfg.get('allowed_border'))

    @torch.no_grad()
    def predict(self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], metas: list[dict]) -> list[Detections]:
        """Detections of each image in its original pixels."""
        sizes = [level.shape[0] for level in anchors]
        anchors, cfg = torch.cat(anchors), self.test_cfg
        detections = []
        for image_scores, image_deltas, meta in zip(logits.float().softmax(-1)[..., :-1], deltas, metas):
            scores, anchor, labels = best_pairs(image_scores, cfg['score_thr'], sizes, cfg.get('nms_pre', -1))
            candidates = anchors[anchor], image_deltas[anchor], scores, labels
            detections.append(detections_of(self.bbox_coder, *candidates, meta, cfg))
        return detections


def _flatten(maps: list[Tensor], values: int) -> Tensor:
    """`flatten_levels` of levels with different numbers of anchors."""
    return torch.cat([flatten_levels([x], values) for x in maps], dim=1)


def _output_convs(in_channels: list[int], out_channels: list[int]) -> nn.ModuleList:
    """One 3x3 convolution of each level, in a row of its own as mmdetection names it."""
    convs = nn.ModuleList(
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1)) for before, after in zip(in_channels, out_channels)
    )
    for conv in convs.modules():
        init_conv(conv, nn.init.xavier_uniform_)
    return convs
