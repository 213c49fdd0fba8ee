"""`mmdet analyze` and `mmdet compare` on files, as a person calls them."""

import json
import pickle
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from pycocotools import mask as coco_mask

from mmdet.cli import analyze, compare
from mmdet.config.errors import UserError
from mmdet.evaluation import CocoMetric
from projects.demo.shapes import write_shapes

CONFIG = str(Path(__file__).resolve().parents[2] / 'configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py')
CLASSES = ('circle', 'square', 'triangle', 'star')


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', train=1, val=20, size=96)


@pytest.fixture
def options(shapes, tmp_path, monkeypatch):
    """Words that point the demo's config at the small data set; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    ann_file = shapes / 'annotations' / 'instances_val.json'
    return ['--cfg-options', f'test_dataloader.dataset.data_root={shapes}/', f'test_evaluator.ann_file={ann_file}']


def detections(shapes, shift=0.0, noise=0.02, swapped=False, seed=0):
    """Ground truth as a model's detections, as `DumpDetResults` keeps them."""
    metric = CocoMetric(str(shapes / 'annotations' / 'instances_val.json'), ['bbox', 'segm'])
    metric.dataset_meta = dict(classes=CLASSES)
    rng, dumped = np.random.default_rng(seed), []
    for (_, img_id), number in metric.truth.index.items():
        objects = [one for one in metric.truth.objects[number] if not one['iscrowd']]
        boxes = np.array([one['bbox'] for one in objects], float).reshape(-1, 4)
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) + (shift, 0, shift, 0)
        boxes += rng.normal(0, noise, boxes.shape) * 20
        labels = np.array([one['category_id'] - 1 for one in objects], int)
        labels = np.array([1, 0, 2, 3])[labels] if swapped else labels
        pred = dict(bboxes=boxes.astype(np.float32), scores=rng.uniform(0.3, 1, len(boxes)).astype(np.float32),
                    labels=labels, masks=[one['segmentation'] for one in objects])
        dumped.append(dict(img_id=img_id, img_path='gone.png', ori_shape=(96, 96), pred_instances=pred))
    return dumped


def save(name, dumped):
    Path(name).write_bytes(pickle.dumps(dumped))
    return name


def as_coco_results(dumped, *keys):
    entries = []
    for one in dumped:
        pred = one['pred_instances']
        for (x1, y1, x2, y2), score, label, mask in zip(*(pred[k] for k in ('bboxes', 'scores', 'labels', 'masks'))):
            what = dict(bbox=[float(v) for v in (x1, y1, x2 - x1, y2 - y1)],
                        segmentation=dict(size=mask['size'], counts=mask['counts'].decode()))
            entries.append(dict(image_id=one['img_id'], category_id=int(label) + 1, score=float(score),
                                **{key: what[key] for key in keys}))
    return entries


class Page(HTMLParser):
    """Tags that are open at the end, addresses that the page would load, and its text."""

    def __init__(self, path):
        super().__init__()
        self.open, self.loads, self.images, self.text = [], [], 0, ''
        self.feed(Path(path).read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.images += tag == 'img'
        source = attributes.get('src', attributes.get('href', ''))
        if source and not source.startswith(('data:image/webp;base64,', '#')) or tag in ('script', 'link', 'iframe'):
            self.loads.append((tag, source))
        if tag not in ('meta', 'img', 'br', 'path', 'line', 'rect', 'circle', 'polyline', 'polygon'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ('path', 'line', 'rect', 'circle', 'polyline', 'polygon'):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_of_dumped_detections(shapes, options, capsys):
    analyze.main([CONFIG, save('r.pkl', detections(shapes, shift=4, swapped=True)), *options])
    page, content = Page('analysis/report.html'), json.loads(Path('analysis/analysis.json').read_text())
    assert page.open == [] and page.loads == [] and page.images > 12
    assert [one['metric'] for one in content['analyses']] == ['bbox', 'segm']
    boxes = content['analyses'][0]
    assert {one['kind'] for one in boxes['findings'][:2]} == {'shifted boxes', 'swapped classes'}
    printed = capsys.readouterr().out
    for finding in boxes['findings']:
        assert finding['text'] in page.text and finding['text'] in printed
    assert f'{100 * boxes["summary"]["mAP"]:.1f}AP' in page.text and 'circle' in page.text
    assert Path('analysis/report.html').stat().st_size < 1.5e6
    links = set(re.findall('href="#(bbox-[0-9]+)"', Path('analysis/report.html').read_text()))
    assert links and all(f'id="{link}"' in Path('analysis/report.html').read_text() for link in links)
    images = json.loads((shapes / 'annotations' / 'instances_val.json').read_text())['images']
    names = {image['id']: image['file_name'] for image in images}
    for one in [*boxes['worst'], *boxes['best']]:
        assert f'image {one["img_id"]} ({names[one["img_id"]]}): ' in page.text
    assert not re.search(r'https?://', re.sub(r'base64,[^"]*', '', Path('analysis/report.html').read_text()))


def test_coco_results_give_the_numbers_of_the_pickle(shapes, options):
    dumped = detections(shapes, noise=0.1)
    analyze.main([CONFIG, save('r.pkl', dumped), '--images', '0', *options])
    expected = json.loads(Path('analysis/analysis.json').read_text())['analyses']
    for keys, metrics in ((('bbox', 'segmentation'), ['bbox', 'segm']), (('bbox',), ['bbox']),
                          (('segmentation',), ['segm'])):  # fmt: skip
        Path('r.json').write_text(json.dumps(as_coco_results(dumped, *keys)))
        analyze.main([CONFIG, 'r.json', '--images', '0', *options])
        got = json.loads(Path('analysis/analysis.json').read_text())['analyses']
        assert [one['metric'] for one in got] == metrics
        for one in got:
            (same,) = (other for other in expected if other['metric'] == one['metric'])
            assert one['summary'] == pytest.approx(same['summary'], abs=1e-9)
    assert Page('analysis/report.html').images == 0


def test_proposals(shapes, options):
    dumped = detections(shapes)
    for one in dumped:
        one['pred_instances'] = {key: one['pred_instances'][key] for key in ('bboxes', 'scores')}
        one['pred_instances']['labels'] = np.zeros(len(one['pred_instances']['scores']), int)
    analyze.main([CONFIG, save('rpn.pkl', dumped), '--eval', 'proposal', *options])
    (one,) = json.loads(Path('analysis/analysis.json').read_text())['analyses']
    assert one['metric'] == 'proposal' and one['summary']['AR@100'] > 0.8 and one['findings'] == []
    assert 'Recall by IoU' in Page('analysis/report.html').text


def test_comparison(shapes, options, capsys, tmp_path, monkeypatch):
    good, bad = save('good.pkl', detections(shapes)), save('bad.pkl', detections(shapes, shift=12))
    compare.main([bad, good, '--config', CONFIG, '--samples', '20', *options])
    printed = capsys.readouterr().out
    content, page = json.loads(Path('comparison/comparison.json').read_text()), Page('comparison/comparison.html')
    one = content['comparisons'][0]
    assert 'B is better' in one['verdict'] and one['verdict'] in printed and one['verdict'] in page.text
    assert page.open == [] and page.loads == [] and page.images >= 12
    assert 'Images on which B is better' in page.text

    for name in ('good', 'bad'):
        analyze.main([CONFIG, f'{name}.pkl', '--eval', 'bbox', '--images', '0', '--out-dir', name, *options])
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    compare.main(['../bad/analysis.json', '../good/analysis.json', '--eval', 'bbox', '--samples', '20'])
    again = json.loads(Path('comparison/comparison.json').read_text())['comparisons'][0]
    assert again['overall'] == one['overall']


def test_numbers_need_no_images(shapes, options, tmp_path, capsys):
    """They may be on another machine; a damaged one is not drawn."""
    words = [*options, f'test_dataloader.dataset.data_prefix.img={tmp_path}/']
    results = save('r.pkl', detections(shapes, swapped=True))
    analyze.main([CONFIG, results, '--images', '0', *words])
    assert 'are swapped' in Page('analysis/report.html').text
    with pytest.raises(UserError, match='no image|image folder|not in'):
        analyze.main([CONFIG, results, *words])
    for image in (shapes / 'val').iterdir():
        (tmp_path / image.name).write_bytes(image.read_bytes()[:200])
    analyze.main([CONFIG, results, '--eval', 'bbox', *words])
    page = Page('analysis/report.html')
    assert page.images == 0 and 'not drawn' in page.text and page.open == []


def test_names_are_escaped(shapes, options, tmp_path):
    """Class names come from a file."""
    content = json.loads((shapes / 'annotations' / 'instances_val.json').read_text())
    content['categories'][0]['name'] = '<script>alert(1)</script>'
    (tmp_path / 'named.json').write_text(json.dumps(content))
    cfg = Config.fromfile(CONFIG)
    cfg.test_dataloader.dataset.update(data_root=f'{shapes}/', ann_file=str(tmp_path / 'named.json'))
    cfg.test_dataloader.dataset.metainfo.classes = [one['name'] for one in content['categories']]
    cfg.test_evaluator.ann_file = str(tmp_path / 'named.json')
    cfg.dump('named.py')
    analyze.main(['named.py', save('r.pkl', detections(shapes, swapped=True)), '--eval', 'bbox'])
    page = Page('analysis/report.html')
    assert page.loads == [] and '<script>alert(1)</script>' in page.text


def spoilt(shapes, how):
    dumped = detections(shapes)
    if how == 'ids':
        dumped[2]['img_id'] = 999
    elif how == 'size':
        dumped[0]['ori_shape'] = (480, 640)
    elif how == 'label':
        dumped[0]['pred_instances']['labels'] = dumped[0]['pred_instances']['labels'] + 7
    elif how == 'mask':
        bitmap = np.ones((5, 5), np.uint8, order='F')
        dumped[0]['pred_instances']['masks'] = [coco_mask.encode(bitmap)] * len(dumped[0]['pred_instances']['scores'])
    elif how == 'list':
        return dict(a=1)
    return dumped


@pytest.mark.parametrize(
    'how, message',
    [
        ('ids', '1 of 20 images are not in .*: these are results of another data set'),
        ('size', r'size \(480, 640\) .* results of another data set'),
        ('label', 'the data set has 4 classes'),
        ('mask', 'a predicted mask on image'),
        ('list', 'not a list of detections'),
    ],
)
def test_results_that_do_not_fit_are_refused(shapes, options, how, message):
    with pytest.raises(UserError, match=f'r.pkl.*{message}'):
        analyze.main([CONFIG, save('r.pkl', spoilt(shapes, how)), *options])


class Payload:
    def __reduce__(self):
        return Path.touch, (Path('touched'),)


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('r.pkl', pickle.dumps([Payload()]), 'write it with mmdet test --out'),
        ('r.pkl', b'\x80\x04no', 'damaged, or no pickle'),
        ('r.json', b'{', 'not JSON'),
        ('r.json', b'{"annotations": []}', 'COCO results are needed'),
        ('r.json', b'[{"image_id": 5000, "category_id": 1, "score": 1, "bbox": [1, 1, 2, 2]}]', 'another data set'),
        ('r.json', b'[{"image_id": 1, "category_id": 77, "score": 1, "bbox": [1, 1, 2, 2]}]', 'category_id 77 is none'),
        *[('r.json', json.dumps([dict(dict(image_id=1, category_id=1, score=0.5), **wrong)]).encode(), message)
          for wrong, message in (
              (dict(bbox=[1, 1, 2, 2], image_id=[1]), 'no whole number or text as image_id'),
              (dict(bbox=[1, 1, 2, 2], category_id=None), 'no whole number or text as category_id'),
              (dict(bbox=[1, 1, 2, 2], category_id='x'), "category_id 'x' is none"),
              (dict(bbox=[1, 1, 2, 2], score='high'), 'a score that is no number'),
              (dict(bbox=[1, 1, 2]), 'a bbox that is not four numbers'), (dict(bbox=None), 'a bbox that is not four'),
              (dict(segmentation=[[1, 1, 2, 2, 3, 3]]), 'a segmentation that is not an RLE mask'),
              (dict(segmentation=dict(counts='0a0')), 'a segmentation that is not an RLE mask'),
              (dict(segmentation=dict(size=[96, 96])), 'an RLE mask is dict'),
              (dict(segmentation=dict(size=[96, 96], counts='0a0')), 'the counts of an RLE mask sum to'))],
        ('r.json', b'[' * 100000, 'not JSON'),
        ('r.txt', b'', 'a .pkl of mmdet test --out or a .json of COCO results is needed'),
    ],
)
def test_files_of_another_kind_are_refused_and_run_nothing(options, name, content, message):
    Path(name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        analyze.main([CONFIG, name, *options])
    assert not Path('touched').exists()


def test_what_else_is_refused(shapes, options):
    with pytest.raises(UserError, match='no such file'):
        analyze.main([CONFIG, 'gone.pkl', *options])
    boxes = detections(shapes)
    for one in boxes:
        del one['pred_instances']['masks']
    with pytest.raises(UserError, match="not enough for 'segm': its detections have no masks"):
        analyze.main([CONFIG, save('boxes.pkl', boxes), '--eval', 'segm', *options])
    with pytest.raises(UserError, match="metric 'voc' is unknown"):
        analyze.main([CONFIG, 'boxes.pkl', '--eval', 'voc', *options])
    with pytest.raises(UserError, match='--config CONFIG'):
        compare.main(['boxes.pkl', 'boxes.pkl'])
    with pytest.raises(UserError, match='test_evaluator has no CocoMetric'):
        analyze.main([CONFIG, 'boxes.pkl', '--cfg-options', 'test_evaluator.type=DumpDetResults'])
    with pytest.raises(UserError, match='an interval needs 20'):
        compare.main(['boxes.pkl', 'boxes.pkl', '--config', CONFIG, '--samples', '3'])
