"""predict: images, patterns and videos in; drawings, COCO's JSON and a table out; large images in slices."""

import csv
import json
import os
import re
import sys
from pathlib import Path

import factories
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

from mmdet.apis import inference_detector, init_detector
from mmdet.apis.progress import ImageProgress
from mmdet.apis.slices import detect_slices, merge_results_by_nms, slice_windows
from mmdet.cli.predict import film_files, main
from mmdet.config.errors import UserError
from mmdet.structures import DetDataSample, RLEMasks
from mmdet.visualization.visualizer import read_image, write_image


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('predict')
    factories.write_detector(folder)
    return folder


@pytest.fixture
def predict(folder, monkeypatch, tmp_path, capsys):
    """``predict(inputs, options)``: what was written as JSON, the table, and what was printed."""

    def call(*arguments) -> tuple[dict, list[dict], str]:
        monkeypatch.chdir(folder)
        out = tmp_path / 'out'
        main(['config.py', 'weights.pth', *map(str, arguments), '--out-dir', str(out), '--device', 'cpu'])
        with open(out / 'predictions.csv', newline='') as file:
            table = list(csv.DictReader(file))
        return json.loads((out / 'predictions.json').read_text()), table, capsys.readouterr().out

    return call


def test_patterns_batches_and_the_table(predict, folder, tmp_path):
    coco, table, out = predict('shapes/val/*', 'shapes/val', '--score-thr', 0, '--batch-size', 2)
    names = [str(path.relative_to(folder)) for path in sorted((folder / 'shapes' / 'val').iterdir())]
    assert [image['file_name'] for image in coco['images']] == names  # each once
    assert len(table) == len(coco['annotations']) > 0 and out.count('\n') == 4 and 'images/s' in out
    for row, entry in zip(table, coco['annotations'], strict=True):
        assert row['file_name'] == names[entry['image_id'] - 1] and row['frame'] == ''
        assert row['class'] == coco['categories'][entry['category_id'] - 1]['name']
        x, y, width, height = entry['bbox']
        found = [float(row[key]) for key in ('x1', 'y1', 'x2', 'y2')]
        np.testing.assert_allclose(found, [x, y, x + width, y + height], atol=0.006)
        assert coco_mask.decode(entry['segmentation']).shape == (96, 96)
    assert len(list((tmp_path / 'out').iterdir())) == 4


def test_classes_are_chosen(predict):
    everything, *_ = predict('shapes/val', '--score-thr', 0, '--no-draw')
    present = {entry['category_id'] for entry in everything['annotations']}
    name = everything['categories'][min(present) - 1]['name']
    some, *_ = predict('shapes/val', '--score-thr', 0, '--classes', name, '--no-draw')
    expected = [entry['bbox'] for entry in everything['annotations'] if entry['category_id'] == min(present)]
    assert [entry['bbox'] for entry in some['annotations']] == expected and expected
    with pytest.raises(UserError, match='--classes sqare: the model knows circle, .*Did you mean square'):
        predict('shapes/val', '--classes', 'sqare')


@pytest.mark.parametrize('arguments, message', [
    (['--batch-size', '0'], '--batch-size 0: at least 1 is needed'),
    (['--slice', '0'], '--slice 0'),
    (['--slice', '64', '--overlap', '1'], '--overlap 1.0'),
])  # fmt: skip
def test_wrong_numbers(predict, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        predict('shapes/val', *arguments)


def test_a_checkpoint_that_holds_its_config_stands_alone(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(folder)
    opened = torch.load('weights.pth', weights_only=True)
    opened['meta']['cfg'] = Path('config.py').read_text()
    torch.save(opened, tmp_path / 'whole.pth')
    both = []
    for given in (['config.py', 'weights.pth'], [str(tmp_path / 'whole.pth')]):
        options = ['--score-thr', '0', '--no-draw', '--device', 'cpu', '--out-dir', str(tmp_path / 'out')]
        main([*given, 'shapes/val', *options])
        both.append(json.loads((tmp_path / 'out' / 'predictions.json').read_text()))
    assert both[0] == both[1] and both[0]['annotations']
    with pytest.raises(UserError, match='no images: give files'):
        main(['config.py', 'weights.pth'])


# ---------------------------------------------------------------------- videos


def test_a_video_frame_by_frame(predict, folder, tmp_path):
    cv2, sv = pytest.importorskip('cv2'), pytest.importorskip('supervision', reason='supervision is not installed')
    frames = [cv2.imread(str(path)) for path in sorted((folder / 'shapes' / 'train').iterdir())[:3]]
    writer = cv2.VideoWriter(str(tmp_path / 'film.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (96, 96))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    coco, table, out = predict(tmp_path / 'film.avi', '--score-thr', 0, '--batch-size', 2)
    assert [image['frame'] for image in coco['images']] == [0, 1, 2] and 'film.mp4: 3 frames' in out
    assert {row['frame'] for row in table} == {'0', '1', '2'}
    info = sv.VideoInfo.from_video_path(str(tmp_path / 'out' / 'film.mp4'))
    assert (info.width, info.height, info.total_frames, round(info.fps)) == (96, 96, 3, 5)
    read = list(sv.get_video_frames_generator(str(tmp_path / 'film.avi')))
    model = init_detector(folder / 'config.py', str(folder / 'weights.pth'), device='cpu')
    found = inference_detector(model, read, batch_size=2)[1]
    np.testing.assert_allclose([a['bbox'] for a in coco['annotations'] if a['image_id'] == 2],
                               [a['bbox'] for a in found.to_coco()], atol=1e-3)  # fmt: skip


def test_videos_of_one_name(tmp_path):
    videos = [tmp_path / name for name in ('a/film.avi', 'b/film.mp4', 'b/other.mp4')]
    names = {video: place.name for video, place in film_files(videos, tmp_path / 'out').items()}
    assert list(names.values()) == ['film.mp4', 'film_2.mp4', 'other.mp4']
    with pytest.raises(UserError, match='a drawing there would overwrite .*b/film.mp4'):
        film_files(videos, tmp_path / 'b')


def test_what_is_no_file_among_the_images(predict, tmp_path):
    """A pipe would be waited for."""
    (tmp_path / 'in' / 'folder.png').mkdir(parents=True)
    os.mkfifo(tmp_path / 'in' / 'pipe.png')
    write_image(tmp_path / 'in' / 'a.png', np.zeros((64, 64, 3), np.uint8))
    coco, _, _ = predict(tmp_path / 'in')
    assert [Path(image['file_name']).name for image in coco['images']] == ['a.png']


def test_a_video_that_is_none(predict, tmp_path, monkeypatch):
    (tmp_path / 'film.mp4').write_bytes(b'nothing')
    with pytest.raises(UserError, match='film.mp4: no readable video'):
        predict(tmp_path / 'film.mp4')
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(UserError, match='videos need supervision: pip install supervision'):
        predict(tmp_path / 'film.mp4')


# ---------------------------------------------------------------------- slices


@pytest.mark.parametrize('width, height, size, overlap', [
    (1000, 700, 300, 0.2), (300, 300, 300, 0.5), (50, 900, 200, 0),
])  # fmt: skip
def test_windows_cover_the_image_and_overlap(width, height, size, overlap):
    covered = np.zeros((height, width), bool)
    windows = slice_windows(width, height, size, overlap)
    for x1, y1, x2, y2 in windows:
        covered[y1:y2, x1:x2] = True
        assert (x2 - x1, y2 - y1) == (min(size, width), min(size, height))
    assert covered.all() and len(set(windows)) == len(windows)
    columns = sorted({x1 for x1, *_ in windows})
    assert all(a + size - b >= round(size * overlap) for a, b in zip(columns, columns[1:]))


def found_in(window: tuple[int, int, int, int], objects: list[tuple[int, int, int, int]]) -> DetDataSample:
    """What a perfect detector finds in a window: the objects that lie in it, in its pixels, with their masks."""
    x1, y1, x2, y2 = window
    inside = [(a - x1, b - y1, c - x1, d - y1) for a, b, c, d in objects if a >= x1 and b >= y1 and c <= x2 and d <= y2]
    masks = np.zeros((len(inside), y2 - y1, x2 - x1), np.uint8)
    for mask, (a, b, c, d) in zip(masks, inside):
        mask[b:d, a:c] = 1
    boxes = torch.tensor(inside, dtype=torch.float32).reshape(-1, 4)
    found = InstanceData(bboxes=boxes, scores=torch.linspace(0.9, 0.8, len(inside)),
                         labels=torch.zeros(len(inside), dtype=torch.int64),
                         masks=RLEMasks.of(masks, y2 - y1, x2 - x1))  # fmt: skip
    return DetDataSample(metainfo=dict(ori_shape=(y2 - y1, x2 - x1)), pred_instances=found)


def test_slices_are_put_together_again():
    """Objects smaller than the overlap: each is found once, at its place, with its mask."""
    objects = [(x, y, x + 20, y + 15) for x in range(5, 360, 31) for y in range(3, 260, 40)]
    windows = slice_windows(400, 300, 128, 0.25)
    merged = merge_results_by_nms([found_in(w, objects) for w in windows], [w[:2] for w in windows], (300, 400),
                                  dict(type='nms', iou_threshold=0.5)).pred_instances  # fmt: skip
    assert sorted(map(tuple, merged.bboxes.int().tolist())) == sorted(objects)
    for box, mask in zip(merged.bboxes.int().tolist(), merged.masks):
        expected = np.zeros((300, 400), bool)
        expected[box[1] : box[3], box[0] : box[2]] = True
        assert np.array_equal(mask.numpy(), expected)


def test_an_image_as_large_as_a_slice_is_detected_in_as_a_whole(folder):
    model = init_detector(folder / 'config.py', str(folder / 'weights.pth'), device='cpu')
    image = read_image(sorted((folder / 'shapes' / 'val').iterdir())[0])[..., ::-1]
    whole, sliced = inference_detector(model, np.ascontiguousarray(image)), detect_slices(model, image, size=96)
    kept = torch.isin(whole.pred_instances.scores, sliced.pred_instances.scores)
    assert torch.equal(whole.pred_instances.bboxes[kept], sliced.pred_instances.bboxes)
    assert whole.pred_instances.masks[kept] == sliced.pred_instances.masks and kept.any()


def test_slices_on_the_command_line(predict, tmp_path, folder):
    tile = read_image(sorted((folder / 'shapes' / 'val').iterdir())[0])
    write_image(tmp_path / 'large.png', np.tile(tile, (2, 3, 1)))
    coco, table, _ = predict(tmp_path / 'large.png', '--slice', 96, '--overlap', 0, '--batch-size', 4, '--score-thr', 0)
    boxes = np.array([entry['bbox'] for entry in coco['annotations']])
    assert coco['images'][0]['width'] == 288 and len(table) == len(boxes) > 5  # of one image at most five
    assert boxes[:, 0].max() > 192 and boxes[:, 1].max() > 96


# ---------------------------------------------------------------------- progress


def test_no_bar_without_a_terminal_or_without_rich(monkeypatch):
    with ImageProgress(3) as bar:
        bar.advance(1)
        assert not bar.visible
    monkeypatch.setenv('FORCE_COLOR', '1')  # rich takes it for a terminal
    with ImageProgress(3) as bar:
        bar.advance(2)
        assert bar.visible and bar.bar.tasks[0].completed == 2
    monkeypatch.setitem(sys.modules, 'rich.console', None)
    with ImageProgress(3) as bar:
        assert not bar.visible
