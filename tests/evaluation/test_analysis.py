"""Analysis of saved detections: numbers against references, and faults that were planted."""

import importlib.util
import json
import sys
from collections import Counter as Tally
from dataclasses import asdict
from unittest.mock import MagicMock

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mmdet.config.errors import UserError
from mmdet.evaluation import CocoMetric
from mmdet.evaluation.analysis import analyse
from mmdet.evaluation.comparison import compare
from mmdet.evaluation.detections import Counter, Detections, Overlaps, best_threshold, errors

CLASSES = ('knife', 'spoon', 'cup', 'bowl')


@pytest.fixture(scope='module')
def ann_file(tmp_path_factory):
    """40 images of 320 x 240 with up to 12 objects in the cells of a grid; ids with gaps, categories out of order."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for n in range(40):
        images.append(dict(id=3 * n + 7, width=320, height=240, file_name=f'{n}.jpg'))
        for cell in rng.permutation(12)[: rng.integers(4, 13)]:
            w, h = rng.uniform(20, 70, 2).round()
            x, y = 80 * (cell % 4) + rng.integers(0, 10), 80 * (cell // 4) + rng.integers(0, 10)
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(dict(
                id=len(annotations) + 1, image_id=3 * n + 7, category_id=int(rng.integers(4)) * 5 + 2, iscrowd=0,
                bbox=[float(v) for v in (x, y, w, h)], area=float(w * h),
                segmentation=[[float(v) for v in corners]]))
    for one in annotations[::60]:
        one['iscrowd'] = 1
    categories = [dict(id=i, name=name) for i, name in zip((17, 7, 12, 2), CLASSES)]
    path = tmp_path_factory.mktemp('annotations') / 'instances.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return str(path)


def evaluator(ann_file, *kinds, classes=CLASSES, **options):
    metric = CocoMetric(ann_file, list(kinds or ('bbox',)), **options)
    metric.dataset_meta = dict(classes=classes)
    return metric


def answers(metric, seed=0, noise=0.0, least=0.3):
    """The ground truth as detections, with random scores and with `noise` of their size on each side of the boxes."""
    rng = np.random.default_rng(seed)
    label = {number: i for i, number in enumerate(metric.truth.numbers.tolist())}
    results = []
    for (_, img_id), number in metric.truth.index.items():
        objects = [one for one in metric.truth.objects[number] if not one['iscrowd']]
        boxes = np.array([one['bbox'] for one in objects], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += rng.normal(0, 1, boxes.shape) * noise * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        found = dict(img_id=img_id, number=number, bboxes=boxes, scores=rng.uniform(least, 1, len(boxes)),
                     labels=np.array([label[one['category_id']] for one in objects], int))
        if 'segm' in metric.metrics:
            found['masks'] = [one['segmentation'] for one in objects]
        results.append(found)
    return results


def muddled(metric, seed=0):
    """Detections with faults of every kind."""
    rng = np.random.default_rng(seed)
    results = answers(metric, seed, noise=0.08, least=0.05)
    for found in results:
        count = len(found['scores'])
        found['labels'] = np.where(rng.random(count) < 0.8, found['labels'], rng.integers(0, 4, count))
        take = np.sort(np.concatenate([np.flatnonzero(rng.random(count) < p) for p in (0.85, 0.2)]))
        for key in ('bboxes', 'scores', 'labels'):
            found[key] = found[key][take]
        found['scores'] = np.clip(found['scores'] + rng.normal(0, 0.1, len(take)), 0.01, 1)
        if 'masks' in found:
            found['masks'] = [found['masks'][i] for i in take]
        extra = rng.uniform(0, 150, (4, 4))
        extra[:, 2:] = extra[:, :2] + rng.uniform(10, 80, (4, 2))
        found['bboxes'] = np.concatenate([found['bboxes'], extra])
        found['scores'] = np.concatenate([found['scores'], rng.uniform(0.01, 0.7, 4)])
        found['labels'] = np.concatenate([found['labels'], rng.integers(0, 4, 4)])
        if 'masks' in found:
            for x1, y1, x2, y2 in extra.astype(int):
                bitmap = np.zeros((240, 320), np.uint8, order='F')
                bitmap[y1:y2, x1:x2] = 1
                found['masks'].append(coco_mask.encode(bitmap))
    return results


def evaluated(ann_file, kind, results, **options):
    """Numbers of `CocoMetric` as `mmdet test` prints them."""
    items = None if kind == 'proposal' else list(evaluator(ann_file, kind).items(kind))
    metric = evaluator(ann_file, kind, metric_items=items, **options)
    for one in results:
        pred = {key: value for key, value in one.items() if key not in ('img_id', 'number')}
        metric.process(None, [dict(img_id=one['img_id'], pred_instances=pred)])
    prefix = 'coco/' if kind == 'proposal' else f'coco/{kind}_'
    return {key.removeprefix(prefix): value for key, value in metric.evaluate(len(results)).items()}


def kinds_of(analysis):
    return [finding.kind for finding in analysis.findings]


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize('kind', ['bbox', 'segm', 'proposal'])
def test_numbers_are_those_of_the_metric(ann_file, kind):
    metric = evaluator(ann_file, kind)
    results = muddled(metric)[::-1]  # in any order
    if kind == 'proposal':
        for one in results:
            one['labels'] = np.zeros_like(one['labels'])
    analysis = analyse(metric, kind, results)
    expected = evaluated(ann_file, kind, results)
    got = {name: -1.0 if value is None else value for name, value in analysis.summary.items()}
    assert got == pytest.approx(expected, abs=1e-12)
    assert json.loads(json.dumps(asdict(analysis)))['images'] == 40
    if kind != 'proposal':
        by_class = evaluated(ann_file, kind, results, classwise=True)
        for row, name in zip(analysis.classes, CLASSES):
            key = f'coco/{name}_precision'
            assert row.name == name and row.ap == pytest.approx(by_class[key], abs=1e-12)
        assert len({row.ap for row in analysis.classes}) == 4


@pytest.mark.parametrize('options', [dict(use_cats=False), dict(max_dets=(1, 3), iou_thrs=[0.5, 0.6]),
                                     dict(area_ranges=dict(tiny=(0, 900), rest=(900, 1e10)))])  # fmt: skip
def test_numbers_follow_the_options_of_the_metric(ann_file, options):
    metric = evaluator(ann_file, **options)
    results = muddled(metric)
    metric.metric_items = list(metric.items('bbox'))
    for one in results:
        metric.process(None, [dict(img_id=one['img_id'], pred_instances=one)])
    expected = metric.evaluate(40)
    analysis = analyse(evaluator(ann_file, **options), 'bbox', results)
    for name, value in analysis.summary.items():
        assert (-1 if value is None else value) == pytest.approx(expected[f'coco/bbox_{name}'], abs=1e-12)
    assert [size.name for size in analysis.sizes] in (['small', 'medium', 'large'], ['tiny', 'rest'])


def slow_confusion(metric, results, threshold):
    """Greedy matching by score, one detection after the other, whatever the classes."""
    table = np.zeros((5, 5), int)
    label = {number: i for i, number in enumerate(metric.truth.numbers.tolist())}
    for one in results:
        objects = [o for o in metric.truth.objects[one['number']] if not o['iscrowd']]
        free = set(range(len(objects)))
        for i in np.argsort(-one['scores'], kind='stable'):
            if one['scores'][i] < threshold:
                continue
            x1, y1, x2, y2 = one['bboxes'][i]
            best, best_iou = None, 0.5
            for j in sorted(free):
                x, y, w, h = objects[j]['bbox']
                common = max(min(x2, x + w) - max(x1, x), 0) * max(min(y2, y + h) - max(y1, y), 0)
                iou = common / ((x2 - x1) * (y2 - y1) + w * h - common)
                if iou >= best_iou:
                    best, best_iou = j, iou
            table[4 if best is None else label[objects[best]['category_id']], one['labels'][i]] += 1
            free -= {best}
        for j in free:
            table[label[objects[j]['category_id']], 4] += 1
    return table


def test_confusion_equals_a_slow_reference(ann_file, tmp_path):
    content = json.loads(open(ann_file).read())
    content['annotations'] = [one for one in content['annotations'] if not one['iscrowd']]
    (tmp_path / 'plain.json').write_text(json.dumps(content))
    metric = evaluator(str(tmp_path / 'plain.json'))
    results = muddled(metric)
    analysis = analyse(metric, 'bbox', results)
    expected = slow_confusion(metric, results, analysis.threshold)
    assert (np.array(analysis.confusion.matrix) == expected).all()
    assert expected[4, :4].sum() > 5 and expected[:4, 4].sum() > 5 and np.triu(expected[:4, :4], 1).sum() > 5


def test_kinds_of_error_are_tides(ann_file):
    metric = evaluator(ann_file)
    results = muddled(metric)
    counter = Counter(metric, 'bbox', list(metric.truth.images))
    detections = Detections.of(metric, 'bbox', results)
    found = errors(counter, detections, Overlaps(counter, detections))
    tide = analyse(metric, 'bbox', results).tide['count']
    names = {'class': 'Cls', 'location': 'Loc', 'both': 'Both', 'duplicate': 'Dupe', 'background': 'Bkg'}
    got = Tally(found.kinds.tolist())
    assert {tide_name: got[kind] for kind, tide_name in names.items()} | {'Miss': len(found.missed)} == tide
    assert min(tide.values()) > 0


@pytest.mark.parametrize('name', ['coco_dev/annotations/instances_val2017.json', 'facade/val/instances.json',
                                  'nuclei_dsb2018/val/instances.json'])  # fmt: skip
def test_numbers_and_kinds_of_error_on_real_annotations(real_data, name):
    """With crowds, 80 classes and their gaps in ids, and more objects than detections that count."""
    ann_file = str(real_data / name)
    content = json.loads(open(ann_file).read())
    used = {one['category_id'] for one in content['annotations']}
    classes = [one['name'] for one in content['categories'] if one['id'] in used]
    metric, rng = evaluator(ann_file, classes=classes), np.random.default_rng(0)
    results = answers(metric, noise=0.12)
    for found in results:
        wrong = rng.random(len(found['labels'])) < 0.1
        found['labels'] = np.where(wrong, rng.integers(0, len(classes), len(wrong)), found['labels'])
    analysis = analyse(metric, 'bbox', results)
    metric = evaluator(ann_file, classes=classes, metric_items=list(metric.items('bbox')))
    for one in results:
        metric.process(None, [dict(img_id=one['img_id'], pred_instances=one)])
    expected = metric.evaluate(len(results))
    assert {key: -1.0 if value is None else value for key, value in analysis.summary.items()} == {
        key.removeprefix('coco/bbox_'): value for key, value in expected.items()}  # fmt: skip
    counter = Counter(metric, 'bbox', [one['number'] for one in results])
    detections = Detections.of(metric, 'bbox', results)
    found = errors(counter, detections, Overlaps(counter, detections))
    kinds, tide = Tally(found.kinds.tolist()), analysis.tide['count']
    assert [kinds[kind] for kind in ('class', 'location', 'both', 'duplicate', 'background')] + [len(found.missed)] == [
        tide[kind] for kind in ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss')]  # fmt: skip


def test_tide_equals_tidecv(ann_file, monkeypatch):
    for name in ('seaborn', 'pandas', 'appdirs'):  # which it has for plots and downloads alone
        if importlib.util.find_spec(name) is None:
            monkeypatch.setitem(sys.modules, name, MagicMock())
    tidecv = pytest.importorskip('tidecv', reason='pip install tidecv --no-deps')
    metric = evaluator(ann_file)
    results = muddled(metric)
    truth, found = tidecv.Data('truth', max_dets=10**6), tidecv.Data('found', max_dets=10**6)
    for one in results:
        number = one['number']
        truth.add_image(number, str(number))
        for there in metric.truth.objects[number]:
            add = truth.add_ignore_region if there['iscrowd'] else truth.add_ground_truth
            add(number, there['category_id'], there['bbox'])
        for (x1, y1, x2, y2), score, label in zip(one['bboxes'], one['scores'], one['labels']):
            found.add_detection(number, int(metric.truth.numbers[label]), float(score), [x1, y1, x2 - x1, y2 - y1])
    run = tidecv.quantify.TIDERun(truth, found, 0.5, 0.1, 'bbox', 10**6)  # TIDE itself would draw
    costs = {kind.short_name: value for kind, value in run.fix_main_errors().items()}
    ours = analyse(metric, 'bbox', results)
    assert ours.summary['mAP_50'] == pytest.approx(run.ap / 100, abs=2e-3)  # tidecv interpolates otherwise
    for kind in ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss'):
        assert ours.tide['cost'][kind] == pytest.approx(costs[kind] / 100, abs=5e-3), kind


def test_best_threshold_equals_trying_each():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, right = rng.integers(1, 8, 30) / 8, rng.integers(-1, 2, 30)
        rows = []
        for least in np.unique(scores):
            hits, all_ = ((right == 1) & (scores >= least)).sum(), ((right >= 0) & (scores >= least)).sum()
            rows.append(2 * hits / (all_ + 40))
        threshold, precision, recall, f1 = best_threshold(scores, right, 40)
        assert f1 == pytest.approx(max(rows)) and recall == ((right == 1) & (scores >= threshold)).sum() / 40
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert best_threshold(scores, np.zeros(30, int), 40) is None and best_threshold(scores, right, 0) is None


# ---------------------------------------------------------------------- planted faults


def test_perfect_detections_have_no_findings(ann_file):
    for kind in ('bbox', 'segm'):
        metric = evaluator(ann_file, 'bbox', 'segm')
        analysis = analyse(metric, kind, answers(metric))
        assert analysis.findings == [] and analysis.summary['mAP'] == 1
        assert analysis.label_errors == [] and analysis.worst == [] and len(analysis.best) == 3


def swap(found, rng):
    found['labels'] = np.array([1, 0, 2, 3])[found['labels']]


def rotate(found, rng):
    found['labels'] = (found['labels'] + 1) % 4


def shift(found, rng):
    found['bboxes'] = found['bboxes'] + (6, 0, 6, 0)


def shift_cups(found, rng):
    found['bboxes'] = found['bboxes'] + np.array([0, -7, 0, -7]) * (found['labels'] == 2)[:, None]


def widen(found, rng):
    found['bboxes'] += 0.15 * (found['bboxes'][:, 2:3] - found['bboxes'][:, :1]) * (-1, 0, 1, 0)


def drop_cups(found, rng):
    keep = found['labels'] != 2
    found.update({key: found[key][keep] for key in ('bboxes', 'scores', 'labels')})


def call_cups_bowls(found, rng):
    found['labels'] = np.where(found['labels'] == 2, 3, found['labels'])


def call_half_of_the_spoons_knives(found, rng):
    half = (found['labels'] == 1) & (rng.random(len(found['labels'])) < 0.5)
    found['labels'] = np.where(half, 0, found['labels'])


def double(found, rng):
    for key in ('bboxes', 'labels'):
        found[key] = np.concatenate([found[key]] * 2)
    found['scores'] = np.concatenate([found['scores'], found['scores'] * 0.9 + 0.09])


def invent(found, rng):
    count = len(found['scores'])
    found['scores'] = np.concatenate([rng.uniform(0.85, 1, count), rng.uniform(0.85, 1, 6)])
    corner = np.tile([300.0, 220, 318, 238], (6, 1)) - rng.uniform(0, 2, (6, 1))
    found['bboxes'] = np.concatenate([found['bboxes'], corner])
    found['labels'] = np.concatenate([found['labels'], rng.integers(0, 4, 6)])


def halve(found, rng):
    found['bboxes'] = found['bboxes'] / 2


def sizes_for_corners(found, rng):
    found['bboxes'][:, 2:] -= found['bboxes'][:, :2]


def share_of_the_image(found, rng):
    found['bboxes'] = found['bboxes'] / (320, 240, 320, 240)


def loosen(found, rng):
    sides = np.tile(found['bboxes'][:, 2:] - found['bboxes'][:, :2], 2)
    found['bboxes'] = found['bboxes'] + rng.normal(0, 0.09, sides.shape) * sides


def miss_the_small(found, rng):
    areas = np.prod(found['bboxes'][:, 2:] - found['bboxes'][:, :2], axis=1)
    keep = areas > 32**2
    found.update({key: found[key][keep] for key in ('bboxes', 'scores', 'labels')})


@pytest.mark.parametrize(
    'plant, kind, words',
    [
        (swap, 'swapped classes', ('knife', 'spoon', '100 %')),
        (rotate, 'order of classes', ('All labels are one too high',)),
        (shift, 'shifted boxes', ('shifted by 6.0 px to the right:', 'AP75')),
        (shift_cups, 'shifted boxes', ('of class cup', '7.0 px up')),
        (widen, 'stretched boxes', ('30 % too wide',)),
        (drop_cups, 'class never predicted', ('Class cup is never predicted',)),
        (call_cups_bowls, 'class never predicted', ('Class cup', 'called bowl')),
        (call_half_of_the_spoons_knives, 'confused classes', ('spoon objects are called knife',)),
        (double, 'duplicates', ('50 %',)),
        (invent, 'false detections', ('fit no object',)),
        (halve, 'coordinates', ('smaller by a factor of 2.0',)),
        (sizes_for_corners, 'coordinates', ('x, y, width, height where x1, y1, x2, y2 are read',)),
        (share_of_the_image, 'coordinates', ('between 0 and 1',)),
        (loosen, 'loose boxes', ('do not fit well', 'AP75')),
        (miss_the_small, 'missed objects', ('100 % of the small',)),
    ],
)
def test_planted_faults_are_named_first(ann_file, plant, kind, words):
    metric, rng = evaluator(ann_file), np.random.default_rng(1)
    results = answers(metric, noise=0.01)
    base = analyse(metric, 'bbox', results)
    for found in results:
        plant(found, rng)
    analysis = analyse(metric, 'bbox', results)
    first = analysis.findings[0]
    assert first.kind == kind and all(word in first.text for word in words), first.text
    lost = base.summary['mAP'] - analysis.summary['mAP']
    assert first.cost == pytest.approx(lost, abs=0.25 * lost + 0.01)
    others = set(kinds_of(analysis)[1:])
    assert others <= set(kinds_of(base)) | {'overconfident scores', 'cut scores', 'small objects'}, analysis.findings


def test_the_cost_of_a_swap_is_the_ap_without_it(ann_file):
    metric = evaluator(ann_file)
    results = answers(metric, noise=0.05)
    right = analyse(metric, 'bbox', results).summary['mAP']
    for found in results:
        swap(found, None)
    analysis = analyse(metric, 'bbox', results)
    assert analysis.findings[0].cost == pytest.approx(right - analysis.summary['mAP'], abs=1e-12)


def test_a_swap_is_found_in_weak_detections(ann_file):
    """Although less than half of the objects of one of the classes are called by the other's name."""
    metric = evaluator(ann_file)
    results = muddled(metric)
    base = analyse(metric, 'bbox', results)
    assert 'swapped classes' not in kinds_of(base) and 'order of classes' not in kinds_of(base)
    for found in results:
        swap(found, None)
        found['scores'] = np.where(found['labels'] == 0, 0.6 * found['scores'], found['scores'])  # spoons, in truth
    analysis = analyse(metric, 'bbox', results)
    (text,) = (finding.text for finding in analysis.findings if finding.kind == 'swapped classes')
    assert 'Classes knife and spoon are swapped' in text or 'Classes spoon and knife are swapped' in text


def test_three_faults_at_once_are_all_named(ann_file):
    metric, rng = evaluator(ann_file), np.random.default_rng(1)
    results = answers(metric, noise=0.01)
    for found in results:
        drop_cups(found, rng)
        swap(found, rng)
        shift(found, rng)
    named = kinds_of(analyse(metric, 'bbox', results))
    assert set(named[:3]) == {'shifted boxes', 'swapped classes', 'class never predicted'}


def test_a_lost_class_comes_before_what_costs_more(ann_file):
    metric, rng = evaluator(ann_file), np.random.default_rng(1)
    results = answers(metric, noise=0.05)
    for found in results:
        loosen(found, rng)
        drop_cups(found, rng)
    first, *others = analyse(metric, 'bbox', results).findings
    assert first.kind == 'class never predicted' and first.severe and first.classes == ['cup']
    assert others[0].kind == 'loose boxes' and others[0].cost > first.cost
    assert not any(one.severe or one.classes for one in others)


def test_a_class_without_a_fitting_detection_is_said_to_be_lost(ann_file):
    """It has detections, all of them elsewhere."""
    metric, rng = evaluator(ann_file), np.random.default_rng(1)
    results = answers(metric, noise=0.05)
    for found in results:
        loosen(found, rng)
        found['bboxes'] = np.where((found['labels'] == 1)[:, None], (310.0, 230, 318, 238), found['bboxes'])
    first = analyse(metric, 'bbox', results).findings[0]
    assert first.kind == 'missed objects' and first.severe and first.classes == ['spoon']
    assert first.text.endswith('It takes nearly all AP from spoon.')


def test_scores_that_promise_too_much_cost_nothing_and_come_last(ann_file):
    metric, rng = evaluator(ann_file), np.random.default_rng(1)
    results = answers(metric)
    for found in results:
        invent(found, rng)
    last = analyse(metric, 'bbox', results).findings[-1]
    assert last.kind == 'overconfident scores' and last.cost is None and 'are right' in last.text


def test_images_name_what_is_right_and_missed(ann_file):
    metric = evaluator(ann_file)
    results = answers(metric, least=0.5)
    victim = max(results, key=lambda found: len(found['scores']))
    victim['labels'][0] = (victim['labels'][0] + 1) % 4
    for key in ('bboxes', 'scores', 'labels'):
        victim[key] = np.delete(victim[key], 1, axis=0)
    (image,) = analyse(metric, 'bbox', results).worst
    objects = [one['id'] for one in metric.truth.of([victim['number']], False) if not one['iscrowd']]
    assert image.img_id == victim['img_id']
    assert image.judged.wrong == [0] and image.judged.missed == objects[:2]
    assert image.judged.right == list(range(1, len(objects) - 1))
    assert image.f1 == pytest.approx(2 * (len(objects) - 2) / (2 * (len(objects) - 2) + 3))


def test_shifted_masks_are_found(ann_file):
    metric = evaluator(ann_file, 'segm')
    results = answers(metric)
    for found in results:
        for i, mask in enumerate(found['masks']):
            found['masks'][i] = coco_mask.encode(np.asfortranarray(np.roll(coco_mask.decode(mask), 5, axis=1)))
        found['bboxes'] = found['bboxes'] + (5, 0, 5, 0)
    first = analyse(metric, 'segm', results).findings[0]
    assert first.kind == 'shifted boxes' and 'masks are shifted by 5.0 px to the right' in first.text


def test_masks_that_are_worse_than_their_boxes(ann_file):
    metric = evaluator(ann_file, 'segm')
    results = answers(metric)
    for found in results:
        for i, mask in enumerate(found['masks']):
            bitmap = coco_mask.decode(mask)
            bitmap[::3] = 0
            found['masks'][i] = coco_mask.encode(bitmap)
    finding = next(f for f in analyse(metric, 'segm', results).findings if f.kind == 'masks worse than boxes')
    assert '67 % of the area' in finding.text or '66 % of the area' in finding.text


def test_label_errors(ann_file, tmp_path):
    """An annotation that was removed, and one whose class was changed, are the candidates."""
    content = json.loads(open(ann_file).read())
    results = answers(evaluator(ann_file), least=0.7)
    removed = next(a for a in content['annotations'] if not a['iscrowd'])
    changed = next(a for a in content['annotations'][20:] if not a['iscrowd'] and a['image_id'] != removed['image_id'])
    content['annotations'].remove(removed)
    changed['category_id'] = 7 if changed['category_id'] != 7 else 12
    (tmp_path / 'wrong.json').write_text(json.dumps(content))
    found = analyse(evaluator(str(tmp_path / 'wrong.json')), 'bbox', results).label_errors
    assert {(one.kind, one.img_id, tuple(one.box[:2])) for one in found} == {
        ('missing', removed['image_id'], tuple(removed['bbox'][:2])),
        ('class', changed['image_id'], tuple(changed['bbox'][:2]))}  # fmt: skip


# ---------------------------------------------------------------------- edges


def test_no_detection_at_all(ann_file):
    metric = evaluator(ann_file, 'bbox', 'segm')
    results = [dict(img_id=i, number=number, bboxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, int),
                    masks=[]) for (_, i), number in metric.truth.index.items()]
    for kind in ('bbox', 'segm'):
        analysis = analyse(metric, kind, results)
        assert kinds_of(analysis) == ['no detections'] and analysis.summary['mAP'] == 0 and len(analysis.worst) == 6
    with pytest.raises(UserError, match='no image'):
        analyse(metric, 'bbox', [])


def test_one_image_a_class_without_objects_and_results_of_a_part(ann_file):
    metric = evaluator(ann_file)
    results = answers(metric)[:1]
    results[0]['labels'] = np.zeros_like(results[0]['labels'])
    analysis = analyse(metric, 'bbox', results)
    assert analysis.images == 1 and 'hold 1 of the 40 images' in analysis.notes[0]
    content = json.loads(open(ann_file).read())
    there = {CLASSES[(17, 7, 12, 2).index(a['category_id'])] for a in content['annotations']
             if a['image_id'] == results[0]['img_id']}  # fmt: skip
    assert {row.name for row in analysis.classes if row.ap is None} == set(CLASSES) - there


def test_images_without_objects(tmp_path):
    path = tmp_path / 'empty.json'
    path.write_text(json.dumps(dict(images=[dict(id=1, width=9, height=9, file_name='a.jpg')], annotations=[],
                                    categories=[dict(id=1, name='cup')])))  # fmt: skip
    metric = evaluator(str(path), classes=('cup',))
    found = dict(img_id=1, number=1, bboxes=np.array([[1.0, 1, 5, 5]]), scores=np.array([0.9]), labels=np.array([0]))
    analysis = analyse(metric, 'bbox', [found])
    assert analysis.findings == [] and 'no object' in analysis.notes[-1] and analysis.summary['mAP'] is None


def test_proposals(ann_file):
    metric = evaluator(ann_file, 'proposal')
    results = answers(metric)
    for found in results:
        miss_the_small(found, None)
        found['labels'] = np.zeros_like(found['labels'])
    analysis = analyse(metric, 'proposal', results)
    assert kinds_of(analysis) == ['missed proposals'] and '100 % of the small' in analysis.findings[0].text
    assert analysis.confusion is None and all(0 < row.recall_all < 1 for row in analysis.classes)
    with pytest.raises(UserError, match='proposals have no AP'):
        compare(metric, 'proposal', results, results)


def test_hotcoco_is_needed_whatever_counts_in_the_metric(ann_file, monkeypatch):
    metric = evaluator(ann_file, backend='pycocotools')
    results = answers(metric, noise=0.05)
    assert analyse(metric, 'bbox', results).summary == analyse(evaluator(ann_file), 'bbox', results).summary
    monkeypatch.setitem(sys.modules, 'hotcoco', None)
    with pytest.raises(UserError, match='pip install hotcoco'):
        analyse(metric, 'bbox', results)


# ---------------------------------------------------------------------- two models


def test_comparison(ann_file):
    metric = evaluator(ann_file)
    good, bad = answers(metric, noise=0.02), answers(metric, noise=0.02)
    for found in bad:
        found['bboxes'] = np.where((found['labels'] == 2)[:, None], found['bboxes'] + (12, 0, 12, 0), found['bboxes'])
    one = compare(metric, 'bbox', bad, good, samples=50)
    aps = [analyse(metric, 'bbox', results).summary['mAP'] for results in (bad, good)]
    assert (one.overall[0].a, one.overall[0].b) == pytest.approx(aps, abs=1e-12)
    assert one.verdict.startswith('B is better') and 'Clearly better: cup +' in one.verdict
    assert [row.name for row in one.classes if row.clear] == ['cup'] and one.classes[-1].name == 'cup'
    assert one.overall[0].least < one.overall[0].b - one.overall[0].a < one.overall[0].most
    assert one.worse == [] and len(one.better) == 4 and all(image.f1 > 0 for image in one.better)
    again = compare(metric, 'bbox', good, good, samples=20)
    assert again.verdict.startswith('No clear difference') and not any(row.clear for row in again.classes)


def test_comparison_takes_the_images_that_both_have(ann_file):
    metric = evaluator(ann_file)
    results = answers(metric)
    assert compare(metric, 'bbox', results[:30], results[20:], samples=20).images == 10
    with pytest.raises(UserError, match='no image in common'):
        compare(metric, 'bbox', results[:10], results[20:])
