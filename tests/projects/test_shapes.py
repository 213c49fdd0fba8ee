import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mmdet.config.errors import UserError, run_main
from mmdet.datasets import CocoDataset
from mmdet.structures import masks_from_coco
from projects.demo import shapes as shapes_module
from projects.demo.shapes import CLASSES, main, write_shapes


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', train=24, val=6, size=128, seed=3)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes(shapes, tmp_path):
    again = write_shapes(tmp_path / 'again', train=24, val=6, size=128, seed=3)
    assert files(again) == files(shapes)
    other = write_shapes(tmp_path / 'other', train=2, val=1, size=128, seed=4)
    assert files(other)['train/000001.jpg'] != files(shapes)['train/000001.jpg']
    # an image depends on its number alone, not on how many there are
    few = write_shapes(tmp_path / 'few', train=2, val=1, size=128, seed=3)
    assert files(few)['train/000002.jpg'] == files(shapes)['train/000002.jpg']


def test_annotations_are_sound(shapes):
    content = json.loads((shapes / 'annotations/instances_train.json').read_text())
    assert [c['name'] for c in content['categories']] == list(CLASSES)
    assert len(content['images']) == 24
    per_image = {image['id']: [] for image in content['images']}
    for annotation in content['annotations']:
        per_image[annotation['image_id']].append(annotation)
        masks = masks_from_coco([annotation['segmentation']], 128, 128)
        x, y, w, h = annotation['bbox']
        assert 0 <= x < x + w <= 128 and 0 <= y < y + h <= 128
        np.testing.assert_allclose(masks.boxes()[0], [x, y, x + w, y + h], atol=0.02)
        pixels = masks.to_bitmap().areas[0]
        assert 0.93 < pixels / annotation['area'] < 1.07
    assert min(len(a) for a in per_image.values()) == 0  # one image is empty
    assert any(a['iscrowd'] for a in content['annotations'])
    assert {a['category_id'] for a in content['annotations']} == {1, 2, 3, 4}
    for annotations in per_image.values():
        whole = [a for a in annotations if not a['iscrowd']]
        assert len(whole) <= 5
        total = sum(masks_from_coco([a['segmentation']], 128, 128).to_bitmap().masks for a in whole)
        # visible parts do not overlap, but for the pixels their outlines share
        assert np.count_nonzero(np.asarray(total) > 1) < 0.02 * 128 * 128


def test_objects_stand_out_and_colour_says_nothing_of_the_class(shapes):
    content = json.loads((shapes / 'annotations/instances_train.json').read_text())
    hues = {k: [] for k in range(1, 5)}
    names = {image['id']: image['file_name'] for image in content['images']}
    for annotation in content['annotations']:
        if annotation['iscrowd']:
            continue
        pixels = cv2.imread(str(shapes / 'train' / names[annotation['image_id']]))
        assert pixels.shape == (128, 128, 3)
        mask = masks_from_coco([annotation['segmentation']], 128, 128).to_bitmap().masks[0].astype(bool)
        hues[annotation['category_id']].append(cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)[mask][:, 0].mean())
    for values in hues.values():
        assert np.std(values) > 20  # of 180


def test_it_loads(shapes):
    dataset = CocoDataset(
        data_root=str(shapes),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train'),
        metainfo=dict(classes=CLASSES),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_mask=True),
            dict(type='PackDetInputs'),
        ],
    )
    for i in range(len(dataset)):
        gt = dataset[i]['data_samples'].gt_instances
        assert len(gt.masks) == len(gt.bboxes)


def test_a_finished_set_is_left_alone(shapes):
    before = {p: p.stat().st_mtime_ns for p in shapes.rglob('*')}
    assert write_shapes(shapes, train=24, val=6, size=128, seed=3) == shapes
    assert {p: p.stat().st_mtime_ns for p in shapes.rglob('*')} == before
    with pytest.raises(UserError, match='remove it or name another'):
        write_shapes(shapes, train=24, val=6, size=128, seed=4)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    draw, calls = shapes_module.draw_image, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(*args, **kwargs)

    monkeypatch.setattr(shapes_module, 'draw_image', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / 'set', train=6, val=2, size=96)
    assert os.listdir(tmp_path) == []


def test_command_line(tmp_path, capsys, monkeypatch):
    done = subprocess.run(
        [sys.executable, '-m', 'projects.demo.shapes', str(tmp_path / 'set')]
        + ['--train', '3', '--val', '2', '--size', '96'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    assert '3 training and 2 validation images of 96x96' in done.stdout
    assert sorted(os.listdir(tmp_path / 'set')) == ['annotations', 'shapes.json', 'train', 'val']
    for arguments, message in (['--size', '32'], 'size=32'), (['--train', '0'], 'train=0'):
        monkeypatch.setattr(sys, 'argv', ['shapes', str(tmp_path / 'other'), *arguments])
        with pytest.raises(SystemExit, match='2'):
            run_main(main)
        assert f'error: {message}' in capsys.readouterr().err
    assert not (tmp_path / 'other').exists()
