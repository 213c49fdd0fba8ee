"""Parts of a user's that give something else than their place needs: one line at the first batch, and none before."""

import copy

import factories
import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

from mmdet import models
from mmdet.config.errors import UserError
from mmdet.models.task_modules import DeltaXYWHBBoxCoder, MaxIoUAssigner, RandomSampler
from mmdet.registry import MODELS


def cfg_with(**parts):
    """A small Mask R-CNN's config with other types, `roi_head__bbox_head=Mine` for one inside another."""
    cfg = factories.small_cfg('mask_rcnn', width=16, channels=16, hidden=32, samples=16).to_dict()
    for path, kind in parts.items():
        *outer, last = path.split('__')
        place = cfg
        for key in outer:
            place = place[key]
        place[last] = dict(place[last], type=kind)
    return cfg


def first_batch(cfg, mode='loss', data=None):
    torch.manual_seed(0)
    model = MODELS.build(cfg).train(mode == 'loss')
    return model(**model.data_preprocessor(data or factories.batch([2]), mode == 'loss'), mode=mode)


class OneMap(models.ResNet):
    def forward(self, x):
        return super().forward(x)[-1]


class ThreeMaps(models.ResNet):
    def forward(self, x):
        return super().forward(x)[1:]


class FourLevels(models.FPN):
    def forward(self, inputs):
        return super().forward(inputs)[:4]


class ListsOfMaps(models.RPNHead):
    def forward(self, features):
        hidden = [self.rpn_conv(x) for x in features]
        return [self.rpn_cls(x) for x in hidden], [self.rpn_reg(x) for x in hidden]


class FlatDeltas(models.Shared2FCBBoxHead):
    def forward(self, x):
        logits, deltas = super().forward(x)
        return logits, deltas.flatten(1)


class ScoresOfObjects(models.Shared2FCBBoxHead):
    def forward(self, x):
        logits, deltas = super().forward(x)
        return logits[:, :-1], deltas


class SmallMasks(models.FCNMaskHead):
    def forward(self, x):
        return super().forward(x)[..., ::2, ::2]


class LossTensor(models.Shared2FCBBoxHead):
    def loss(self, *args, **kwargs):
        return super().loss(*args, **kwargs)['loss_cls']


class InstancesOfImages(models.StandardRoIHead):
    def predict(self, *args):
        return [InstanceData(bboxes=found.boxes) for found in super().predict(*args)]


class AssignResult:
    pass


class OldAssigner(MaxIoUAssigner):
    def assign(self, boxes, gt_boxes, ignored_boxes):
        return AssignResult()


class Flags(RandomSampler):
    def sample(self, matched, iou):
        return matched >= 0, matched < 0


class TwoPooled(models.SingleRoIExtractor):
    def forward(self, features, rois):
        return super().forward(features, rois), rois


class ObjectsAreOne(nn.Module):
    def forward(self, logits, labels, weight=None, avg_factor=None):
        return nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())


class NoTensor(nn.Module):
    def forward(self, pred, target, weight=None, avg_factor=None):
        return 0.5


BROKEN = {
    'backbone': [
        (OneMap, r'OneMap.forward gave float32 Tensor \(1, 128, .*\); a tuple of 4 maps \(N, C, H, W\), fine to '),
        (ThreeMaps, r'ThreeMaps.forward gave a tuple \(float32 .*\); a tuple of 4 maps .* as neck.in_channels has'),
    ],
    'neck': [(FourLevels, r'FourLevels.forward gave a tuple .*; a tuple of 5 maps .* anchor_generator.strides')],
    'rpn_head': [(ListsOfMaps, r'ListsOfMaps.forward gave a tuple \(a list .*; logits \(1, M\) and deltas')],
    'rpn_head__loss_cls': [(ObjectsAreOne, 'ObjectsAreOne.forward gave .*; a loss that falls .* 0 for objects and 1')],
    'train_cfg__rpn__assigner': [(OldAssigner, r'OldAssigner.assign gave a AssignResult; .* ground truth, int64')],
    'train_cfg__rcnn__sampler': [(Flags, r'Flags.sample gave a tuple \(bool Tensor .*; the indices of positives')],
    'roi_head__bbox_roi_extractor': [(TwoPooled, r'TwoPooled.forward gave a tuple .*; RoI features \(\d+, channels')],
    'roi_head__bbox_head': [
        (FlatDeltas, r'FlatDeltas.forward gave .*Tensor \(\d+, 12\)\); .* and deltas \(\d+, 3 or 1, 4\)'),
        (ScoresOfObjects, r'ScoresOfObjects.forward gave a tuple \(float32 Tensor \(\d+, 3\), .*; logits \(\d+, 4\)'),
        (LossTensor, r'LossTensor.loss gave float32 Tensor \(\); a dict of tensors'),
    ],
    'roi_head__bbox_head__loss_bbox': [(NoTensor, 'NoTensor.forward gave a float; a float tensor is expected')],
    'roi_head__mask_head': [(SmallMasks, r'SmallMasks.forward gave .*14, 14\); logits \(\d+, 3 or 1, 28, 28\)')],
}  # fmt: skip


@pytest.mark.parametrize('place, kind, says', [(place, *row) for place, rows in BROKEN.items() for row in rows])
def test_a_part_that_gives_something_else_is_named(place, kind, says):
    cfg = cfg_with(**{place: kind})
    if kind in (ObjectsAreOne, NoTensor):
        _replace_options(cfg, kind)
    with pytest.raises(UserError, match=says) as error:
        first_batch(cfg)
    assert '\n' not in str(error.value)


def _replace_options(cfg, kind):
    """Losses of the test take no options."""
    for key, value in cfg.items():
        if isinstance(value, dict):
            cfg[key] = dict(type=kind) if value.get('type') is kind else value
            _replace_options(cfg[key], kind)


def test_what_a_head_predicts():
    says = r'InstancesOfImages.predict gave a list \(a InstanceData .*; a list of mmdet.models.detections.Detections'
    with pytest.raises(UserError, match=says):
        first_batch(cfg_with(roi_head=InstancesOfImages), 'predict')


class Called:
    """As an assigner was before."""

    def __init__(self, **options):
        pass

    def __call__(self, boxes, gt_boxes, ignored_boxes):
        pass


class OldCoder:
    def __init__(self, **options):
        pass

    encode = decode = DeltaXYWHBBoxCoder.encode


@pytest.mark.parametrize('place, kind, says', [
    ('train_cfg__rpn__assigner', Called, 'Called has no assign'),
    ('train_cfg__rcnn__sampler', Called, 'Called has no add_gt_as_proposals, as RandomSampler has'),
    ('roi_head__bbox_head__bbox_coder', OldCoder, 'OldCoder has no compared, as DeltaXYWHBBoxCoder has'),
])  # fmt: skip
def test_a_part_without_a_method_is_refused_when_it_is_built(place, kind, says):
    with pytest.raises(UserError, match=says):
        MODELS.build(cfg_with(**{place: kind}))


class HorizontalBoxes:
    tensor = torch.zeros(2, 4)

    def __len__(self):
        return 2


@pytest.mark.parametrize('change, says', [
    (lambda gt: gt.set_field(HorizontalBoxes(), 'bboxes', dtype=None), 'a HorizontalBoxes and int64 Tensor'),
    (lambda gt: gt.set_field(gt.bboxes.double(), 'bboxes'), r'float64 Tensor \(2, 4\)'),
    (lambda gt: gt.set_field(gt.labels.float(), 'labels'), r'float32 Tensor \(2,\)'),
    (lambda gt: gt.pop('labels'), r'it is given a InstanceData \(masks, bboxes|it is given a InstanceData \(bboxes'),
])  # fmt: skip
def test_samples_that_are_no_training_samples(change, says):
    data = factories.batch([2])
    change(data['data_samples'][0].gt_instances)
    with pytest.raises(UserError, match=f'MaskRCNN.loss needs .*gt_instances.*{says}') as error:
        first_batch(cfg_with(), data=data)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', ['mask_rcnn', 'cascade_mask_rcnn', 'retinanet', 'rpn'])
@pytest.mark.parametrize('label', [-1, 3, 9])
def test_labels_that_are_no_classes(kind, label):
    """3 would be the background; an RPN has no classes."""
    model, data = factories.tiny_detector(kind).train(), factories.batch([2, 2])
    data['data_samples'][1].gt_instances.labels[1] = label
    batch = model.data_preprocessor(data, True)
    if kind == 'rpn':
        model(**batch, mode='loss')
        return
    with pytest.raises(UserError, match=f'image 1 has an object of label {label}, .* num_classes=3: .* 0 to 2'):
        model(**batch, mode='loss')


@pytest.mark.parametrize('data, says', [
    (dict(image=[torch.zeros(3, 8, 8)], target=[]), r'gives a dict \(image, target\)'),
    ([torch.zeros(3, 8, 8)], r'gives a list \(float32 Tensor \(3, 8, 8\)\)'),
])  # fmt: skip
def test_batches_of_other_items(data, says):
    with pytest.raises(UserError, match=f'DetDataPreprocessor.forward needs a batch dict.*the data loader {says}'):
        first_batch(cfg_with(), data=data)


class Broken(models.Shared2FCBBoxHead):
    def forward(self, x):
        return self.of_no_name(x)


def test_an_error_inside_a_part_stays_that_error():
    with pytest.raises(AttributeError, match='of_no_name') as error:
        first_batch(cfg_with(roi_head__bbox_head=Broken))
    (note,) = error.value.__notes__
    assert note.startswith('in the first call of Broken.forward, which is given float32 Tensor (')


def test_nothing_of_it_is_left():
    """After a step and a prediction; and what is copied before has its own."""
    model = MODELS.build(cfg_with()).train()
    other = copy.deepcopy(model)
    for one in (model, other):
        assert any('forward' in vars(part) for part in one.modules())
        one(**one.data_preprocessor(factories.batch([2]), True), mode='loss')
        with torch.no_grad():
            one.eval().test_step(factories.batch([1]))
        parts = [*one.modules(), one.rpn_head.assigner, one.rpn_head.sampler, one.roi_head.assigner]
        names = ('forward', 'loss', 'predict', 'assign', 'sample')
        assert not [(type(part).__name__, name) for part in parts for name in names if name in vars(part)]
