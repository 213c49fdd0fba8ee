"""An output layer replaced, a backbone frozen, steps made by hand; then a Runner with a hook of one's own."""

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner, load_checkpoint
from torch import nn

from mmdet.registry import MODELS
from mmdet.utils import reduce_mean, register_all_modules

register_all_modules()
cfg = Config.fromfile('config.py')
cfg.work_dir = 'hand'
model = MODELS.build(cfg.model)
load_checkpoint(model, 'weights.pth', map_location='cpu')
for name, parameter in model.backbone.named_parameters():
    parameter.requires_grad = 'layer4' in name
head = model.roi_head.bbox_head
head.fc_cls = nn.Linear(head.cls_last_dim, head.num_classes + 1)
wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
before = head.fc_cls.weight.clone()
model.train()
for data in Runner.build_dataloader(cfg.train_dataloader):
    logged = model.train_step(data, wrapper)
    data = model.data_preprocessor(data, True)
    total, parsed = model.parse_losses(model.loss(**data))
    total.backward()
    wrapper.zero_grad()
model.eval()
with torch.no_grad():
    for data in Runner.build_dataloader(cfg.val_dataloader):
        samples = model.val_step(data)
found = samples[0].clone().cpu().to_dict()['pred_instances']
print(not torch.equal(before, head.fc_cls.weight), len(found['bboxes']), reduce_mean(total.detach()).item() > 0)


class Freeze(Hook):
    def before_train(self, runner):
        model = runner.model.module if hasattr(runner.model, 'module') else runner.model
        for parameter in model.backbone.parameters():
            parameter.requires_grad = False


runner = Runner.from_cfg(cfg)
runner.register_hook(Freeze(), priority='LOW')
runner.train()
runner.load_checkpoint('hand/epoch_1.pth')
print(sorted(runner.test())[:2])
