"""Parts of the detectors against torchvision, slow loops and identities."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet.config.errors import UserError
from mmdet.models.backbones import ResNet, ResNeXt
from mmdet.models.dense_heads.common import trained_anchors
from mmdet.models.necks.fpn import FPN
from mmdet.models.roi_heads.single_level_roi_extractor import SingleRoIExtractor, to_rois
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, RandomSampler
from mmdet.models.task_modules.protocols import IGNORED, NEGATIVE
from mmdet.structures import Target
from mmdet.structures.boxes import box_area, box_iof, box_iou


def random_boxes(n: int, seed: int = 0, size: float = 100.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * size
    return torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * size + 1], dim=1)


@pytest.mark.parametrize(
    'ours, theirs',
    [
        (dict(depth=18), torchvision.models.resnet18),
        (dict(depth=50), torchvision.models.resnet50),
        (dict(depth=50, groups=32, base_width=4), torchvision.models.resnext50_32x4d),
    ],
    ids=['r18', 'r50', 'x50'],
)
def test_resnet_equals_torchvision(ours, theirs):
    torch.manual_seed(0)
    reference = theirs(weights=None).eval()
    model = (ResNeXt if 'groups' in ours else ResNet)(**ours).eval()
    missing, unexpected = model.load_state_dict(reference.state_dict(), strict=False)
    assert missing == [] and unexpected == ['fc.weight', 'fc.bias']
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        maps = model(x)
        y = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        for index in range(4):
            y = getattr(reference, f'layer{index + 1}')(y)
            torch.testing.assert_close(maps[index], y, rtol=1e-4, atol=1e-4)


def test_frozen_stages_neither_train_nor_track():
    model = ResNet(18, frozen_stages=1).train()
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert all(p.requires_grad for p in model.layer2.parameters())
    before = model.layer2[0].bn1.running_mean.clone()
    model(torch.rand(1, 3, 64, 64))
    assert torch.equal(before, model.layer2[0].bn1.running_mean)  # norm_eval
    free = ResNet(18, frozen_stages=1, norm_eval=False).train()
    free(torch.rand(1, 3, 64, 64))
    assert free.layer2[0].bn1.running_mean.abs().sum() > 0
    assert free.layer1[0].bn1.running_mean.abs().sum() == 0


def test_checkpointed_blocks_give_the_same_gradient():
    torch.manual_seed(0)
    plain, saving = ResNet(18, zero_init_residual=False), ResNet(18, zero_init_residual=False, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 64, 64)
    for model in (plain, saving):
        sum(y.sum() for y in model(x)).backward()
    torch.testing.assert_close(saving.conv1.weight.grad, plain.conv1.weight.grad)


@pytest.mark.parametrize(
    'bad', [dict(depth=51), dict(depth=18, style='tf'), dict(depth=18, num_stages=2), dict(depth=34, groups=32)]
)
def test_resnet_refuses_what_it_cannot_build(bad):
    with pytest.raises(ValueError, match='ResNet'):
        ResNet(**bad)


def test_fpn_equals_torchvision():
    torch.manual_seed(0)
    reference = torchvision.ops.FeaturePyramidNetwork(
        [8, 16, 32], 12, extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelMaxPool()
    )
    model = FPN([8, 16, 32], 12, num_outs=4)
    for ours, theirs in (
        (model.lateral_convs, reference.inner_blocks),
        (model.fpn_convs, reference.layer_blocks),
    ):
        for conv, block in zip(ours, theirs):
            conv.conv.load_state_dict(block[0].state_dict())
    maps = [torch.rand(1, c, s, s + 3) for c, s in ((8, 20), (16, 10), (32, 5))]
    expected = reference({str(i): x for i, x in enumerate(maps)})
    for ours, theirs in zip(model(tuple(maps)), expected.values()):
        torch.testing.assert_close(ours, theirs)


def test_extra_levels_of_fpn():
    model = FPN([8, 16], 12, num_outs=4, start_level=1, add_extra_convs='on_input', relu_before_extra_convs=True)
    sizes = [tuple(y.shape[1:]) for y in model((torch.rand(1, 8, 32, 32), torch.rand(1, 16, 16, 16)))]
    assert sizes == [(12, 16, 16), (12, 8, 8), (12, 4, 4), (12, 2, 2)]
    with pytest.raises(ValueError, match='FPN: 2 entries of in_channels for 3 maps'):
        model(tuple(torch.rand(1, c, 8, 8) for c in (8, 16, 32)))


def test_rounded_anchors_equal_torchvision():
    from torchvision.models.detection.anchor_utils import AnchorGenerator as Reference
    from torchvision.models.detection.image_list import ImageList

    sizes, maps = (32, 64), [(12, 16), (6, 8)]
    reference = Reference(tuple((s,) for s in sizes), ((0.5, 1.0, 2.0),) * 2)
    images = ImageList(torch.zeros(1, 3, 96, 128), [(96, 128)])
    (expected,) = reference(images, [torch.zeros(1, 1, *size) for size in maps])
    ours = AnchorGenerator([8, 16], [0.5, 1.0, 2.0], scales=[1.0], base_sizes=sizes, rounded=True)
    torch.testing.assert_close(torch.cat(ours.grid_priors(maps)), expected)


def test_anchors_of_the_original_release():
    """Recorded: stride 4, scale 8, inclusive corners, rounded."""
    generator = AnchorGenerator([4], [0.5, 1.0, 2.0], scales=[8], rounded=True, offset=1)
    assert generator.base_anchors[0].tolist() == [[-21, -9, 24, 12], [-14, -14, 17, 17], [-9, -21, 12, 24]]


def test_octave_scales():
    generator = AnchorGenerator([8], [1.0], octave_base_scale=4, scales_per_octave=3)
    sides = (generator.base_anchors[0][:, 2] - generator.base_anchors[0][:, 0]) / 8
    torch.testing.assert_close(sides, torch.tensor([4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)]))


@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_decoding_inverts_encoding(offset):
    coder = DeltaXYWHBBoxCoder(target_means=(0.1, 0, -0.1, 0), target_stds=(0.1, 0.1, 0.2, 0.2), offset=offset)
    boxes, gt = random_boxes(50), random_boxes(50, seed=1)
    torch.testing.assert_close(coder.decode(boxes, coder.encode(boxes, gt)), gt, rtol=1e-4, atol=1e-3)


def test_coder_equals_torchvision_and_clips():
    from torchvision.models.detection._utils import BoxCoder

    boxes, gt = random_boxes(50), random_boxes(50, seed=1)
    coder, reference = DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2)), BoxCoder((10.0, 10.0, 5.0, 5.0))
    deltas = coder.encode(boxes, gt)
    torch.testing.assert_close(deltas, reference.encode_single(gt, boxes), rtol=1e-4, atol=1e-4)
    wild = torch.randn(50, 4) * 3
    decoded = coder.decode(boxes, wild, (80, 90))
    expected = torchvision.ops.clip_boxes_to_image(reference.decode_single(wild, boxes), (80, 90))
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-2)
    per_class = coder.decode(boxes[:, None], wild.view(50, 1, 4).expand(-1, 3, -1))
    torch.testing.assert_close(per_class[:, 2], coder.decode(boxes, wild))


def test_iou_equals_torchvision_and_known_inclusive_values():
    a, b = random_boxes(20), random_boxes(30, seed=1)
    torch.testing.assert_close(box_iou(a, b), torchvision.ops.box_iou(a, b))
    unit = torch.tensor([[0.0, 0, 1, 1]])
    assert box_area(unit, 1).item() == 4 and box_iou(unit, unit + 1, 1).item() == pytest.approx(1 / 7)
    assert box_iof(unit, torch.tensor([[0.0, 0, 0.5, 4]])).item() == 0.5
    assert box_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def slow_assign(boxes, gt, ignored, pos, neg, low, ignore_iof, assign_all):
    """One box at a time, from the definition."""
    iou = box_iou(gt, boxes)
    covered = [ignore_iof > 0 and len(ignored) > 0 and box_iof(box[None], ignored).max() > ignore_iof for box in boxes]
    iou[:, covered] = 0  # a ground truth then takes the best of the others
    result = []
    for i in range(len(boxes)):
        best = max(range(len(gt)), key=lambda g: (iou[g, i].item(), -g))
        value = iou[best, i].item()
        result.append(IGNORED if covered[i] or neg <= value < pos else best if value >= pos else NEGATIVE)
    if low is not None:
        for g in range(len(gt)):
            top = iou[g].max().item()
            if top >= low and top > 0:
                ties = [i for i in range(len(boxes)) if iou[g, i].item() == top]
                for i in ties if assign_all else ties[:1]:
                    result[i] = g
    return result, iou.amax(0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_gt=st.integers(1, 6),
    low=st.sampled_from([None, 0.0, 0.3]),
    ignore=st.booleans(),
    assign_all=st.booleans(),
)
def test_assigner_equals_slow_loop(seed, num_gt, low, ignore, assign_all):
    boxes = random_boxes(40, seed)
    boxes = torch.cat([boxes, boxes[:10]])  # ties
    gt, ignored = random_boxes(num_gt, seed + 1), random_boxes(2, seed + 2) if ignore else torch.zeros(0, 4)
    assigner = MaxIoUAssigner(
        0.5, 0.3, min_pos_iou=low or 0.0, match_low_quality=low is not None, ignore_iof_thr=0.5,
        gt_max_assign_all=assign_all,
    )  # fmt: skip
    matched, iou = assigner.assign(boxes, gt, ignored)
    expected, expected_iou = slow_assign(boxes, gt, ignored, 0.5, 0.3, low, 0.5, assign_all)
    assert matched.tolist() == expected
    torch.testing.assert_close(iou, expected_iou)


def test_a_ground_truth_takes_no_box_that_a_crowd_covers():
    """The best of the others instead, as in mmdetection."""
    assigner = MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.1, ignore_iof_thr=0.5)
    boxes = torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10], [90, 0, 99, 9]])
    gt, crowd = torch.tensor([[2.0, 0, 12, 10]]), torch.tensor([[-50.0, 0, 9, 10]])
    assert assigner.assign(boxes, gt, crowd)[0].tolist() == [IGNORED, 0, NEGATIVE]
    assert assigner.assign(boxes, gt[:0], crowd)[0].tolist() == [IGNORED, NEGATIVE, NEGATIVE]


class DistinctWrites(TorchDispatchMode):
    """Fails where two values are written to one place: which of them stays there, a GPU leaves open."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.index_put_.default:
            (rows,) = args[1]
            assert len(rows.unique()) == len(rows)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('assign_all', [False, True])
def test_of_two_ground_truths_with_one_best_box_the_last_takes_it(assign_all):
    assigner = MaxIoUAssigner(0.9, 0.1, min_pos_iou=0.1, gt_max_assign_all=assign_all)
    boxes, gt = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([[0.0, 0, 10, 5], [0, 0, 5, 10]])
    with DistinctWrites():
        assert assigner.assign(boxes, gt, torch.zeros(0, 4))[0].tolist() == [1, NEGATIVE]


def test_assigner_without_ground_truth_or_boxes():
    assigner = MaxIoUAssigner(0.5, 0.5)
    none = torch.zeros(0, 4)
    assert (assigner.assign(random_boxes(5), none, none)[0] == NEGATIVE).all()
    assert assigner.assign(none, random_boxes(2), none)[0].shape == (0,)
    assert (assigner.assign(random_boxes(5), none, none)[0]).dtype == torch.int64


@pytest.mark.parametrize(
    'num_pos, num_neg, expected', [(100, 100, (8, 24)), (3, 100, (3, 29)), (0, 5, (0, 5)), (2, 1, (2, 1))]
)
def test_sampler_counts(num_pos, num_neg, expected):
    matched = torch.cat([torch.zeros(num_pos), torch.full((num_neg,), NEGATIVE), torch.full((9,), IGNORED)]).long()
    positive, negative = RandomSampler(32, 0.25).sample(matched, torch.zeros(len(matched)))
    assert (len(positive), len(negative)) == expected
    assert (matched[positive] >= 0).all() and (matched[negative] == NEGATIVE).all()
    assert len(set(positive.tolist() + negative.tolist())) == sum(expected)


@pytest.mark.parametrize('allowed_border, pad_shape, trained', [
    (None, (20, 32), [1, 1, 1, 1, 1]), (-1, None, [1, 1, 1, 1, 1]), (-1, (20, 32), [1, 1, 1, 1, 0]),
    (0, None, [1, 0, 0, 0, 0]), (2, None, [1, 1, 0, 0, 0]), (3, (20, 32), [1, 1, 1, 0, 0]),
])  # fmt: skip
@pytest.mark.parametrize('turned', [False, True])
def test_anchors_that_reach_out_of_the_image(allowed_border, pad_shape, trained, turned):
    """By less than so many pixels, on an image 30 wide and 20 high that is padded to 32."""
    anchors = torch.tensor([
        [0, 0, 29.9, 19.9],
        [-2, 0, 10, 10],  # out by 2
        [20, 0, 32, 10],  # by 2, and the last pixel is beyond
        [0, 0, 33, 10],
        [28, 0, 35, 10],  # its centre is on 31.5, beyond the last pixel's
    ])  # fmt: skip
    target, shapes = torch.zeros(0, 4), [(20, 30), pad_shape]
    if turned:
        anchors, shapes = anchors[:, [1, 0, 3, 2]], [shape and shape[::-1] for shape in shapes]
    found = trained_anchors(anchors, Target(target, target[:, 0].long(), None, target, *shapes), allowed_border)
    assert [1] * 5 == trained if found is None else found.tolist() == list(map(bool, trained))


def test_rois_carry_their_image():
    rois = to_rois([random_boxes(2), torch.zeros(0, 4), random_boxes(1)])
    assert rois[:, 0].tolist() == [0, 0, 2] and rois.shape == (3, 5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.int64, torch.float64])
@pytest.mark.parametrize('offset', [0, 1])
def test_boxes_of_any_type_are_measured_in_float32_or_better(dtype, offset):
    """A box of 900 pixels has an area past float16's largest number."""
    boxes, others = torch.tensor([[0, 0, 900, 900], [4, 4, 4, 4]]), torch.tensor([[0, 0, 900, 450], [0, 0, 8, 8]])
    exact = torch.promote_types(dtype, torch.float32)
    given = boxes.to(dtype), others.to(dtype)
    wide = [t.to(exact) for t in given]
    for function in (box_iou, box_iof):
        assert torch.equal(function(*given, offset), function(*wide, offset))
        assert function(*given, offset).dtype == exact and function(*given, offset).isfinite().all()
    assert box_area(given[0], offset).tolist() == box_area(wide[0], offset).tolist()
    if dtype == torch.int64:
        assert box_iou(*given)[0, 0] == 0.5 and box_area(given[0]).tolist() == [810000, 0]


@pytest.mark.parametrize('levels', [(0, 3), (3, -1), (-1, -1), (2, 1), (0, -2)], ids=str)
def test_fpn_refuses_levels_that_are_not_there(levels):
    with pytest.raises(UserError, match='FPN: start_level=.*, end_level=.* are not among the 3 inputs'):
        FPN([8, 16, 32], 12, num_outs=5, start_level=levels[0], end_level=levels[1])


def test_end_level_of_fpn_is_included():
    assert len(FPN([8, 16, 32], 12, num_outs=2, end_level=1).lateral_convs) == 2
    assert len(FPN([8, 16, 32], 12, num_outs=2, start_level=1, end_level=2).lateral_convs) == 2


def test_roi_extractor_refuses_fewer_maps_than_strides():
    extractor = SingleRoIExtractor(dict(type='RoIAlign', output_size=7), 8, [4, 8, 16])
    rois = torch.tensor([[0.0, 0, 0, 30, 30]])
    assert extractor([torch.rand(1, 8, s, s) for s in (16, 8, 4, 2)], rois).shape == (1, 8, 7, 7)
    with pytest.raises(UserError, match='3 featmap_strides for 2 maps'):
        extractor([torch.rand(1, 8, s, s) for s in (16, 8)], rois)
