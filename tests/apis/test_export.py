"""Exported files against the detector that they were made from."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import factories
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.apis.export import export_detector
from mmdet.apis.export.compare import Difference, compare
from mmdet.apis.export.fold import fold_norms
from mmdet.cli import export, predict
from mmdet.config.errors import UserError
from mmdet.config.load import load_config
from mmdet.layers import ConvModule, pack
from mmdet.models import TimmBackbone
from mmdet.structures import DetDataSample, RLEMasks
from mmdet.visualization.visualizer import write_image

RECIPES = dict(
    faster_rcnn='faster_rcnn/faster_rcnn_r50_fpn_1x.py',
    mask_rcnn='mask_rcnn/mask_rcnn_r50_fpn_1x.py',
    cascade_mask_rcnn='cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x.py',
    retinanet='retinanet/retinanet_r50_fpn_1x.py',
    ssd='ssd/ssd300_coco.py',
)


def detector(kind: str, scale: tuple[int, int], **small) -> nn.Module:
    """Untrained, with CBN wherever a norm can be, and with scores that differ as those of a trained one do."""
    cfg = load_config(factories.CONFIGS / RECIPES[kind])
    cfg.model.backbone.init_cfg = None
    if kind != 'ssd':
        cfg.model = factories.small_cfg(kind, **small)
        norm = dict(type='CBN', buffer_num=2)
        cfg.model.neck.norm_cfg = norm
        if kind in ('faster_rcnn', 'mask_rcnn'):
            channels = cfg.model.neck.out_channels
            head = dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=channels, norm_cfg=norm)
            cfg.model.roi_head.bbox_head.update(head)
        if 'mask' in kind:
            heads = cfg.model.roi_head.mask_head
            for head in heads if isinstance(heads, list) else [heads]:
                head.norm_cfg = norm
        resize = next(step for step in cfg.test_dataloader.dataset.pipeline if step['type'] == 'Resize')
        resize.scale = scale
    torch.manual_seed(0)
    model = init_detector(cfg, device='cpu')
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(getattr(module, 'running_mean', None), torch.Tensor):  # else there is little to fold
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.2, generator=generator)
    spread(model)
    return model


def spread(model: nn.Module) -> None:
    """Let logits and deltas differ: else scores are equal, and so is the IoU of many pairs of boxes on a grid."""
    watches = {}

    def rescale(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        watches.pop(module).remove()  # on the first level
        factor = (0.5 if module.reg else 1.0 if output.dim() == 4 else 2.0) / output.std()
        with torch.no_grad():
            module.weight *= factor
            module.bias *= factor if output.dim() == 2 else 0
        return module._conv_forward(*args, module.weight, module.bias) if output.dim() == 4 else output * factor

    for name, module in model.named_modules():
        if re.search(r'(rpn|fc|retina)_(cls|reg)$|bbox_head\.(cls|reg)_convs\.\d\.0$', name):
            module.reg = 'reg' in name
            watches[module] = module.register_forward_hook(rescale)
    noise = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    inference_detector(model, noise.repeat(10, 0).repeat(10, 1))
    assert not watches


@pytest.fixture(scope='module')
def small():
    return detector('mask_rcnn', (160, 128), width=16, channels=16, hidden=32)


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> list[Path]:
    """A wide one and a tall one."""
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for name, size in dict(wide=(90, 140), tall=(150, 100)).items():
        coarse = rng.integers(0, 255, (size[0] // 10, size[1] // 10, 3), np.uint8)
        write_image(folder / f'{name}.png', coarse.repeat(10, 0).repeat(10, 1))
    return sorted(folder.iterdir())


@pytest.fixture(scope='module')
def command(small, images, tmp_path_factory) -> tuple[Path, str]:
    """The file that the command writes, and what it says."""
    folder = tmp_path_factory.mktemp('exported')
    (folder / 'config.py').write_text(small.cfg.pretty_text)
    torch.save(dict(state_dict=small.state_dict(), meta={}), folder / 'weights.pth')
    out = io.StringIO()
    names = [str(folder / name) for name in ('config.py', 'weights.pth')]
    file = folder / 'weights.pt2'
    with contextlib.redirect_stdout(out):
        export.main([*names, '--format', 'torch.export', '--out', str(file), '--images', *map(str, images)])
    return file, out.getvalue()


@pytest.fixture(scope='module')
def file(command) -> Path:
    return command[0]


@pytest.fixture(scope='module')
def exported(file) -> nn.Module:
    return init_detector(str(file))


def test_the_command_compares(command):
    out = command[1]
    assert 'weights.pt2: ' in out and 'images 128 x 160 (uint8)' in out and 'Next: mmdet predict' in out
    assert re.search(r'Beside PyTorch: 2 images, \d+ detections: boxes within \S+ pixels, scores within \S+', out)
    with pytest.raises(UserError, match='--size and --dynamic exclude each other'):
        export.main(['config.py', 'weights.pth', '--size', '96', '96', '--dynamic'])
    with pytest.raises(UserError, match='config.py alone has no weights: mmdet export CONFIG CHECKPOINT'):
        export.main(['config.py'])


def test_a_file_of_torch_export_finds_what_the_detector_finds(small, exported, images):
    difference = compare(small, exported, images)
    assert difference.images == 2 and difference.detections > 20 and difference.alone == 0, difference
    assert difference.box < 0.01 and difference.score < 1e-5 and difference.masks > 0.95, difference
    assert exported.dataset_meta['classes'] == list(small.dataset_meta['classes'])
    image = exported.meta['image']
    assert (image['height'], image['width'], image['type']) == (128, 160, 'uint8')  # and a tall image is fitted into it
    assert exported.meta['in_the_graph']['mean'] == pytest.approx([123.675, 116.28, 103.53])


def test_its_norms_are_folded(exported):
    targets = {str(node.target) for node in exported.run.run.graph.nodes}
    assert 'aten.conv2d.default' in targets and not any('norm' in target for target in targets)


def test_nothing_found_is_a_result(exported, monkeypatch):
    run = exported.run
    monkeypatch.setattr(exported, 'run', lambda image: {name: part[:0] for name, part in run(image).items()})
    found = inference_detector(exported, np.zeros((40, 40, 3), np.uint8)).pred_instances
    assert found.bboxes.shape == (0, 4) and found.masks.shape == (0, 40, 40)


def test_predict_runs_a_file(small, file, exported, images, tmp_path, capsys):
    predict.main([str(file), *map(str, images), '--out-dir', str(tmp_path), '--score-thr', '0.1'])
    written = json.loads((tmp_path / 'predictions.json').read_text())
    found = [inference_detector(exported, path).above(0.1) for path in images]
    assert len(written['annotations']) == sum(len(result.pred_instances) for result in found) > 0
    assert [c['name'] for c in written['categories']] == list(small.dataset_meta['classes'])
    assert len(list(tmp_path.glob('*.png'))) == 2 and 'images/s' in capsys.readouterr().out


def test_the_inferencer_takes_a_file(file, exported, images):
    (found,) = DetInferencer(str(file), show_progress=False)(str(images[0]))['predictions']
    assert found['scores'] == inference_detector(exported, images[0]).pred_instances.scores.tolist() != []


def test_options_that_a_file_cannot_have(file):
    with pytest.raises(UserError, match=r'weights.pt2 is exported, and runs as it is: leave amp, compile out'):
        init_detector(str(file), amp=True, compile=True)


def test_what_is_no_exported_file(tmp_path):
    path = tmp_path / 'other.pt2'
    with pytest.raises(UserError, match='other.pt2: no such file'):
        init_detector(str(path))
    path.write_bytes(b'PK and so on')
    with pytest.raises(UserError, match='other.pt2 cannot be opened as torch.export'):
        init_detector(str(path))
    torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(2),)), path)
    with pytest.raises(UserError, match='nothing in it says its classes and how an image is prepared'):
        init_detector(str(path))


def test_what_cannot_be_exported(small, tmp_path):
    def refused(message: str, format: str = 'torch.export', name: str = 'x.pt2', model: nn.Module = small, **options):
        with pytest.raises(UserError, match=message):
            export_detector(model, tmp_path / name, format, **options)
        assert not list(tmp_path.iterdir())

    refused('a file of the format torch.export ends with .pt2', name='x.onnx')
    refused("format 'tflite': torch.export, onnx, openvino are known", 'tflite')
    refused('size and dynamic', dynamic=True, size=(64, 64))
    model = init_detector(small.cfg, device='cpu')
    model.test_cfg.rcnn.min_bbox_size = 2
    refused('min_bbox_size=2 is in pixels of the original image', model=model)
    model.test_cfg.rcnn.update(min_bbox_size=0, nms=dict(type='soft_nms', iou_threshold=0.5))
    refused('soft_nms has no counterpart in other runtimes', model=model)
    cfg = Config(small.cfg.to_dict())
    pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset.pipeline = [step for step in pipeline if step['type'] != 'Resize']
    refused('images of several sizes, such as 480 x 640 and 640 x 480', model=init_detector(cfg, device='cpu'))
    fast = factories.model_cfg('fast_rcnn')
    cfg = Config(dict(model=fast, test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    refused('only a detector that makes its own can be exported', model=init_detector(cfg, device='cpu'))


@pytest.mark.parametrize('format, library', [('onnx', 'onnxscript'), ('openvino', 'openvino')])
def test_a_library_that_is_missing(small, tmp_path, monkeypatch, format, library):
    for name in ('onnx', 'onnxscript', 'openvino'):
        monkeypatch.setitem(sys.modules, name, None if name == library else torch)
    with pytest.raises(UserError, match=rf'--format {format} needs {library}: pip install onnx'):
        export_detector(small, tmp_path / f'x{dict(onnx=".onnx", openvino=".xml")[format]}', format)


def test_folding():
    """Norms whose convolution is theirs alone are gone, and nothing else changes."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = ConvModule(3, 4, 3, norm_cfg=dict(type='CBN'))
            self.with_bias = ConvModule(4, 4, 1, bias=True, norm_cfg=dict(type='BN'))
            self.shared, self.one, self.two = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.first = nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.with_bias(self.own(self.first(x)))
            return self.one(self.shared(x)) + self.two(self.shared(x + 1))

    net = Net().eval()
    for norm in (net.own.bn, net.with_bias.bn, net.one, net.two, net.first):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        expected = net(x)
        assert fold_norms(net, lambda: net(x)) == 2
        assert not len(net.own.bn) and not len(net.with_bias.bn)
        torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_norms_of_a_packed_network_of_another_library_are_folded():
    pytest.importorskip('timm', reason='pip install timm')
    torch.manual_seed(0)
    net = TimmBackbone('mobilenetv3_small_050').eval()
    x = torch.randn(1, 3, 64, 64)
    expected = net(x)
    norms = [m for m in pack(net).modules() if isinstance(m, nn.BatchNorm2d)]
    assert fold_norms(net, lambda: net(x)) == len(norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    for got, wanted in zip(net(x), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def sample(boxes, scores, labels, masks=None) -> DetDataSample:
    found = DetDataSample(metainfo=dict(ori_shape=(50, 60)))
    found.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4), scores=torch.tensor(scores), labels=torch.tensor(labels)
    )
    if masks is not None:
        found.pred_instances.masks = RLEMasks.of(masks, 50, 60)
    return found


def test_differences_are_seen():
    boxes, scores, labels = [[0.0, 0, 20, 20], [5, 5, 30, 40]], [0.9, 0.4], [3, 1]
    masks = np.zeros((2, 50, 60), bool)
    masks[0, :20, :20], masks[1, 5:40, 5:30] = True, True
    smaller = masks.copy()
    smaller[0, :, 19] = False

    def against(*other, **cfg) -> Difference:
        difference = Difference()
        difference.add(sample(boxes, scores, labels, masks), sample(*other), cfg)
        return difference

    same = against(boxes, scores, labels, masks)
    assert same == Difference(images=1, detections=2, masks=1.0) and same.agree
    order = [[5, 5, 30, 40.25], [0, 0, 20, 20]], [0.4005, 0.9], [1, 3], smaller[::-1].copy()
    moved = against(*order)
    assert (moved.alone, moved.box, moved.masks) == (0, 0.25, pytest.approx(19 / 20))
    assert moved.score == pytest.approx(5e-4, abs=1e-6)
    assert against([[0.0, 0, 20, 21], boxes[1]], scores, labels, masks).alone == 2  # each side has one
    assert against(boxes, scores, [3, 2], masks).alone == 2 and not against(boxes, scores, [3, 2], masks).agree
    assert against(boxes, [0.9, 0.38], labels, masks).alone == 2
    assert against(boxes[:1], scores[:1], labels[:1], masks[:1]).alone == 1
    assert against(boxes[:1], scores[:1], labels[:1], masks[:1], score_thr=0.3995).alone == 0  # at the threshold
    assert against([], [], [], masks[:0]).alone == 2
    assert '2 have no counterpart' in str(against([], [], [], masks[:0]))


@pytest.fixture(scope='module')
def photos(real_data) -> list[Path]:
    plain, coco = (sorted(real_data.glob(pattern)) for pattern in ('photos/*.*g', 'coco_dev/val2017/*.jpg'))
    return [*plain[:4], *coco[:6]]


@pytest.mark.slow
@pytest.mark.parametrize('format, runtime, dynamic', [
    ('torch.export', 'torch', True), ('onnx', 'onnxruntime', True), ('openvino', 'openvino', False),
])  # fmt: skip
@pytest.mark.parametrize('kind', RECIPES)
def test_on_photos(kind, format, runtime, dynamic, photos, tmp_path):
    for library in {'onnx', 'onnxscript', runtime} if format != 'torch.export' else ():
        pytest.importorskip(library)
    model = detector(kind, (480, 320), channels=64, hidden=128, num_classes=None)
    path = tmp_path / f'x{dict(onnx=".onnx", openvino=".xml").get(format, ".pt2")}'
    export_detector(model, path, format, dynamic=dynamic and kind != 'ssd')
    exported = init_detector(str(path), device='cpu')
    difference = compare(model, exported, photos)
    assert difference.images == 10 and difference.detections > 100 and difference.agree, difference
    assert difference.box < 0.5 and difference.score < 1e-3, difference  # `compare` looks no farther
    assert ('mask' not in kind) == (difference.masks is None) and (difference.masks or 1) > 0.95, difference
