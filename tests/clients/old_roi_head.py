"""A RoI head that overrides a method of mmdetection's."""

from mmdet.models.roi_heads import StandardRoIHead


class DoubleLoss(StandardRoIHead):
    def bbox_loss(self, x, sampling_results):
        return {}
