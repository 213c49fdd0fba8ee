"""SSD against torchvision's ssd300_vgg16 with the same weights, on photographs; and its parts."""

import cv2
import pytest
import torch
import torchvision
from lively import spread_outputs
from mmengine.config import Config
from torch.nn import functional as F
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from mmdet.checkpoints import Checkpoint, adapt_config, convert, to_torchvision, weights_for_part
from mmdet.checkpoints.classes import COCO_IDS
from mmdet.config.errors import UserError
from mmdet.config.load import load_config
from mmdet.models.backbones import SSDVGG
from mmdet.models.dense_heads import SSDHead
from mmdet.models.necks import L2Norm, SSDNeck
from mmdet.models.task_modules import SSDAnchorGenerator
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, Target

NUM_CLASSES = 20


# ------------------------------------------------------------------ torchvision


@pytest.fixture(scope='module')
def images(real_data) -> list[torch.Tensor]:
    """Two photos, BGR uint8 (3, 300, 300)."""
    paths = sorted((real_data / 'photos').glob('*.jpg'))[:2]
    photos = [cv2.resize(cv2.imread(str(path)), (300, 300), interpolation=cv2.INTER_AREA) for path in paths]
    return [torch.from_numpy(photo).permute(2, 0, 1).contiguous() for photo in photos]


def as_theirs(images: list[torch.Tensor]) -> list[torch.Tensor]:
    return [image.flip(0) / 255 for image in images]


@pytest.fixture(scope='module')
def pair(images):
    """torchvision's model, random but with outputs that spread, and ours with its weights."""
    torch.manual_seed(0)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1).eval()
    torch.nn.init.uniform_(theirs.backbone.scale_weight, 10, 30)
    spreads = {f'head.classification_head.module_list.{level}': 1.5 for level in range(6)}
    spreads |= {f'head.regression_head.module_list.{level}': 0.8 for level in range(6)}
    with torch.no_grad(), spread_outputs(theirs, spreads):
        theirs(as_theirs(images[:1]))
    cfg = Config.fromfile('configs/torchvision/ssd300_vgg16.py', lazy_import=False).model
    cfg.bbox_head.num_classes = NUM_CLASSES
    ours = MODELS.build(cfg).eval()
    ours.load_state_dict(convert(dict(state_dict=theirs.state_dict()), NUM_CLASSES).state_dict, strict=True)
    return theirs, ours


def test_same_detections(pair, images):
    """From the image to the boxes of both, normalisation included; to 1e-3 pixels and 1e-3 of score."""
    theirs, ours = pair
    meta = dict(img_shape=(300, 300), ori_shape=(300, 300), scale_factor=(1.0, 1.0))
    images = images[:1]
    samples = [DetDataSample(metainfo=meta) for _ in images]
    with torch.no_grad():
        expected = theirs(as_theirs(images))
        found = ours.test_step(dict(inputs=images, data_samples=samples))
    for sample, theirs_found in zip(found, expected):
        instances = sample.pred_instances
        assert len(instances) == 200 and len(instances.labels.unique()) > 10
        torch.testing.assert_close(instances.scores, theirs_found['scores'], atol=1e-3, rtol=0)
        distance = (instances.bboxes[:, None] - theirs_found['boxes']).abs().amax(-1)
        distance[instances.labels[:, None] + 1 != theirs_found['labels']] = torch.inf
        # by matching: scores that differ in the last digits may have changed places, also with the 201st
        assert (distance.amin(0) < 1e-3).sum() >= 199 and (distance.amin(1) < 1e-3).sum() >= 199


def test_same_losses(pair, images):
    theirs, ours = pair
    with torch.no_grad():
        batch = ours.data_preprocessor(dict(inputs=images, data_samples=None))['inputs']
        maps = list(theirs.backbone(batch).values())
        features = ours.extract_feat(batch)
    for level, expected in zip(features, maps):
        torch.testing.assert_close(level, expected, atol=1e-3, rtol=1e-4)
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(2, 7, 2, 2, generator=generator).mul(300).sort(2).values
    boxes = corners.flatten(2)
    boxes[..., 2:] += 5
    labels = torch.randint(1, NUM_CLASSES + 1, (2, 7), generator=generator)
    targets = [dict(boxes=boxes[0], labels=labels[0]), dict(boxes=boxes[1, :3], labels=labels[1, :3])]
    anchors = theirs.anchor_generator(ImageList(batch, [(300, 300)] * 2), maps)
    torch.testing.assert_close(torch.cat(ours.bbox_head(features)[2]), anchors[0], atol=1e-4, rtol=0)
    matched = [theirs.proposal_matcher(box_iou(t['boxes'], a)) for t, a in zip(targets, anchors)]
    expected = theirs.compute_loss(targets, theirs.head(maps), anchors, matched)
    our_targets = [Target(t['boxes'], t['labels'] - 1, None, torch.zeros(0, 4), (300, 300)) for t in targets]
    losses = ours.bbox_head.loss(*ours.bbox_head(features), our_targets)
    assert sum(int((index >= 0).sum()) for index in matched) > 20
    torch.testing.assert_close(losses['loss_cls'], expected['classification'], atol=0, rtol=1e-4)
    torch.testing.assert_close(losses['loss_bbox'], expected['bbox_regression'], atol=0, rtol=1e-4)


def test_export_fills_torchvision_and_comes_back_to_the_bit(pair):
    theirs, ours = pair
    exported = to_torchvision(ours.state_dict())
    assert all(value.equal(exported[key]) for key, value in theirs.state_dict().items())
    assert exported.keys() == theirs.state_dict().keys()


# ------------------------------------------------------------------ names of older files


def old_state() -> tuple[dict, dict]:
    """Some weights of 0.x to 2.x, background in row 0 of each of the two anchors, and their names and rows here."""
    cls = torch.arange(2 * 4.0).unflatten(0, (2, 4))
    old = {
        'backbone.features.0.weight': torch.zeros(1), 'backbone.l2_norm.weight': torch.ones(2),
        'backbone.extra.0.weight': torch.zeros(3), 'backbone.extra.7.bias': torch.zeros(4),
        'bbox_head.reg_convs.0.bias': torch.zeros(8), 'bbox_head.cls_convs.0.bias': cls.flatten(),
    }  # fmt: skip
    names = [
        'backbone.features.0.weight', 'neck.l2_norm.weight', 'neck.extra_layers.0.0.conv.weight',
        'neck.extra_layers.3.1.conv.bias', 'bbox_head.reg_convs.0.0.bias', 'bbox_head.cls_convs.0.0.bias',
    ]  # fmt: skip
    return old, dict(zip(names, old.values()))


@pytest.mark.parametrize('version, background_first', [('0.6.0', True), ('1.2.0', True), ('2.8.0', False)])
def test_older_names_and_classes(version, background_first):
    old, expected = old_state()
    if background_first:
        expected['bbox_head.cls_convs.0.0.bias'] = torch.tensor([1.0, 2, 3, 0, 5, 6, 7, 4])
    new = convert(dict(meta=dict(mmdet_version=version, mmcv_version='0.2'), state_dict=old)).state_dict
    assert new.keys() == expected.keys()
    assert all(value.equal(new[key]) for key, value in expected.items())


def test_91_outputs_become_80_classes():
    rows = torch.arange(2 * 91.0)
    state = {
        'backbone.scale_weight': torch.zeros(512),
        'head.classification_head.module_list.0.bias': rows,
        'head.regression_head.module_list.0.bias': torch.zeros(8),
    }
    new = convert(state, 80).state_dict['bbox_head.cls_convs.0.0.bias']
    assert new.tolist() == [*COCO_IDS, 0, *(91 + row for row in COCO_IDS), 91]


def test_a_file_of_the_release_brings_its_conventions():
    cfg = load_config('configs/ssd/ssd300_coco.py')
    file = Checkpoint(dict(meta=dict(mmdet_version='0.6.0', mmcv_version='0.2'), state_dict=old_state()[0]), 'x.pth')
    adapt_config(cfg, file)
    head = cfg.model.bbox_head
    assert head.anchor_generator.rounded and head.anchor_generator.offset == head.bbox_coder.offset == 1
    assert cfg.model.test_cfg.nms.offset == cfg.model.train_cfg.assigner.offset == 1
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):
        MODELS.build(cfg.model)
    voc = load_config('configs/pascal_voc/ssd300_voc.py')
    adapt_config(voc, file)
    assert voc.test_evaluator.type == 'VOCMetric' and voc.test_evaluator.offset == 1


def test_ssd512_has_no_place_in_torchvision():
    with pytest.raises(UserError, match='neck.extra_layers.4'):
        to_torchvision({'neck.l2_norm.weight': torch.zeros(1), 'neck.extra_layers.4.0.conv.bias': torch.zeros(1)})


# ------------------------------------------------------------------ parts


def test_vgg_classifier_fills_the_five_stages():
    torch.manual_seed(0)
    with torch.device('meta'):
        shapes = SSDVGG().state_dict()
    vgg = {key: torch.full(value.shape, 2.0) for key, value in shapes.items() if int(key.split('.')[1]) < 30}
    backbone = SSDVGG()
    before = backbone.features[31].weight.clone()
    classifier = {'classifier.0.weight': torch.zeros(1)}
    backbone.load_state_dict(weights_for_part(backbone, Checkpoint(dict(state_dict={**vgg, **classifier}), 'vgg.pth')))
    assert all((backbone.state_dict()[key] == 2).all() for key in vgg) and len(vgg) == 26
    assert backbone.features[31].weight.equal(before)
    del vgg['features.28.bias']
    with pytest.raises(UserError, match='vgg.pth'):
        weights_for_part(backbone, Checkpoint(dict(state_dict=vgg), 'vgg.pth'))


@pytest.mark.parametrize(
    'options, sizes',
    [
        (dict(input_size=300, basesize_ratio_range=(0.15, 0.9)), [21, 45, 99, 153, 207, 261, 315]),
        (dict(input_size=300, basesize_ratio_range=(0.2, 0.9)), [30, 60, 111, 162, 213, 264, 315]),
        (dict(input_size=512, basesize_ratio_range=(0.1, 0.9)), [20, 51, 133, 215, 296, 378, 460, 542]),
        (dict(input_size=512, basesize_ratio_range=(0.15, 0.9)), [35, 76, 153, 230, 307, 384, 460, 537]),
        (dict(min_sizes=[8, 20], max_sizes=[20, 50]), [8, 20, 50]),
    ],
)
def test_anchors_are_the_papers(options, sizes):
    """The sizes that SSD's authors and mmdetection have; boxes in the order of SSD's outputs."""
    levels = len(sizes) - 1
    strides, ratios = [8 * 2**level for level in range(levels)], [[2, 3]] * levels
    anchors = SSDAnchorGenerator(strides, ratios, **options).grid_priors([(1, 1)] * levels)
    for level, stride, size, following in zip(anchors, strides, sizes, sizes[1:]):
        centre, sides = (level[:, 2:] + level[:, :2]) / 2, level[:, 2:] - level[:, :2]
        root = (size * following) ** 0.5
        areas = [size * size, root * root, *[size * size] * 4]
        assert centre.flatten().tolist() == pytest.approx([stride / 2] * 12, abs=1e-4)
        assert sides.prod(1).tolist() == pytest.approx(areas, rel=1e-5)
        assert (sides[:, 0] / sides[:, 1]).tolist() == pytest.approx([1, 1, 2, 0.5, 3, 1 / 3], rel=1e-5)


def test_anchors_of_the_release_are_rounded_with_inclusive_corners():
    first = SSDAnchorGenerator([8, 300], [[2], [2]], min_sizes=[21, 45], max_sizes=[45, 99], rounded=True, offset=1.0)
    anchors = first.grid_priors([(1, 1), (1, 1)])
    half = 21 * 2**0.5 / 2
    expected = torch.tensor([
        [3.5 - 10, 3.5 - 10, 3.5 + 10, 3.5 + 10],
        [3.5 - (945**0.5 - 1) / 2] * 2 + [3.5 + (945**0.5 - 1) / 2] * 2,
        [3.5 - half + 0.5, 3.5 - half / 2 + 0.5, 3.5 + half - 0.5, 3.5 + half / 2 - 0.5],
        [3.5 - half / 2 + 0.5, 3.5 - half + 0.5, 3.5 + half / 2 - 0.5, 3.5 + half - 0.5],
    ]).round()  # fmt: skip
    assert anchors[0].equal(expected)
    assert anchors[1][0].tolist() == [128, 128, 172, 172]  # 149.5 -/+ 22


def test_what_does_not_go_together_is_refused():
    ratios = [[2]] * 6
    for options, message in [
        (dict(input_size=320), 'give min_sizes and max_sizes'),
        (dict(scale_major=True), 'scale_major'),
        (dict(min_sizes=[1] * 6), 'both min_sizes and max_sizes'),
        (dict(min_sizes=[1] * 5, max_sizes=[1] * 5), '5 min_sizes'),
    ]:
        with pytest.raises(UserError, match=message):
            SSDAnchorGenerator([8] * 6, ratios, **options)
    with pytest.raises(UserError, match='depth=12'):
        SSDVGG(depth=12)
    for indices in (22, 35), (-1, 22):
        with torch.device('meta'), pytest.raises(UserError, match='35 layers'):
            SSDVGG(out_feature_indices=indices)
    with pytest.raises(UserError, match='must begin with'):
        SSDNeck([4, 8], [4, 9, 8], [1], [0])
    with pytest.raises(UserError, match='2 level_strides and 1 level_paddings for 1 levels'):
        SSDNeck([4, 8], [4, 8, 8], [1, 1], [0])


def small_head(**train_cfg) -> SSDHead:
    return SSDHead(
        num_classes=3,
        in_channels=(4, 4),
        anchor_generator=dict(
            type='SSDAnchorGenerator', strides=[8, 16], ratios=[[2], [2]], min_sizes=[10, 20], max_sizes=[20, 40]
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, gt_max_assign_all=False),
            **train_cfg,
        ),
    )


def small_maps() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 4, 4, 4, requires_grad=True), torch.randn(2, 4, 2, 2, requires_grad=True)]


@pytest.mark.parametrize(
    'options, ratio, beta, weight',
    [
        (dict(), 3, 1.0, 1.0),
        (dict(neg_pos_ratio=2, smoothl1_beta=2.0), 2, 2.0, 1.0),
        (dict(pos_weight=2.5), 3, 1.0, 2.5),
        (dict(pos_weight=0.5), 3, 1.0, 0.5),
        (dict(pos_weight=0), 3, 1.0, 1.0),
    ],
)
def test_hardest_negatives_train_and_nothing_else(options, ratio, beta, weight):
    """Against a loop over images."""
    torch.manual_seed(0)
    head, maps = small_head(**options), small_maps()
    boxes = [torch.tensor([[2.0, 3, 13, 12], [10, 10, 30, 31]]), torch.tensor([[20.0, 1, 31, 12]])]
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    targets = [Target(b, label, None, torch.zeros(0, 4), (32, 32)) for b, label in zip(boxes, labels)]
    logits, deltas, anchors = head(maps)
    losses = head.loss(logits, deltas, anchors, targets)
    total_cls, total_box, count, errors = 0, 0, 0, []
    for image in range(2):
        positive, negative, index = head.sample(torch.cat(anchors), targets[image])
        count += len(positive)
        scores = logits[image].log_softmax(-1)
        total_cls -= weight * scores[positive, labels[image][index]].sum()
        total_cls -= scores[negative, 3].sort().values[: ratio * len(positive)].sum()
        wanted = head.bbox_coder.encode(torch.cat(anchors)[positive], boxes[image][index])
        error = (deltas[image][positive] - wanted).abs()
        total_box += torch.where(error < beta, error**2 / (2 * beta), error - beta / 2).sum()
        errors.append(error)
        assert 0 < ratio * len(positive) < len(negative)
    assert count >= 3 and 0 < (torch.cat(errors) > beta).float().mean() < 1
    torch.testing.assert_close(losses['loss_cls'], total_cls / count)
    torch.testing.assert_close(losses['loss_bbox'], total_box / count)


def test_one_positive_anchor_counts_as_one():
    head, maps = small_head(), small_maps()
    box = torch.tensor([[2.5, 2.5, 5.5, 5.5]])  # far smaller than all anchors: the best one alone is positive
    target = Target(box, torch.tensor([1]), None, torch.zeros(0, 4), (32, 32))
    logits, deltas, anchors = head([x[:1] for x in maps])
    positive, _, _ = head.sample(torch.cat(anchors), target)
    assert len(positive) == 1
    wanted = head.bbox_coder.encode(torch.cat(anchors)[positive], box)
    expected = F.smooth_l1_loss(deltas[0, positive], wanted, reduction='sum')
    torch.testing.assert_close(head.loss(logits, deltas, anchors, [target])['loss_bbox'], expected)


def test_images_without_objects_give_zero_losses_that_are_connected():
    head, maps = small_head(), small_maps()
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, torch.zeros(0, 4), (32, 32))
    losses = head.loss(*head(maps), [nothing] * 2)
    assert all(value.item() == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_a_head_without_options_is_that_of_ssd300():
    head, channels, anchors = SSDHead(), [512, 1024, 512, 256, 256, 256], [4, 6, 6, 6, 4, 4]
    for convs, values in (head.cls_convs, 81), (head.reg_convs, 4):
        shapes = [tuple(conv[0].weight.shape) for conv in convs]
        assert shapes == [(values * count, before, 3, 3) for count, before in zip(anchors, channels)]
    sizes, strides = [21, 45, 99, 153, 207, 261, 315], [8, 16, 32, 64, 100, 300]
    ratios = [[2, 3] if count == 6 else [2] for count in anchors]
    expected = SSDAnchorGenerator(strides, ratios, min_sizes=sizes[:-1], max_sizes=sizes[1:])
    maps = [(2, 2)] * 6
    for level, reference in zip(head.anchor_generator.grid_priors(maps), expected.grid_priors(maps)):
        assert level.equal(reference)
    same = SSDAnchorGenerator(strides, ratios).grid_priors(maps)
    assert all(level.equal(reference) for level, reference in zip(same, expected.grid_priors(maps)))
    boxes = torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([[14.0, 18, 34, 58]])
    torch.testing.assert_close(head.bbox_coder.encode(*boxes), torch.tensor([[0.2 / 0.1, 0.2 / 0.1, 0, 0]]))
    wider = torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([[0.0, -10, 40, 70]])
    torch.testing.assert_close(head.bbox_coder.encode(*wider)[0, 2:], torch.tensor([2.0, 2]).log() / 0.2)


def test_no_candidate_is_left_out_before_nms_unless_it_is_asked_for():
    head = small_head()
    head.test_cfg = dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=1.0), max_per_img=1000, min_bbox_size=-1)
    meta = dict(img_shape=(32, 32), ori_shape=(32, 32), scale_factor=(1.0, 1.0))
    with torch.no_grad():
        outputs = head(small_maps())
        assert [len(found.scores) for found in head.predict(*outputs, [meta] * 2)] == [3 * (4 * 4 * 4 + 4 * 2 * 2)] * 2
        head.test_cfg['nms_pre'] = 5  # of each level
        assert [len(found.scores) for found in head.predict(*outputs, [meta] * 2)] == [10] * 2


@pytest.mark.parametrize('depth', [11, 13, 16, 19])
def test_the_five_stages_are_torchvisions(depth):
    with torch.device('meta'):
        ours = SSDVGG(depth, with_last_pool=True, out_feature_indices=(0,))
        theirs = getattr(torchvision.models, f'vgg{depth}')().features
    assert len(theirs) == ours.num_vgg_layers == len(ours.features) - 5
    for layer, expected in zip(ours.features, theirs):
        assert type(layer) is type(expected)
        for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation'):
            assert getattr(layer, name, None) == getattr(expected, name, None)
        assert SSDVGG(depth, out_feature_indices=(0,)).num_vgg_layers == len(theirs) - 1


def test_maps_of_the_backbone():
    """Of conv4_3 and of the last layer; 75 pixels are pooled to 38."""
    with torch.device('meta'):
        images = torch.zeros(1, 3, 300, 300)
        assert [tuple(x.shape) for x in SSDVGG()(images)] == [(1, 512, 38, 38), (1, 1024, 19, 19)]
        assert [x.shape[-1] for x in SSDVGG(ceil_mode=False)(images)] == [37, 18]
        assert SSDVGG().out_channels == [512, 1024] and SSDVGG(16, out_feature_indices=(0, 9)).out_channels == [64, 128]


def test_kernels_of_the_neck():
    sizes = []
    for options in {}, dict(last_kernel_size=4):
        neck = SSDNeck([4, 8], [4, 8, 6, 10], [2, 1], [1, 0], **options)
        assert neck.l2_norm.weight.tolist() == [20] * 4
        sizes.append([conv.kernel_size[0] for conv in neck.modules() if isinstance(conv, torch.nn.Conv2d)])
    assert sizes == [[1, 3, 1, 3], [1, 3, 1, 4]]
    assert neck.extra_layers[1][0].conv.out_channels == 5


def test_an_image_too_small_for_all_levels_is_one_line():
    """As a long image is that was resized with keep_ratio=True: 3 x 2 cells are none for a kernel of 3 x 3."""
    neck = SSDNeck([4, 8], [4, 8, 6], [1], [0])
    with pytest.raises(UserError, match='too small for 3 levels, one has a map of 3 x 2. .* keep_ratio=False'):
        neck((torch.zeros(1, 4, 6, 4), torch.zeros(1, 8, 3, 2)))
    assert neck((torch.zeros(1, 4, 6, 6), torch.zeros(1, 8, 3, 3)))[2].shape == (1, 6, 1, 1)


def test_l2_norm_of_short_vectors():
    """A ten-billionth is added to their length, so that zeros stay zeros."""
    norm = L2Norm(2)
    assert norm(torch.zeros(1, 2, 1, 1)).tolist() == [[[[0]], [[0]]]]
    short = torch.tensor([3e-10, 4e-10]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm(short).flatten(), 20 * torch.tensor([3.0, 4]) / 6)


def test_l2_norm_of_the_neck():
    neck = SSDNeck([4, 8], [4, 8, 6], [2], [1], l2_norm_scale=20)
    first, second = torch.randn(4, 4, 5, 5), torch.randn(4, 8, 3, 3)  # as many images as channels
    maps = neck((first, second))
    torch.testing.assert_close(maps[0], 20 * F.normalize(first))
    assert maps[1] is second and maps[2].shape == (4, 6, 2, 2)
    assert SSDNeck([4, 8], [4, 8, 6], [2], [1], l2_norm_scale=None)((first, second))[0] is first
