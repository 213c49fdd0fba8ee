"""What a training starts from and what it writes down, as tools/train.py does it."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModule
from toy_task import CONFIG, ToyDetector, ToyHead, write_config

from mmdet.checkpoints import read_checkpoint
from mmdet.cli.curves import read_log
from mmdet.registry import MODELS, VISBACKENDS

FILE = "dict(type='Pretrained', checkpoint='torchvision://resnet50')"


@MODELS.register_module(force=True)
class HeadOfAFile(BaseModule, ToyHead):
    def __init__(self, num_classes: int = 2, init_cfg: dict | None = None):
        ToyHead.__init__(self, num_classes)
        self.init_cfg, self._is_init = init_cfg, False


@MODELS.register_module(force=True)
class DetectorOfAFile(ToyDetector):
    def __init__(self, init_cfg: dict | None = None, **kwargs):
        super().__init__(**kwargs)
        self.init_cfg = init_cfg


@pytest.fixture
def train(tmp_path, run_tool):
    def run(text: str, *words, work_dir: str = 'run') -> tuple[int, str]:
        path = write_config(tmp_path, base=text)
        status, out, err = run_tool('train.py', path, '--work-dir', work_dir, '--seed', 0, *words,
                                    '--cfg-options', 'train_cfg.max_epochs=1')
        return status, out + err

    return run


def logged(work_dir: str = 'run') -> list[dict]:
    lines = next(Path(work_dir).glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if 'loss' in entry]


# ---------------------------------------------------------------------- load_from and files of parts


def with_parts(head: str = 'None', detector: str = 'None', load_from: str = '') -> str:
    new = f"dict(type='DetectorOfAFile', init_cfg={detector}, head=dict(type='HeadOfAFile', init_cfg={head}))"
    return CONFIG.replace("dict(type='ToyDetector')", new) + (f'load_from = {load_from!r}\n' if load_from else '')


@pytest.fixture
def first(tmp_path, train, monkeypatch):
    """A trained checkpoint, in a place without network."""

    def no_network(*args, **kwargs):
        raise OSError('no network')

    monkeypatch.setattr('torch.hub.download_url_to_file', no_network)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    assert train(with_parts(), work_dir='first')[0] == 0
    return 'first/epoch_1.pth'


def test_files_that_load_from_replaces_are_not_needed(train, first):
    for places, options in (('head', 'model.head.init_cfg=None'), ('detector', 'model.init_cfg=None'),
                            ('detector head', 'model.init_cfg=None model.head.init_cfg=None')):  # fmt: skip
        status, out = train(with_parts(**dict.fromkeys(places.split(), FILE)), work_dir='refused')
        assert status == 2 and 'torchvision://resnet50 cannot be downloaded' in out
        assert out.rstrip().endswith(f'train without them: --cfg-options {options}')
    assert train(with_parts(load_from=first), work_dir='plain')[0] == 0
    for place in ('head', 'detector'):
        status, out = train(with_parts(**{place: FILE}, load_from=first), work_dir=place)
        name = {'head': 'head', 'detector': 'DetectorOfAFile'}[place]
        assert status == 0 and f'{name}: torchvision://resnet50 is not read, load_from has all these weights' in out
        plain, now = (read_checkpoint(f'{folder}/epoch_1.pth')['state_dict'] for folder in ('plain', place))
        assert all(torch.equal(plain[key], now[key]) for key in plain)


@pytest.mark.parametrize('spoil', [
    lambda weights: weights.pop('head.norm.running_var'),
    lambda weights: weights.update({'head.fc.weight': torch.zeros(3, 4)}),  # of three classes
])  # fmt: skip
def test_files_that_load_from_does_not_replace_are_needed(train, first, spoil):
    weights = dict(read_checkpoint(first)['state_dict'])
    spoil(weights)
    torch.save(dict(state_dict=weights), 'part.pth')
    assert train(with_parts(load_from='part.pth'), work_dir='a')[0] == 0
    status, out = train(with_parts(head=FILE, load_from='part.pth'), work_dir='b')
    assert status == 2 and 'torchvision://resnet50 cannot be downloaded' in out


# ---------------------------------------------------------------------- the learning rate, the log


@pytest.mark.parametrize('options, words, images, lr', [
    ('', (), '1 x 2 images a step', 0.1 * 2 / 16),
    ('accumulative_counts=4, ', (), '1 x 2 images x 4 iterations a step', 0.1 * 8 / 16),
    ('accumulative_counts=2, ', ('--amp',), '1 x 2 images x 2 iterations a step', 0.1 * 4 / 16),
    ("type='OptimWrapper', accumulative_counts=8, ", ('--gpus', '1'), '1 x 2 images x 8 iterations', 0.1 * 16 / 16),
    ('paramwise_cfg=dict(bias_lr_mult=1.0), ', (), '1 x 2 images a step', 0.1 * 2 / 16),  # several groups
])  # fmt: skip
def test_accumulated_iterations_scale_the_learning_rate(train, options, words, images, lr):
    text = CONFIG.replace('optim_wrapper = dict(', f'optim_wrapper = dict({options}')
    text += 'param_scheduler = []\nauto_scale_lr = dict(base_batch_size=16)\n'
    status, out = train(text, '--auto-scale-lr', *words)
    assert status == 0 and images in out and f'lr becomes {lr:.6g}, scaled by {round(lr * 160)} images a step' in out
    assert logged()[0]['lr'] == logged()[0].get('base_lr', logged()[0]['lr']) == pytest.approx(lr)
    assert ('base_lr' in logged()[0]) == ('paramwise' in options)


def test_groups_of_weights_are_one_line(train):
    text = CONFIG + ("optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1), paramwise_cfg=dict("
                     "bias_decay_mult=0.0, custom_keys={'head.norm': dict(lr_mult=0.5), 'hat': dict(lr_mult=0.1)}))\n"
                     "frozen_parts = ['stem']\n")
    status, out = train(text)
    assert status == 0 and "paramwise_cfg.custom_keys: no weight has 'hat' in its name" in out
    assert ('paramwise_cfg: weights learn 2 with lr 0.05 and weight_decay 0.1, 1 with lr 0.1 and weight_decay 0.1, '
            '1 with lr 0.1 and weight_decay 0\n') in out
    assert 'paramwise_options' not in out and 'requires_grad' not in out


@VISBACKENDS.register_module(force=True)
class Nowhere:
    def __init__(self, save_dir=None):
        pass

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


@pytest.mark.parametrize('backends', [
    "[dict(type='Nowhere')]", '[]', "dict(type='Nowhere')", "[dict(type='Nowhere'), dict(type='LocalVisBackend')]",
    "[dict(type='mmengine.LocalVisBackend')]",
])  # fmt: skip
def test_the_log_is_there_whatever_else_is_written(train, backends):
    status, out = train(CONFIG.replace("[dict(type='LocalVisBackend')]", backends))
    assert status == 0 and [entry['iter'] for entry in logged()] == [1, 2, 3, 4], out
    if backends == "[dict(type='Nowhere')]":
        assert [len(part) for part in read_log(Path('run'))] == [4, 1]  # of mmdet curves


@pytest.mark.parametrize('words', [
    (), ('--cfg-options', "visualizer.vis_backends=[{'type': 'TensorboardVisBackend'}]"),
])  # fmt: skip
def test_tensorboard_has_the_numbers(tmp_path, run_tool, words):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    path = write_config(tmp_path)
    assert run_tool('train.py', path, '--work-dir', 'run', '--seed', 0, *words)[0] == 0
    board = events.EventAccumulator(str(next(Path('run').glob('*/vis_data'))))
    board.Reload()
    seen = [(event.step, event.value) for event in board.Scalars('loss')]
    assert seen == [(entry['step'], pytest.approx(entry['loss'])) for entry in logged()]
    assert [e.step for e in board.Scalars('mAP')] == [1, 2]


def test_wandb_has_the_numbers_without_network(tmp_path, run_tool, monkeypatch):
    pytest.importorskip('wandb', reason='wandb is an extra')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    path = write_config(tmp_path, text="visualizer['vis_backends'] = [dict(type='WandbVisBackend')]\n")
    assert run_tool('train.py', path, '--work-dir', 'run', '--seed', 0)[0] == 0
    stored = next(Path('run').glob('*/vis_data/wandb/offline-run-*/*.wandb')).read_bytes()
    for entry in logged():
        assert json.dumps(entry['loss']).encode() in stored


def test_a_backend_whose_package_is_missing(tmp_path, run_tool, monkeypatch):
    monkeypatch.setattr('mmdet.engine.runner.find_spec', lambda name: None)
    path = write_config(tmp_path, text="visualizer['vis_backends'] = [dict(type='WandbVisBackend')]\n")
    status, out, err = run_tool('train.py', path, '--work-dir', 'run')
    assert status == 2 and err.count('\n') == 1 and err.endswith('not installed: pip install wandb\n')
