"""What a user adds in one file, named through `custom_imports`: trained, resumed, tested, loaded again.

The files beside this one are the code of docs/extend. Nothing in mmdet is changed for them.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdet.checkpoints import load_checkpoint
from mmdet.config.load import load_config
from mmdet.registry import MODELS, TRANSFORMS
from projects.demo.shapes import write_shapes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
QUICK = [
    'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=2',
    *(f'{part}_dataloader.num_workers=0' for part in ('train', 'val', 'test')),
    'optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.001',  # without momentum checkpoints are small
]  # fmt: skip
SHAPES = [
    'train_pipeline.2.scale=96,96', 'test_pipeline.1.scale=96,96', 'default_hooks.checkpoint.save_best=None',
]  # fmt: skip
BOXLIST = [f'{part}_dataloader.dataset.pipeline.{step}.scale=96,96' for part, step in
           (('train', 2), ('val', 1), ('test', 1))]  # fmt: skip
FEW_ROIS = [
    'model.train_cfg.rpn_proposal.max_per_img=50', 'model.train_cfg.rcnn.sampler.num=16',
    'model.test_cfg.rpn.max_per_img=20',
]  # fmt: skip
# name: options beside QUICK, what training and testing print, a key of its checkpoint
EXTENSIONS = {
    'convnext': (SHAPES + FEW_ROIS, 'coco/segm_mAP', 'backbone.stem.0.weight'),
    'set_prediction': (SHAPES, 'coco/bbox_mAP', 'bbox_head.fc_cls.weight'),
    'boxlist': (BOXLIST + FEW_ROIS, 'boxlist/recall', 'roi_head.bbox_head.fc_cls.weight'),
    'deform_conv': (SHAPES + FEW_ROIS, 'coco/segm_mAP', 'backbone.layer1.0.conv1.offset.weight'),
}


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """data/shapes in COCO's format, and data/boxlist, the same in boxlist.py's."""
    folder = tmp_path_factory.mktemp('extend') / 'data'
    shapes = write_shapes(folder / 'shapes', train=4, val=2, size=96)
    boxlist = folder / 'boxlist'
    (boxlist / 'images').mkdir(parents=True)
    for split in ('train', 'val'):
        content = json.loads((shapes / 'annotations' / f'instances_{split}.json').read_text())
        classes = {category['id']: category['name'] for category in content['categories']}
        lines = []
        for image in content['images']:
            name = f'{split}_{image["file_name"]}'
            parts = [f'{name} {image["width"]} {image["height"]}']
            for annotation in content['annotations']:
                if annotation['image_id'] == image['id'] and not annotation['iscrowd']:
                    x, y, w, h = annotation['bbox']
                    parts.append(f'{classes[annotation["category_id"]]} {x} {y} {x + w} {y + h}')
            lines.append('; '.join(parts))
            shutil.copy(shapes / split / image['file_name'], boxlist / 'images' / name)
        (boxlist / f'{split}.txt').write_text('\n'.join(lines) + '\n')
    return folder


@pytest.fixture
def tool(data, tmp_path, monkeypatch, on_the_cpu):
    """tool(name, *arguments): tools/name in this process and in a folder with data/, but without the extensions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setattr(sys, 'path', [folder for folder in sys.path if Path(folder).resolve() != HERE])
    Path('data').symlink_to(data)

    def run(name: str, *arguments) -> None:
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')

    return run


def config_of(name: str) -> Path:
    return HERE / f'{name}_config.py'


def weights_of(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.parametrize('name', EXTENSIONS)
def test_an_extension_trains_resumes_tests_and_loads(name, tool, capsys):
    options, metric, key = EXTENSIONS[name]
    options = ['--cfg-options', *QUICK, *options]
    tool('train.py', config_of(name), '--work-dir', 'run', *options)
    assert metric in capsys.readouterr().out
    tool('train.py', config_of(name), '--work-dir', 'run', '--resume', *options, 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1, iter: 2' in capsys.readouterr().out
    tool('test.py', config_of(name), 'run/epoch_2.pth', '--out', 'found.pkl', *options)
    assert metric in capsys.readouterr().out and Path('found.pkl').exists()

    first, last = weights_of('run/epoch_1.pth'), weights_of('run/epoch_2.pth')
    assert not torch.equal(first[key], last[key])
    model = MODELS.build(load_config(config_of(name)).model)
    load_checkpoint(model, 'run/epoch_2.pth')
    loaded = model.state_dict()
    assert loaded.keys() == last.keys() and all(torch.equal(value, last[name]) for name, value in loaded.items())


@pytest.mark.parametrize('name', ['response_norm', 'cutout', 'late_backbone', 'squared_relu'])
def test_a_part_trains(name, tool, capsys):
    tool('train.py', config_of(name), '--work-dir', 'run', '--cfg-options', *QUICK, *SHAPES, *FEW_ROIS)
    out = capsys.readouterr().out
    assert 'coco/segm_mAP' in out and (name != 'late_backbone' or 'backbone: frozen in epoch 1' in out)
    assert name != 'response_norm' or 'roi_head.mask_head.convs.0.norm_layer.weight' in weights_of('run/epoch_1.pth')


def test_any_backbone_starts_from_a_file(tmp_path):
    cfg = load_config(config_of('convnext')).model
    state = {key: torch.full_like(value, 0.5) for key, value in MODELS.build(cfg.backbone).state_dict().items()}
    torch.save(state, tmp_path / 'convnext.pth')
    cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'convnext.pth'))
    model = MODELS.build(cfg)
    model.init_weights()
    assert all((value == 0.5).all() for value in model.backbone.state_dict().values())


def test_a_deformable_backbone_begins_as_a_plain_one():
    cfg = load_config(config_of('deform_conv')).model.backbone
    deformable, plain = MODELS.build(cfg).eval(), MODELS.build(dict(cfg, conv_cfg=None)).eval()
    missing, unexpected = plain.load_state_dict(deformable.state_dict(), strict=False)
    assert missing == [] and unexpected and all('.offset.' in key for key in unexpected)
    x = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(deformable(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_cutout_paints_rectangles_and_keeps_the_boxes():
    load_config(config_of('cutout'))
    np.random.seed(0)
    image = np.random.randint(0, 255, (40, 60, 3), np.uint8)
    results = TRANSFORMS.build(dict(type='Cutout', count=1, size=(0.2, 0.2)))(dict(img=image.copy(), gt_bboxes=1))
    changed = (results['img'] != image).any(2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert len(rows) == 9 and len(columns) == 13 and results['gt_bboxes'] == 1
    assert len(np.unique(results['img'][changed], axis=0)) == 1


def test_the_operator_is_one_for_autograd_and_the_compiler():
    load_config(config_of('squared_relu'))
    op = torch.ops.mine.squared_relu.default
    x = torch.tensor([[-1.5, 0.5], [2.0, -0.1]], dtype=torch.float64, requires_grad=True)
    assert op(x).tolist() == [[0, 0.25], [4, 0]]
    assert torch.autograd.gradcheck(op, x)
    torch.library.opcheck(op, (x,))


@pytest.fixture
def project(data, tmp_path):
    """Somebody's folder with configs/config.py, of the set-prediction detector in a file my_head.py, not there yet."""
    text = config_of('set_prediction').read_text().replace("['set_prediction']", "['my_head']")
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'config.py').write_text(text.replace('../../configs', str(ROOT / 'configs')))
    (tmp_path / 'data').symlink_to(data)
    return tmp_path


def train_elsewhere(project: Path) -> subprocess.CompletedProcess:
    """tools/train.py in a process of its own, without PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    command = [sys.executable, ROOT / 'tools' / 'train.py', 'configs/config.py', '--cfg-options', *QUICK, *SHAPES]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize('folder', ['configs', '.'], ids=['beside the config', 'in the working directory'])
def test_a_bug_in_ones_own_file_is_shown_with_its_line(folder, project):
    good = 'rows, columns = codes'
    code = (HERE / 'set_prediction.py').read_text()
    (project / folder / 'my_head.py').write_text(code.replace(good, 'rows, columns, depth = codes'))
    line = code[: code.index(good)].count('\n') + 1
    done = train_elsewhere(project)
    assert done.returncode != 0 and 'not enough values to unpack' in done.stderr
    assert re.search(rf'my_head\.py", line {line}, in positions', done.stderr), done.stderr[-2000:]


def test_a_typo_in_ones_own_config_is_one_line(project):
    shutil.copy(HERE / 'set_prediction.py', project / 'my_head.py')
    config = project / 'configs' / 'config.py'
    config.write_text(config.read_text().replace("type='SetPredictionHead'", "type='SetPredictoinHead'"))
    done = train_elsewhere(project)
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert "error: unknown type 'SetPredictoinHead' at model.bbox_head.type." in done.stderr
    assert 'Did you mean SetPredictionHead?' in done.stderr
