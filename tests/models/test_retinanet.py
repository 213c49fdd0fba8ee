"""RetinaNet against torchvision's, with the same weights, on real photos; and odd batches."""

import factories
import pytest
import torch
from lively import lively_model, photos, run
from mmengine.config import Config
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from mmdet.checkpoints import convert, to_torchvision
from mmdet.registry import MODELS
from mmdet.structures import Target

NUM_CLASSES = 90
NAMES = ['retinanet_resnet50_fpn', 'retinanet_resnet50_fpn_v2']


def build(name: str, state: dict):
    cfg = Config.fromfile(f'configs/torchvision/{name}.py', lazy_import=False).model
    cfg.backbone.norm_cfg.eps = 1e-5  # torchvision's own models, unlike its COCO_V1 files
    cfg.bbox_head.num_classes = NUM_CLASSES
    model = MODELS.build(cfg).eval()
    model.load_state_dict(convert(dict(state_dict=state), NUM_CLASSES).state_dict, strict=True)
    return model


@pytest.fixture(scope='module')
def pair(request, real_data):
    """torchvision's model of the name asked for, ours with its weights, the batch and its images' sizes."""
    batch, sizes = photos(real_data, 180)
    theirs = lively_model(request.param, batch, sizes)
    return theirs, build(request.param, theirs.state_dict()), batch, sizes


@pytest.mark.parametrize('pair', NAMES, indirect=True)
@torch.no_grad()
def test_same_detections(pair):
    theirs, ours, batch, sizes = pair
    _, expected = run(theirs, batch, sizes)
    metas = [dict(img_shape=size, scale_factor=(1.0, 1.0)) for size in sizes]
    outputs = ours.bbox_head(ours.extract_feat(batch))
    for found, wanted in zip(ours.bbox_head.predict(*outputs, metas), expected):
        assert len(found.boxes) == len(wanted['boxes']) >= 24
        torch.testing.assert_close(found.boxes, wanted['boxes'], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, wanted['scores'], atol=1e-3, rtol=0)
        assert torch.equal(found.labels + 1, wanted['labels'])


@pytest.mark.parametrize('pair', NAMES, indirect=True)
@torch.no_grad()
def test_same_training_losses(pair):
    """For the anchors that torchvision's matcher chooses; one image, since it averages images and we positives."""
    theirs, ours, batch, sizes = pair
    batch, size = batch[:1], sizes[0]
    maps = list(theirs.backbone(batch).values())
    outputs = theirs.head(maps)
    (anchors,) = theirs.anchor_generator(ImageList(batch, [size]), maps)
    boxes = anchors[torch.linspace(500, len(anchors) - 500, 6).long()] + torch.tensor([2.0, -1, 3, 2])
    target = dict(boxes=boxes, labels=torch.tensor([5, 1, 90, 33, 7, 7]))
    expected = theirs.compute_loss([target], outputs, [anchors])
    logits, deltas, our_anchors = ours.bbox_head(maps)
    torch.testing.assert_close(torch.cat(our_anchors), anchors, atol=1e-4, rtol=0)
    matched = theirs.proposal_matcher(box_iou(boxes, anchors))
    positive, negative = (matched >= 0).nonzero()[:, 0], (matched == -1).nonzero()[:, 0]
    assert len(positive) > 6
    head = ours.bbox_head
    head.sample = lambda anchors, target: (positive, negative, matched[positive])
    losses = head.loss(
        logits, deltas, our_anchors, [Target(boxes, target['labels'] - 1, None, torch.zeros(0, 4), size)]
    )
    del head.sample
    torch.testing.assert_close(losses['loss_cls'], expected['classification'], atol=0, rtol=1e-4)
    torch.testing.assert_close(losses['loss_bbox'], expected['bbox_regression'], atol=0, rtol=1e-4)


@pytest.mark.parametrize('pair', NAMES, indirect=True)
def test_export_fills_torchvision_strictly(pair, request):
    theirs, ours, _, _ = pair
    exported = to_torchvision(ours.state_dict())
    theirs.load_state_dict(exported, strict=True)
    again = build(request.node.callspec.params['pair'], exported).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize('counts', [[2, 0], [0]], ids=['half', 'none'])
def test_batches_without_objects(make_data, counts):
    model = factories.build(factories.small_cfg('retinanet')).train()
    losses = model(**model.data_preprocessor(make_data(counts), True), mode='loss')
    sum(losses.values()).backward()
    assert losses['loss_cls'] > 0 and torch.isfinite(losses['loss_cls'])
    assert (losses['loss_bbox'] > 0) == (sum(counts) > 0)
    # The backbone's first stage does not reach the head: FPN starts at the second.
    assert all(p.grad is not None for p in model.bbox_head.parameters())
    (sample, *_) = model.eval().test_step(make_data(counts))
    assert len(sample.pred_instances.bboxes) == len(sample.pred_instances.labels) <= 100
