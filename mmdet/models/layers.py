"""mmdetection 3's `mmdet.models.layers`, for code that was written for it; ours are in `mmdet.layers`."""

from mmdet.config.absent import absent
from mmdet.layers.ema import ExpMomentumEMA

__all__ = ['ExpMomentumEMA']

_STAGE = 'a stage is an nn.Sequential of blocks, see mmdet.models.backbones.resnet'
__path__: list[str] = []  # modules below it: see mmdet.moved
__getattr__ = absent(
    __name__, ResLayer=_STAGE, SimplifiedBasicBlock=_STAGE, multiclass_nms='use mmdet.ops.batched_nms or apply_nms',
    CSPLayer='YOLOX and RTMDet are not here',
)  # fmt: skip
