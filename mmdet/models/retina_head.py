"""RetinaNet's head: classes and boxes at every position of every level.

N images, L levels, A anchors per position, M anchors of a picture, C classes (C itself is the background), G
ground-truth boxes; boxes are xyxy in pixels of the padded input.
"""

import math

import torch
from torch import Tensor, nn

from mmdet.layers import ConvModule
from mmdet.models.dense import TEST_KEYS, TRAIN_KEYS, flatten_levels, sample_anchors, weight_positives
from mmdet.models.options import apply_init_cfg, check_keys, only
from mmdet.models.roi_head import Detections
from mmdet.ops import apply_nms
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import Target


@MODELS.register_module()
class RetinaHead(nn.Module):
    """Two towers of convolutions, shared by the levels, for class scores and box deltas (arXiv 1708.02002).

    Args:
        stacked_convs: 3x3 convolutions of each tower.
        reg_decoded_bbox: `loss_bbox` compares boxes in pixels (IoU losses) instead of deltas.
        train_cfg: dict(assigner[, sampler=dict(type='PseudoSampler'), allowed_border, pos_weight]), see
            `trained_anchors`.
        test_cfg: dict(score_thr, nms_pre, nms, max_per_img[, min_bbox_size]).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        feat_channels: int = 256,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        anchor_generator: dict = dict(  # noqa: B006 - read only
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder: dict = dict(type='DeltaXYWHBBoxCoder'),  # noqa: B006
        loss_cls: dict = dict(type='FocalLoss'),  # noqa: B006
        loss_bbox: dict = dict(type='L1Loss'),  # noqa: B006
        reg_decoded_bbox: bool = False,
        init_cfg: dict | list[dict] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
    ):
        super().__init__()
        uses_sigmoid = loss_cls.get('use_sigmoid', loss_cls['type'] == 'FocalLoss')
        only('RetinaHead', use_sigmoid=(uses_sigmoid, True))
        check_keys('train_cfg', train_cfg, TRAIN_KEYS)
        check_keys('test_cfg', test_cfg, (*TEST_KEYS, 'score_thr'))
        self.train_cfg = train_cfg or {}
        self.num_classes = num_classes
        self.reg_decoded_bbox = reg_decoded_bbox
        self.anchor_generator = TASK_UTILS.build(anchor_generator)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.test_cfg = test_cfg
        if train_cfg is not None:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            self.sampler = TASK_UTILS.build(train_cfg.get('sampler', dict(type='PseudoSampler')))

        def tower() -> nn.ModuleList:
            return nn.ModuleList(
                ConvModule(
                    in_channels if i == 0 else feat_channels,
                    feat_channels,
                    3,
                    padding=1,
                    conv_cfg=conv_cfg,
                    norm_cfg=norm_cfg,
                )
                for i in range(stacked_convs)
            )

        num_anchors = self.anchor_generator.num_base_anchors
        channels = feat_channels if stacked_convs else in_channels
        self.cls_convs = tower()
        self.reg_convs = tower()
        self.retina_cls = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Every anchor starts at score 0.01, else the many negatives' loss would drown everything.
        nn.init.constant_(self.retina_cls.bias, -math.log(99))
        apply_init_cfg(self, init_cfg)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits (N, M, C), deltas (N, M, 4) and the anchors of each level."""
        logits, deltas = [], []
        for x in features:
            cls = reg = x
            for conv in self.cls_convs:
                cls = conv(cls)
            for conv in self.reg_convs:
                reg = conv(reg)
            logits.append(self.retina_cls(cls))
            deltas.append(self.retina_reg(reg))
        anchors = self.anchor_generator([x.shape[-2:] for x in features], features[0].device)
        return flatten_levels(logits, self.num_classes), flatten_levels(deltas, 4), anchors

    def loss(self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], targets: list[Target]) -> dict:
        """Both losses, divided by the number of positive anchors of the batch."""
        anchors = torch.cat(anchors)
        sampled = [self.sample(anchors, target) for target in targets]
        num_positive = sum(len(positive) for positive, _, _ in sampled)
        all_logits, labels, preds, box_targets = [], [], [], []
        for i, ((positive, negative, gt_index), target) in enumerate(zip(sampled, targets)):
            index = torch.cat([positive, negative])
            all_logits.append(logits[i, index])
            image_labels = torch.full_like(index, self.num_classes)
            image_labels[: len(positive)] = target.labels[gt_index]
            labels.append(image_labels)
            if self.reg_decoded_bbox:
                preds.append(self.bbox_coder.decode(anchors[positive], deltas[i, positive].float()))
                box_targets.append(target.boxes[gt_index])
            else:
                preds.append(deltas[i, positive])
                box_targets.append(self.bbox_coder.encode(anchors[positive], target.boxes[gt_index]))
        labels = torch.cat(labels)
        weight = weight_positives(labels < self.num_classes, self.train_cfg.get('pos_weight', -1))
        return dict(
            loss_cls=self.loss_cls(torch.cat(all_logits), labels, weight, avg_factor=num_positive),
            loss_bbox=self.loss_bbox(torch.cat(preds), torch.cat(box_targets), avg_factor=num_positive),
        )

    @torch.no_grad()
    def sample(self, anchors: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the positive and negative anchors, and the ground truth of each positive."""
        return sample_anchors(anchors, target, self.assigner, self.sampler, self.train_cfg.get('allowed_border'))

    @torch.no_grad()
    def predict(self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], metas: list[dict]) -> list[Detections]:
        """Detections of each picture in its original pixels."""
        sizes = [len(a) for a in anchors]
        levels = list(zip(logits.split(sizes, 1), deltas.split(sizes, 1), anchors))
        return [
            self._predict_image([(level[0][i], level[1][i], level[2]) for level in levels], meta)
            for i, meta in enumerate(metas)
        ]

    def _predict_image(self, levels: list[tuple[Tensor, Tensor, Tensor]], meta: dict) -> Detections:
        cfg = self.test_cfg
        boxes, scores, labels = [], [], []
        for logits, deltas, anchors in levels:
            # The nms_pre best pairs of anchor and class.
            level_scores = logits.float().sigmoid().flatten()
            candidates = (level_scores > cfg['score_thr']).nonzero().squeeze(1)
            best, order = level_scores[candidates].topk(min(cfg['nms_pre'], len(candidates)))
            index = candidates[order]
            anchor = index // self.num_classes
            boxes.append(self.bbox_coder.decode(anchors[anchor], deltas[anchor].float(), meta['img_shape'][:2]))
            scores.append(best)
            labels.append(index % self.num_classes)
        boxes, scores, labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        boxes = boxes / boxes.new_tensor(meta['scale_factor']).repeat(2)
        large = (boxes[:, 2:] - boxes[:, :2] + self.bbox_coder.offset > cfg.get('min_bbox_size', 0)).all(dim=1)
        if cfg.get('min_bbox_size', 0) >= 0:
            boxes, scores, labels = boxes[large], scores[large], labels[large]
        keep, kept_scores = apply_nms(boxes, scores, labels, cfg['nms'])
        keep, kept_scores = keep[: cfg['max_per_img']], kept_scores[: cfg['max_per_img']]
        return Detections(boxes[keep], kept_scores, labels[keep])
