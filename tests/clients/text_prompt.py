"""A detector that is asked for things by name."""

from mmdet.apis import DetInferencer

DetInferencer('config.py', 'weights.pth', device='cpu')('shapes/val', texts='star . circle')
