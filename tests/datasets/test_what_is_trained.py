"""What would train or test something else than was meant is refused before, on the command line; the rest works."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_set import CLASSES, CONFIG, TinyDetector, content, write_set

from mmdet.config.errors import UserError
from mmdet.datasets import Pad
from mmdet.models.data_preprocessor import DetDataPreprocessor
from mmdet.registry import MODELS

NORMALIZE = dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
LOAD, ANNOTATIONS, PACK = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackDetInputs')


def ap(out: str) -> float:
    """The box AP that a tool printed."""
    return float(out.partition('coco/bbox_mAP: ')[2].split()[0])


def config(text: str, name: str = 'changed.py') -> str:
    Path(name).write_text(f"_base_ = 'config.py'\n{text}")
    return name


def test_the_set_and_the_detector_fit(call, weights):
    write_set(content())
    assert ap(call('train.py', 'config.py')[0]) == 1
    assert ap(call('test.py', 'config.py', weights)[0]) == 1


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader', 'test_dataloader'])
def test_normalising_twice(refused, call, weights, loader):
    write_set(content())
    steps = [LOAD, ANNOTATIONS, NORMALIZE, PACK]
    nested = [LOAD, ANNOTATIONS, dict(type='RandomApply', transforms=[NORMALIZE]), PACK]
    tool = ['test.py', weights] if loader.startswith('test') else ['train.py']
    for pipeline in (steps, nested):
        changed = config(f'{loader} = dict(dataset=dict(pipeline={pipeline}))')
        message = refused(tool[0], changed, *tool[1:])
        assert f'Normalize in the pipeline of {loader}, and mean and std in model.data_preprocessor' in message
    one = config(f'{loader} = dict(dataset=dict(pipeline={steps}))\n'
                 "model = dict(data_preprocessor=dict(_delete_=True, type='DetDataPreprocessor'))")
    assert ap(call(tool[0], one, *tool[1:], '--work-dir', 'one')[0]) == 1


def test_normalising_twice_without_a_data_loader(call, weights):
    write_set(content())
    changed = config(f'test_dataloader = dict(dataset=dict(pipeline={[LOAD, NORMALIZE, PACK]}))')
    _, message = call('predict.py', changed, weights, 'set/images', '--device', 'cpu', status=2)
    assert 'images would be normalised twice; drop Normalize from the pipeline' in message


@pytest.mark.parametrize('early', [
    dict(type='Resize', scale=(40, 40)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[dict(type='Pad', size_divisor=32)], [PACK]]),
    dict(type='mmcv.RandomFlip', prob=0.5),
    dict(type='mmengine.Resize', scale=(40, 40)),
    dict(type='ProposalBroadcaster', transforms=[dict(type='RandomCrop', crop_size=(40, 40))]),
])  # fmt: skip
def test_annotations_loaded_after_a_geometric_step(refused, early):
    write_set(content())
    steps = [LOAD, early, ANNOTATIONS, PACK]
    message = refused('train.py', config(f'train_dataloader = dict(dataset=dict(pipeline={steps}))'))
    assert 'stands before LoadAnnotations in the pipeline: boxes and masks would be those of the original' in message


@pytest.mark.parametrize('step', [
    dict(type='mmcv.RandomFlip', prob=0.5),
    dict(type='mmengine.CenterCrop', crop_size=9),
])
def test_mmcvs_geometric_steps_where_masks_are_loaded(refused, call, step):
    write_set(content())
    name = step['type'].partition('.')[2]
    steps = [LOAD, dict(ANNOTATIONS, with_mask=True), dict(type='RandomApply', transforms=[step]), PACK]
    message = refused('train.py', config(f'train_dataloader = dict(dataset=dict(pipeline={steps}))'))
    assert f"mmcv.{name} in the pipeline leaves masks where they are; write dict(type='{name}')" in message


@MODELS.register_module()
class TinyMaskDetector(TinyDetector):
    @staticmethod
    def predicts(cfg: dict) -> set[str]:
        return {'bboxes', 'scores', 'labels', 'masks'}


def test_masks_that_are_learned_and_not_loaded(refused, call):
    write_set(content())
    text = "model = dict(type='TinyMaskDetector')\ntrain_dataloader = dict(dataset=dict(pipeline={}))"
    message = refused('train.py', config(text.format([LOAD, ANNOTATIONS, PACK])))
    assert 'the model learns masks, which the pipeline of train_dataloader does not load; set with_mask=T' in message
    assert ap(call('train.py', config(text.format([LOAD, dict(ANNOTATIONS, with_mask=True), PACK])))[0]) == 1


def test_annotations_after_a_resize_are_right_in_evaluation(call, weights):
    write_set(content())
    late = [LOAD, dict(type='Resize', scale=(160, 160)), ANNOTATIONS, PACK]
    assert ap(call('test.py', config(f'test_dataloader = dict(dataset=dict(pipeline={late}))'), weights)[0]) == 1


def test_classes_of_validation_in_another_order(refused, call):
    write_set(content())
    turned = config(f'val_dataloader = dict(dataset=dict(metainfo=dict(classes={CLASSES[::-1]})))')
    assert "'dog' is label 1 in training and 0 in validation, 'cat' is label 0 in training and 1" in refused(
        'train.py', turned)
    changed = content()
    changed['categories'][0]['name'] = 'puma'
    write_set(changed, Path('other'))
    out, _ = call('train.py', config(
        "val_dataloader = dict(dataset=dict(data_root='other', metainfo=dict(classes=('puma', 'dog'))))\n"
        "val_evaluator = dict(ann_file='other/instances.json')"), '--work-dir', 'renamed')  # fmt: skip
    assert "classes 'puma' of val_dataloader are not among those of train_dataloader" in out and ap(out) == 1


def test_the_metric_looks_at_the_data_set_before_training(refused, monkeypatch):
    """A metric that has `check_dataset` gets the data set of its loop."""
    from mmdet.evaluation import CocoMetric

    def check_dataset(self, dataset):
        raise UserError(f'two images of id {dataset.get_data_info(3)["img_id"]} among {len(dataset)}')

    monkeypatch.setattr(CocoMetric, 'check_dataset', check_dataset, raising=False)
    write_set(content())
    part = f"dict(type='CocoDataset', test_mode=True, pipeline={[LOAD, PACK]}, **dataset)"
    several = CONFIG.replace('val_dataloader = dict(num_workers=0, dataset=dataset)',
                             "val_dataloader = dict(num_workers=0, dataset=dict(_delete_=True, type='ConcatDataset', "
                             f'datasets=[{part}, {part}]))')  # fmt: skip
    Path('several.py').write_text(several)
    assert 'two images of id 1 among 6' in refused('train.py', 'several.py')


def test_four_channels(call):
    """RGBA images: the first three channels are swapped, mean and std have four values."""
    rgba = content(1)
    write_set(rgba)
    pixels = np.random.default_rng(0).integers(0, 255, (80, 96, 4), dtype=np.uint8)  # BGRA, as OpenCV writes it
    cv2.imwrite('set/images/1.png', pixels)
    seen = []

    class Seen(DetDataPreprocessor):
        def forward(self, data, training=False):
            seen.append(super().forward(data, training)['inputs'])
            raise UserError('seen')

    from mmdet.registry import MODELS

    MODELS.register_module(name='Seen', module=Seen, force=True)
    load = dict(type='LoadImageFromFile', color_type='unchanged')
    preprocessor = dict(_delete_=True, type='Seen', mean=[1, 2, 3, 4], std=[2, 2, 2, 5], bgr_to_rgb=True)
    steps = [load, ANNOTATIONS, dict(type='Pad', size=(97, 80), pad_val=9), PACK]
    call('train.py', config(f'model = dict(data_preprocessor={preprocessor})\n'
                            f'train_dataloader = dict(dataset=dict(pipeline={steps}))'), status=2)  # fmt: skip
    padded = np.pad(pixels, ((0, 0), (0, 1), (0, 0)), constant_values=9)
    expected = (padded[..., [2, 1, 0, 3]].astype(np.float32) - [1, 2, 3, 4]) / [2, 2, 2, 5]
    np.testing.assert_allclose(seen[0][0].numpy(), expected.transpose(2, 0, 1), rtol=1e-6)


def test_other_numbers_of_channels():
    depth = torch.arange(5 * 4).view(5, 2, 2).to(torch.uint8)
    preprocessor = DetDataPreprocessor(bgr_to_rgb=True)
    assert preprocessor(dict(inputs=[depth]))['inputs'][0, :, 0, 0].tolist() == [8, 4, 0, 12, 16]
    assert preprocessor(dict(inputs=[depth[:1]]))['inputs'][0, 0, 1].tolist() == [2, 3]
    with pytest.raises(UserError, match='a batch has images of 3 and of 4 channels'):
        preprocessor(dict(inputs=[depth[:3], depth[:4]]))
    padded = Pad(size=(3, 2), pad_val=7)(dict(img=np.zeros((2, 2, 4), np.uint8)))
    assert padded['img'][0, 2].tolist() == [7, 7, 7, 7]


# --- several validation sets


def write_two_sets() -> str:
    """`set`, and `other` with images of the same ids on which the cat stands elsewhere; a config's data set of both."""
    write_set(content())
    moved = content(2)
    for annotation in moved['annotations']:
        if annotation['category_id'] == 1:
            annotation['bbox'] = [60, 2, 30, 24]
    write_set(moved, Path('other'))
    part = f"type='CocoDataset', test_mode=True, pipeline={[LOAD, ANNOTATIONS, PACK]}, metainfo=dict(classes={CLASSES})"
    parts = ', '.join(f"dict({part}, data_root={root!r}, ann_file='instances.json', data_prefix=dict(img='images/'))"
                      for root in ('set', 'other'))
    return (f"val_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=[{parts}]))\n"
            'test_dataloader = val_dataloader\n')  # fmt: skip


def test_two_validation_sets_together(refused, call, weights):
    both = write_two_sets()
    assert 'have the id 1' in refused('train.py', config(both))
    together = config(both + "val_evaluator = dict(ann_file=['set/instances.json', 'other/instances.json'])\n"
                      'test_evaluator = val_evaluator')
    assert 0.5 < ap(call('train.py', together, '--work-dir', 'together')[0]) < 1  # the cats of one set are missed
    assert 0.5 < ap(call('test.py', together, weights, '--eval', 'bbox', '--out', 'x.pkl')[0]) < 1


def test_two_validation_sets_each_with_its_numbers(refused, call, weights):
    each = write_two_sets() + """
val_evaluator = dict(
    _delete_=True, type='MultiDatasetsEvaluator', dataset_prefixes=['plain', 'moved'],
    metrics=[dict(type='CocoMetric', ann_file='set/instances.json'), dict(type='VOCMetric')])
test_evaluator = val_evaluator
custom_hooks = [dict(type='ValLossHook')]
"""
    out, _ = call('train.py', config(each), '--work-dir', 'each')
    assert 'plain/coco/bbox_mAP: 1.0000' in out and 'moved/pascal_voc/mAP: 0.5000' in out and 'val_loss: ' in out
    assert 'best_plain_coco_bbox_mAP_epoch_1.pth' in {path.name for path in Path('each').iterdir()}
    out, _ = call('test.py', 'changed.py', weights, '--out', 'x.pkl')
    assert 'plain/coco/bbox_mAP: 1.0000' in out and Path('x.pkl').is_file()
    assert 'not each of them offers that' in refused('test.py', 'changed.py', weights, '--eval', 'bbox')
    assert 'mAp' in refused('test.py', 'changed.py', weights, '--eval', 'mAp')
    wrong = each.replace("dict(type='VOCMetric')", "dict(type='VOCMetrik')")
    assert "VOCMetrik' at val_evaluator.metrics.1.type. Did you mean VOCMetric?" in refused('train.py', config(wrong))
    one = each.replace(", dict(type='VOCMetric')", '').replace(", 'moved'", '')
    assert 'must be a ConcatDataset of 1 data sets, not of 2' in refused('train.py', config(one))
    padded = [LOAD, ANNOTATIONS, dict(type='Pad', size_divisor=9), PACK]
    late = each.replace(str([LOAD, ANNOTATIONS, PACK]), str(padded))
    assert 'moves pixels after LoadAnnotations' in refused('train.py', config(late))


def test_more_objects_than_the_model_finds(call, weights, monkeypatch):
    """Of an image, and of all classes together; the metric's own limit is that of each class."""
    monkeypatch.setattr(TinyDetector, 'final_test_cfg', dict(max_per_img=1), raising=False)
    write_set(content())
    said = '3 images of set/instances.json have more than 1 objects, at most 2: the model finds no more than max_per'
    assert said in call('test.py', 'config.py', weights)[0]
    monkeypatch.setattr(TinyDetector, 'final_test_cfg', dict(max_per_img=2))
    assert 'have more than' not in call('test.py', 'config.py', weights)[0]
