"""Where the loss of an object looks, from the gradients at the last stage of the backbone; operations counted."""

import sys

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.analysis import get_model_complexity_info
from mmengine.structures import InstanceData

from mmdet.apis import init_detector
from mmdet.structures.mask import BitmapMasks

model = init_detector('config.py', 'weights.pth', device='cpu')
steps = [step for step in model.cfg.test_dataloader.dataset.pipeline if step['type'] != 'LoadAnnotations']
steps[0].type = 'mmdet.LoadImageFromNDArray'
item = Compose(steps)(dict(img=mmcv.imread(sys.argv[1]), img_id=0))
data = model.data_preprocessor(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]), False)
masks = BitmapMasks(np.ones((1, 96, 96), np.uint8), 96, 96)
data['data_samples'][0].gt_instances = InstanceData(bboxes=torch.tensor([[10.0, 10, 60, 70]]), masks=masks,
                                                    labels=torch.tensor([1]))  # fmt: skip
seen = []


def keep(module, given, out):
    seen.append(out)
    out.retain_grad()


model.train()
layer = getattr(model.backbone, model.backbone.res_layers[-1])
layer.register_forward_hook(keep)
losses = model(**data, mode='loss')
sum(value for name, value in losses.items() if 'loss' in name).backward()
weights = seen[0].grad.mean((2, 3), keepdim=True)
heat = (weights * seen[0]).sum(1).relu()[0].detach().numpy()
drawn = mmcv.imresize(np.repeat(np.uint8(255 * heat / max(heat.max(), 1e-6))[..., None], 3, axis=2), (3, 3))
model.eval()
counted = get_model_complexity_info(model, inputs=(torch.zeros(1, 3, 96, 96),), show_table=False, show_arch=False)
print(seen[0].shape[0], drawn.shape, counted['flops'] > 0 and counted['params'] > 0)
