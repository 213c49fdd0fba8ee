import copy
import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from mmdet.config.errors import UserError, one_line
from mmdet.datasets import CocoDataset, LoadAnnotations
from mmdet.datasets.coco import COCO_CLASSES
from mmdet.registry import DATASETS
from mmdet.structures import BitmapMasks, PolygonMasks

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
CONTENT = dict(
    images=[
        dict(id=7, file_name='a.png', width=60, height=40),
        dict(id=3, file_name='b.png', width=40, height=60),
        dict(id=9, file_name='c.png', width=60, height=40),
        dict(id=4, file_name='d.png', width=20, height=20),
    ],
    categories=[dict(id=90, name='cat'), dict(id=2, name='dog'), dict(id=40, name='cow')],
    annotations=[
        dict(id=0, image_id=7, category_id=2, bbox=[10, 10, 20, 20], segmentation=SQUARE, iscrowd=0),
        dict(id=1, image_id=7, category_id=90, bbox=[0, 0, 5.5, 6], segmentation=SQUARE, iscrowd=0),
        dict(
            id=2,
            image_id=7,
            category_id=90,
            bbox=[0, 0, 9, 9],
            area=80,
            segmentation=dict(size=[40, 60], counts=[0, 9, 2391]),
            iscrowd=1,
        ),
        dict(id=3, image_id=7, category_id=40, bbox=[0, 0, 9, 9], area=81, segmentation=SQUARE, iscrowd=0),
        dict(id=4, image_id=7, category_id=2, bbox=[5, 5, 0.5, 9], area=4, segmentation=SQUARE, iscrowd=0),
        dict(id=5, image_id=7, category_id=2, bbox=[70, 5, 9, 9], area=81, segmentation=SQUARE, iscrowd=0),
        dict(id=6, image_id=3, category_id=2, bbox=[1, 1, 9, 9], ignore=1, iscrowd=0),
        dict(id=7, image_id=4, category_id=2, bbox=[1, 1, 9, 9], iscrowd=0),
    ],
)

BOXES = dict(CONTENT, annotations=[{k: v for k, v in a.items() if k != 'segmentation'} for a in CONTENT['annotations']])


@pytest.fixture
def root(tmp_path):
    write(tmp_path, CONTENT)
    (tmp_path / 'images').mkdir()
    for image in CONTENT['images']:
        pixels = np.full((image['height'], image['width'], 3), 99, np.uint8)
        cv2.imwrite(str(tmp_path / 'images' / image['file_name']), pixels)
    return tmp_path


def write(root, content):
    (root / 'ann.json').write_text(content if isinstance(content, str) else json.dumps(content))


def build(root, **kwargs):
    defaults = dict(
        metainfo=dict(classes=('cat', 'dog')), ann_file='ann.json', data_prefix=dict(img='images/')
    )
    return CocoDataset(data_root=str(root), **(defaults | kwargs))


def test_objects(root):
    dataset = build(root)
    assert len(dataset) == 4
    info = dataset.get_data_info(0)
    assert (info['img_id'], info['height'], info['width']) == (7, 40, 60)
    assert info['img_path'] == str(root / 'images' / 'a.png')
    # ids with gaps, in the order of the classes; other classes, thin and outlying boxes are left out
    assert dataset.cat_ids == [90, 2]
    found = [(x['bbox_label'], x['bbox'], x['ignore_flag']) for x in info['instances']]
    assert found == [(1, [10, 10, 30, 30], 0), (0, [0, 0, 5.5, 6], 0), (0, [0, 0, 9, 9], 1)]
    assert info['instances'][0]['mask'] == SQUARE and isinstance(info['instances'][2]['mask'], dict)
    assert dataset.get_data_info(1)['instances'][0]['ignore_flag'] == 1
    assert dataset.get_data_info(2)['instances'] == []
    assert dataset.get_cat_ids(0) == [1, 0, 0]


def test_labels_follow_the_order_of_the_classes(root):
    first = build(root, metainfo=dict(classes=('dog', 'cat'))).get_data_info(0)['instances']
    assert [x['bbox_label'] for x in first] == [0, 1, 1]
    only = build(root, metainfo=dict(classes='cow'))
    assert only.metainfo['classes'] == ('cow',)
    assert [x['bbox_label'] for x in only.get_data_info(0)['instances']] == [0]


@pytest.mark.parametrize(
    'filter_cfg, ids',
    [
        (None, [7, 3, 9, 4]),
        (dict(filter_empty_gt=True), [7, 4]),  # 3 has only an ignored box, 9 nothing
        (dict(min_size=32), [7, 3, 9]),
        (dict(filter_empty_gt=True, min_size=32), [7]),
    ],
)
def test_filter(root, filter_cfg, ids):
    dataset = build(root, filter_cfg=filter_cfg)
    assert [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))] == ids
    assert len(build(root, filter_cfg=filter_cfg, test_mode=True)) == 4


def test_pipeline_without_a_default_scope(root):
    """Names are ours even if nothing set the scope: mmcv has transforms of the same names."""
    dataset = build(
        root,
        pipeline=[
            dict(type='LoadImageFromFile', backend_args=None),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='Resize', scale=(120, 80), keep_ratio=True),
            dict(type='PackDetInputs'),
        ],
    )
    assert type(dataset.pipeline.transforms[1]) is LoadAnnotations
    sample = dataset[0]['data_samples']
    assert sample.gt_instances.bboxes.tolist() == [[20, 20, 60, 60], [0, 0, 11, 12]]
    assert sample.gt_instances.labels.tolist() == [1, 0]
    assert sample.ignored_instances.bboxes.tolist() == [[0, 0, 18, 18]]
    assert isinstance(sample.gt_instances.masks, PolygonMasks)  # the RLE is a crowd's
    assert sample.scale_factor == (2.0, 2.0) and sample.ori_shape == (40, 60)
    assert len(dataset[2]['data_samples'].gt_instances) == 0


def test_a_pipeline_without_resize_has_scale_factor_1(root):
    sample = build(root, pipeline=[dict(type='LoadImageFromFile'), dict(type='PackDetInputs')])[0]['data_samples']
    assert sample.scale_factor == (1.0, 1.0)


def test_nested_steps_without_a_default_scope_move_masks_too(root):
    choice = dict(type='RandomChoice', transforms=[[dict(type='Resize', scale=(30, 20))]])
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True), choice]
    masks = build(root, pipeline=steps)[0]['gt_masks']
    assert (masks.height, masks.width) == (20, 30)


def test_wrappers(root):
    dataset = build(root)
    assert len(ConcatDataset([dataset, build(root)])) == 8
    assert len(RepeatDataset(dataset, 3)) == 12
    # 'cat' is on one image of four: repeated
    balanced = ClassBalancedDataset(build(root), oversample_thr=0.9)
    assert len(balanced) > 4
    assert balanced.get_data_info(0)['img_id'] == 7


class WholeEntries(CocoDataset):
    """As for mmdetection: own fields of the file's entries are at hand."""

    def parse_data_info(self, raw_data_info):
        info = super().parse_data_info(raw_data_info)
        info['camera'] = raw_data_info['raw_img_info'].get('camera')
        info['scores'] = [annotation['score'] for annotation in raw_data_info['raw_ann_info']]
        return info


class WithoutTheFirst(CocoDataset):
    def load_data_list(self):
        infos = super().load_data_list()
        infos[1]['seen'] = True
        return infos[1:]

    def filter_data(self):
        return [info for info in super().filter_data() if info['width'] > 20]


def test_overrides_of_a_subclass_get_whole_entries(root):
    content = copy.deepcopy(CONTENT)
    content['images'][0]['camera'] = 'left'
    for k, annotation in enumerate(content['annotations']):
        annotation['score'] = k / 10
    write(root, content)
    settings = dict(data_root=str(root), ann_file='ann.json', data_prefix=dict(img='images/'),
                    metainfo=dict(classes=('cat', 'dog')))  # fmt: skip
    info = WholeEntries(**settings).get_data_info(0)
    assert info['camera'] == 'left' and info['scores'] == [0, 0.1, 0.2, 0.3, 0.4, 0.5] and len(info['instances']) == 3
    kept = WithoutTheFirst(**settings, filter_cfg=dict(filter_empty_gt=False))
    assert [kept.get_data_info(i)['img_id'] for i in range(len(kept))] == [3, 9] and kept.get_data_info(0)['seen']


def test_subsets_and_copies(root):
    dataset = build(root)
    everything = [dataset.get_data_info(i) for i in range(4)]
    assert [dataset.get_data_info(i - 4)['sample_idx'] for i in range(4)] == [0, 1, 2, 3]
    parts = [(dataset.get_subset([2, 0]), [9, 7]), (dataset.get_subset(2), [7, 3]), (dataset.get_subset(-1), [4])]
    for few, ids in [*parts, (build(root, indices=3), [7, 3, 9]), (build(root, indices=[3, 1]), [4, 3])]:
        assert [few.get_data_info(i)['img_id'] for i in range(len(few))] == ids
    info = dataset.get_data_info(0)
    info['instances'].clear()
    for copied in (dataset, pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        assert [copied.get_data_info(i) for i in range(4)] == everything


def test_missing_annotations_are_fine_for_testing(root):
    content = {k: v for k, v in CONTENT.items() if k != 'annotations'}
    write(root, content)
    assert len(build(root, test_mode=True)) == 4
    with pytest.raises(ValueError, match='lacks annotations'):
        build(root)


def test_lazy_init_reads_nothing(root):
    (root / 'ann.json').unlink()
    assert build(root, lazy_init=True).metainfo['classes'] == ('cat', 'dog')


def without(key):
    content = copy.deepcopy(CONTENT)
    del content[key]
    return content


@pytest.mark.parametrize(
    'content, kwargs, error, message',
    [
        (None, dict(ann_file='gone.json'), UserError, 'no annotation file .*gone.json; check'),
        (None, dict(ann_file=''), ValueError, 'ann_file'),
        ('{"images": [', {}, ValueError, 'ann.json is not JSON'),
        (without('categories'), {}, ValueError, 'ann.json is not in COCO format: it lacks categories'),
        (dict(CONTENT, images=[]), {}, ValueError, 'lists no image'),
        (dict(CONTENT, images=CONTENT['images'][:1] * 2), {}, ValueError, 'several images of id 7'),
        (dict(CONTENT, images=[dict(id=1, file_name='a.png')]), {}, ValueError, 'images lacks width'),
        (dict(CONTENT, annotations=[dict(image_id=7, category_id=2)]), {}, ValueError, 'annotations lacks bbox'),
        (dict(CONTENT, images=['a.png']), {}, ValueError, 'an entry of images is not a JSON object: a'),
        (dict(CONTENT, images='a.png'), {}, ValueError, 'its images is not a list'),
        (dict(CONTENT, images=[CONTENT['images'][0] | dict(id=[7])]), {}, ValueError, 'in images, id must be a number'),
        (dict(CONTENT, images=[CONTENT['images'][0] | dict(file_name=7)]), {}, ValueError, 'name that is not the'),
        (dict(CONTENT, categories=[dict(id=2, name={})]), {}, ValueError, 'in categories, name must be a number or'),
        *(
            (dict(CONTENT, annotations=[CONTENT['annotations'][0] | {key: [7]}]), {}, ValueError, f'{key} must be a n')
            for key in ('image_id', 'category_id')
        ),
        (dict(CONTENT, annotations=5), {}, ValueError, 'its annotations is not a list'),
        (BOXES, dict(pipeline=[LoadAnnotations(with_mask=True)]), ValueError, 'no object of .*ann.json has a segment'),
        *(
            (dict(CONTENT, annotations=[dict(image_id=7, category_id=2, bbox=box)]), {}, ValueError, 'not four numbers')
            for box in ([1, 2, 3], [1, 2, 'a', 4], [1, 2, 3, float('nan')], 5)
        ),
        (dict(CONTENT, annotations=[CONTENT['annotations'][0] | dict(iscrowd='no')]), {}, ValueError, "iscrowd='no'"),
        (dict(CONTENT, annotations=[CONTENT['annotations'][0] | dict(area='x')]), {}, ValueError, "area='x', wh"),
        (dict(CONTENT, categories=CONTENT['categories'] + [dict(id=2, name='pig')]), {}, ValueError, 's of id 2'),
        (dict(CONTENT, annotations=None), {}, ValueError, 'it lacks annotations'),
        (dict(CONTENT, categories=CONTENT['categories'][:2] + [dict(id=40, name='dog')]), {}, ValueError, "led 'dog'"),
        (dict(CONTENT, images=[CONTENT['images'][0] | dict(width='wide')]), {}, ValueError, 'not a positive number'),
        (dict(CONTENT, images=[CONTENT['images'][0] | dict(height=0)]), {}, ValueError, 'not a positive number'),
        (None, dict(metainfo=dict(classes=['dgo'])), ValueError, "'dgo' are not in .*'cat', 'dog', 'cow'"),
        (None, dict(metainfo=None), ValueError, "'person', .* and 7. more are not in .*'cat', 'dog', 'cow'"),
        (None, dict(data_prefix='img/'), ValueError, "data_prefix='img/' must be a dict"),
        (None, dict(data_prefix=dict(img='img/')), UserError, 'no image folder .*img/'),
        (None, dict(data_prefix=dict(img='')), UserError, 'no image .*a.png'),
        (None, dict(data_prefix=dict(img='empty')), ValueError, 'image folder .*empty is empty'),
        (None, dict(pipeline=[dict(type='CenterCrop', crop_size=9)]), ValueError, "mmcv's CenterCrop leaves"),
        (None, dict(filter_cfg=dict(min_size=999)), ValueError, 'no image of .*ann.json is left'),
        (None, dict(filter_cfg=dict(filter_empty=True)), ValueError, 'filter_empty'),
    ],
)
def test_wrong_use_ends_in_one_clear_line(root, content, kwargs, error, message):
    (root / 'empty').mkdir()
    if content is not None:
        write(root, content)
    with pytest.raises(error, match=message) as raised:
        build(root, **kwargs)
    assert '\n' not in str(raised.value)


def test_one_class_by_its_name(root, capfd):
    assert build(root, metainfo=dict(classes='cat')).metainfo['classes'] == ('cat',)
    assert 'not a meta file' not in ''.join(capfd.readouterr())


def test_doubts_are_said(root, monkeypatch):
    said = []
    monkeypatch.setattr('mmdet.datasets.coco.say', said.append)
    write(root, dict(CONTENT, annotations=CONTENT['annotations'][:5]))
    build(root)
    assert not said
    dog = dict(image_id=7, category_id=2, iscrowd=0)
    corners, turned = dog | dict(bbox=[10, 10, 58, 38]), dog | dict(bbox=[10, 10, -5, 5])
    plain = dog | dict(bbox=[1, 1, 9, 9])
    lost, strange, flat = plain | dict(image_id=99), plain | dict(category_id=77), plain | dict(area=0)
    write(root, dict(CONTENT, annotations=[corners, corners, turned, lost, strange, flat]))
    assert len(build(root)) == 4
    assert [text.partition('ann.json: ')[2][:60] for text in said] == [
        '1 of 6 annotations have an id that is not in categories (77)',
        '1 of 6 annotations have an id that is not in images (99)',
        '1 of 6 boxes have a negative width or height',
        '1 of 6 annotations are left out, their area is 0: give the t',
        '2 of 6 boxes reach out of their images: a bbox is x, y, widt',
    ]
    said.clear()
    write(root, dict(CONTENT, annotations=[]))
    build(root)
    assert [text.partition('ann.json: ')[2] for text in said] == ['no image has an object of the 2 classes']


def test_a_bad_image_met_by_a_worker_is_still_one_line(root):
    (root / 'images' / 'b.png').write_bytes(b'')
    dataset = build(root, pipeline=[dict(type='LoadImageFromFile'), dict(type='PackDetInputs')])
    loader = DataLoader(dataset, num_workers=1, batch_size=2, collate_fn=list)
    with pytest.raises(ValueError) as raised:
        list(loader)
    path = root / 'images' / 'b.png'
    assert one_line(raised.value) == f'image {path} is an empty file; fetch it again or drop it from the set'


def test_the_registry_passes_the_message_on(root):
    with pytest.raises(ValueError, match='not JSON'):
        write(root, 'x')
        DATASETS.build(dict(type='CocoDataset', data_root=str(root), ann_file='ann.json'))


def test_real_set(real_data):
    """Against pycocotools: every object of the eighty classes, once, where it belongs."""
    from pycocotools.coco import COCO

    ann_file = real_data / 'coco_dev/annotations/instances_train2017.json'
    coco = COCO(str(ann_file))
    dataset = CocoDataset(
        ann_file=str(ann_file), data_prefix=dict(img=str(real_data / 'coco_dev/train2017')),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_mask=True),
            dict(type='Resize', scale=(400, 240), keep_ratio=True),
            dict(type='RandomFlip', prob=1.0),
            dict(type='PackDetInputs'),
        ],
    )  # fmt: skip
    assert len(dataset) == 80 and dataset.metainfo['classes'] == COCO_CLASSES
    assert len(COCO_CLASSES) == 80 and dataset.cat_ids[-1] == 90
    crowds = polygons = 0
    for i in range(len(dataset)):
        packed = dataset[i]
        sample = packed['data_samples']
        gt, ignored = sample.gt_instances, sample.ignored_instances
        annotations = coco.imgToAnns[sample.img_id]
        assert len(gt) + len(ignored) == len(annotations)
        assert len(ignored) == sum(a['iscrowd'] for a in annotations)
        kept = [a for a in annotations if not a['iscrowd']]
        assert [dataset.cat_ids[k] for k in gt.labels] == [a['category_id'] for a in kept]
        assert tuple(packed['inputs'].shape[1:]) == sample.img_shape
        h, w = sample.img_shape
        for box, annotation in zip(gt.bboxes, kept):
            x, y, bw, bh = annotation['bbox']
            sx, sy = sample.scale_factor
            expected = torch.tensor([w - (x + bw) * sx, y * sy, w - x * sx, (y + bh) * sy])
            torch.testing.assert_close(box, expected, atol=0.05, rtol=0)  # clipped to the image at most
        crowds += len(ignored)
        polygons += isinstance(gt.masks, PolygonMasks)
        if isinstance(gt.masks, PolygonMasks):  # an annotated box surrounds its mask
            np.testing.assert_allclose(gt.masks.boxes(), gt.bboxes, atol=1)
    assert crowds > 0 and polygons == 80


@pytest.mark.parametrize('name', ['nuclei_dsb2018', 'fruits_nuts', 'bccd'])
def test_other_real_sets(real_data, name):
    content = json.loads((real_data / name / 'train/instances.json').read_text())
    classes = tuple(c['name'] for c in content['categories'])
    masks = name != 'bccd'
    dataset = CocoDataset(
        data_root=str(real_data / name / 'train'), ann_file='instances.json', data_prefix=dict(img='images'),
        metainfo=dict(classes=classes),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_mask=masks),
            dict(type='RandomCrop', crop_size=(200, 200), allow_negative_crop=True),
            dict(type='PackDetInputs'),
        ],
    )  # fmt: skip
    for i in range(0, len(dataset), 7):
        gt = dataset[i]['data_samples'].gt_instances
        assert (gt.bboxes[:, 2:] > gt.bboxes[:, :2]).all()
        if masks:
            assert len(gt.masks) == len(gt.bboxes)


def test_polygons_and_exact_masks_of_the_nuclei_agree(real_data):
    folder = real_data / 'nuclei_dsb2018/val'
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_mask=True),
        dict(type='PackDetInputs'),
    ]
    sets = [
        CocoDataset(
            data_root=str(folder),
            ann_file=name,
            data_prefix=dict(img='images'),
            metainfo=dict(classes=('nucleus',)),
            pipeline=pipeline,
        )
        for name in ('instances.json', 'instances_rle.json')
    ]
    for i in (0, 5, 10):
        polygons, bitmaps = (s[i]['data_samples'].gt_instances.masks for s in sets)
        assert type(polygons) is PolygonMasks and type(bitmaps) is BitmapMasks
        ratio = polygons.to_bitmap().areas / bitmaps.areas
        assert abs(np.median(ratio) - 1) < 0.1


def test_inside_a_runner_dataloader(root):
    from mmengine.runner import Runner

    init_default_scope('mmdet')
    loader = Runner.build_dataloader(
        dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=True),
            batch_sampler=dict(type='AspectRatioBatchSampler'),
            dataset=dict(
                type='CocoDataset',
                data_root=str(root),
                ann_file='ann.json',
                data_prefix=dict(img='images'),
                metainfo=dict(classes=['cat', 'dog']),
                pipeline=[dict(type=t) for t in ('LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs')],
            ),
        ),
        seed=0,
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    assert sorted(s.img_id for b in batches for s in b['data_samples']) == [3, 4, 7, 9]
