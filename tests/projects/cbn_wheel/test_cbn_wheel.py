"""CBN as a wheel of its own, and in the models of other libraries."""

import copy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from mmdet.layers import CrossIterBatchNorm2d, convert_cbn, plan_cbn, revert_cbn

PROJECT = Path(__file__).resolve().parents[3] / 'projects' / 'cbn_wheel'
USE = """
import sys, torch
from torch import nn
from cross_iteration_bn import convert_cbn, revert_cbn
model = convert_cbn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), full_gradient=True)
for _ in range(3):
    model(torch.rand(1, 3, 8, 8)).sum().backward()
assert model[1].history.filled == 3 and type(revert_cbn(model)[1]) is nn.BatchNorm2d
assert 'mmdet' not in sys.modules
"""


def test_the_wheel_holds_the_folder_and_needs_torch_alone(tmp_path):
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w',
               str(tmp_path), str(PROJECT)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob('cross_iteration_bn-*-py3-none-any.whl')
    zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
    done = subprocess.run([sys.executable, '-c', USE], cwd=tmp_path / 'site', capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class YoloLike(nn.Module):
    """Convolution, norm and SiLU blocks, a split with a residual branch, two scales, one output each."""

    def __init__(self):
        super().__init__()

        def block(c_in, c_out, kernel=3, stride=1):
            return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out),
                                 nn.SiLU(inplace=True))

        self.stem, self.down = block(3, 16, stride=2), block(16, 32, stride=2)
        self.branch, self.join = nn.Sequential(block(16, 16), block(16, 16)), block(32, 32, 1)
        self.deeper, self.heads = block(32, 64, stride=2), nn.ModuleList([nn.Conv2d(32, 9, 1), nn.Conv2d(64, 9, 1)])

    def forward(self, x):
        a, b = self.down(self.stem(x)).chunk(2, 1)
        fine = self.join(torch.cat([a, b + self.branch(b)], 1))
        return self.heads[0](fine).mean() + self.heads[1](self.deeper(fine)).mean()


def timm_model():
    timm = pytest.importorskip('timm', reason='timm is not installed')
    return timm.create_model('mobilenetv3_small_050', num_classes=4)


def detr():
    """RT-DETR; DETR itself holds frozen norms alone."""
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type='basic',
        out_features=['stage2', 'stage3', 'stage4'],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, freeze_backbone_batch_norms=False, encoder_in_channels=[8, 16, 16],
        encoder_hidden_dim=16, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_attention_heads=2, decoder_layers=1, decoder_in_channels=[16, 16, 16], num_queries=4, num_denoising=0,
    )  # fmt: skip

    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.detr = transformers.RTDetrForObjectDetection(config)

        def forward(self, x):
            found = self.detr(x)
            return found.pred_boxes.mean() + found.logits.mean()

    return Summed()


@pytest.mark.slow
@pytest.mark.parametrize('make, least', [
    (lambda: torchvision.models.resnet18(num_classes=4), 20), (timm_model, 30), (YoloLike, 6), (detr, 8),
], ids=['torchvision', 'timm', 'yolo', 'detr'])  # fmt: skip
def test_models_of_others_train_compile_and_revert(make, least):
    torch.manual_seed(0)
    model = make().train()
    before = copy.deepcopy(model)
    assert len(plan_cbn(model).pairs) >= least
    convert_cbn(model, full_gradient=True)
    layers = [m for m in model.modules() if isinstance(m, CrossIterBatchNorm2d)]
    assert len(layers) >= least
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        model(torch.rand(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(layer.history.filled == 3 for layer in layers)
    assert all(p.isfinite().all() for p in model.parameters())
    twin, x = copy.deepcopy(model), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(torch.compile(twin, backend='eager')(x), model(x))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model.eval()(x)
    revert_cbn(model)
    assert not any(isinstance(m, CrossIterBatchNorm2d) for m in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(model(x), expected)
