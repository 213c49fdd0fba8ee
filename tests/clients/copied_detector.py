"""A detector whose methods call its heads as mmdetection's own does: python copied_detector.py [predict]"""

import copy
import sys

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdet.models import MaskRCNN
from mmdet.registry import MODELS


@MODELS.register_module(force=True)
class Copied(MaskRCNN):
    def loss(self, batch_inputs, batch_data_samples):
        x = self.extract_feat(batch_inputs)
        if sys.argv[1:] == ['predict']:
            proposals = self.rpn_head.predict(x, batch_data_samples, rescale=False)
            return self.roi_head.loss(x, proposals, batch_data_samples)
        samples = copy.deepcopy(batch_data_samples)
        for sample in samples:
            sample.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
        cfg = self.train_cfg.get('rpn_proposal', self.test_cfg.rpn)
        losses, proposals = self.rpn_head.loss_and_predict(x, samples, proposal_cfg=cfg)
        losses.update(self.roi_head.loss(x, proposals, batch_data_samples))
        return losses


cfg = Config.fromfile('config.py')
cfg.work_dir = 'work'
cfg.model.type = 'Copied'
Runner.from_cfg(cfg).train()
