"""Pascal VOC's folders, as VOC has them and as annotation tools write them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset
from mmengine.registry import DefaultScope
from PIL import Image

from mmdet.config.errors import UserError
from mmdet.datasets import ConcatDataset, RepeatDataset, VOCDataset, XMLDataset
from mmdet.registry import DATASETS
from mmdet.structures.voc_file import load_voc_file

SIZE = '<size><width>40</width><height>30</height><depth>3</depth></size>'
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
CAT_AND_DOG = dict(classes=('cat', 'dog'))


@pytest.fixture(autouse=True)
def scope():
    """mmengine's wrappers build what is inside them, by its registries."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def box(xmin, ymin, xmax, ymax):
    return f'<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>'


def thing(name='cat', corners=(3, 5, 12, 20), more=''):
    return f'<object><name>{name}</name>{more}{box(*corners)}</object>'


CAT = thing()


def write(folder, name='a', content=CAT, size=SIZE, file_name='', ending='.png', head='', encoding='utf-8', source=''):
    """One image and its XML file."""
    for part in ('Annotations', 'JPEGImages'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    text = f'{head}<annotation><filename>{file_name}</filename>{source}{size}{content}</annotation>'
    (folder / 'Annotations' / f'{name}.xml').write_bytes(text.encode(encoding))
    pixels = np.zeros((30, 40, 3), np.uint8)
    (folder / 'JPEGImages' / f'{name}{ending}').write_bytes(cv2.imencode(ending.lower(), pixels)[1].tobytes())


def read(folder, kind=XMLDataset, **options):
    options = dict(metainfo=CAT_AND_DOG, pipeline=LOAD, test_mode=True) | options
    return kind(data_root=str(folder), **options)


def instances(folder, **options):
    return read(folder, **options).get_data_info(0)['instances']


def test_pixels_count_from_1_and_both_ends_are_the_objects(tmp_path):
    """In VOC's own files the box of one pixel, the first, is [0, 0, 1, 1]; the box of all pixels is the image."""
    write(tmp_path, content=thing(corners=(1, 1, 1, 1)) + thing('dog', (1, 1, 40, 30)),
          source='<source><database>The VOC2007 Database</database></source>')
    assert [x['bbox'] for x in instances(tmp_path)] == [[0, 0, 1, 1], [0, 0, 40, 30]]
    result = read(tmp_path)[0]
    assert result['gt_bboxes'].tolist() == [[0, 0, 1, 1], [0, 0, 40, 30]]
    assert result['img'].shape == (30, 40, 3) and result['gt_bboxes_labels'].tolist() == [0, 1]


def test_difficult_objects_are_ignored(tmp_path):
    flags = ('', '<difficult>0</difficult>', '<difficult>1</difficult>', '<difficult>Unspecified</difficult>')
    write(tmp_path, content=''.join(thing(more=flag) for flag in flags))
    assert [x['ignore_flag'] for x in instances(tmp_path)] == [0, 0, 1, 0]
    assert read(tmp_path)[0]['gt_ignore_flags'].tolist() == [False, False, True, False]


def test_the_layout_of_voc(tmp_path):
    """Lists of images, two years in one folder, the 20 classes; `get_cat_ids` through every wrapper."""
    for year, names in {'VOC2007': ('000005', '000007'), 'VOC2012': ('2008_000001', '2008_000002')}.items():
        for name in names:
            write(tmp_path / year, name, thing('person') + thing('sofa'), ending='.jpg')
        (tmp_path / year / 'ImageSets' / 'Main').mkdir(parents=True)
        (tmp_path / year / 'ImageSets' / 'Main' / 'trainval.txt').write_text(f'{names[1]}\n{names[0]}\n\n{names[1]}\n')
    parts = [dict(type='VOCDataset', data_root=str(tmp_path), ann_file=f'{year}/ImageSets/Main/trainval.txt',
                  data_prefix=dict(sub_data_root=f'{year}/'), pipeline=LOAD) for year in ('VOC2007', 'VOC2012')]
    whole = DATASETS.build(dict(type='ConcatDataset', datasets=parts, ignore_keys=['dataset_type']))
    infos = [whole.get_data_info(i) for i in range(4)]
    assert [info['img_id'] for info in infos] == ['000007', '000005', '2008_000002', '2008_000001']
    assert [info['dataset_index'] for info in infos] == [0, 0, 1, 1]
    assert infos[3]['img_path'] == str(tmp_path / 'VOC2012/JPEGImages/2008_000001.jpg')
    assert len(whole.metainfo['classes']) == 20 and whole[2]['gt_bboxes_labels'].tolist() == [14, 17]
    assert whole.get_cat_ids(3) == RepeatDataset(whole.datasets[0], 2).get_cat_ids(3) == [14, 17]


def test_rare_classes_of_several_files_are_repeated(tmp_path):
    """One image in ten has a dog: with oversample_thr=0.4 it comes sqrt(0.4 / 0.1) = 2 times, wherever it is."""
    for part, dogs in (('a', ()), ('b', (3,))):
        for i in range(5):
            write(tmp_path / part, str(i), thing('dog' if i in dogs else 'cat'))
    parts = [dict(type='XMLDataset', data_root=str(tmp_path / part), metainfo=CAT_AND_DOG, pipeline=LOAD)
             for part in ('a', 'b')]
    concat = dict(type='ConcatDataset', datasets=parts)
    for inner in (concat, dict(type='RepeatDataset', times=1, dataset=concat)):
        balanced = DATASETS.build(dict(type='ClassBalancedDataset', oversample_thr=0.4, dataset=inner))
        assert isinstance(balanced, ClassBalancedDataset) and balanced.repeat_indices == [*range(8), 8, 8, 9]


def test_a_folder_without_lists(tmp_path):
    """As Roboflow writes it: images and XML files side by side, in one folder."""
    for name in ('b', 'a.v1'):
        write(tmp_path, name)
        for path in tmp_path.glob(f'*/{name}.*'):
            path.rename(tmp_path / path.name)
    assert [info['img_id'] for info in read(tmp_path, img_subdir='', ann_subdir='')] == ['a.v1', 'b']


@pytest.mark.parametrize('options, want', [
    (dict(content=thing(corners=(2.5, 1.25, 10.75, 9.5))), [[2.5, 1.25, 10.75, 9.5]]),  # CVAT
    (dict(source='<source><database>Unknown</database></source>'), [[3, 5, 12, 20]]),  # labelImg
    (dict(source='<source><database>The VOC2012 Database</database></source>'), [[2, 4, 12, 20]]),
    (dict(content=thing(corners=(-1, 0, 40.6, 31))), [[0, 0, 40, 30]]),  # from 0, and over the rim
    (dict(content=thing(corners=(12, 20, 3, 5))), [[3, 5, 12, 20]]),  # any two corners
    (dict(size=''), [[3, 5, 12, 20]]),
    (dict(size='<size><width>0</width><height>0</height></size>'), [[3, 5, 12, 20]]),  # makesense
    (dict(size='<size><width>40.0</width><height>30.0</height></size>'), [[3, 5, 12, 20]]),
    (dict(content='<object><name>cat</name><polygon><x1>3</x1></polygon></object>' + thing()), [[3, 5, 12, 20]]),
    (dict(content=thing() + thing('bird')), [[3, 5, 12, 20]]),
    (dict(content=thing() + thing(corners=(50, 2, 60, 9))), [[3, 5, 12, 20]]),  # outside
    (dict(content=thing(more='<part><name>head</name>' + box(1, 1, 9, 9) + '</part>')), [[3, 5, 12, 20]]),  # VOC 2012
    (dict(content=''), []),
    (dict(head='\ufeff<?xml version="1.0" encoding="utf-8"?>'), [[3, 5, 12, 20]]),
    (dict(head='<?xml version="1.0" encoding="GBK"?>', content=thing() + thing('\u732b'), encoding='gbk'),
     [[3, 5, 12, 20]]),
    (dict(head='<?xml version="1.0" encoding="utf-16"?>', encoding='utf-16'), [[3, 5, 12, 20]]),
    (dict(file_name='a.JPG', ending='.jpeg'), [[3, 5, 12, 20]]),  # the file was renamed
    (dict(file_name='other.png', ending='.PNG'), [[3, 5, 12, 20]]),
])  # fmt: skip
def test_files_as_tools_write_them(tmp_path, options, want):
    write(tmp_path, **options)
    result = read(tmp_path)[0]
    assert result['gt_bboxes'].tolist() == want and result['img'].shape == (30, 40, 3)


def test_the_xml_files_own_ending_comes_first(tmp_path):
    write(tmp_path, file_name='a.png', ending='.jpg')
    write(tmp_path, file_name='a.png', ending='.png')
    assert read(tmp_path).get_data_info(0)['img_path'].endswith('a.png')


@pytest.mark.parametrize('orientation', range(1, 9))
def test_the_size_of_a_turned_photo(tmp_path, orientation):
    """40 x 30 pixels, from 5 on on their side: read, and sized, as 30 x 40."""
    write(tmp_path, size='', ending='.jpg')
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (40, 30)).save(tmp_path / 'JPEGImages' / 'a.jpg', exif=exif)
    dataset, size = read(tmp_path), (40, 30) if orientation >= 5 else (30, 40)
    assert tuple(dataset.get_data_info(0)[key] for key in ('height', 'width')) == size
    assert dataset[0]['img'].shape == (*size, 3)


def test_filters(tmp_path):
    write(tmp_path, 'empty', '')
    write(tmp_path, 'hard', thing(more='<difficult>1</difficult>'))
    write(tmp_path, 'small', thing(corners=(0, 1, 8, 20)))
    write(tmp_path, 'wide')

    def left(**filters):
        dataset = read(tmp_path, test_mode=False, filter_cfg=filters)
        return [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]

    assert left() == left(min_size=30) == ['empty', 'hard', 'small', 'wide']  # 40 x 30 pixels each
    assert left(filter_empty_gt=True) == ['small', 'wide']
    assert left(filter_empty_gt=True, bbox_min_size=9) == ['wide']
    assert left(filter_empty_gt=True, bbox_min_size=8) == ['small', 'wide']
    assert len(read(tmp_path, filter_cfg=dict(filter_empty_gt=True, bbox_min_size=9))) == 4  # test_mode keeps all
    with pytest.raises(UserError, match='of 4, 2 have no object of the 2 classes, 4 have a side under min_size=31'):
        left(filter_empty_gt=True, min_size=31)
    with pytest.raises(UserError, match="filter_cfg has unknown .'min_sze'"):
        left(min_sze=3)


@pytest.mark.parametrize('text, words', [
    ('<!DOCTYPE x [<!ENTITY a "aaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>', 'has a document type'),
    ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>', 'has a document type'),
    ('<?xml version="1.0" encoding="utf-7"?>+ADw-+ACE-DOCTYPE x+AD4-<annotation/>', 'has a document type'),
    ('', 'is not XML: no element found'),
    ('<annotation><object>', 'is not XML'),
    ('<?xml version="1.0" encoding="zip"?><annotation/>', 'is not XML'),
    ('<annotation>' + '<a>' * 100_000 + '</a>' * 100_000, 'is not XML'),
    ('{"images": []}', 'is not XML'),
    ('<annotations/>', '<annotation> is expected, not <annotations>'),
    (f'<annotation>{thing(corners=(1, 2, "x", 4))}</annotation>', r"not four numbers .* 1 \(cat\) .*'xmax': 'x'"),
    (f'<annotation>{thing(corners=(1, 2, "inf", 4))}</annotation>', 'not four numbers'),
    ('<annotation><object><name>cat</name><bndbox/></object></annotation>', 'not four numbers'),
    (f'<annotation>{thing()}{thing("")}</annotation>', 'has no name for object 2'),
])  # fmt: skip
def test_files_that_are_refused(tmp_path, text, words):
    path = tmp_path / 'a.xml'
    path.write_text(text)
    with pytest.raises(UserError, match=f'annotation file .*a.xml .*{words}') as caught:
        load_voc_file(str(path))
    assert '\n' not in str(caught.value)


def test_entities_of_xml_itself_are_letters(tmp_path):
    write(tmp_path, content=thing('cat &amp; dog &#x732b;'))
    assert instances(tmp_path, metainfo=dict(classes=('cat & dog \u732b',)))[0]['bbox_label'] == 0


def test_mistakes(tmp_path, monkeypatch):
    write(tmp_path)
    write(tmp_path, 'b', thing('ca t') + '<object><name>cat</name></object>')
    lists = {'missing.txt': 'a\nc\n', 'empty.txt': '\n', 'binary.txt': b'\xff\xfe\x00'}
    for name, content in lists.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for options, words in [
        (dict(metainfo=None), "needs metainfo=dict.classes.* the files in .*Annotations have 'ca t', 'cat'"),
        (dict(metainfo=dict(classes='dog')), "no object of the classes 'dog': the files in .* have 'ca t', 'cat'"),
        (dict(ann_file='none.txt'), 'no list of images .*none.txt; check data_root and ann_file'),
        (dict(ann_file='empty.txt'), 'empty.txt lists no image'),
        (dict(ann_file='binary.txt'), 'binary.txt is not a list of images'),
        (dict(ann_file='missing.txt'), 'no annotation file .*c.xml'),
        (dict(ann_subdir='xml'), 'no folder .*xml; check data_root, data_prefix and ann_subdir'),
        (dict(img_subdir='images'), 'no image .*images/a.jpg, nor with another ending'),
        (dict(data_prefix=dict(img='JPEGImages')), "must be dict.sub_data_root='VOC2007/'"),
    ]:
        with pytest.raises(UserError, match=words):
            read(tmp_path, **options)
    assert len(read(tmp_path, kind=VOCDataset, metainfo=None)) == 2  # VOC has cats
    said = []
    monkeypatch.setattr('mmdet.datasets.voc.say', said.append)
    read(tmp_path)
    without_box, without_object = said
    assert '1 objects have no bndbox' in without_box
    assert "the classes 'dog' have no object; left out are those called 'ca t'" in without_object


def test_classes_that_differ_between_files(tmp_path):
    for part in ('a', 'b'):
        write(tmp_path / part)
    a, b = (read(tmp_path / part, metainfo=dict(classes=classes)) for part, classes in
            (('a', ('cat', 'dog')), ('b', ('dog', 'cat'))))
    with pytest.raises(UserError, match='all data sets need one metainfo'):
        ConcatDataset([a, b])
    with pytest.raises(UserError, match='ConcatDataset needs datasets'):
        ConcatDataset([])


def test_playing_cards(real_data):
    root = real_data / 'cards_voc'
    classes = ('ace', 'jack', 'king', 'nine', 'queen', 'ten')
    sets = [VOCDataset(data_root=str(root), ann_file=f'VOC2007/ImageSets/Main/{part}.txt', pipeline=LOAD,
                       data_prefix=dict(sub_data_root='VOC2007/'), metainfo=dict(classes=classes), test_mode=True)
            for part in ('trainval', 'test')]  # fmt: skip
    assert [len(part) for part in sets] == [148, 67]
    text = ''.join(path.read_text() for path in Path(root, 'VOC2007/Annotations').glob('*.xml'))
    counts = [0] * 6
    for part in sets:
        for index in range(len(part)):
            info = part.get_data_info(index)
            for one in info['instances']:
                counts[one['bbox_label']] += 1
                x1, y1, x2, y2 = one['bbox']
                assert 0 <= x1 < x2 <= info['width'] and 0 <= y1 < y2 <= info['height']
    assert counts == [text.count(f'<name>{name}</name>') for name in classes]
    assert sets[1][0]['gt_bboxes'].tolist() == [[97, 136, 275, 368]]


def test_converted_to_coco_the_boxes_are_the_same(tmp_path):
    """`mmdet convert` reads a file as the data set does, and refuses what that refuses."""
    from mmdet.datasets.formats import FORMATS, Notes

    write(tmp_path, content=thing(corners=(2.5, 1, 10, 9)) + thing('dog', (40, 30, 1, 1)),
          source='<source><database>The VOC2007 Database</database></source>')
    (tmp_path / 'Annotations' / 'bomb.xml').write_text('<!DOCTYPE a [<!ENTITY a "a">]><annotation/>')
    notes = Notes()
    image, = FORMATS['voc'].read(tmp_path, notes)
    (tmp_path / 'Annotations' / 'bomb.xml').unlink()
    want = [x['bbox'] for x in instances(tmp_path)]
    assert [one.box for one in image.objects] == want == [[1.5, 0, 10, 9], [0, 0, 40, 30]]  # as in VOC's own files
    assert any('XML that cannot be read' in str(note) for note in notes)
