"""Region proposal network.

N images, L levels, A anchors per position, M = sum over levels of H_l * W_l * A anchors of a picture, G ground-truth
boxes; boxes are xyxy in pixels of the padded input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.layers import ConvModule
from mmdet.models.dense import TEST_KEYS, TRAIN_KEYS, flatten_levels, sample_anchors, weight_positives
from mmdet.models.options import apply_init_cfg, check_keys, only
from mmdet.ops import apply_nms
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import Target


@MODELS.register_module()
class RPNHead(nn.Module):
    """Objectness and box deltas for every anchor (Faster R-CNN, section 3.1).

    Args:
        num_convs: 3x3 convolutions before the two 1x1 outputs.
        reg_decoded_bbox: `loss_bbox` compares boxes in pixels (IoU losses) instead of deltas.
        train_cfg: dict(assigner, sampler[, allowed_border, pos_weight]); see `trained_anchors`.
        test_cfg: dict(nms_pre, nms, max_per_img, min_bbox_size), used for the proposals in training too unless
            the detector's train_cfg has rpn_proposal.
    """

    def __init__(
        self,
        in_channels: int,
        feat_channels: int = 256,
        num_convs: int = 1,
        anchor_generator: dict = dict(  # noqa: B006 - read only
            type='AnchorGenerator', scales=[8, 16, 32], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder: dict = dict(type='DeltaXYWHBBoxCoder'),  # noqa: B006
        loss_cls: dict = dict(type='CrossEntropyLoss', use_sigmoid=True),  # noqa: B006
        loss_bbox: dict = dict(type='SmoothL1Loss', beta=1 / 9),  # noqa: B006
        reg_decoded_bbox: bool = False,
        num_classes: int = 1,
        init_cfg: dict | list[dict] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
    ):
        super().__init__()
        only('RPNHead', num_classes=(num_classes, 1), use_sigmoid=(loss_cls.get('use_sigmoid', False), True))
        check_keys('train_cfg.rpn', train_cfg, TRAIN_KEYS)
        check_keys('test_cfg.rpn', test_cfg, TEST_KEYS)
        self.reg_decoded_bbox = reg_decoded_bbox
        self.train_cfg = train_cfg or {}
        self.anchor_generator = TASK_UTILS.build(anchor_generator)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.test_cfg = test_cfg
        if train_cfg is not None:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            self.sampler = TASK_UTILS.build(train_cfg.get('sampler') or dict(type='PseudoSampler'))
        if num_convs == 1:
            self.rpn_conv = nn.Conv2d(in_channels, feat_channels, 3, padding=1)
        else:
            self.rpn_conv = nn.Sequential(
                *(
                    ConvModule(in_channels if i == 0 else feat_channels, feat_channels, 3, padding=1)
                    for i in range(num_convs)
                )
            )
        num_anchors = self.anchor_generator.num_base_anchors
        self.rpn_cls = nn.Conv2d(feat_channels, num_anchors, 1)
        self.rpn_reg = nn.Conv2d(feat_channels, num_anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        apply_init_cfg(self, init_cfg)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits (N, M), deltas (N, M, 4) and the anchors of each level."""
        hidden = [F.relu(self.rpn_conv(x)) for x in features]
        logits = flatten_levels([self.rpn_cls(x) for x in hidden], 1).squeeze(-1)
        deltas = flatten_levels([self.rpn_reg(x) for x in hidden], 4)
        anchors = self.anchor_generator([x.shape[-2:] for x in features], features[0].device)
        return logits, deltas, anchors

    def loss(self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], targets: list[Target]) -> dict:
        """Both losses, averaged over all sampled anchors of the batch."""
        anchors = torch.cat(anchors)
        sampled = [self.sample(anchors, target) for target in targets]
        num_sampled = sum(len(positive) + len(negative) for positive, negative, _ in sampled)
        sampled_logits, labels, preds, box_targets = [], [], [], []
        for i, (positive, negative, matched_boxes) in enumerate(sampled):
            index = torch.cat([positive, negative])
            sampled_logits.append(logits[i, index])
            labels.append((torch.arange(len(index), device=index.device) < len(positive)).to(logits.dtype))
            if self.reg_decoded_bbox:
                preds.append(self.bbox_coder.decode(anchors[positive], deltas[i, positive].float()))
                box_targets.append(matched_boxes)
            else:
                preds.append(deltas[i, positive])
                box_targets.append(self.bbox_coder.encode(anchors[positive], matched_boxes))
        labels = torch.cat(labels)[:, None]
        weight = weight_positives(labels > 0, self.train_cfg.get('pos_weight', -1))
        return dict(
            loss_rpn_cls=self.loss_cls(torch.cat(sampled_logits)[:, None], labels, weight, avg_factor=num_sampled),
            loss_rpn_bbox=self.loss_bbox(torch.cat(preds), torch.cat(box_targets), avg_factor=num_sampled),
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
        """Proposals (P, 4) and their scores (P,) of each picture, best first, P <= max_per_img."""
        cfg = cfg or self.test_cfg
        sizes = [len(a) for a in anchors]
        # Take the nms_pre best of each level for the whole batch at once.
        kept_logits, kept_deltas, kept_anchors, levels = [], [], [], []
        for level, (level_logits, level_deltas) in enumerate(zip(logits.split(sizes, 1), deltas.split(sizes, 1))):
            if 0 < cfg['nms_pre'] < sizes[level]:
                level_logits, top = level_logits.topk(cfg['nms_pre'], dim=1)
                level_deltas = level_deltas.gather(1, top[..., None].expand(-1, -1, 4))
                level_anchors = anchors[level][top]
            else:
                level_anchors = anchors[level].expand(len(logits), -1, -1)
            kept_logits.append(level_logits)
            kept_deltas.append(level_deltas)
            kept_anchors.append(level_anchors)
            levels.append(torch.full_like(level_logits[0], level, dtype=torch.int64))
        scores = torch.cat(kept_logits, 1).float().sigmoid()
        deltas = torch.cat(kept_deltas, 1).float()
        anchors = torch.cat(kept_anchors, 1)
        levels = torch.cat(levels)
        min_size = cfg.get('min_bbox_size', 0)
        proposals = []
        for i, shape in enumerate(image_shapes):
            boxes = self.bbox_coder.decode(anchors[i], deltas[i], shape)
            # Boxes clipped to nothing are dropped; a diverged (NaN) delta is, too.
            valid = ((boxes[:, 2:] - boxes[:, :2] + self.bbox_coder.offset) > min_size).all(dim=1)
            boxes, image_scores, image_levels = boxes[valid], scores[i, valid], levels[valid]
            keep, kept_scores = apply_nms(boxes, image_scores, image_levels, cfg['nms'])
            proposals.append((boxes[keep[: cfg['max_per_img']]], kept_scores[: cfg['max_per_img']]))
        return proposals
