"""Annotations as other tools write them: supervision, labelformat, hotcoco, and labelImg's own files."""

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import hotcoco
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from mmdet.config.errors import UserError
from mmdet.datasets.formats import FORMATS, AnnotatedImage, Notes, Object, split
from mmdet.structures.image_file import decode_image
from mmdet.structures.masks import rle_from_coco

sv = pytest.importorskip('supervision', reason='supervision writes the foreign data')


@pytest.fixture
def some(tmp_path, real_data):
    """``some('bccd', 6)``: a few images of a set with their annotations, (images folder, COCO file, its content)."""

    def take(name: str, number: int) -> tuple[Path, Path, dict]:
        source = real_data / name / 'train'
        content = json.loads((source / 'instances.json').read_text())
        content['images'] = content['images'][:number]
        ids = {image['id'] for image in content['images']}
        content['annotations'] = [x for x in content['annotations'] if x['image_id'] in ids]
        folder = tmp_path / 'source' / 'images'
        folder.mkdir(parents=True)
        for image in content['images']:
            shutil.copy(source / 'images' / image['file_name'], folder)
        file = tmp_path / 'source.json'
        file.write_text(json.dumps(content))
        return folder, file, content

    return take


def read(kind: str, folder: Path) -> tuple[list[AnnotatedImage], list[str]]:
    notes = Notes()
    assert FORMATS[kind].recognises(folder)
    assert [name for name, module in FORMATS.items() if module.recognises(folder)] == [kind]
    return FORMATS[kind].read(folder, notes), list(notes)


def assert_same_boxes(images: list[AnnotatedImage], content: dict, pixels: float) -> None:
    """Every object of the COCO file is there, with its class, to so many pixels."""
    assert len(images) == len(content['images'])
    names = {category['id']: category['name'] for category in content['categories']}
    by_name = {image.path.name: image for image in images}
    for entry in content['images']:
        image = by_name[entry['file_name']]
        assert (image.height, image.width) == (entry['height'], entry['width'])
        truth = [x for x in content['annotations'] if x['image_id'] == entry['id']]
        assert Counter(x.name for x in image.objects) == Counter(names[x['category_id']] for x in truth)
        for x in truth:
            left, top, width, height = x['bbox']
            box = np.array([left, top, left + width, top + height])
            same = [o.box for o in image.objects if o.name == names[x['category_id']]]
            assert np.abs(np.array(same) - box).max(axis=1).min() <= pixels


def masks_iou(images: list[AnnotatedImage], content: dict) -> list[float]:
    """Of each true mask, the best IoU with one that was read."""
    by_name, found = {image.path.name: image for image in images}, []
    for entry in content['images']:
        image = by_name[entry['file_name']]
        size = (entry['height'], entry['width'])
        mine = [rle_from_coco(x.mask, *size) for x in image.objects]
        truth = [x['segmentation'] for x in content['annotations'] if x['image_id'] == entry['id']]
        truth = [rle_from_coco(mask, *size) for mask in truth]
        found += mask_utils.iou(truth, mine, [0] * len(mine)).max(axis=1).tolist()
    return found


def dataset_of(folder: Path, file: Path):
    return sv.DetectionDataset.from_coco(str(folder), str(file), force_masks=False)


def test_voc_of_supervision(some, tmp_path):
    folder, file, content = some('bccd', 6)
    out = tmp_path / 'voc'
    dataset_of(folder, file).as_pascal_voc(str(out / 'JPEGImages'), str(out / 'Annotations'))
    images, notes = read('voc', out)
    assert_same_boxes(images, content, 1.01)  # whole pixels
    assert notes == []


def test_voc_of_labelimg(real_data):
    images, notes = read('voc', real_data / 'cards_voc')
    assert Counter(image.split for image in images) == dict(train=148, test=67) and notes == []
    assert sum(len(image.objects) for image in images) == 405
    reference = hotcoco.COCO.from_voc(str(real_data / 'cards_voc' / 'VOC2007')).dataset
    names = {category['id']: category['name'] for category in reference['categories']}
    files = {image['id']: Path(image['file_name']).stem for image in reference['images']}
    theirs = Counter((files[x['image_id']], names[x['category_id']]) for x in reference['annotations'])
    assert theirs == Counter((image.path.stem, x.name) for image in images for x in image.objects)


def test_what_is_odd_in_voc(tmp_path, some):
    folder, file, _ = some('bccd', 4)
    out = tmp_path / 'voc'
    dataset_of(folder, file).as_pascal_voc(str(out / 'JPEGImages'), str(out / 'Annotations'))
    xml = sorted((out / 'Annotations').glob('*.xml'))
    xml[0].write_text(xml[0].read_text()[:200])
    xml[1].unlink()
    (out / 'JPEGImages' / f'{xml[2].stem}.jpg').write_bytes(b'\xff\xd8\xff')
    text = xml[3].read_text()
    whole, _, rest = text.partition('<name>')
    xml[3].write_text(f'{whole}<difficult>1</difficult><name>{rest}'.replace('<bndbox>', '<polygon>', 2).replace(
        '</bndbox>', '</polygon>', 2))
    images, notes = read('voc', out)
    assert [image.path.stem for image in images] == [xml[3].stem]
    kinds = ['XML that cannot be read', 'image that cannot be read', 'object without a bndbox', 'without an XML']
    assert all(any(kind in note for note in notes) for kind in kinds), notes


def turned_photo(path: Path, orientation: int) -> tuple[np.ndarray, list[float]]:
    """A dark photo with a bright object, stored so that a viewer turns it; its pixels and the object's stored box."""
    pixels = np.full((80, 120, 3), 20, np.uint8)
    pixels[10:30, 15:75] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    return pixels, [15, 10, 75, 30]


@pytest.mark.parametrize('orientation', [1, 3, 5, 6, 7, 8])
def test_boxes_drawn_on_the_stored_pixels_are_turned_with_a_photo(tmp_path, orientation):
    """labelImg ignores EXIF; training does not. labelformat writes the XML here, of the stored size."""
    pytest.importorskip('labelformat', reason='labelformat writes the foreign data')
    from labelformat.formats import COCOObjectDetectionInput, PascalVOCObjectDetectionOutput

    turned_photo(tmp_path / 'a.jpg', orientation)
    content = dict(images=[dict(id=1, file_name='a.jpg', width=120, height=80)], categories=[dict(id=1, name='x')],
                   annotations=[dict(id=1, image_id=1, category_id=1, bbox=[15, 10, 60, 20], area=1200, iscrowd=0)])
    (tmp_path / 'stored.json').write_text(json.dumps(content))
    PascalVOCObjectDetectionOutput(tmp_path).save(COCOObjectDetectionInput(tmp_path / 'stored.json'))
    (tmp_path / 'stored.json').unlink()
    images, notes = read('voc', tmp_path)
    seen = decode_image((tmp_path / 'a.jpg').read_bytes(), 'a.jpg')
    assert (images[0].height, images[0].width) == seen.shape[:2]
    if orientation == 3:  # upside down it has the stored size: nothing says which pixels were meant
        assert 'without a change of size' in notes[0] and images[0].objects[0].box == [15, 10, 75, 30]
        return
    x1, y1, x2, y2 = np.round(images[0].objects[0].box).astype(int)
    inside = seen[y1:y2, x1:x2]
    assert inside.size == 3600 and inside.mean() > 240  # and all that is bright is inside
    assert seen.astype(float).sum() - inside.astype(float).sum() < 40 * (seen.size - 3600)
    assert any('EXIF' in note for note in notes) == (orientation > 4)


def test_yolo_boxes_of_supervision(some, tmp_path):
    folder, file, content = some('bccd', 6)
    out = tmp_path / 'yolo'
    dataset_of(folder, file).as_yolo(str(out / 'images'), str(out / 'labels'), str(out / 'data.yaml'))
    images, notes = read('yolo', out)
    assert_same_boxes(images, content, 0.02)  # five decimals of 640
    assert notes == [] and all(x.mask is None for image in images for x in image.objects)


def test_yolo_polygons_of_labelformat(some, tmp_path):
    pytest.importorskip('labelformat', reason='labelformat writes the foreign data')
    from labelformat.formats import COCOInstanceSegmentationInput, YOLOv8InstanceSegmentationOutput

    folder, file, content = some('fruits_nuts', 3)
    out = tmp_path / 'yolo'
    shutil.copytree(folder, out / 'images')
    YOLOv8InstanceSegmentationOutput(out / 'data.yaml', 'train').save(COCOInstanceSegmentationInput(file))
    images, notes = read('yolo', out)
    assert {image.split for image in images} == {'train'} and notes == []
    assert min(masks_iou(images, content)) > 0.99


@pytest.mark.parametrize(
    'train, val', [('train/images', 'valid/images'), ('../train/images', '../valid/images'),
                   (['train/images'], ['valid/images'])]
)  # fmt: skip
def test_a_data_yaml_of_another_machine(some, tmp_path, train, val):
    folder, file, content = some('bccd', 6)
    out = tmp_path / 'yolo'
    dataset = dataset_of(folder, file)
    for part, name in zip(dataset.split(0.5, shuffle=False), ('train', 'valid')):
        part.as_yolo(str(out / name / 'images'), str(out / name / 'labels'), str(out / 'data.yaml'))
    import yaml

    described = yaml.safe_load((out / 'data.yaml').read_text())
    (out / 'data.yaml').write_text(yaml.dump(dict(described, path='/content/yolo', train=train, val=val)))
    images, notes = read('yolo', out)
    assert Counter(image.split for image in images) == dict(train=3, val=3) and notes == []
    assert_same_boxes(images, content, 0.02)
    (out / 'data.yaml').write_text(yaml.dump(dict(described, train='elsewhere', val='nowhere')))
    images, notes = read('yolo', out)
    assert Counter(image.split for image in images) == dict(train=3, val=3) and 'not there' in notes[0]


def test_what_is_odd_in_yolo(some, tmp_path):
    folder, file, _ = some('bccd', 3)
    out = tmp_path / 'yolo'
    dataset_of(folder, file).as_yolo(str(out / 'images'), str(out / 'labels'), str(out / 'data.yaml'))
    first, second, third = sorted((out / 'labels').glob('*.txt'))
    first.unlink()
    second.write_text('')
    third.write_text('9 .5 .5 .1 .1\n0 .5 .5 .1\n0 .5 x .1 .1\n1 .9 .5 .4 .1\n1 300 200 50 40\n1 .5 .5 0 .1\n'
                     '2 .5 .5 .2 .2 .87\n2 .1 .1 .2 .1 .2 .2 .1 .2\n')  # fmt: skip
    images, notes = read('yolo', out)
    assert [len(image.objects) for image in images] == [0, 0, 3]
    clipped, scored, polygon = images[2].objects
    width, height = images[2].width, images[2].height
    assert clipped.box == pytest.approx([0.7 * width, 0.45 * height, width, 0.55 * height])
    assert scored.mask is None and scored.box == pytest.approx([0.4 * width, 0.4 * height, 0.6 * width, 0.6 * height])
    assert polygon.mask == [pytest.approx([.1 * width, .1 * height, .2 * width, .1 * height,
                                           .2 * width, .2 * height, .1 * width, .2 * height])]  # fmt: skip
    text = ' '.join(notes)
    for kind in ('without labels', 'class number out of range', 'neither a box nor', 'not numbers', 'outside 0..1: cut',
                 'pixels perhaps', 'without extent'):  # fmt: skip
        assert kind in text


def test_classes_without_names(some, tmp_path):
    folder, file, _ = some('bccd', 2)
    out = tmp_path / 'yolo'
    dataset_of(folder, file).as_yolo(str(out / 'images'), str(out / 'labels'))
    with pytest.raises(UserError, match='classes.txt'):
        read('yolo', out)
    (out / 'classes.txt').write_text('Platelets\nRBC\nWBC\n')
    assert {x.name for image in read('yolo', out)[0] for x in image.objects} <= {'Platelets', 'RBC', 'WBC'}


def test_labelme_of_supervision(some, tmp_path):
    folder, file, content = some('fruits_nuts', 3)
    out = tmp_path / 'labelme'
    sv.DetectionDataset.from_coco(str(folder), str(file), force_masks=True).as_labelme(str(out), str(out))
    images, notes = read('labelme', out)
    assert_same_boxes(images, content, 3)  # by way of bitmaps
    assert min(masks_iou(images, content)) > 0.9 and notes == []


def test_shapes_of_labelme(some, tmp_path):
    """A circle, a bitmap, a line, two parts of one object, a reserved label, and an image in the JSON alone."""
    import base64

    folder, file, _ = some('fruits_nuts', 1)
    out = tmp_path / 'labelme'
    sv.DetectionDataset.from_coco(str(folder), str(file), force_masks=True).as_labelme(str(out), str(out))
    (path,) = out.glob('*.json')
    content = json.loads(path.read_text())
    bitmap = cv2.imencode('.png', np.full((20, 30), 255, np.uint8))[1].tobytes()
    (image,) = [p for p in out.iterdir() if p.suffix != '.json']
    content['shapes'] = [
        dict(label='disc', shape_type='circle', points=[[100, 100], [100, 120]]),
        dict(label='blob', shape_type='mask', points=[[50, 60], [79, 79]], mask=base64.b64encode(bitmap).decode()),
        dict(label='line', shape_type='linestrip', points=[[0, 0], [9, 9]]),
        dict(label='two', shape_type='polygon', points=[[10, 10], [20, 10], [20, 20]], group_id=1),
        dict(label='two', shape_type='polygon', points=[[30, 10], [40, 10], [40, 20]], group_id=1),
        dict(label='none', shape_type='polygon', points=[[1, 1]]),
        dict(label='__ignore__', shape_type='polygon', points=[[5, 5], [9, 5], [9, 9]]),
    ]
    content['imageData'] = base64.b64encode(image.read_bytes()).decode()
    path.write_text(json.dumps(content))
    image.unlink()
    (found,), notes = read('labelme', out)
    disc, blob, two = found.objects
    assert disc.box == pytest.approx([80, 80, 120, 120], abs=0.2) and blob.box == [50, 60, 80, 80]
    assert two.box == [10, 10, 40, 20] and len(two.mask) == 2
    assert mask_utils.area(rle_from_coco(disc.mask, 600, 800)) == pytest.approx(np.pi * 400, rel=0.02)
    assert found.content is not None and len(notes) == 4


def test_cvat_of_hotcoco(some, tmp_path):
    folder, file, content = some('fruits_nuts', 3)
    hotcoco.COCO(str(file)).to_cvat(str(folder.parent / 'annotations.xml'))
    images, notes = read('cvat', folder.parent)
    assert_same_boxes(images, content, 1.01)
    assert min(masks_iou(images, content)) > 0.99 and notes == []


def test_masks_of_cvat(some):
    """As CVAT writes a brush: run lengths by rows inside a box, zeros first."""
    folder, file, _ = some('fruits_nuts', 1)
    path = folder.parent / 'annotations.xml'
    hotcoco.COCO(str(file)).to_cvat(str(path))
    text = path.read_text()
    mask = ('<mask label="{}" rle="1, 3, 2, 2" left="10" top="20" width="4" height="2"/>'
            '<box label="{}" xtl="100" ytl="100" xbr="140" ybr="110" rotation="90"/>')  # fmt: skip
    label = text.split('label="')[1].split('"')[0]
    path.write_text(text.replace('</image>', mask.format(label, label) + '<points label="p" points="1,2"/></image>'))
    (image,), notes = read('cvat', folder.parent)
    brush, turned = image.objects[-2:]
    expected = np.zeros((600, 800), np.uint8)
    expected[20, 11:14] = expected[21, 12:14] = 1
    assert (mask_utils.decode(rle_from_coco(brush.mask, 600, 800)) == expected).all()
    assert turned.box == pytest.approx([115, 85, 125, 125]) and 'kind points' in notes[0]


def test_coco_of_several_tools(some, tmp_path):
    folder, file, content = some('bccd', 4)
    shutil.copy(file, folder.parent / '_annotations.coco.json')
    images, _ = read('coco', folder.parent)
    assert_same_boxes(images, content, 1e-9)
    content['annotations'] = [dict(x, iscrowd=1) for x in content['annotations']]  # CVAT
    (folder.parent / '_annotations.coco.json').write_text(json.dumps(content))
    images, notes = read('coco', folder.parent)
    assert not any(x.crowd for image in images for x in image.objects) and 'iscrowd' in notes[0]


def test_each_class_is_split_in_the_same_proportion(real_data):
    content = json.loads((real_data / 'facade' / 'train' / 'instances.json').read_text())
    objects: dict[int, list] = {}
    for x in content['annotations']:
        objects.setdefault(x['image_id'], []).append(Object(str(x['category_id']), x['bbox']))

    def fresh() -> list[AnnotatedImage]:
        return [AnnotatedImage(Path(x['file_name']), 9, 9, objects[x['id']]) for x in content['images']]

    images, again = fresh(), fresh()
    split(images, 0.2, seed=1)
    split(again, 0.2, seed=1)
    assert [x.split for x in images] == [x.split for x in again]
    split(again, 0.2, seed=2)
    assert [x.split for x in images] != [x.split for x in again]
    total = Counter(name for image in images for name in {x.name for x in image.objects})
    val = Counter(name for image in images if image.split == 'val' for name in {x.name for x in image.objects})
    assert all(abs(val[name] / count - 0.2) < 0.05 for name, count in total.items()), (val, total)
    share = np.mean([image.split == 'val' for image in images])
    assert abs(share - 0.2) < 0.02


def test_a_class_of_two_images_is_in_both_parts():
    def image(*names: str) -> AnnotatedImage:
        return AnnotatedImage(Path('x.jpg'), 9, 9, [Object(name, [0, 0, 5, 5]) for name in names])

    images = [image('common') for _ in range(8)] + [image('common', 'rare') for _ in range(2)] + [image()]
    split(images, 0.5)
    assert {x.split for x in images if any(o.name == 'rare' for o in x.objects)} == {'train', 'val'}
    assert all(x.split for x in images)
