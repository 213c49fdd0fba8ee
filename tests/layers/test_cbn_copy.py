"""layers/cbn and layers/batch_stats.py, copied into another project, need torch alone."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmdet import layers

HERE = Path(layers.__file__).parent

TRAINING = """
import sys
sys.path.insert(0, sys.argv[1])

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmdet', 'mmengine', 'torchvision', 'mmcv'):
            raise ImportError(f'{name} is not installed here')

sys.meta_path.insert(0, Nothing())
import torch
from torch import nn
from theirs.norms.cbn import cbn_state, convert_cbn, load_cbn_state, revert_cbn

torch.manual_seed(0)
def make():
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    return convert_cbn(plain, full_gradient=True, derivative_fraction=1 / 4)
model, twin = make(), make()
twin.load_state_dict(model.state_dict())
compiled = torch.compile(twin, backend='eager')
for step in range(4):
    x = torch.randn(2, 3, 12, 12)
    outs = model(x), compiled(x)
    torch.testing.assert_close(*outs)
    for module, out in zip((model, twin), outs):
        module.zero_grad()
        out.square().mean().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.sub_(parameter.grad)
assert model[1].history.filled == twin[1].history.filled == 3 and model[1].steps == 4
load_cbn_state(make(), cbn_state(model))
assert type(revert_cbn(model)[1]) is nn.BatchNorm2d
torch.save(dict(model=model.state_dict(), cbn=cbn_state(twin)), sys.argv[2])
print(*sorted({name.partition('.')[0] for name in sys.modules} & {'mmdet', 'mmengine', 'torchvision', 'mmcv'}))
"""


@pytest.fixture
def theirs(tmp_path):
    folder = tmp_path / 'theirs' / 'norms'
    shutil.copytree(HERE / 'cbn', folder / 'cbn', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(HERE / 'batch_stats.py', folder)
    for package in (folder, folder.parent):
        (package / '__init__.py').touch()
    return tmp_path


def test_a_copy_trains_where_torch_alone_is_installed(theirs):
    saved = theirs / 'saved.pth'
    command = [sys.executable, '-I', '-W', 'error::UserWarning', '-c', TRAINING, str(theirs), str(saved)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, '\n'), result.stderr
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    ours = layers.convert_cbn(plain)
    state = torch.load(saved, weights_only=True)
    ours.load_state_dict(state['model'])
    layers.load_cbn_state(ours, state['cbn'])
    assert ours[1].history.filled == 3


def test_a_copy_lives_beside_the_original(theirs, monkeypatch):
    monkeypatch.syspath_prepend(theirs)
    try:
        copy = importlib.import_module('theirs.norms.cbn')
        conv = nn.Conv2d(3, 8, 3)
        one, other = copy.CrossIterBatchNorm2d(8), layers.CrossIterBatchNorm2d(8)
        for _ in range(4):
            x = torch.randn(2, 3, 8, 8)
            assert torch.equal(one.after(conv, x), other.after(conv, x))
        assert copy.cbn_layers(other) == {} and len(copy.cbn_layers(one)) == 1
    finally:
        for name in [name for name in sys.modules if name.partition('.')[0] == 'theirs']:
            del sys.modules[name]
