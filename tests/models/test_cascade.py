"""Cascade R-CNN, Fast R-CNN and the RPN alone: losses, odd batches, refinement."""

import json

import cv2
import factories
import numpy as np
import pytest
import torch
from factories import small_cfg
from mmengine.structures import InstanceData

from mmdet.models import CascadeRoIHead
from mmdet.registry import DATASETS, MODELS, TRANSFORMS


def build(name: str):
    return factories.build(small_cfg(name)).train()


@pytest.mark.parametrize('name', ['cascade_rcnn', 'cascade_mask_rcnn', 'fast_rcnn', 'rpn'])
@pytest.mark.parametrize('counts', [[3, 0], [0]], ids=['half', 'none'])
def test_losses_are_finite_and_reach_every_parameter(make_data, name, counts):
    model = build(name)
    data = make_data(counts)
    if name == 'fast_rcnn':
        for sample in data['data_samples']:
            sample.proposals = InstanceData(bboxes=torch.tensor([[5.0, 5, 60, 60], [10, 10, 90, 80], [0, 0, 9, 9]]))
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(torch.isfinite(value).all() for value in losses.values())
    missing = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    if name.startswith('cascade'):
        assert {f's{i}.loss_cls' for i in range(3)} <= set(losses)
        assert losses['s2.loss_cls'] > 0
    if name == 'cascade_mask_rcnn':
        assert (losses['s1.loss_mask'] > 0) == (sum(counts) > 0)
    (found, *_) = model.eval().test_step(data)
    if name == 'rpn':
        assert (found.pred_instances.labels == 0).all() and len(found.pred_instances) > 100
    if name == 'cascade_mask_rcnn':
        assert len(found.pred_instances.masks) == len(found.pred_instances.scores)


def test_stages_average_scores_and_refine_boxes(make_data):
    """The three stages done by hand give the head's detections."""
    model = build('cascade_rcnn').eval()
    head = model.roi_head
    for stage in head.bbox_head:
        torch.nn.init.normal_(stage.fc_cls.weight, std=0.3)
        torch.nn.init.normal_(stage.fc_reg.weight, std=0.1)
    data = model.data_preprocessor(make_data([1]), False)
    with torch.no_grad():
        features = model.extract_feat(data['inputs'])
        boxes = torch.tensor([[4.0, 6, 60, 70], [20, 10, 90, 50], [0, 0, 128, 96]])
        meta = dict(img_shape=(96, 128), scale_factor=(1.0, 1.0))
        (found,) = head.predict(features, [boxes], [meta])
        scores = []
        for stage, bbox_head in enumerate(head.bbox_head):
            logits, deltas = head(features, [boxes], stage)
            scores.append(logits)
            boxes = bbox_head.bbox_coder.decode(boxes, deltas[:, 0], (96, 128))
        scores = torch.stack(scores).mean(0).softmax(1)[:, :-1]
    assert len(found.boxes) > 2
    for box, score, label in zip(*found):
        row = (boxes - box).abs().sum(1).argmin()
        torch.testing.assert_close(boxes[row], box)
        torch.testing.assert_close(scores[row, label], score)


def test_refine_uses_the_deltas_of_the_label():
    head = build('cascade_rcnn').roi_head
    head.bbox_head[1] = MODELS.build(dict(type='Shared2FCBBoxHead', in_channels=4, num_classes=3))
    boxes = torch.tensor([[10.0, 10, 30, 30], [10, 10, 30, 30]])
    deltas = torch.zeros(2, 3, 4)
    deltas[:, 1, 0] = 5.0  # half a width to the right, in units of std 0.1
    moved = head.refine(boxes, torch.tensor([1, 0]), deltas, (100, 100), stage=1)
    torch.testing.assert_close(moved, torch.tensor([[20.0, 10, 40, 30], [10, 10, 30, 30]]))


def test_ground_truth_is_not_carried_to_the_next_stage(make_data, monkeypatch):
    """It joins the proposals of each stage anew; a moved copy of it would be a proposal too good to be true."""
    seen = []
    sample = CascadeRoIHead.sample

    def watched(self, features, proposals, targets, stage):
        sampled = sample(self, features, proposals, targets, stage)
        seen.append((proposals[0], sampled[0]))
        return sampled

    monkeypatch.setattr(CascadeRoIHead, 'sample', watched)
    model = build('cascade_rcnn')
    data = make_data([2])
    model(**model.data_preprocessor(data, True), mode='loss')
    assert len(seen) == 3
    for (_, sampled), (proposals, _) in zip(seen, seen[1:]):
        own = (sampled.boxes == sampled.gt_boxes).all(1)[: sampled.num_positive].sum()
        assert own >= 1  # added by the sampler
        assert len(proposals) == len(sampled.boxes) - own


def test_wrong_number_of_stages_is_named():
    cfg = small_cfg('cascade_rcnn')
    cfg.roi_head.bbox_head = cfg.roi_head.bbox_head[:2]
    with pytest.raises(ValueError, match='2 entries of bbox_head for num_stages=3'):
        MODELS.build(cfg)
    cfg = small_cfg('cascade_rcnn')
    cfg.roi_head.stage_loss_weights = [1, 0.5]
    with pytest.raises(ValueError, match='2 entries of stage_loss_weights for num_stages=3'):
        MODELS.build(cfg)


def test_fast_rcnn_without_proposals_says_so(make_data):
    model = build('fast_rcnn')
    with pytest.raises(ValueError, match='image 0 has no proposals'):
        model(**model.data_preprocessor(make_data([1]), True), mode='loss')


def test_proposals_travel_with_the_image(tmp_path):
    """From an RPN's result file through resizing and flipping to the data sample."""
    entries = [dict(image_id=7, category_id=1, bbox=[10 * i, 5, 8, 20], score=i / 10) for i in range(5)]
    (tmp_path / 'p.json').write_text(json.dumps(entries))
    load = TRANSFORMS.build(dict(type='LoadProposals', proposal_file=str(tmp_path / 'p.json'), num_max_proposals=2))
    results = dict(img=np.zeros((40, 100, 3), np.uint8), img_id=7, img_shape=(40, 100), ori_shape=(40, 100))
    steps = [load, *(TRANSFORMS.build(dict(type=t, **o)) for t, o in (
        ('Resize', dict(scale=(200, 80))), ('RandomFlip', dict(prob=1.0)), ('PackDetInputs', {})
    ))]
    for step in steps:
        results = step(results)
    # The two best are at x 40..48 and 30..38; doubled and mirrored in a width of 200.
    expected = torch.tensor([[104.0, 10, 120, 50], [124, 10, 140, 50]])
    assert torch.equal(results['data_samples'].proposals.bboxes, expected)
    # As mmdetection's configs write it: the file named by the data set, the steps inside another.
    files = dict(data_root=str(tmp_path), data_prefix=dict(img=''), ann_file='a.json', proposal_file='p.json')
    image = dict(id=7, file_name='a.jpg', height=40, width=100)
    (tmp_path / 'a.json').write_text(json.dumps(dict(images=[image], categories=[dict(id=1, name='a')])))
    cv2.imwrite(str(tmp_path / 'a.jpg'), np.zeros((40, 100, 3), np.uint8))
    moves = [dict(type='Resize', scale=(200, 80)), dict(type='RandomFlip', prob=1.0)]
    pipeline = [
        dict(type='LoadImageFromFile'), dict(type='LoadProposals', num_max_proposals=2),
        dict(type='ProposalBroadcaster', transforms=moves), dict(type='PackDetInputs'),
    ]  # fmt: skip
    dataset = dict(type='CocoDataset', metainfo=dict(classes=('a',)), test_mode=True, pipeline=pipeline, **files)
    assert torch.equal(DATASETS.build(dataset)[0]['data_samples'].proposals.bboxes, expected)
    with pytest.raises(ValueError, match='is no .json'):
        DATASETS.build(dict(dataset, proposal_file='rpn.pkl'))
    with pytest.raises(ValueError, match='nothing for (image|picture) 8'):
        load(dict(img_id=8))
    with pytest.raises(FileNotFoundError, match='no proposal_file'):
        TRANSFORMS.build(dict(type='LoadProposals', proposal_file='nowhere.json'))
    (tmp_path / 'broken.json').write_text('[{')
    with pytest.raises(ValueError, match='broken.json is not JSON'):
        TRANSFORMS.build(dict(type='LoadProposals', proposal_file=str(tmp_path / 'broken.json')))
