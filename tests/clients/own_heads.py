"""Heads changed in the places that are called here: a box head's loss, a RoI head with one more, an assigner, a model.

N images, P proposals and G objects of an image, R sampled RoIs of the batch, C classes.
"""

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmdet.models import MaskRCNN, MaxIoUAssigner, Shared2FCBBoxHead, StandardRoIHead
from mmdet.models.data_preprocessor import to_target
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox2roi


@MODELS.register_module()
class SharpHead(Shared2FCBBoxHead):
    """One loss more, on what `forward` gives: logits (R, C + 1), and the labels (R,), C for the background."""

    def loss(self, logits, deltas, boxes, labels, gt_boxes, positive, weight=None):
        losses = super().loss(logits, deltas, boxes, labels, gt_boxes, positive, weight)
        losses['loss_entropy'] = 0.1 * torch.distributions.Categorical(logits=logits).entropy().mean()
        return losses


@MODELS.register_module()
class CountingRoIHead(StandardRoIHead):
    """Sampled RoIs (R, 4) also say how large they are, from their features (R, channels, S, S)."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.size = nn.Linear(self.bbox_roi_extractor.out_channels, 1)

    def loss(self, features, proposals, targets):
        losses = super().loss(features, proposals, targets)
        boxes = [sampled.boxes for sampled in self.sample(features, proposals, targets)]
        rois = bbox2roi(boxes)
        found = self.size(self.bbox_roi_extractor(features, rois).mean((2, 3))).squeeze(1)
        side = (rois[:, 3:] - rois[:, 1:3]).clamp(min=1).prod(1).sqrt()
        losses['loss_size'] = F.smooth_l1_loss(found, side.log())
        return losses


@TASK_UTILS.register_module()
class LargeFirst(MaxIoUAssigner):
    """Boxes (B, 4) under 4 pixels answer for nothing: matched (B,) is -1 there, as for the background."""

    def assign(self, boxes, gt_boxes, ignored_boxes):
        matched, iou = super().assign(boxes, gt_boxes, ignored_boxes)
        small = (boxes[:, 2:] - boxes[:, :2]).amin(1) < 4
        return matched.masked_fill(small & (matched >= 0), -1), iou


@MODELS.register_module()
class TwoLosses(MaskRCNN):
    """The whole of `MaskRCNN.loss`, with a part of one's own between proposals and RoI head."""

    def loss(self, inputs, data_samples):
        features = self.extract_feat(inputs)
        targets = [to_target(sample, inputs.device) for sample in data_samples]
        proposals, losses = self.training_proposals(features, data_samples, targets)
        losses.update(self.roi_head.loss(features, proposals, targets))
        losses['loss_maps'] = 1e-3 * sum(x.square().mean() for x in features)
        return losses


if __name__ == '__main__':
    cfg = Config.fromfile('config.py')
    cfg.work_dir = 'work'
    cfg.model.type = 'TwoLosses'
    cfg.model.roi_head.type = 'CountingRoIHead'
    cfg.model.roi_head.bbox_head.type = 'SharpHead'
    cfg.model.train_cfg.rcnn.assigner.type = 'LargeFirst'
    runner = Runner.from_cfg(cfg)
    runner.train()
    logged = runner.message_hub.log_scalars
    print(sorted(name for name in logged if name.startswith('train/loss_')))
