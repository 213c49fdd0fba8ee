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
from mmdet.config.load import load_config
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer, labels
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
    labels._installed_font.cache_clear()
    yield installed
    labels._installed_font.cache_clear()


def test_letters_that_our_font_lacks(fonts, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(labels, 'say', said.append)
    broken = tmp_path / 'broken-bold.ttf'
    broken.write_bytes(b'no font')
    for classes in (('Straße', 'кот'), ('γάτα', 'قط')):  # these it has
        draw_instances(GREY, found(masks=False), classes)
    assert not said
    boxes = draw_instances(GREY, found(masks=False), ('猫', '犬'))
    assert len(said) == 2 and said[0].startswith("no installed font has '猫' of the class names")
    draw_instances(GREY, found(masks=False), ('猫', '犬'))
    assert len(said) == 2  # once each

    labels._installed_font.cache_clear()
    letters = string.printable[:95] + '猫'
    fonts += [str(broken), font_of('猫犬', tmp_path / 'bold.ttf'), font_of(letters, tmp_path / 'plain.ttf')]
    drawn = draw_instances(GREY, found(masks=False), ('猫', '犬'))
    assert len(said) == 3 and not np.array_equal(drawn, boxes)  # no font with letters for the scores has the other
    assert labels._font_file('猫 0.90') == fonts[2] and labels._font_file('кот') == labels._FONT


def test_an_installed_font_is_found(fonts):
    """Letters of another font that matplotlib brings along."""
    fonts += [str(path) for path in Path(labels._FONT).parent.glob('*.ttf')]
    assert Path(labels._font_file('⌒⌓')).name == 'DejaVuSansMono-Bold.ttf'


# ---------------------------------------------------------------------- many objects, large images


def crowd(n: int, height: int, width: int, classes: int, seed: int = 0) -> InstanceData:
    rng = np.random.default_rng(seed)
    corners = rng.random((n, 2)) * (0.9 * width, 0.9 * height)
    sizes = (0.02 + 0.08 * rng.random((n, 2))) * width
    boxes = torch.tensor(np.concatenate([corners, corners + sizes], axis=1), dtype=torch.float32)
    scores, named = torch.tensor(rng.random(n) * 0.7 + 0.3), torch.tensor(rng.integers(0, classes, n))
    return InstanceData(bboxes=boxes, labels=named, scores=scores)


@pytest.fixture
def written(monkeypatch) -> list[tuple[str, int, tuple]]:
    """The labels that are drawn: text, size of the letters, and the tag's x1, y1, x2, y2."""
    tags = []
    write = labels._Tag.write

    def recorded(tag, pen, x, y, colour, *letters):
        tags.append((tag.text, tag.font.size, (x, y, x + tag.width, y + tag.height)))
        write(tag, pen, x, y, colour, *letters)

    monkeypatch.setattr(labels._Tag, 'write', recorded)
    return tags


@pytest.mark.parametrize('height, width, n', [(520, 700, 200), (3000, 4000, 200), (300, 300, 31)])
def test_labels_of_a_crowd_do_not_hide_it(written, height, width, n):
    classes = ('cat', 'a class of a long name', 'dog')
    instances = crowd(n, height, width, len(classes))
    drawn = draw_instances(np.full((height, width, 3), 128, np.uint8), instances, classes, zoom=1)
    assert drawn.shape == (height, width, 3) and len({size for _, size, _ in written}) == 1
    assert 3 <= len(written) < n and {text.rsplit(' ', 1)[0] for text, *_ in written} >= {'cat', 'dog'}
    areas = 0
    for i, (_, _, (x1, y1, x2, y2)) in enumerate(written):
        assert 0 <= x1 and 0 <= y1 and x2 <= width and y2 <= height
        areas += (x2 - x1) * (y2 - y1)
        for _, _, (a1, b1, a2, b2) in written[:i]:
            assert min(x2, a2) <= max(x1, a1) or min(y2, b2) <= max(y1, b1)
    assert areas <= 0.08 * height * width


def test_letters_grow_with_the_image_alone(written):
    for scale in (1, 2, 5):
        instances = found(masks=False)
        instances.bboxes *= scale
        instances.bboxes[1, 2:] = instances.bboxes[1, :2] + 12  # a small object
        draw_instances(np.full((600 * scale, 800 * scale, 3), 128, np.uint8), instances, zoom=1)
    sizes = [size for _, size, _ in written]
    assert sizes[::2] == sizes[1::2] == sorted(set(sizes)) and len(set(sizes)) == 3


def test_few_objects_are_all_labelled(written):
    draw_instances(GREY, crowd(30, 600, 800, 2), ('cat', 'dog'))
    assert len(written) == 30 and all(text.startswith(('cat', 'dog')) for text, *_ in written)


def test_ground_truth_has_no_scores(written):
    draw_instances(GREY, InstanceData(bboxes=torch.tensor([[10.0, 10, 90, 60]]), labels=torch.tensor([1])), ('a', 'b'))
    assert [text for text, *_ in written] == ['b']


def test_colours_by_instance_and_by_palette():
    same = found(masks=False)
    same.labels = torch.tensor([4, 4])

    def left_sides(**options) -> list[tuple]:
        drawn = draw_instances(GREY, same, **options)
        return [tuple(drawn[250, 100].tolist()), tuple(drawn[350, 400].tolist())]

    assert left_sides() == [class_colour(4)] * 2
    assert left_sides(colour_by='instance') == [class_colour(0), class_colour(1)]
    assert left_sides(palette=[(1, 2, 3)] * 4 + [(250, 0, 9)]) == [(250, 0, 9)] * 2
    assert left_sides(palette='blue') == left_sides(palette=(0, 0, 255)) == [(0, 0, 255)] * 2
    assert left_sides(palette='coco') == left_sides(palette='none') == left_sides()
    assert left_sides(palette='random') == left_sides(palette='random') != left_sides()
    with pytest.raises(UserError, match="palette 'cuda:0' is not a colour"):
        draw_instances(GREY, same, palette='cuda:0')


def test_masks_and_letters_have_colours_of_their_own():
    """mmdetection's options; a mask's pixel away from box and label."""
    image, mask = np.zeros((400, 400, 3), np.uint8), np.zeros((400, 400), bool)
    mask[100:300, 100:300] = True
    sample = DetDataSample(pred_instances=InstanceData(
        bboxes=np.array([[50.0, 50, 350, 350]]), labels=np.array([0]), scores=np.array([0.9]), masks=mask[None]))

    def drawn(**options):
        visualizer = DetVisualizer(bbox_color=(9, 200, 9), alpha=1.0, **options)
        visualizer.dataset_meta = dict(classes=('cat',))
        return visualizer.draw(image, sample)

    plain, other = drawn(), drawn(mask_color=(1, 2, 3), text_color=(250, 0, 250))
    assert tuple(plain[200, 200]) == (9, 200, 9) == tuple(other[200, 50]) and tuple(other[200, 200]) == (1, 2, 3)
    letters = (other == (250, 0, 250)).all(-1)
    assert letters.any() and not (plain == (250, 0, 250)).all(-1).any()


def test_lines_of_small_objects_are_thin():
    drawn = draw_instances(np.full((3000, 4000, 3), 128, np.uint8), InstanceData(
        bboxes=torch.tensor([[1000.0, 1000, 1020, 1020]]), labels=torch.tensor([0])), zoom=1)  # fmt: skip
    assert (drawn[1004:1016, 1004:1016] == 128).all()  # nothing of the object is hidden


# ---------------------------------------------------------------------- mmdetection's visualizer


def test_a_config_builds_its_visualizer(tmp_path):
    for cfg in (dict(type='DetVisualizer'), dict(type='DetLocalVisualizer', name='x', bbox_color='red', line_width=5)):
        built = VISUALIZERS.build(cfg)
        assert type(built) is DetVisualizer is DetLocalVisualizer
    cfg = load_config(Path(__file__).resolve().parents[2] / 'configs' / 'mask_rcnn' / 'mask_rcnn_r50_fpn_1x.py')
    cfg.visualizer.save_dir = str(tmp_path)
    assert VISUALIZERS.build(cfg.visualizer).get_backend('LocalVisBackend') is not None


def test_the_drawn_image_comes_back_in_the_inputs_size():
    small, other = np.full((240, 320, 3), 128, np.uint8), np.zeros((10, 10, 3), np.uint8)
    drawing = DetVisualizer.get_instance('test_image')
    drawing.dataset_meta = dict(classes=('cat', 'dog'), palette=[(9, 200, 9)])
    drawing.set_image(other)
    found_ = InstanceData(bboxes=torch.tensor([[50.0, 50, 150, 150]]), labels=torch.tensor([0]), scores=torch.ones(1))
    drawing.add_datasample('a', small, DetDataSample(pred_instances=found_), draw_gt=False)
    drawn = drawing.get_image()
    assert drawn.shape == small.shape and tuple(drawn[100, 50]) == (9, 200, 9)
    drawing.set_image(other)
    assert drawing.get_image().shape[:2] == (10, 10)
    drawing.add_datasample('b', small)
    assert np.array_equal(drawing.get_image(), small)  # nothing to draw


def test_ground_truth_and_predictions_are_told_apart(written):
    sample = DetDataSample(pred_instances=found(masks=False), gt_instances=found(1, masks=False))
    drawing = DetVisualizer.get_instance('test_captions')
    drawing.add_datasample('a', GREY, sample, draw_gt=True)
    assert [text for text, *_ in written if text in ('ground truth', 'predictions')] == ['ground truth', 'predictions']
    assert drawing.get_image().shape == (600, 1600, 3)


def test_ground_truth_is_drawn_without_being_asked_for():
    """As in mmdetection, and beside predictions."""
    boxes, drawing = torch.tensor([[8.0, 8, 40, 30]]), DetVisualizer('ground_truth')
    truth = InstanceData(bboxes=boxes, labels=torch.zeros(1, dtype=torch.long))
    found = InstanceData(**dict(truth.items()), scores=torch.ones(1))
    black = np.zeros((48, 64, 3), np.uint8)
    drawing.add_datasample('a', black, DetDataSample(gt_instances=truth))
    assert drawing.get_image().shape == black.shape and drawing.get_image().any()
    drawing.add_datasample('a', black, DetDataSample(gt_instances=truth, pred_instances=found))
    assert drawing.get_image().shape[1] == 2 * black.shape[1]
    drawing.add_datasample('a', black, DetDataSample(gt_instances=InstanceData(), pred_instances=found))
    assert drawing.get_image().shape == black.shape
