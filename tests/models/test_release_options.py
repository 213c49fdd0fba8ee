"""Options that the method's release has and few recipes use: of RPN, anchors, box and mask heads, Cascade."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from factories import batch, build, small_cfg
from torch import nn

from mmdet.config.errors import UserError
from mmdet.layers import build_upsample_layer
from mmdet.models import BBoxHead, ConvFCBBoxHead, FCNMaskHead, ResNet, RPNHead
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import Target

SIZES = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]


def rpn(two_outputs=True, **test_cfg):
    cfg = small_cfg('rpn', channels=16, num_classes=None)
    cfg.rpn_head.loss_cls.use_sigmoid = not two_outputs
    cfg.test_cfg.rpn.update(test_cfg)
    model = build(cfg)
    for parameter in model.rpn_head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def maps(generator=None):
    return [torch.randn(1, 16, *size) for size in SIZES]


def test_an_rpn_with_softmax_compares_object_and_background():
    head, features = rpn().rpn_head, maps()
    assert head.rpn_cls.out_channels == 6
    logits, deltas, anchors = head(features)
    outputs = [head.rpn_cls(F.relu(head.rpn_conv(x))).permute(0, 2, 3, 1).reshape(1, -1, 2) for x in features]
    pairs = torch.cat(outputs, 1)[0]  # object, then background
    torch.testing.assert_close(logits[0].sigmoid(), pairs.softmax(-1)[:, 0])
    boxes = torch.tensor([[3.0, 4, 40, 50]])
    target = Target(boxes, torch.tensor([0]), None, boxes[:0], (64, 64), None)
    torch.manual_seed(0)
    losses = head.loss(logits, deltas, anchors, [target])
    torch.manual_seed(0)
    positive, negative, _ = head.sample(torch.cat(anchors), target)
    labels = torch.cat([torch.zeros_like(positive), torch.ones_like(negative)])
    expected = F.cross_entropy(pairs[torch.cat([positive, negative])], labels)
    torch.testing.assert_close(losses['loss_rpn_cls'], expected)
    loss, = torch.autograd.grad(losses['loss_rpn_cls'], head.rpn_cls.bias)
    reference, = torch.autograd.grad(expected, head.rpn_cls.bias)
    torch.testing.assert_close(loss, reference)
    proposals, scores = head.predict(logits, deltas, anchors, [(64, 64)])[0]
    assert len(proposals) and scores.max() <= pairs.softmax(-1)[:, 0].max() + 1e-6


def test_an_rpn_head_without_options():
    """Three scales and ratios at five levels, SmoothL1 that is linear from 1/9 on, deltas as they are."""
    torch.manual_seed(0)
    head = RPNHead(8)
    shapes = [tuple(conv.weight.shape) for conv in (head.rpn_conv, head.rpn_cls, head.rpn_reg)]
    assert shapes == [(256, 8, 3, 3), (9, 256, 1, 1), (36, 256, 1, 1)]
    assert head.rpn_conv.weight.std().item() == pytest.approx(0.01, rel=0.05) and not head.rpn_conv.bias.any()
    anchors = [level.reshape(-1, 9, 4)[0] for level in head.anchor_generator.grid_priors(SIZES)]
    for level, stride in zip(anchors, (4, 8, 16, 32, 64)):
        sides = level[:, 2:] - level[:, :2]
        areas = [(stride * scale) ** 2 for scale in (8, 16, 32)] * 3
        assert sides.prod(1).tolist() == pytest.approx(areas) and not (level[:, 2:] + level[:, :2]).any()
        ratios = [ratio for ratio in (0.5, 1, 2) for _ in range(3)]
        assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx(ratios)
    box, moved = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[3.0, 4, 13, 24]])
    torch.testing.assert_close(head.bbox_coder.encode(box, moved), torch.tensor([[0.3, 0.2, 0, 0]]))
    errors = torch.tensor([[0.05, 0.1, 0.12, 2.0]])
    expected = 0.05**2 * 4.5 + 0.1**2 * 4.5 + 0.12 + 2 - 2 / 18
    torch.testing.assert_close(head.loss_bbox(errors, torch.zeros(1, 4), avg_factor=1), torch.tensor(expected))
    assert not head.softmax and not head.reg_decoded_bbox


def test_class_weights_of_an_rpn_with_softmax_are_object_then_background():
    cfg = small_cfg('rpn', channels=16, num_classes=None)
    cfg.rpn_head.loss_cls.update(use_sigmoid=False, class_weight=[3.0, 0.0])
    head = build(cfg).rpn_head
    boxes = torch.tensor([[3.0, 4, 40, 50]])
    logits, deltas, anchors = head(maps())
    target = Target(boxes, torch.tensor([0]), None, boxes[:0], (64, 64), None)
    torch.manual_seed(1)
    found = head.loss(logits, deltas, anchors, [target])
    torch.manual_seed(1)  # the same anchors are drawn
    positive, negative, _ = head.sample(torch.cat(anchors), target)
    expected = 3 * F.softplus(-logits[0, positive]).sum() / (len(positive) + len(negative))
    torch.testing.assert_close(found['loss_rpn_cls'], expected)


@pytest.mark.parametrize('pos_weight, factor', [({}, 1), (dict(pos_weight=-1), 1), (dict(pos_weight=3.0), 3)])
def test_an_rpn_samples_and_weighs_as_told(pos_weight, factor):
    cfg = small_cfg('rpn', channels=16, num_classes=None)
    cfg.train_cfg.rpn.pop('pos_weight')
    cfg.train_cfg.rpn.update(**pos_weight, sampler=dict(type='RandomSampler', num=8, pos_fraction=0.25))
    head = build(cfg).rpn_head
    logits, deltas, anchors = head(maps())
    target = Target(torch.tensor([[3.0, 4, 40, 50], [20, 10, 60, 40]]), torch.tensor([0, 0]), None, torch.zeros(0, 4),
                    (64, 64), None)  # fmt: skip
    torch.manual_seed(1)
    found = head.loss(logits, deltas, anchors, [target])['loss_rpn_cls']
    torch.manual_seed(1)
    positive, negative, _ = head.sample(torch.cat(anchors), target)
    assert 0 < len(positive) <= 2 and len(positive) + len(negative) == 8
    objects, background = F.softplus(-logits[0, positive]).sum(), F.softplus(logits[0, negative]).sum()
    torch.testing.assert_close(found, (factor * objects + background) / 8)


@pytest.mark.parametrize('options, expected', [
    ({}, [0, 2, 4, 5]), (dict(min_bbox_size=1), [0, 2, 5]), (dict(nms_across_levels=True), [0, 4, 5]),
    (dict(nms_pre=1), [0, 2]), (dict(max_per_img=2), [0, 2]),
])  # fmt: skip
def test_proposals_by_hand(options, expected):
    head = RPNHead(8, test_cfg=dict(dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=10), **options))
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9],  # overlaps the first one
                            [0, 1, 10, 10],  # does so on another level
                            [5, 5, 5, 15], [30, 30, 40, 31], [54, 0, 80, 10]])  # no area; thin; beyond the image
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2]])
    (proposals, scores), = head.predict(logits, torch.zeros(1, 6, 4), [anchors[:2], anchors[2:]], [(64, 64)])
    torch.testing.assert_close(proposals, anchors[expected].clamp(max=64))
    torch.testing.assert_close(scores, logits[0, expected].sigmoid())


@pytest.mark.parametrize('across', [False, True])
def test_nms_acts_on_each_level_or_on_all(across):
    head = rpn(False, nms_across_levels=across, nms_pre=-1, max_per_img=10**6).rpn_head
    logits, deltas, anchors = head(maps())
    proposals, scores = head.predict(logits, deltas * 0.01, anchors, [(64, 64)])[0]
    iou = torchvision.ops.box_iou(proposals, proposals).fill_diagonal_(0)
    assert (iou.max() <= 0.7) == across
    keep = torchvision.ops.nms(proposals, scores, 0.7)
    assert (len(keep) == len(proposals)) == across


def test_anchors_by_ratio_or_by_scale():
    cfg = dict(type='AnchorGenerator', strides=[16], ratios=[0.25, 4.0], scales=[1, 2, 3])
    by_ratio, by_scale = (TASK_UTILS.build(dict(cfg, scale_major=major)).base_anchors[0] for major in (True, False))
    assert (by_ratio[:, 2] - by_ratio[:, 0]).tolist() == [32, 64, 96, 8, 16, 24]
    assert (by_scale[:, 2] - by_scale[:, 0]).tolist() == [32, 8, 64, 16, 96, 24]
    assert torch.equal(by_scale, by_ratio.view(2, 3, 4).transpose(0, 1).reshape(6, 4))


# ------------------------------------------------------------------ heads


def test_a_box_head_has_what_it_is_told():
    x = torch.rand(5, 8, 7, 7)
    sampled = dict(boxes=torch.rand(5, 4) + torch.tensor([0, 0, 9, 9]), labels=torch.tensor([0, 1, 2, 2, 2]),
                   gt_boxes=torch.rand(5, 4) + torch.tensor([0, 0, 9, 9]), positive=torch.tensor([0, 1]))  # fmt: skip
    common = dict(in_channels=8, fc_out_channels=6, num_classes=2, num_shared_fcs=1)
    whole = ConvFCBBoxHead(**common)
    for option, left in (('with_cls', ['loss_bbox']), ('with_reg', ['loss_cls', 'acc'])):
        head = ConvFCBBoxHead(**common, **{option: False})
        head.load_state_dict({k: v for k, v in whole.state_dict().items() if k in head.state_dict()})
        outputs = head(x)
        losses = head.loss(*outputs, **sampled)
        assert list(losses) == left and outputs[option == 'with_reg'] is None
        expected = whole.loss(*whole(x), **sampled)
        assert all(torch.equal(losses[key], expected[key]) for key in left)


@pytest.mark.parametrize('options, message', [
    (dict(with_cls=False, with_reg=False), 'leave nothing to find'),
    (dict(with_cls=False, num_cls_fcs=1), 'with_cls=False leaves no branch for num_cls_convs=0 and num_cls_fcs=1'),
    (dict(with_reg=False, num_reg_convs=2), 'with_reg=False leaves no branch'),
])  # fmt: skip
def test_a_head_without_outputs_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        ConvFCBBoxHead(**options)


def test_the_plain_box_head_is_two_layers():
    head, x = BBoxHead(in_channels=4, with_avg_pool=True, num_classes=3), torch.rand(2, 4, 7, 7)
    assert sorted(head.state_dict()) == ['fc_cls.bias', 'fc_cls.weight', 'fc_reg.bias', 'fc_reg.weight']
    assert torch.equal(head(x)[0], head.fc_cls(x.mean((2, 3))))
    assert BBoxHead(in_channels=4, num_classes=3).fc_cls.in_features == 4 * 49


def detector(kind, **options):
    cfg = small_cfg(f'{kind}_rcnn', channels=16, hidden=16)
    cfg.test_cfg.rcnn.update(score_thr=0.0, max_per_img=50, **options.pop('test', {}))
    cfg.test_cfg.rpn.max_per_img = cfg.train_cfg.rpn_proposal.max_per_img = 50
    heads = cfg.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.update(options)
    return build(cfg)


def trained(model):
    data = model.data_preprocessor(batch([2, 1], 64, 64), True)
    loss, log = model.parse_losses(model.train()(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    return log


@pytest.mark.parametrize('kind', ['faster', 'cascade'])
def test_without_regression_a_detector_keeps_its_proposals(kind):
    model = detector(kind, with_reg=False)
    assert not any('loss_bbox' in key for key in trained(model))
    data = model.data_preprocessor(batch([1]), False)
    found = model.eval()(**data, mode='predict')[0].pred_instances
    proposals = model.proposals(model.extract_feat(data['inputs']), data['data_samples'])[0]
    assert len(found) and torch.isclose(found.bboxes[:, None], proposals).all(2).any(1).all()


@pytest.mark.parametrize('kind', ['faster', 'cascade'])
def test_without_classes_nothing_can_be_found(kind):
    with pytest.raises(UserError, match='with_cls=False, and nothing else gives'):
        detector(kind, with_cls=False)


@pytest.mark.parametrize('kind, factor', [('nearest', 2), ('bilinear', 2), ('bilinear', 3), (None, 1)])
def test_a_mask_head_upsamples_as_told(kind, factor):
    head = FCNMaskHead(1, 4, conv_out_channels=4, num_classes=3, upsample_cfg=dict(type=kind, scale_factor=factor))
    x = torch.rand(2, 4, 6, 6)
    inside = head.convs[0](x)
    if kind:
        inside = F.interpolate(inside, scale_factor=factor, mode=kind)
    torch.testing.assert_close(head(x), head.conv_logits(inside))
    assert not [key for key in head.state_dict() if 'upsample' in key]


def test_a_mask_head_without_options_is_that_of_mask_rcnn():
    """Figure 4, right: four convolutions that keep the size, a transposed one with ReLU, a mask of each class."""
    head, x = FCNMaskHead(), torch.randn(2, 256, 3, 3)
    shapes = [tuple(v.shape) for name, v in head.state_dict().items() if name.endswith('weight')]
    assert shapes == [(256, 256, 3, 3)] * 4 + [(256, 256, 2, 2), (80, 256, 1, 1)]
    logits = head(x)
    for conv in head.convs:
        x = conv(x)
    torch.testing.assert_close(logits, head.conv_logits(head.upsample(x).relu()))
    labels, targets = torch.tensor([3, 79]), torch.rand(2, 6, 6)
    expected = F.binary_cross_entropy_with_logits(logits[[0, 1], labels], targets)
    torch.testing.assert_close(head.loss(logits, labels, targets)['loss_mask'], expected)


def test_one_mask_for_all_classes():
    head = FCNMaskHead(1, 4, conv_out_channels=4, class_agnostic=True)
    logits = head(torch.randn(2, 4, 3, 3))
    assert logits.shape == (2, 1, 6, 6)
    assert torch.equal(head.predict(logits, torch.tensor([3, 79])), logits[:, 0].sigmoid())


def test_interpolated_features_keep_their_sign():
    head, x = FCNMaskHead(0, 4, conv_out_channels=4, upsample_cfg=dict(type='nearest')), torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(head(x.clone()), head.conv_logits(F.interpolate(x, scale_factor=2)))


@pytest.mark.parametrize('kind, convs, layers', [('Shared2FCBBoxHead', 0, 2), ('Shared4Conv1FCBBoxHead', 4, 1)])
def test_a_box_head_without_options_is_that_of_faster_rcnn(kind, convs, layers):
    head = MODELS.build(dict(type=kind))
    shapes = [tuple(v.shape) for name, v in head.state_dict().items() if name.endswith('weight')]
    fully_connected = [(1024, 256 * 49), (1024, 1024)][:layers]
    assert sorted(shapes) == sorted([(256, 256, 3, 3)] * convs + fully_connected + [(81, 1024), (320, 1024)])
    logits, deltas = head(torch.randn(2, 256, 7, 7))
    assert logits.shape == (2, 81) and deltas.shape == (2, 80, 4)
    box, moved = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[-4.0, -18, 16, 42]])  # aside by a tenth, larger
    expected = torch.tensor([[0.1 / 0.1, 0.1 / 0.1, math.log(2) / 0.2, math.log(3) / 0.2]])
    torch.testing.assert_close(head.bbox_coder.encode(box, moved), expected)


@pytest.mark.parametrize('kind', ['deconv', 'nearest', 'bilinear'])
def test_upsampling_doubles_unless_it_is_told_otherwise(kind):
    x = torch.rand(2, 4, 5, 6)
    own = MODELS.build(dict(type=kind, in_channels=4, out_channels=4))
    assert own(x).shape == build_upsample_layer(dict(type=kind), 4, 4)(x).shape == (2, 4, 10, 12)
    assert build_upsample_layer(dict(type=kind, scale_factor=3), 4, 4)(x).shape == (2, 4, 15, 18)
    assert build_upsample_layer(dict(type=None), 4, 4)(x) is x


def test_no_upsampling_changes_no_channels():
    with pytest.raises(UserError, match='no upsampling keeps the 3 channels, 4 are asked for'):
        build_upsample_layer(dict(type=None), 3, 4)


def test_cascade_gives_every_stage_by_itself():
    model, plain = detector('cascade', test=dict(keep_all_stages=True)).eval(), detector('cascade').eval()
    plain.load_state_dict(model.state_dict())
    sample, expected = (m.test_step(batch([1]))[0] for m in (model, plain))
    assert torch.equal(sample.pred_instances.bboxes, expected.pred_instances.bboxes)
    assert 'pred_instances_s0' not in expected and 'pred_instances_s3' not in sample
    single = detector('faster', reg_class_agnostic=True).eval()  # the first stage alone
    state = {key.replace('bbox_head.0.', 'bbox_head.'): v for key, v in model.state_dict().items()}
    single.load_state_dict({key: state[key] for key in single.state_dict()})
    first = single.test_step(batch([1]))[0].pred_instances
    torch.testing.assert_close(sample.pred_instances_s0.bboxes, first.bboxes)
    torch.testing.assert_close(sample.pred_instances_s0.scores, first.scores)
    stages = [sample.get(f'pred_instances_s{stage}').bboxes for stage in range(3)]
    assert not torch.equal(stages[0], stages[1]) and not torch.equal(stages[1], stages[2])


# ------------------------------------------------------------------ DCN in a detector


@pytest.mark.parametrize('kind', [pytest.param('DCN', marks=pytest.mark.slow), 'DCNv2'])
def test_a_deformable_backbone_is_torchvisions_resnet_with_its_operator(kind):
    class Deformed(torchvision.ops.DeformConv2d):
        """torchvision's layer, which is given its offsets."""

        def __init__(self, conv):
            super().__init__(conv.in_channels, conv.out_channels, 3, conv.stride, 1, bias=False)
            channels = 27 if kind == 'DCNv2' else 18
            self.conv_offset = nn.Conv2d(conv.in_channels, channels, 3, conv.stride, 1)

        def forward(self, x):
            values = self.conv_offset(x)
            return super().forward(x, values[:, :18], values[:, 18:].sigmoid() if kind == 'DCNv2' else None)

    torch.manual_seed(0)
    theirs = torchvision.models.resnet50().eval()
    for layer in (theirs.layer2, theirs.layer3, theirs.layer4):
        for block in layer:
            block.conv2 = Deformed(block.conv2)
            nn.init.normal_(block.conv2.conv_offset.weight, std=0.02)
    ours = ResNet(50, dcn=dict(type=kind), stage_with_dcn=(False, True, True, True)).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith('fc.')})
    x = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        out = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for name, found in zip(ours.stages, ours(x)):
            out = getattr(theirs, name)(out)
            torch.testing.assert_close(found, out, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_deformable_detector_trains_with_cbn_in_all_its_parts():
    cfg = small_cfg('mask_rcnn', 50, 8, channels=16, hidden=16)
    norm_cfg = dict(type='CBN', buffer_num=2)
    cfg.backbone.update(dcn=dict(type='DCNv2'), stage_with_dcn=(False, True, True, True), norm_cfg=norm_cfg,
                        norm_eval=False, frozen_stages=-1)  # fmt: skip
    cfg.neck.update(norm_cfg=norm_cfg, conv_cfg=dict(type='DCN'))
    cfg.test_cfg.rpn.max_per_img = cfg.train_cfg.rpn_proposal.max_per_img = 20
    model = build(cfg)
    for _ in range(2):
        trained(model)
    gradients = [p.grad for name, p in model.named_parameters() if 'conv_offset.bias' in name]
    assert len(gradients) == 13 + 8 and all(g is not None and g.isfinite().all() for g in gradients)
    assert model.eval().test_step(batch([1], 64, 64))[0].pred_instances.bboxes.isfinite().all()
