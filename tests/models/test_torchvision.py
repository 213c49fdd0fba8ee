"""Our models against torchvision's, with the same weights, on real photos."""

import pytest
import torch
from lively import lively_model, photos, run
from mmengine.config import Config
from torchvision.models.detection import roi_heads as tv_roi
from torchvision.models.detection.image_list import ImageList

from mmdet.checkpoints import convert, to_torchvision
from mmdet.models.detections import Detections
from mmdet.models.roi_heads.common import Sampled, bbox_loss
from mmdet.registry import MODELS
from mmdet.structures import Target

NUM_CLASSES = 90
NUM_PROPOSALS = 150  # of 1000: the box head's convolutions take the time
NUM_DETECTIONS = 40  # of 100
RCNN = [
    'fasterrcnn_resnet50_fpn',
    'maskrcnn_resnet50_fpn',
    pytest.param('fasterrcnn_resnet50_fpn_v2', marks=pytest.mark.slow),
    'maskrcnn_resnet50_fpn_v2',
]


def build(name: str, state: dict, num_classes: int = NUM_CLASSES):
    """Our model of configs/torchvision with torchvision's weights."""
    cfg = Config.fromfile(f'configs/torchvision/{name}.py', lazy_import=False).model
    cfg.backbone.norm_cfg.eps = 1e-5  # torchvision's own models, unlike its COCO_V1 files
    for head in [cfg.get('bbox_head'), *(cfg.get('roi_head', {}).get(key) for key in ('bbox_head', 'mask_head'))]:
        if head is not None:
            head.num_classes = num_classes
    if 'rpn_head' in cfg:
        cfg.test_cfg.rpn.max_per_img = NUM_PROPOSALS
        cfg.test_cfg.rcnn.max_per_img = NUM_DETECTIONS
    model = MODELS.build(cfg).eval()
    model.load_state_dict(convert(dict(state_dict=state), num_classes).state_dict, strict=True)
    return model


@pytest.fixture(scope='module')
def pair(request, real_data):
    """torchvision's model of the name asked for, ours with its weights, the batch and its images' sizes."""
    batch, sizes = photos(real_data, 224)
    theirs = lively_model(
        request.param,
        batch,
        sizes,
        rpn_post_nms_top_n_test=NUM_PROPOSALS,
        box_detections_per_img=NUM_DETECTIONS,
        box_batch_size_per_image=64,
    )
    return theirs, build(request.param, theirs.state_dict()), batch, sizes


def assert_same_boxes(boxes, expected):
    """Equal to 1e-3 pixels up to order: boxes of equal score may come in any."""
    assert boxes.shape == expected.shape
    distance = (boxes[:, None] - expected[None]).abs().amax(-1)
    assert distance.amin(0).max() < 1e-3
    assert distance.amin(1).max() < 1e-3


def metas_of(sizes):
    return [dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)) for size in sizes]


def in_order_of(expected: dict, found: Detections) -> Detections:
    """`found` in the rows of `expected`: scores that differ in the last digits may have changed places."""
    assert len(found.boxes) == len(expected['boxes'])
    assert (found.scores[:-1] >= found.scores[1:]).all()
    distance = (found.boxes[None] - expected['boxes'][:, None]).abs().amax(-1)
    distance[found.labels[None] + 1 != expected['labels'][:, None]] = torch.inf
    rows = distance.argmin(1)
    assert len(rows.unique()) == len(rows)
    return Detections(*(part[rows] for part in found))


@pytest.mark.parametrize('pair', RCNN, indirect=True)
@torch.no_grad()
def test_same_proposals_and_detections(pair):
    theirs, ours, batch, sizes = pair
    their_proposals, their_detections = run(theirs, batch, sizes)
    features = ours.extract_feat(batch)
    proposals = ours.rpn_head.predict(*ours.rpn_head(features), sizes)
    detections = ours.roi_head.predict(features, their_proposals, metas_of(sizes))

    for (boxes, _), expected in zip(proposals, their_proposals):
        assert len(boxes) == NUM_PROPOSALS
        assert_same_boxes(boxes[:-1], expected[:-1])  # which of two boxes is the last is a matter of rounding
    detections = [in_order_of(expected, found) for found, expected in zip(detections, their_detections)]
    for found, expected in zip(detections, their_detections):
        assert len(found.boxes) >= 24
        assert len(found.labels.unique()) >= 4
        torch.testing.assert_close(found.boxes, expected['boxes'], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, expected['scores'], atol=1e-3, rtol=0)
        assert torch.equal(found.labels + 1, expected['labels'])
    if ours.roi_head.mask_head is not None:
        labels = torch.cat([d.labels for d in detections])
        rois = torch.cat([torch.nn.functional.pad(d.boxes, (1, 0), value=i) for i, d in enumerate(detections)])
        head = ours.roi_head
        masks = head.mask_head.predict(head.mask_head(head.mask_roi_extractor(features, rois)), labels)
        expected = torch.cat([d['masks'] for d in their_detections])[:, 0]
        assert 0.2 < (expected > 0.5).float().mean() < 0.8
        torch.testing.assert_close(masks, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize('pair', RCNN, indirect=True)
def test_same_training_losses(pair):
    """The losses of both for the same sampled anchors and RoIs; ground truth is made of proposals, moved a little."""
    theirs, ours, batch, sizes = pair
    with torch.no_grad():
        proposals, _ = run(theirs, batch, sizes)
        features = theirs.backbone(batch)
    generator = torch.Generator().manual_seed(0)
    targets = []
    for boxes, (height, width) in zip(proposals, sizes):
        large = boxes[(boxes[:, 2:] - boxes[:, :2]).amin(1) > 12][:7]
        boxes = large + 3 * torch.randn(large.shape, generator=generator)
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        masks = (torch.rand(len(boxes), height, width, generator=generator) > 0.5).to(torch.uint8)
        labels = torch.randint(1, NUM_CLASSES + 1, (len(boxes),), generator=generator)
        targets.append(dict(boxes=boxes, labels=labels, masks=masks))

    # Their RPN: matcher, sampler and loss; ours gets the anchors that theirs samples.
    theirs.rpn.train()
    images = ImageList(batch, sizes)
    sampled_anchors = []
    sampler = theirs.rpn.fg_bg_sampler
    theirs.rpn.fg_bg_sampler = lambda labels: sampled_anchors.append(sampler(labels)) or sampled_anchors[-1]
    _, their_rpn = theirs.rpn(images, features, targets)
    theirs.rpn.fg_bg_sampler = sampler
    theirs.rpn.eval()
    maps = tuple(features.values())
    logits, deltas, anchors = ours.rpn_head(maps)
    all_anchors = torch.cat(anchors)
    labels, matched = theirs.rpn.assign_targets_to_anchors([all_anchors] * 2, targets)
    picked = [
        ((p > 0).nonzero()[:, 0], (n > 0).nonzero()[:, 0], boxes) for p, n, boxes in zip(*sampled_anchors[0], matched)
    ]
    calls = iter([(p, n, boxes[p]) for p, n, boxes in picked])
    ours.rpn_head.sample = lambda anchors, target: next(calls)
    our_targets = [
        Target(t['boxes'], t['labels'] - 1, None, torch.zeros(0, 4), size) for t, size in zip(targets, sizes)
    ]
    our_rpn = ours.rpn_head.loss(logits, deltas, anchors, our_targets)
    del ours.rpn_head.sample
    assert sum(len(p) for p, _, _ in picked) > 10
    torch.testing.assert_close(our_rpn['loss_rpn_cls'], their_rpn['loss_objectness'], atol=0, rtol=1e-4)
    torch.testing.assert_close(our_rpn['loss_rpn_bbox'], their_rpn['loss_rpn_box_reg'], atol=0, rtol=1e-4)

    # Our RoIs, positives first as ours are, and theirs in the same order.
    rois, matched, their_labels, regression = map(
        list, theirs.roi_heads.select_training_samples(list(proposals), targets)
    )
    sampled = []
    for i, target in enumerate(targets):
        order = (their_labels[i] == 0).long().argsort(stable=True)
        rois[i], matched[i] = rois[i][order], matched[i][order]
        their_labels[i], regression[i] = their_labels[i][order], regression[i][order]
        num_positive = int((their_labels[i] > 0).sum())
        assert num_positive >= 5
        background = torch.full_like(their_labels[i], NUM_CLASSES)
        sampled.append(
            Sampled(
                rois[i],
                torch.where(their_labels[i] > 0, their_labels[i] - 1, background),
                target['boxes'][matched[i]],
                matched[i],
                num_positive,
            )
        )
    pooled = theirs.roi_heads.box_roi_pool(features, rois, sizes)
    their_losses = tv_roi.fastrcnn_loss(
        *theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled)), their_labels, regression
    )
    head = ours.roi_head
    our_losses = bbox_loss(head.bbox_head, *head(maps, [s.boxes for s in sampled]), sampled, {})
    torch.testing.assert_close(our_losses['loss_cls'], their_losses[0], atol=0, rtol=1e-4)
    torch.testing.assert_close(our_losses['loss_bbox'], their_losses[1], atol=0, rtol=1e-4)
    if ours.roi_head.mask_head is None:
        return
    positive = [s.boxes[: s.num_positive] for s in sampled]
    index = [s.gt_index[: s.num_positive] for s in sampled]
    pooled = theirs.roi_heads.mask_roi_pool(features, positive, sizes)
    logits = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(pooled))
    masks, all_labels = [t['masks'] for t in targets], [t['labels'] for t in targets]
    expected = tv_roi.maskrcnn_loss(logits, positive, masks, all_labels, index)
    # torchvision's targets are averages of mask pixels, not 0 or 1: ours are compared with their rule.
    mask_targets = torch.cat([tv_roi.project_masks_on_boxes(*a, 28) for a in zip(masks, positive, index)])
    rois = torch.cat([torch.nn.functional.pad(boxes, (1, 0), value=i) for i, boxes in enumerate(positive)])
    labels = torch.cat([s.labels[: s.num_positive] for s in sampled])
    loss = head.mask_head.loss(head.mask_head(head.mask_roi_extractor(maps, rois)), labels, mask_targets)['loss_mask']
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-4)


@pytest.mark.parametrize('pair', RCNN, indirect=True)
def test_export_fills_torchvision_strictly(pair, request):
    theirs, ours, _, _ = pair
    exported = to_torchvision(ours.state_dict())
    theirs.load_state_dict(exported, strict=True)  # names and shapes
    again = build(request.node.callspec.params['pair'], exported).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize('pair', ['maskrcnn_resnet50_fpn'], indirect=True)
@torch.no_grad()
def test_export_finds_the_same(pair):
    theirs, ours, batch, sizes = pair
    _, expected = run(theirs, batch, sizes)
    exported = to_torchvision(ours.state_dict())
    for parameter in theirs.parameters():
        parameter.data.zero_()
    theirs.load_state_dict(exported, strict=True)
    for found, wanted in zip(run(theirs, batch, sizes)[1], expected):
        assert all(torch.equal(found[key], wanted[key]) for key in ('boxes', 'scores', 'labels', 'masks'))


@pytest.mark.parametrize('pair', ['fasterrcnn_resnet50_fpn'], indirect=True)
@torch.no_grad()
def test_91_outputs_fill_80_classes(pair):
    """COCO's ids have gaps. With the unused outputs silenced the 80 classes' detections are torchvision's."""
    from mmdet.checkpoints.classes import COCO_IDS

    theirs, _, batch, sizes = pair
    bias = theirs.roi_heads.box_predictor.cls_score.bias
    saved = bias.clone()
    unused = sorted(set(range(1, 91)) - set(COCO_IDS))
    assert len(unused) == 10
    bias[unused] = -1e4
    ours = build('fasterrcnn_resnet50_fpn', theirs.state_dict(), 80)
    proposals, expected = run(theirs, batch, sizes)
    bias.copy_(saved)
    detections = ours.roi_head.predict(ours.extract_feat(batch), proposals, metas_of(sizes))
    for found, wanted in zip(detections, expected):
        assert len(found.boxes) > 20
        assert torch.equal(torch.tensor(COCO_IDS)[found.labels], wanted['labels'])
        torch.testing.assert_close(found.boxes, wanted['boxes'], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, wanted['scores'], atol=1e-3, rtol=0)
