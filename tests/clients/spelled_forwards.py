"""Parts whose `forward` reads what mmdetection's parts keep, beside the parts themselves, on the same input."""

import torch
import torch.nn.functional as F

from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import Bottleneck
from mmdet.models.dense_heads import RetinaHead, RPNHead
from mmdet.models.necks import FPN
from mmdet.models.roi_heads import ConvFCBBoxHead, SingleRoIExtractor
from mmdet.registry import MODELS


class TopDown(FPN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        assert self.num_ins == len(self.in_channels) and not self.no_norm_on_lateral
        self.gate = torch.nn.Conv2d(self.out_channels, self.out_channels, 1)

    def forward(self, inputs):
        maps = [conv(inputs[self.start_level + i]) for i, conv in enumerate(self.lateral_convs)]
        for i in reversed(range(1, len(maps))):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[2:], **self.upsample_cfg)
        outs = [self.fpn_convs[i](maps[i]) for i in range(self.backbone_end_level - self.start_level)]
        for _ in range(self.num_outs - len(outs)):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


class Branches(ConvFCBBoxHead):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        assert self.shared_out_channels == self.cls_last_dim == self.reg_last_dim == self.fc_out_channels
        self.fc_extra = torch.nn.Linear(self.cls_last_dim, self.num_classes)

    def forward(self, x):
        if self.num_shared_convs > 0:
            for conv in self.shared_convs:
                x = conv(x)
        assert x.shape[2] * x.shape[3] == self.roi_feat_area and x.shape[2:] == self.roi_feat_size
        x = self.avg_pool(x) if self.with_avg_pool else x
        x = x.flatten(1)
        if self.num_shared_fcs > 0:
            for fc in self.shared_fcs:
                x = self.relu(fc(x))
        return self.fc_cls(x), self.fc_reg(x).view(len(x), -1, 4)


class FirstLevel(SingleRoIExtractor):
    def forward(self, feats, rois, roi_scale_factor=None):
        size = self.roi_layers[0].output_size
        pooled = feats[0].new_zeros(len(rois), self.out_channels, *size)
        for level in range(self.num_inputs):
            pooled = pooled + self.roi_layers[level](feats[level], rois) * (level == 0)
        return pooled


class Stages(ResNet):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        assert (self.depth, self.base_channels, self.feat_dim, self.inplanes) == (18, 8, 64, 64)
        assert self.stage_blocks == (2, 2, 2, 2) and self.norm_cfg['type'] == 'BN' and not self.deep_stem

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 3, 2, 1)
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)


class Squeezed(Bottleneck):
    """As in squeeze-and-excitation networks; the factor is 1 until its weights are trained."""

    def __init__(self, inplanes, planes, reduction=4, **kwargs):
        super().__init__(inplanes, planes, **kwargs)
        self.reduce = torch.nn.Conv2d(planes * self.expansion, planes // reduction, 1)
        self.grow = torch.nn.Conv2d(planes // reduction, planes * self.expansion, 1)
        torch.nn.init.zeros_(self.grow.weight)
        torch.nn.init.zeros_(self.grow.bias)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        out = out * 2 * self.grow(self.relu(self.reduce(out.mean((2, 3), keepdim=True)))).sigmoid()
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class SqueezedNet(ResNet):
    arch_settings = {50: (Squeezed, (3, 4, 6, 3))}


class Counting(RPNHead):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        count = self.num_base_priors * self.cls_out_channels
        assert self.rpn_cls.out_channels == count and self.use_sigmoid_cls
        assert self.prior_generator.num_base_priors == [self.num_base_priors] * 3
        assert self.prior_generator.num_levels == len(self.prior_generator.strides)
        self.relu = torch.nn.Tanh()  # one's own attribute stays what it is


class CountingRetina(RetinaHead):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        assert self.retina_cls.out_channels == self.num_base_priors * self.cls_out_channels
        assert self.stacked_convs == len(self.cls_convs) and self.feat_channels == self.retina_cls.in_channels


def compare(mine, theirs, *given, **options):
    """Largest difference of the outputs, with the same weights."""
    mine, theirs = mine(**options).eval(), theirs(**options).eval()
    theirs.load_state_dict({key: value for key, value in mine.state_dict().items() if key in theirs.state_dict()})
    outputs = [part(*given) for part in (mine, theirs)]
    pairs = zip(*(out if isinstance(out, tuple) else (out,) for out in outputs))
    print(mine.__class__.__name__, max((a - b).abs().max().item() for a, b in pairs) < 1e-5)


torch.manual_seed(0)
maps = [torch.randn(1, 8, 64 // 2**i, 64 // 2**i) for i in range(3)]
compare(TopDown, FPN, maps, in_channels=[8, 8, 8], out_channels=16, num_outs=4, start_level=1)
compare(Branches, ConvFCBBoxHead, torch.randn(5, 8, 3, 3), in_channels=8, num_shared_convs=1, num_shared_fcs=2,
        conv_out_channels=8, fc_out_channels=16, roi_feat_size=3, num_classes=4)  # fmt: skip
compare(FirstLevel, SingleRoIExtractor, maps, torch.tensor([[0.0, 10, 10, 40, 50], [0, 0, 0, 9, 60]]),
        roi_layer=dict(type='RoIAlign', output_size=4, sampling_ratio=2), out_channels=8, featmap_strides=[4, 8, 16])
compare(Stages, ResNet, torch.randn(1, 3, 64, 64), depth=18, base_channels=8)
compare(SqueezedNet, ResNet, torch.randn(1, 3, 64, 64), depth=50, base_channels=8)
anchors = dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0], strides=[4, 8, 16])
head = Counting(in_channels=8, feat_channels=8, anchor_generator=anchors)
print(type(head.relu).__name__, type(CountingRetina(num_classes=3, in_channels=8, stacked_convs=1).relu).__name__)
from mmengine.config import Config  # noqa: E402

model = MODELS.build(Config.fromfile('config.py').model)
print(model.with_roi_head, model.with_rpn, model.with_neck, model.with_shared_head, model.roi_head.with_bbox,
      model.roi_head.with_mask, model.roi_head.bbox_assigner is model.roi_head.assigner)
