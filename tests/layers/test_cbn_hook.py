"""Burn-in by the Runner's epoch, and a history that survives a resume."""

import logging

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmdet.layers import ConvModule


class Images(Dataset):
    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(3, 8, 8, generator=generator), data_samples=index % 2)


class Classifier(BaseModel):
    def __init__(self, **norm):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            ConvModule(3, 8, 3, padding=1, norm_cfg=dict(type='CBN', **norm)),
            ConvModule(8, 8, 3, stride=2, norm_cfg=dict(type='CBN', derivative_fraction=0.25, **norm)),
        )
        self.head = nn.Linear(8, 2)
        self.switched_on = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.switched_on.append(not self.body[0].bn.burning_in)
        logits = self.head(self.body(torch.stack(inputs)).mean((2, 3)))
        return dict(loss=nn.functional.cross_entropy(logits, torch.as_tensor(data_samples)))


def collate(batch):
    return {key: [sample[key] for sample in batch] for key in batch[0]}


def make_runner(work_dir, model, batch=2, train_cfg=None, interval=1, **options):
    return Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Images(),
            batch_size=batch,
            sampler=dict(type=options.pop('sampler', 'DefaultSampler'), shuffle=False),
            num_workers=0,
            collate_fn=collate,
        ),
        train_cfg=train_cfg or dict(by_epoch=True, max_epochs=4),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=interval)),
        custom_hooks=[dict(type='mmdet.CBNHook')],
        default_scope='mmdet',
        experiment_name=f'{work_dir.name}_{id(model)}',
        log_level='INFO',
        **options,
    )


@pytest.fixture(autouse=True)
def weights_only_off(monkeypatch, on_the_cpu):
    # The Runner's own checkpoint holds its message hub; runtime.py makes that loadable. Not at stake here.
    load = torch.load
    monkeypatch.setattr(torch, 'load', lambda *a, **k: load(*a, **{**k, 'weights_only': False}))


@pytest.mark.parametrize('burnin, warned', [(3, False), (4, True)])
def test_a_burn_in_as_long_as_the_run_is_said(tmp_path, burnin, warned):
    model, messages = Classifier(burnin=burnin), []
    runner = make_runner(tmp_path, model)
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    assert any(model.switched_on) is not warned
    assert any('burnin=4 epochs last as long as this run of 4' in message for message in messages) is warned


@pytest.mark.parametrize('batch', [1, 2, 4])
def test_burn_in_ends_with_its_epoch_whatever_the_batch(tmp_path, batch):
    model = Classifier(burnin=2)
    runner = make_runner(tmp_path, model, batch)
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    per_epoch = 8 // batch
    assert model.switched_on == [False] * 2 * per_epoch + [True] * 2 * per_epoch
    said = [message for message in messages if 'CBN' in message]
    assert len(said) == 1 and f'from epoch 3, iteration {2 * per_epoch + 1} on' in said[0], said


def test_burn_in_of_an_iteration_based_loop(tmp_path):
    model = Classifier(burnin=2)
    loop = dict(by_epoch=False, max_iters=12, val_interval=100)
    runner, warnings = make_runner(tmp_path, model, 2, loop, 100, sampler='InfiniteSampler'), []
    runner.logger.warning = warnings.append
    runner.train()
    assert not [text for text in warnings if 'burnin' in text]  # this loop calls itself one epoch long
    assert model.switched_on == [False] * 8 + [True] * 4  # 8 images, 2 an iteration


@pytest.mark.parametrize('norm', [dict(burnin=1), dict(burnin=3), dict(burnin_iters=6), dict()], ids=str)
def test_stopped_and_resumed_equals_unstopped_to_the_bit(tmp_path, norm):
    whole = Classifier(**norm)
    make_runner(tmp_path / 'whole', whole).train()
    make_runner(tmp_path / 'part', Classifier(**norm), train_cfg=dict(by_epoch=True, max_epochs=2)).train()
    resumed = Classifier(**norm)
    saved = str(tmp_path / 'part' / 'epoch_2.pth')
    make_runner(tmp_path / 'rest', resumed, load_from=saved, resume=True).train()
    assert len(resumed.switched_on) == 8
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name
    for one, other in zip(whole.body, resumed.body):
        assert one.bn.steps == other.bn.steps == 16
        assert torch.equal(one.bn.history.dvar, other.bn.history.dvar)
    assert not any('history' in key for key in resumed.state_dict())
    # And it matters: without the history the end is another one.
    if norm == dict():
        checkpoint = torch.load(saved)
        del checkpoint['cbn']
        torch.save(checkpoint, saved)
        bare = Classifier(**norm)
        make_runner(tmp_path / 'bare', bare, load_from=saved, resume=True).train()
        assert not torch.equal(bare.head.weight, whole.head.weight)


def test_weights_loaded_without_resume_start_their_own_history(tmp_path):
    make_runner(tmp_path / 'first', Classifier(burnin_iters=3)).train()
    model = Classifier(burnin_iters=3)
    make_runner(tmp_path / 'second', model, load_from=str(tmp_path / 'first' / 'epoch_4.pth')).train()
    assert model.switched_on[:4] == [False] * 3 + [True]
