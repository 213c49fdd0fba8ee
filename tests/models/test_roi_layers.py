"""RoI layers of one level, C4's shared head, and the extractor that chooses the level."""

import math

import pytest
import torch
import torchvision
from factories import CONFIGS, batch, build, small_cfg
from mmengine.config import Config

from mmdet.config.errors import UserError
from mmdet.models import DeformRoIPoolPack, ModulatedDeformRoIPoolPack, ResLayer, ResNet, RoIPool, SingleRoIExtractor
from mmdet.ops.deform_roi_pool import deform_roi_pool

ROIS = torch.tensor(
    [[0, 1.3, 2.1, 54.6, 39.2], [1, 3.1, 0.4, 18.3, 25.7], [1, -6.0, 5.2, 31.4, 60.1], [0, 12.2, 2.3, 120.1, 110.4]]
)
KINDS = ['RoIPool', 'DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack']


def pyramid(channels=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, 32 // 2**level, 40 // 2**level, generator=generator) for level in range(3)]


def roi_layer(kind, size=3, channels=4, **options):
    options = options if kind == 'RoIPool' else dict(options, output_channels=channels, deform_fc_channels=8)
    return dict(type=kind, output_size=size, **options)


def extractor(layer, finest_scale=16):
    torch.manual_seed(0)
    return SingleRoIExtractor(layer, 4, [4, 8, 16], finest_scale)


def lively(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def slow_max_pool(feature, rois, size, scale):
    """Fast R-CNN, section 2.1: corners rounded to cells, both included, bins from floor to ceil."""
    out = feature.new_zeros(len(rois), feature.shape[1], size, size)
    for k, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (round(side * scale) for side in box)
        height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i in range(size):
            for j in range(size):
                rows = [math.floor(i * height / size) + y1, math.ceil((i + 1) * height / size) + y1]
                columns = [math.floor(j * width / size) + x1, math.ceil((j + 1) * width / size) + x1]
                rows = [min(max(r, 0), feature.shape[2]) for r in rows]
                columns = [min(max(c, 0), feature.shape[3]) for c in columns]
                part = feature[int(image), :, rows[0] : rows[1], columns[0] : columns[1]]
                out[k, :, i, j] = part.flatten(1).amax(1) if part.numel() else 0
    return out


def test_roi_pool_is_torchvisions_and_a_slow_loop():
    feature = pyramid()[0]
    found = RoIPool(3, 0.25)(feature, ROIS)
    assert torch.equal(found, torchvision.ops.roi_pool(feature, ROIS, 3, 0.25))
    torch.testing.assert_close(found, slow_max_pool(feature, ROIS, 3, 0.25))
    assert RoIPool(3, 0.25)(feature.bfloat16(), ROIS).dtype == torch.bfloat16


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('kind', KINDS[1:])
def test_deformable_pooling_begins_as_roi_align_on_every_level(kind, ratio):
    """Its rule for the level is RoIAlign's, too."""
    aligned = extractor(dict(type='RoIAlign', output_size=3, sampling_ratio=ratio))
    deformed = extractor(roi_layer(kind, sampling_ratio=ratio))
    scale = 0.5 if kind.startswith('Modulated') else 1
    torch.testing.assert_close(deformed(pyramid(), ROIS), scale * aligned(pyramid(), ROIS))


def test_offsets_and_scales_come_from_the_first_pooling():
    feature, rule = pyramid()[0], dict(spatial_scale=0.25, sampling_ratio=2, gamma=0.3)
    layer = lively(ModulatedDeformRoIPoolPack((2, 3), 4, deform_fc_channels=8, **rule))
    first = deform_roi_pool(feature, ROIS, None, (2, 3), **rule).flatten(1)
    fcs, mask_fcs = layer.offset_fc, layer.mask_fc
    hidden = torch.relu(fcs[2](torch.relu(fcs[0](first))))
    offset = fcs[4](hidden).reshape(-1, 2, 2, 3)
    scales = torch.sigmoid(mask_fcs[2](torch.relu(mask_fcs[0](first)))).reshape(-1, 1, 2, 3)
    expected = deform_roi_pool(feature, ROIS, offset, (2, 3), **rule)
    torch.testing.assert_close(layer(feature, ROIS), expected * scales)
    plain = DeformRoIPoolPack((2, 3), 4, deform_fc_channels=8, **rule)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k.startswith('offset')})
    torch.testing.assert_close(plain(feature, ROIS), expected)


@pytest.mark.parametrize('kind', [DeformRoIPoolPack, ModulatedDeformRoIPoolPack])
def test_default_widths_and_units(kind):
    """1024 neurons and a tenth of the RoI, as in the papers; as many samples as a bin has cells."""
    layer = kind((2, 3), 4, 0.25)
    assert [fc.out_features for fc in layer.offset_fc[::2]] == [1024, 1024, 2 * 6]
    assert kind is DeformRoIPoolPack or [layer.mask_fc[i].out_features for i in (0, 2)] == [1024, 6]
    layer.offset_fc[-1].bias.data.uniform_(-3, 3)
    offset = layer.offset_fc[-1].bias.detach().view(1, 2, 2, 3).expand(len(ROIS), -1, -1, -1)
    expected = deform_roi_pool(pyramid()[0], ROIS, offset, (2, 3), 0.25, 0, 0.1)
    torch.testing.assert_close(layer(pyramid()[0], ROIS), expected * (1 if kind is DeformRoIPoolPack else 0.5))


@pytest.mark.parametrize('kind', KINDS)
def test_each_roi_is_pooled_on_its_level(kind):
    """Compared with one call for each RoI."""
    module, maps = lively(extractor(roi_layer(kind))), pyramid()
    pooled = module(maps, ROIS)
    for row, out in zip(ROIS, pooled):
        side = ((row[3] - row[1]) * (row[4] - row[2])).sqrt().item()
        level = min(max(math.floor(math.log2(side / 16 + 1e-6)), 0), 2)
        torch.testing.assert_close(out, module.roi_layers[level](maps[level], row[None])[0])
    assert module(maps, ROIS[:0]).shape == (0, 4, 3, 3)


@pytest.mark.parametrize('kind', KINDS)
def test_a_detector_trains_and_detects_with_it(kind):
    cfg = small_cfg('mask_rcnn', channels=16, hidden=16)
    cfg.roi_head.bbox_roi_extractor.roi_layer = roi_layer(kind, 7, 16)
    cfg.test_cfg.rpn.max_per_img = cfg.train_cfg.rpn_proposal.max_per_img = 20
    cfg.roi_head.mask_roi_extractor = None  # shared, parameters included
    cfg.train_cfg.rcnn.mask_size = 14
    cfg.test_cfg.rcnn.score_thr = 0.0
    model, data = build(cfg), batch([2, 0])
    assert model.roi_head.mask_roi_extractor is model.roi_head.bbox_roi_extractor
    losses = model.train()(**model.data_preprocessor(data, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if '_fc.' in name}
    assert loss.isfinite() and all(g is not None and g.isfinite().all() for g in gradients.values())
    assert kind == 'RoIPool' or gradients['roi_head.bbox_roi_extractor.roi_layers.0.offset_fc.4.bias'].abs().max() > 0
    found = model.eval().test_step(batch([1]))[0].pred_instances
    assert len(found) and len(found.masks) == len(found)


# ------------------------------------------------------------------ C4


def c4(kind='faster', norm_cfg=None, **options):
    """A detector on stage 3 of a ResNet-18."""
    cfg = Config.fromfile(CONFIGS / '_base_' / 'models' / f'{kind}_rcnn_r50_caffe_c4.py', lazy_import=False).model
    cfg.backbone.update(depth=18, init_cfg=None)
    cfg.rpn_head.update(in_channels=256, feat_channels=32)
    cfg.roi_head.shared_head.update(depth=18, init_cfg=None, **(dict(norm_cfg=norm_cfg) if norm_cfg else {}), **options)
    cfg.roi_head.bbox_roi_extractor.out_channels = 256
    cfg.roi_head.bbox_head.update(in_channels=512, num_classes=3)
    cfg.train_cfg.rcnn.sampler.num = 8
    cfg.test_cfg.rpn.max_per_img = cfg.train_cfg.rpn_proposal.max_per_img = 20
    cfg.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    if kind == 'mask':
        cfg.roi_head.mask_head.update(in_channels=512, conv_out_channels=16, num_classes=3)
    return build(cfg)


@pytest.mark.parametrize('style', ['pytorch', pytest.param('caffe', marks=pytest.mark.slow)])
def test_the_shared_head_is_the_last_stage_of_a_resnet(style):
    backbone, head = ResNet(50, style=style, out_indices=(2, 3)).eval(), ResLayer(50, style=style).eval()
    weights = {key: value for key, value in backbone.state_dict().items() if key.startswith('layer4.')}
    head.load_state_dict(weights)
    with torch.no_grad():
        third, fourth = backbone(torch.rand(1, 3, 64, 96))
        torch.testing.assert_close(head(third), fourth)
    assert ResLayer(50, stride=1, dilation=2)(torch.rand(1, 1024, 6, 6)).shape == (1, 2048, 6, 6)


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('stage', range(4))
def test_any_stage_has_the_resnets_layers(depth, stage):
    with torch.device('meta'):
        backbone = ResNet(depth, frozen_stages=-1)
        head = ResLayer(depth, stage, **(dict(stride=1) if stage == 0 else {}))
    assert str(getattr(head, head.name)) == str(getattr(backbone, f'layer{stage + 1}'))
    assert all(parameter.requires_grad for parameter in head.parameters())


def test_it_trains_from_random_weights_with_fixed_norms():
    """Its blocks do not begin as the identity, which a scale that is not learned would keep them."""
    head = ResLayer(18, norm_cfg=dict(type='BN', requires_grad=False)).train()
    assert not head.layer4[0].bn1.training
    head(torch.rand(2, 256, 6, 6)).sum().backward()
    assert head.layer4[1].conv1.weight.grad.abs().max() > 0
    assert ResLayer(18, norm_eval=False).train().layer4[0].bn1.training


def test_c4_classifies_the_mean_of_the_last_stage():
    model, boxes = c4().eval(), [ROIS[:1, 1:], ROIS[1:, 1:]]
    features, head = [torch.rand(2, 256, 8, 8)], model.roi_head
    rois = ROIS.clone()
    rois[:, 0] = torch.tensor([0, 1, 1, 1])
    with torch.no_grad():
        pooled = torchvision.ops.roi_align(features[0], rois, 14, 1 / 16, 0, True)
        mean = head.shared_head.layer4(pooled).mean((2, 3))
        logits, deltas = head(features, boxes)
        torch.testing.assert_close(logits, head.bbox_head.fc_cls(mean))
        torch.testing.assert_close(deltas.flatten(1), head.bbox_head.fc_reg(mean))


@pytest.mark.parametrize('norm_cfg', [None, pytest.param(dict(type='CBN', buffer_num=2), marks=pytest.mark.slow)])
def test_c4_trains_and_finds_masks(norm_cfg):
    model = c4('mask', norm_cfg, norm_eval=norm_cfg is None)
    for _ in range(2):
        losses = model.train()(**model.data_preprocessor(batch([2, 1]), True), mode='loss')
        loss, log = model.parse_losses(losses)
        loss.backward()
    assert loss.isfinite() and log['loss_mask'] > 0
    assert model.roi_head.shared_head.layer4[0].conv1.weight.grad.abs().max() > 0
    found = model.eval().test_step(batch([1]))[0].pred_instances
    assert 0 < len(found) == len(found.masks)


@pytest.mark.parametrize('wrong, message', [
    (lambda: ResLayer(50, stage=4), 'no stage 4 of depth 50'), (lambda: ResLayer(51), 'no stage 3 of depth 51'),
])  # fmt: skip
def test_a_stage_that_is_not_there_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()
