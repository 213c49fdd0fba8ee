"""Drawn detections: the right pixels in the right colours, whatever the masks' form; also without a display."""

import string
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from mmengine.structures import InstanceData
from pycocotools import mask as mask_utils

from mmdet.config.errors import UserError
from mmdet.structures import DetDataSample
from mmdet.visualization import visualizer
from mmdet.visualization.visualizer import (
    DetVisualizer,
    class_colour,
    draw_file,
    draw_instances,
    read_image,
    write_image,
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


def test_low_scores_and_no_instances_leave_the_image_alone():
    assert np.array_equal(draw_instances(GREY, found(), score_thr=0.95), GREY)
    empty = found()[torch.zeros(2, dtype=torch.bool)]
    assert np.array_equal(draw_instances(GREY, empty), GREY)


def test_boxes_at_the_border_keep_their_labels_inside():
    instances = InstanceData(bboxes=torch.tensor([[-5.0, -5.0, 40.0, 30.0], [780.0, 590.0, 805.0, 605.0]]),
                             labels=torch.tensor([0, 7]))  # fmt: skip
    drawn = draw_instances(GREY, instances, ('a long class name',))
    assert drawn.shape == GREY.shape and (drawn != GREY).any(-1).sum() > 500


def test_small_images_are_enlarged():
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
    write_image(tmp_path / 'in' / 'a.png', GREY)
    assert np.array_equal(read_image(tmp_path / 'in' / 'a.png'), GREY)
    sample = DetDataSample(pred_instances=found(), gt_instances=found(1, masks=False))
    draw_file(tmp_path / 'in' / 'a.png', sample, tmp_path / 'out' / 'a.jpg', ('cat', 'dog'))
    assert read_image(tmp_path / 'out' / 'a.jpg').shape == GREY.shape
    drawing = DetVisualizer.get_instance('test_files')
    drawing.dataset_meta = dict(classes=('cat', 'dog'))
    drawing.add_datasample('a', GREY, sample, draw_gt=True, out_file=tmp_path / 'both.png')
    assert read_image(tmp_path / 'both.png').shape == (600, 1600, 3)
    added = []
    monkeypatch.setattr(drawing, 'add_image', lambda name, *_: added.append(name))
    drawing.add_datasample('../../up', GREY, sample)  # backends write a file of this name
    assert added == ['.._.._up']
    for name, data in (('empty.jpg', b''), ('text.jpg', b'no image')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f'image .*{name} is'):
            read_image(tmp_path / name)


def test_without_a_display(monkeypatch):
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('sys.platform', 'linux')
    with pytest.raises(UserError, match='no display.*--show-dir'):
        DetVisualizer.get_instance('test_display').show(GREY, backend='cv2')


def font_of(letters: str, path: Path) -> str:
    """A font that has a full square for each of these letters."""
    pen = TTGlyphPen(None)
    for i, corner in enumerate([(0, 0), (0, 1000), (1000, 1000), (1000, 0)]):
        (pen.lineTo if i else pen.moveTo)(corner)
    pen.closePath()
    builder, square = FontBuilder(1000), pen.glyph()
    names = ['.notdef', *(f'u{ord(letter):x}' for letter in letters)]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f'u{ord(letter):x}' for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, square) | {'.notdef': TTGlyphPen(None).glyph()})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupOS2()
    builder.setupPost()
    builder.setupNameTable(dict(familyName='Test', styleName='Bold'))
    builder.save(path)
    return str(path)


@pytest.fixture
def fonts(monkeypatch):
    """The list of installed fonts."""
    installed = []
    monkeypatch.setattr('matplotlib.font_manager.findSystemFonts', lambda: installed)
    visualizer._installed_font.cache_clear()
    yield installed
    visualizer._installed_font.cache_clear()


def test_letters_that_our_font_lacks(fonts, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(visualizer, 'say', said.append)
    broken = tmp_path / 'broken-bold.ttf'
    broken.write_bytes(b'no font')
    for classes in (('Straße', 'кот'), ('γάτα', 'قط')):  # these it has
        draw_instances(GREY, found(masks=False), classes)
    assert not said
    boxes = draw_instances(GREY, found(masks=False), ('猫', '犬'))
    assert len(said) == 2 and said[0].startswith("no installed font has '猫' of the class names")
    draw_instances(GREY, found(masks=False), ('猫', '犬'))
    assert len(said) == 2  # once each

    visualizer._installed_font.cache_clear()
    letters = string.printable[:95] + '猫'
    fonts += [str(broken), font_of('猫犬', tmp_path / 'bold.ttf'), font_of(letters, tmp_path / 'plain.ttf')]
    drawn = draw_instances(GREY, found(masks=False), ('猫', '犬'))
    assert len(said) == 3 and not np.array_equal(drawn, boxes)  # no font with letters for the scores has the other
    assert visualizer._font_file('猫 0.90') == fonts[2] and visualizer._font_file('кот') == visualizer._FONT


def test_an_installed_font_is_found(fonts):
    """Letters of another font that matplotlib brings along."""
    fonts += [str(path) for path in Path(visualizer._FONT).parent.glob('*.ttf')]
    assert Path(visualizer._font_file('⌒⌓')).name == 'DejaVuSansMono-Bold.ttf'
