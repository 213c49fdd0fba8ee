"""An assigner on mmdetection's base class."""

from mmdet.models.task_modules import AssignResult, BaseAssigner


class Nearest(BaseAssigner):
    def assign(self, pred_instances, gt_instances, gt_instances_ignore=None, **kwargs):
        return AssignResult(0, None, None)
