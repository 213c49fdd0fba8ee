"""The loss on validation images: measured without a trace in the training."""

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from factories import batch, tiny_detector
from mmengine.config import ConfigDict
from toy_task import ToyDetector, write_config

from mmdet.checkpoints import read_checkpoint
from mmdet.config.errors import UserError
from mmdet.datasets.pipeline import build_steps
from mmdet.engine.hooks import ValLossHook
from mmdet.layers.cbn import cbn_state
from mmdet.registry import MODELS

HOOK = "custom_hooks = [dict(type='ValLossHook')]\n"
LOAD, RESIZE, FLIP, PACK = (dict(type='LoadAnnotations'), dict(type='Resize', scale=(64, 64)),
                            dict(type='RandomFlip', prob=1.0), dict(type='PackDetInputs'))  # fmt: skip


@MODELS.register_module(force=True)
class NoisyToy(ToyDetector):
    """Its losses draw random numbers of every kind, in eval mode too."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = super().forward(inputs, data_samples, mode)
        if mode == 'loss':
            out['loss_noise'] = out['loss_zero'] + random.random() + np.random.rand() + torch.rand(())
        return out


def test_training_is_the_same_to_the_bit(tmp_path, train):
    """Weights, running statistics, optimizer; and the metric beside the loss."""
    noisy = "model = dict(type='NoisyToy')\n"
    for name, text in (('without', noisy), ('with', noisy + HOOK)):
        train(write_config(tmp_path, f'{name}.py', text), name)
    a, b = (read_checkpoint(f'{name}/epoch_2.pth') for name in ('without', 'with'))
    for part in ('state_dict', 'optimizer'):
        left, right = (torch.utils._pytree.tree_flatten(file[part]) for file in (a, b))
        assert left[1] == right[1] and len(left[0]) > 3
        assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(left[0], right[0]))


def test_what_is_logged(tmp_path, train):
    """Beside the metric, where save_best finds it too."""
    best = {'default_hooks.checkpoint.save_best': 'val_loss', 'default_hooks.checkpoint.rule': 'less'}
    hub = train(write_config(tmp_path, text=HOOK), options=best).message_hub
    losses, steps = hub.get_scalar('val/val_loss').data
    assert len(losses) == 2 and (losses > 0).all()
    assert losses[-1] == pytest.approx(hub.get_scalar('val/val_loss_toy').current())
    assert hub.get_info('best_score') == pytest.approx(min(losses)) and 0 < hub.get_scalar('val/mAP').current() < 1


class Stub(SimpleNamespace):
    """A runner in a validation."""

    def __init__(self, model):
        super().__init__(model=model, _train_loop=object())


def measure(model, batches, scale=False):
    hook, runner, metrics = ValLossHook(), Stub(model), dict(mAP=0.5)
    hook.scale = scale
    hook.before_val_epoch(runner)
    for number, data in enumerate(batches):
        hook.after_val_iter(runner, number, data)
    hook.after_val_epoch(runner, metrics)
    return metrics


@pytest.mark.parametrize('kind', ['mask_rcnn', 'retinanet'])
def test_a_detector_keeps_its_state(kind):
    """Weights, running statistics, CBN's histories, generators; the samples that metrics and drawings see."""
    model = tiny_detector(kind)
    for seed in range(2):
        model.train()(**model.data_preprocessor(batch([2, 1], seed=seed), True), mode='loss')
    model.eval()
    data = [batch([2, 1], ignored=1, seed=5), batch([0], seed=6)]
    samples = [sample for b in data for sample in b['data_samples']]
    boxes = [sample.gt_instances.bboxes.clone() for sample in samples]

    def state():
        generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        return copy.deepcopy([model.state_dict(), cbn_state(model), generators])

    before = torch.utils._pytree.tree_flatten(state())
    metrics = measure(model, data)
    after = torch.utils._pytree.tree_flatten(state())
    assert before[1] == after[1]
    assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(before[0], after[0]))
    assert all(torch.equal(sample.gt_instances.bboxes, own) for sample, own in zip(samples, boxes))
    assert all(p.grad is None for p in model.parameters())
    assert next(iter(metrics)) == 'mAP'  # what save_best='auto' takes
    assert metrics == measure(model, data)  # the same proposals are sampled again
    parts = [value for name, value in metrics.items() if name.startswith('val_loss_')]
    assert metrics['val_loss'] == pytest.approx(sum(parts), rel=1e-5) and metrics['val_loss'] > 0


def test_the_mean_is_over_images():
    model = tiny_detector('retinanet').eval()
    a, b = batch([2, 1], seed=5), batch([3], seed=6)
    alone = measure(model, [a])['val_loss'], measure(model, [b])['val_loss']
    assert abs(alone[0] - alone[1]) > 1e-3
    assert measure(model, [a, b])['val_loss'] == pytest.approx((2 * alone[0] + alone[1]) / 3)


def test_objects_in_pixels_of_the_original_image():
    model = tiny_detector('mask_rcnn').eval()
    data = batch([2, 1], ignored=1)
    want = measure(model, [data])
    original = copy.deepcopy(data)
    for sample in original['data_samples']:
        sample.set_metainfo(dict(scale_factor=(2.0, 0.5), ori_shape=(192, 64)))
        for objects in (sample.gt_instances, sample.ignored_instances):
            objects.bboxes = objects.bboxes / torch.tensor([2.0, 0.5, 2.0, 0.5])
    assert measure(model, [original], scale=True) == pytest.approx(want, rel=1e-5)
    assert measure(model, [original])['val_loss'] != pytest.approx(want['val_loss'], rel=1e-3)


@pytest.mark.parametrize('steps, masks, words', [
    ([RESIZE, PACK], False, 'the validation pipeline loads no objects; put'),
    ([LOAD, RESIZE, PACK], True, 'the model learns masks, which the validation pipeline does not load'),
    ([FLIP, LOAD, PACK], False, 'RandomFlip of the validation pipeline stands before LoadAnnotations'),
    ([LOAD, FLIP, RESIZE, PACK], False, False),
    ([RESIZE, dict(LOAD, with_mask=True), PACK], True, True),
    (None, False, 'the config has no validation'),
])  # fmt: skip
def test_pipelines(steps, masks, words):
    dataset = steps and SimpleNamespace(pipeline=build_steps(steps))
    loop = steps and SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    model = ConfigDict(type='MaskRCNN', roi_head=dict(mask_head=dict(type='FCNMaskHead') if masks else None))
    hook, runner = ValLossHook(), SimpleNamespace(_train_loop=1, _val_loop=loop, cfg=dict(model=model))
    if isinstance(words, str):
        with pytest.raises(UserError, match=words):
            hook.before_run(runner)
    else:
        hook.before_run(runner)
        assert hook.scale is words
