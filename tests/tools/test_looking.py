"""The tools for looking: predict.py on one's own images, browse.py on a data set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from mmdet.apis import inference_detector, init_detector
from mmdet.visualization.visualizer import read_image
from projects.demo.shapes import write_shapes

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'demo' / 'mask_rcnn_r18_fpn_cbn_shapes.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A data set of generated images, and the checkpoint of an untrained detector."""
    folder = tmp_path_factory.mktemp('looking')
    write_shapes(folder / 'shapes', train=6, val=3)
    torch.manual_seed(0)
    model = init_detector(CONFIG, device='cpu')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=model.dataset_meta)), folder / 'x.pth')
    return folder


@pytest.fixture
def call(folder, monkeypatch, capsys, run_tool):
    def call(tool: str, *arguments, status: int = 0) -> tuple[str, str]:
        monkeypatch.chdir(folder)
        capsys.readouterr()
        left, out, err = run_tool(tool, *arguments)
        assert left == status, out + err
        return out, err

    return call


def test_predictions_are_the_detectors(call, folder):
    images = sorted((folder / 'shapes' / 'val').glob('*'))
    out, _ = call('predict.py', CONFIG, 'x.pth', 'shapes/val', '--score-thr', 0.06, '--device', 'cpu')
    coco = COCO('predictions/predictions.json')
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == ['circle', 'square', 'triangle', 'star']
    model = init_detector(CONFIG, 'x.pth', device='cpu')
    total = 0
    for entry, path in zip(coco.loadImgs(coco.getImgIds()), images, strict=True):
        assert Path(entry['file_name']) == path.relative_to(folder)
        found = inference_detector(model, path).pred_instances
        found = found[found.scores >= 0.06]
        annotations = coco.loadAnns(coco.getAnnIds(entry['id']))
        boxes = np.array([a['bbox'] for a in annotations]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, found.bboxes, atol=1e-4)
        assert [a['category_id'] - 1 for a in annotations] == found.labels.tolist()
        assert all(coco.annToMask(a).shape == (entry['height'], entry['width']) for a in annotations)
        drawn = read_image(folder / 'predictions' / path.name)
        assert drawn.shape == (3 * entry['height'], 3 * entry['width'], 3)  # small images are enlarged
        total += len(annotations)
    assert total > 0 and f'predictions.json: {total} detections in 3 images' in out


def test_unreadable_images_are_left_out_and_named(call, folder):
    good = sorted((folder / 'shapes' / 'val').glob('*'))[0]
    (folder / 'bad.jpg').write_text('not an image')
    out, err = call('predict.py', CONFIG, 'x.pth', 'bad.jpg', good, '--out-dir', 'some', status=2)
    assert err.splitlines()[-1] == 'error: 1 of 2 files are not readable images: bad.jpg'
    assert json.loads((folder / 'some' / 'predictions.json').read_text())['images'][0]['file_name'] == str(good)
    assert (folder / 'some' / good.name).exists()


@pytest.mark.parametrize('arguments, message', [
    (['nowhere'], 'nowhere: no such file or folder'),
    ([''], "'': no such file or folder"),
    (['shapes/annotations'], 'shapes/annotations: no image in this folder'),
    (['shapes/val', '--out-dir', 'shapes/val'], 'would overwrite the image'),
    (['shapes/val', '--device', 'gpu'], "no device is called 'gpu'; use 'cpu', or 'cuda:0' for the first GPU"),
    (['shapes/val', '--device', 'cuda:99'], 'device cuda:99: PyTorch finds'),
])  # fmt: skip
def test_predict_says_what_is_wrong(call, arguments, message):
    out, err = call('predict.py', CONFIG, 'x.pth', *arguments, status=2)
    assert err.startswith('error: ') and message in err and err.count('\n') == 1 and out == ''


@pytest.mark.parametrize('split, annotations', [('train', 'instances_train.json'), ('val', 'instances_val.json')])
def test_browse_counts_and_draws(call, folder, split, annotations):
    out, _ = call('browse.py', CONFIG, '--split', split, '--number', 2, '--out-dir', split,
                  '--cfg-options', 'data_root=shapes/')  # fmt: skip
    objects = json.loads((folder / 'shapes' / 'annotations' / annotations).read_text())['annotations']
    areas = [a['bbox'][2] * a['bbox'][3] for a in objects if not a['iscrowd']]
    row = next(line for line in out.splitlines() if line.startswith('| all'))
    small = sum(area < 32**2 for area in areas)
    assert [int(x) for x in row.split('|')[2:6]] == [len(areas), small, len(areas) - small, 0]
    assert f'{len(objects) - len(areas)} ignored regions' in out
    drawn = sorted((folder / split).iterdir())
    assert len(drawn) == 2
    plain = read_image(sorted((folder / 'shapes' / split).glob('*'))[int(drawn[0].name[:6])])
    assert read_image(drawn[0]).shape == (480, 480, 3) and plain.shape == (160, 160, 3)


def test_browse_draws_float_images(call, folder):
    call('browse.py', CONFIG, '--split', 'val', '--number', 1, '--out-dir', 'floats', '--cfg-options',
         'data_root=shapes/', 'test_pipeline.0.to_float32=True')  # fmt: skip
    (drawn,) = (folder / 'floats').iterdir()
    assert read_image(drawn).std() > 10


def test_browse_draws_mixed_images(call, folder):
    (folder / 'mixed.py').write_text(f"""
_base_ = {str(CONFIG)!r}
part = dict(_base_.train_dataloader.dataset, pipeline=_base_.train_pipeline[:2])
train_dataloader = dict(dataset=dict(_delete_=True, type='MultiImageMixDataset', dataset=part, pipeline=[
    dict(type='Mosaic', img_scale=(160, 120)), dict(type='PackDetInputs')]))
""")
    out, _ = call('browse.py', 'mixed.py', '--number', 2, '--out-dir', 'mixed', '--cfg-options', 'data_root=shapes/')
    assert out.count(': 320 x 240 pixels, objects: ') == len(list((folder / 'mixed').iterdir())) == 2


def test_browse_draws_no_negative_number(call):
    _, err = call('browse.py', CONFIG, '--number', -3, status=2)
    assert err == 'error: --number -3: 0 or more images can be drawn\n'
