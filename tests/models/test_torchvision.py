"""Our models against torchvision's, with the same weights, on real photos."""

from pathlib import Path

import pytest
import torch
from lively import lively_model, photos, run
from mmengine.config import Config

from mmdet.checkpoints import convert, to_torchvision
from mmdet.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'torchvision'
NUM_CLASSES = 90


def build(name: str, state: dict, num_classes: int = NUM_CLASSES):
    """Our model of configs/torchvision with torchvision's weights."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py').model
    cfg.backbone.norm_cfg.eps = 1e-5  # torchvision's own models, unlike its COCO_V1 files
    for head in [cfg.get('bbox_head'), *(cfg.get('roi_head', {}).get(key) for key in ('bbox_head', 'mask_head'))]:
        if head is not None:
            head.num_classes = num_classes
    model = MODELS.build(cfg).eval()
    model.load_state_dict(convert(dict(state_dict=state), num_classes).state_dict, strict=True)
    return model


def assert_same_set(boxes, expected):
    """Equal to 1e-3 pixels up to order: proposals of equal score may come in any."""
    assert boxes.shape == expected.shape
    distance = torch.cdist(boxes.double(), expected.double(), p=float('inf'), compute_mode='donot_use_mm_for_euclid_dist')
    assert distance.amin(0).max() < 1e-3
    assert distance.amin(1).max() < 1e-3


def metas_of(sizes):
    return [dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)) for size in sizes]


@pytest.mark.parametrize(
    'name',
    [
        'fasterrcnn_resnet50_fpn',
        'maskrcnn_resnet50_fpn',
        'fasterrcnn_resnet50_fpn_v2',
        'maskrcnn_resnet50_fpn_v2',
    ],
)
@torch.no_grad()
def test_same_proposals_and_detections(name, real_data):
    batch, sizes = photos(real_data, 330)
    theirs = lively_model(name, batch, sizes)
    ours = build(name, theirs.state_dict())
    their_proposals, their_detections = run(theirs, batch, sizes)

    features = ours.extract(batch)
    proposals = ours.rpn_head.predict(*ours.rpn_head(features), sizes)
    metas = metas_of(sizes)
    detections = ours.roi_head.predict(features, [boxes for boxes, _ in proposals], metas)

    for (boxes, _), expected in zip(proposals, their_proposals):
        assert len(boxes) > 200
        assert_same_set(boxes, expected)
    for found, expected in zip(detections, their_detections):
        assert len(found.boxes) >= 24
        assert len(found.labels.unique()) > 5
        torch.testing.assert_close(found.boxes, expected['boxes'], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, expected['scores'], atol=1e-3, rtol=0)
        assert torch.equal(found.labels + 1, expected['labels'])
    if name.startswith('mask'):
        labels = torch.cat([d.labels for d in detections])
        rois = torch.cat([torch.cat([d.boxes.new_full((len(d.boxes), 1), i), d.boxes], 1) for i, d in enumerate(detections)])
        head = ours.roi_head
        masks = head.mask_head.predict(head.mask_head(head.mask_roi_extractor(features, rois)), labels)
        expected = torch.cat([d['masks'] for d in their_detections])[:, 0]
        assert 0.2 < (expected > 0.5).float().mean() < 0.8
        torch.testing.assert_close(masks, expected, atol=1e-3, rtol=0)

    # And back: our weights fill torchvision's model strictly and it finds the same.
    back = lively_model(name, batch, sizes, seed=1)
    back.load_state_dict(to_torchvision(ours.state_dict()), strict=True)
    for found, expected in zip(run(back, batch, sizes)[1], their_detections):
        torch.testing.assert_close(found['boxes'], expected['boxes'], atol=1e-3, rtol=0)
        torch.testing.assert_close(found['scores'], expected['scores'], atol=1e-5, rtol=0)
        assert torch.equal(found['labels'], expected['labels'])
