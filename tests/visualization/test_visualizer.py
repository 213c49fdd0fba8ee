"""Drawn detections: the right pixels in the right colours, whatever the masks' form; also without a display."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools import mask as mask_utils

from mmdet.config.errors import UserError
from mmdet.structures import DetDataSample
from mmdet.visualization.visualizer import (
    DetVisualizer,
    class_colour,
    draw_file,
    draw_instances,
    read_picture,
    write_picture,
)

GREY = np.full((600, 800, 3), 128, np.uint8)


def found(n: int = 2, masks: bool = True) -> InstanceData:
    boxes = torch.tensor([[100.0, 100.0, 300.0, 300.0], [400.0, 200.0, 700.0, 500.0]])[:n]
    instances = InstanceData(bboxes=boxes, labels=torch.arange(n), scores=torch.tensor([0.9, 0.5])[:n])
    if masks:
        bitmaps = np.zeros((n, 600, 800), np.uint8)
        for bitmap, box in zip(bitmaps, boxes.int().tolist()):
            bitmap[box[1] + 20 : box[3] - 20, box[0] + 20 : box[2] - 20] = 1
        instances.masks = [mask_utils.encode(np.asfortranarray(b)) for b in bitmaps]
    return instances


def test_masks_boxes_and_labels_are_drawn():
    drawn = draw_instances(GREY, found(), ('cat', 'dog'))
    for i, centre in enumerate([(200, 200), (350, 550)]):
        expected = 0.55 * 128 + 0.45 * np.array(class_colour(i))
        assert np.abs(drawn[centre] - expected).max() <= 1
    assert tuple(drawn[200, 100]) == class_colour(0)  # the box's left side
    assert (drawn[80:99, 105:140] == class_colour(0)).all(-1).mean() > 0.3  # its label above
    assert (drawn[550:] == 128).all() and (GREY == 128).all()


def test_low_scores_and_no_instances_leave_the_picture_alone():
    assert np.array_equal(draw_instances(GREY, found(), score_thr=0.95), GREY)
    empty = found()[torch.zeros(2, dtype=torch.bool)]
    assert np.array_equal(draw_instances(GREY, empty), GREY)


def test_boxes_at_the_border_keep_their_labels_inside():
    instances = InstanceData(bboxes=torch.tensor([[-5.0, -5.0, 40.0, 30.0], [780.0, 590.0, 805.0, 605.0]]),
                             labels=torch.tensor([0, 7]))  # fmt: skip
    drawn = draw_instances(GREY, instances, ('a long class name',))
    assert drawn.shape == GREY.shape and (drawn != GREY).any(-1).sum() > 500


def test_small_pictures_are_enlarged():
    small = np.full((100, 150, 3), 128, np.uint8)
    instances = InstanceData(bboxes=torch.tensor([[10.0, 10.0, 90.0, 60.0]]), labels=torch.tensor([0]))
    assert draw_instances(small, instances).shape == (400, 600, 3)
    assert draw_instances(np.zeros((30, 900, 3), np.uint8), instances).shape == (60, 1800, 3)  # a strip not without end
    assert draw_instances(small, instances, zoom=1).shape == (100, 150, 3)


def test_colours_of_neighbouring_classes_differ():
    colours = np.array([class_colour(i) for i in range(80)])
    assert len({tuple(c) for c in colours}) == 80
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 100


def test_files_and_side_by_side(tmp_path, monkeypatch):
    write_picture(tmp_path / 'in' / 'a.png', GREY)
    assert np.array_equal(read_picture(tmp_path / 'in' / 'a.png'), GREY)
    sample = DetDataSample(pred_instances=found(), gt_instances=found(1, masks=False))
    draw_file(tmp_path / 'in' / 'a.png', sample, tmp_path / 'out' / 'a.jpg', ('cat', 'dog'))
    assert read_picture(tmp_path / 'out' / 'a.jpg').shape == GREY.shape
    visualizer = DetVisualizer.get_instance('test_files')
    visualizer.dataset_meta = dict(classes=('cat', 'dog'))
    visualizer.add_datasample('a', GREY, sample, draw_gt=True, out_file=tmp_path / 'both.png')
    assert read_picture(tmp_path / 'both.png').shape == (600, 1600, 3)
    added = []
    monkeypatch.setattr(visualizer, 'add_image', lambda name, *_: added.append(name))
    visualizer.add_datasample('../../up', GREY, sample)  # backends write a file of this name
    assert added == ['.._.._up']
    for name, data in (('empty.jpg', b''), ('text.jpg', b'no picture')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f'image .*{name} is'):
            read_picture(tmp_path / name)


def test_without_a_display(monkeypatch):
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('sys.platform', 'linux')
    with pytest.raises(UserError, match='no display.*--show-dir'):
        DetVisualizer.get_instance('test_display').show(GREY, backend='cv2')
