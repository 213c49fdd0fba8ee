import contextlib
import io
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing as mp
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdet.config.errors import UserError
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric, DumpDetResults
from mmdet.structures import DetDataSample, masks_from_coco

NAMES = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
NAMES += ['AR@1', 'AR@10', 'AR@100', 'AR_s@100', 'AR_m@100', 'AR_l@100']


def quiet_coco(ann_file):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(ann_file))


def perturbed(ann_file, seed=0, tie=False, limit=None):
    """Ground truth as detections: moved, with wrong classes, missing and doubled objects, random scores."""
    coco = quiet_coco(ann_file)
    classes = [c['name'] for c in coco.dataset['categories']]
    label = {c['id']: k for k, c in enumerate(coco.dataset['categories'])}
    rng = np.random.default_rng(seed)
    samples = []
    for image in coco.dataset['images'][:limit]:
        boxes, scores, labels, masks = [], [], [], []
        for annotation in coco.imgToAnns[image['id']]:
            for _ in range(rng.choice(3, p=[0.15, 0.6, 0.25])):
                x, y, w, h = annotation['bbox']
                dx, dy, dw, dh = rng.normal(0, 0.1, 4) * (w, h, w, h)
                boxes.append([x + dx, y + dy, x + dx + max(w + dw, 1), y + dy + max(h + dh, 1)])
                scores.append(round(rng.random(), 1) if tie else rng.random())
                right = rng.random() < 0.9
                labels.append(label[annotation['category_id']] if right else rng.integers(len(label)))
                shift = rng.integers(-3, 4, 2)
                mask = np.roll(coco.annToMask(annotation), shift, axis=(0, 1))
                masks.append(coco_mask.encode(np.asfortranarray(mask)))
        pred = dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            scores=torch.tensor(scores, dtype=torch.float32),
            labels=torch.tensor(labels, dtype=torch.int64),
            masks=masks,
        )
        samples.append(dict(img_id=image['id'], pred_instances=pred))
    return samples, classes


def by_pycocotools(ann_file, samples, kind, classes, **params):
    """An evaluation as anyone would write it."""
    coco = quiet_coco(ann_file)
    ids = {c['name']: c['id'] for c in coco.dataset['categories']}
    entries = []
    for sample in samples:
        pred = sample['pred_instances']
        for i, (x1, y1, x2, y2) in enumerate(pred['bboxes'].double().tolist()):
            entry = dict(image_id=sample['img_id'], category_id=ids[classes[pred['labels'][i]]])
            entry['score'] = pred['scores'][i].item()
            if kind == 'segm':
                entry['segmentation'] = pred['masks'][i]
            else:
                entry['bbox'] = [x1, y1, x2 - x1, y2 - y1]
            entries.append(entry)
    for number, annotation in enumerate(coco.dataset['annotations'], start=1):
        annotation['id'] = number  # it would take the object of id 0, which facade has, for unmatched
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(entries), 'segm' if kind == 'segm' else 'bbox')
        evaluation.params.imgIds = [sample['img_id'] for sample in samples]
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        if not params:
            evaluation.summarize()
    return evaluation


def ours(ann_file, samples, classes, batch=3, kind=CocoMetric, **kwargs):
    metric = kind(ann_file=str(ann_file), **kwargs)
    metric.dataset_meta = dict(classes=tuple(classes))
    for start in range(0, len(samples), batch):
        metric.process(None, samples[start : start + batch])
    return metric.evaluate(len(samples))


def mean(values):
    return values[values > -1].mean() if (values > -1).any() else -1


@pytest.fixture
def said(monkeypatch):
    """The lines that evaluation says."""
    lines = []
    for module in ('coco', 'ground_truth'):
        monkeypatch.setattr(f'mmdet.evaluation.{module}.say', lines.append)
    return lines


@pytest.fixture(scope='module')
def case(real_data):
    ann_file = real_data / 'coco_dev/annotations/instances_val2017.json'
    samples, classes = perturbed(ann_file)
    return ann_file, samples, classes


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('backend', ['hotcoco', 'pycocotools'])
def test_equal_to_pycocotools(case, kind, backend):
    ann_file, samples, classes = case
    got = ours(ann_file, samples, classes, metric=kind, metric_items=NAMES, backend=backend)
    expected = by_pycocotools(ann_file, samples, kind, classes).stats
    assert list(got) == [f'coco/{kind}_{name}' for name in NAMES]
    np.testing.assert_allclose(list(got.values()), expected, rtol=0, atol=1e-12)
    assert 0.2 < expected[0] < 0.8  # worth comparing
    assert sum(a['iscrowd'] for a in quiet_coco(ann_file).dataset['annotations']) > 5


@pytest.mark.parametrize(
    'name, limit',
    [
        ('nuclei_dsb2018/val/instances_rle.json', 25),
        ('nuclei_dsb2018/val/instances.json', 10),
        ('facade/val/instances.json', 30),
    ],
)
def test_equal_to_pycocotools_with_many_objects_and_tied_scores(real_data, name, limit):
    """Images in any order, one without detections, one twice in a batch."""
    samples, classes = perturbed(real_data / name, seed=1, tie=True, limit=limit)
    nothing = samples[3]['pred_instances']
    samples[3] = dict(samples[3], pred_instances={key: value[:0] for key, value in nothing.items()})
    shown = [*samples[::-1], samples[0], samples[0]]
    for kind in ('bbox', 'segm'):
        got = ours(real_data / name, shown, classes, metric=kind, metric_items=NAMES)
        expected = by_pycocotools(real_data / name, samples, kind, classes).stats
        np.testing.assert_allclose(list(got.values()), expected, rtol=0, atol=1e-12)
        assert 0.2 < expected[1] < 1


@pytest.mark.parametrize('backend', ['hotcoco', 'pycocotools'])
def test_options_equal_to_pycocotools(real_data, said, backend):
    """Hundreds of objects on an image: `max_dets` beyond 100, other areas and thresholds, classes left aside."""
    name = real_data / 'facade/val/instances.json'
    samples, classes = perturbed(name, seed=2, limit=12)
    areas, iou_thrs, max_dets = dict(tiny=(0, 300), rest=(300, 1e10)), [0.35, 0.5], (3, 40, 300)
    items = ['mAP', 'mAP_50', 'mAP_75', 'mAP_tiny', 'AR@3', 'AR@40', 'AR_rest@300']
    for use_cats in (True, False):
        got = ours(name, samples, classes, max_dets=max_dets, iou_thrs=iou_thrs, area_ranges=areas, use_cats=use_cats,
                   metric_items=items, backend=backend)
        expected = by_pycocotools(
            name, samples, 'bbox', classes, maxDets=list(max_dets), iouThrs=iou_thrs, useCats=use_cats,
            areaRng=[(0, 1e10), *areas.values()], areaRngLbl=['all', *areas],
        ).eval
        p, r = expected['precision'], expected['recall']
        numbers = [p[..., 0, 2], p[1, ..., 0, 2], p[:0], p[..., 1, 2], r[..., 0, 0], r[..., 0, 1], r[..., 2, 2]]
        np.testing.assert_allclose(list(got.values()), list(map(mean, numbers)), rtol=0, atol=1e-12)
        assert got['coco/bbox_AR@3'] < got['coco/bbox_AR@40'] < 1 and got['coco/bbox_mAP_75'] == -1


def test_ground_truth_of_crowded_images_scores_one_with_max_dets(real_data, said):
    """COCO counts 100 detections of an image and class; one line says so, and how to count more."""
    name = real_data / 'nuclei_dsb2018/val/instances_rle.json'
    coco = quiet_coco(name)
    samples = []
    for image in coco.dataset['images']:
        boxes = torch.tensor([a['bbox'] for a in coco.imgToAnns[image['id']]], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        samples.append(prediction(image['id'], boxes.tolist(), [0] * len(boxes)))
    assert ours(name, samples, ['nucleus'])['coco/bbox_mAP'] < 0.9
    (line,) = said
    most = max(map(len, coco.imgToAnns.values()))
    assert 'more than 100 objects of a class' in line and f'max_dets=(1, 10, {most}) of CocoMetric' in line
    assert ours(name, samples, ['nucleus'], max_dets=(1, 10, most))['coco/bbox_mAP'] == pytest.approx(1, abs=1e-3)
    assert len(said) == 1


def test_without_hotcoco_pycocotools_serves(case, said, monkeypatch):
    ann_file, samples, classes = case
    expected = ours(ann_file, samples[:20], classes, metric=['bbox', 'segm', 'proposal'])
    monkeypatch.setitem(sys.modules, 'hotcoco', None)
    said.clear()
    got = ours(ann_file, samples[:20], classes, metric=['bbox', 'segm', 'proposal'])
    assert got == pytest.approx(expected, rel=0, abs=1e-12)
    assert [line for line in said if 'pip install hotcoco' in line] == said[:1]


def test_detections_are_not_kept(case):
    """What stays of an image is a few kB, whatever the masks are; processes send one another no more."""
    ann_file, samples, classes = case
    metric = CocoMetric(str(ann_file), ['bbox', 'segm'])
    metric.dataset_meta = dict(classes=classes)
    metric.process(None, samples)
    assert metric.results == []
    assert len(pickle.dumps(metric._streams)) < 2 * 6000 * len(samples)


def test_order_of_the_classes_is_the_callers(case):
    ann_file, samples, classes = case
    order = np.random.default_rng(0).permutation(len(classes))
    place = np.argsort(order)
    shuffled = []
    for sample in samples:
        pred = dict(sample['pred_instances'])
        pred['labels'] = torch.from_numpy(place[pred['labels'].numpy()])
        shuffled.append(dict(sample, pred_instances=pred))
    metric = CocoMetric(ann_file=str(ann_file))
    names = [classes[k] for k in order]
    got = ours(ann_file, shuffled, names)
    assert got == pytest.approx(ours(ann_file, samples, classes))
    # the table too
    metric.dataset_meta = dict(classes=names)
    metric.process(None, shuffled)
    tables = []
    metric._class_table, table = lambda *args: tables.append(table(*args)) or '', metric._class_table
    metric.evaluate(80)
    evaluation = by_pycocotools(ann_file, samples, 'bbox', classes)
    p = evaluation.eval['precision'][:, :, classes.index('person'), 0, -1]
    row = next(line for line in tables[0].splitlines() if ' person ' in line)
    assert row.split()[3] == f'{100 * p[p > -1].mean():.1f}'


def test_proposals(case):
    ann_file, samples, classes = case
    proposals = []
    for sample in samples:
        pred = sample['pred_instances']
        pred = dict(pred, labels=torch.zeros_like(pred['labels']))  # as an RPN has it
        proposals.append(dict(sample, pred_instances=pred))
    got = ours(ann_file, proposals, classes, metric='proposal', proposal_nums=(5, 20, 100))
    evaluation = by_pycocotools(ann_file, samples, 'proposal', classes, maxDets=[5, 20, 100], useCats=0)
    recall = evaluation.eval['recall']  # T, 1, A, M
    expected = [recall[:, 0, 0, m].mean() for m in range(3)] + [recall[:, 0, a, 2].mean() for a in (1, 2, 3)]
    assert list(got) == [f'coco/AR{n}' for n in ('@5', '@20', '@100', '_s@100', '_m@100', '_l@100')]
    np.testing.assert_allclose(list(got.values()), expected, rtol=0, atol=1e-12)


def test_perfect_detections_score_one(case):
    ann_file, _, classes = case
    coco = quiet_coco(ann_file)
    label = {c['id']: k for k, c in enumerate(coco.dataset['categories'])}
    samples = []
    for image in coco.dataset['images']:
        found = [a for a in coco.imgToAnns[image['id']] if not a['iscrowd']]
        boxes = torch.tensor([a['bbox'] for a in found], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        pred = dict(
            bboxes=boxes,
            scores=torch.ones(len(found)),
            labels=torch.tensor([label[a['category_id']] for a in found], dtype=torch.long),
            masks=[coco.annToRLE(a) for a in found],
        )
        samples.append(dict(img_id=image['id'], pred_instances=pred))
    got = ours(ann_file, samples, classes, metric=['bbox', 'segm'])
    np.testing.assert_allclose(list(got.values()), 1, atol=1e-6)


def test_other_forms_of_predictions(case):
    """Data samples instead of dicts; masks as text RLE, listed RLE or bitmaps; half precision."""
    ann_file, samples, classes = case
    expected = ours(ann_file, samples[:9], classes, metric=['bbox', 'segm'])

    def rewritten(sample, rewrite):
        pred = sample['pred_instances']
        return DetDataSample(
            metainfo=dict(img_id=sample['img_id']),
            pred_instances=InstanceData(**dict(pred, masks=[rewrite(m) for m in pred['masks']])),
        )

    def as_text(rle):
        return dict(rle, counts=rle['counts'].decode())

    def as_bitmap(rle):
        return torch.from_numpy(coco_mask.decode(rle)).bool()

    for rewrite in (as_text, as_bitmap):
        again = [rewritten(s, rewrite) for s in samples[:9]]
        assert ours(ann_file, again, classes, metric=['bbox', 'segm']) == expected
        assert ours(ann_file, [s.to_dict() for s in again], classes, metric=['bbox', 'segm']) == expected


# --- processes


def _evaluate_in_process(rank, folder, ann_file, samples, classes, shares):
    os.chdir(folder)
    init = f'file://{folder / "init"}'
    torch.distributed.init_process_group('gloo', init_method=init, rank=rank, world_size=len(shares))
    for way, collect_dir in (('group', None), ('folder', str(folder / 'parts'))):
        metric = CocoMetric(ann_file, ['bbox', 'segm'], metric_items=NAMES, collect_dir=collect_dir)
        metric.dataset_meta = dict(classes=classes)
        for index in shares[rank]:
            metric.process(None, [samples[index]])
        (folder / f'{way}.{rank}').write_text(json.dumps(metric.evaluate(len(samples))))
    dump = DumpDetResults(str(folder / 'detections.pkl'))
    for index in range(rank, len(samples) + 1, 2):  # 31 images on two processes: one is padded
        dump.process(None, [samples[index % len(samples)]])
    dump.evaluate(len(samples))
    try:
        metric.evaluate(1)  # nothing was processed since
    except ValueError as error:
        (folder / f'error.{rank}').write_text(str(error))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(case, tmp_path):
    """Shares of unequal length, and images that both saw, as a padding sampler has it; what is counted
    travels through the process group or, if asked, through a folder. An error is raised in each process."""
    ann_file, samples, classes = case
    samples = samples[:31]
    one = ours(ann_file, samples, classes, metric=['bbox', 'segm'], metric_items=NAMES)
    shares = [[*range(0, 31, 2), 1, 3], [*range(1, 31, 2), 0]]
    mp.spawn(_evaluate_in_process, (tmp_path, str(ann_file), samples, classes, shares), nprocs=2)
    for rank in range(2):  # every process learns the numbers
        for way in ('group', 'folder'):
            assert json.loads((tmp_path / f'{way}.{rank}').read_text()) == one
        assert 'no image was evaluated' in (tmp_path / f'error.{rank}').read_text()
    dumped = pickle.loads((tmp_path / 'detections.pkl').read_bytes())
    assert [result['img_id'] for result in dumped] == [sample['img_id'] for sample in samples]
    assert not (tmp_path / '.dist_test').exists()


# --- edges


@pytest.fixture
def tiny(tmp_path):
    square = [[2, 2, 12, 2, 12, 12, 2, 12]]
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=40, height=30) for i in (5, 2, 0)],
        categories=[dict(id=3, name='cat'), dict(id=1, name='dog')],
        annotations=[
            dict(id=0, image_id=5, category_id=3, bbox=[2, 2, 10, 10], segmentation=square, iscrowd=0),
            dict(id=0, image_id=0, category_id=1, bbox=[2, 2, 10, 10], segmentation=square),
        ],
    )
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    return tmp_path / 'ann.json'


def prediction(img_id, boxes=(), labels=(), **fields):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    pred = dict(bboxes=boxes, scores=torch.ones(len(boxes)), labels=torch.tensor(labels, dtype=torch.long))
    return dict(img_id=img_id, pred_instances=pred | fields)


EMPTY = [prediction(i, masks=[]) for i in (5, 2, 0)]


@pytest.mark.parametrize('backend', ['hotcoco', 'pycocotools'])
def test_no_detection_scores_zero(tiny, backend):
    got = ours(tiny, EMPTY, ('cat', 'dog'), metric=['bbox', 'segm', 'proposal'], backend=backend)
    assert got['coco/bbox_mAP'] == got['coco/segm_mAP'] == got['coco/AR@100'] == 0
    assert got['coco/bbox_mAP_l'] == -1  # there is no large object, as pycocotools says it


def test_annotation_ids_of_zero_and_repeated_ids_do_not_matter(tiny):
    """pycocotools takes an annotation of id 0 for unmatched, and the second of one id for the first."""
    found = [prediction(5, [[2, 2, 12, 12]], [0]), prediction(2), prediction(0, [[2, 2, 12, 12]], [1])]
    assert ours(tiny, found, ('cat', 'dog'))['coco/bbox_mAP'] == pytest.approx(1)


def test_without_any_object(tiny):
    content = json.loads(tiny.read_text())
    tiny.write_text(json.dumps(dict(content, annotations=[])))
    got = ours(tiny, [prediction(5, [[0, 0, 5, 5]], [0]), *EMPTY[1:]], ('cat', 'dog'))
    assert set(got.values()) == {-1}


def test_a_subset_of_images_is_said_to_be_one(tiny, said):
    got = ours(tiny, [prediction(5, [[2, 2, 12, 12]], [0])], ('cat', 'dog'))
    assert got['coco/bbox_mAP'] == pytest.approx(1)  # of the one class and image there
    assert len(said) == 1 and '1 of the 3 images' in said[0]


def test_thresholds_and_items(tiny):
    found = [prediction(5, [[2, 2, 12, 9]], [0]), prediction(2), prediction(0, [[2, 2, 12, 12]], [1])]
    items = ['mAP', 'mAP_50', 'mAP_75', 'AR@10']
    got = ours(tiny, found, ('cat', 'dog'), iou_thrs=[0.5, 0.75], metric_items=items)
    assert got == pytest.approx(
        {'coco/bbox_mAP': 0.75, 'coco/bbox_mAP_50': 1, 'coco/bbox_mAP_75': 0.5, 'coco/bbox_AR@10': 0.75}
    )
    got = ours(tiny, found, ('cat', 'dog'), metric=['bbox', 'proposal'], metric_items=['mAP', 'AR@100'])
    assert list(got) == ['coco/bbox_mAP', 'coco/bbox_AR@100', 'coco/mAP', 'coco/AR@100']
    got = ours(tiny, found, ('cat', 'dog'), classwise=True, metric_items=['mAP'])
    assert got == pytest.approx({'coco/cat_precision': 0.5, 'coco/dog_precision': 1, 'coco/bbox_mAP': 0.75})
    assert next(iter(got)) == 'coco/bbox_mAP'  # save_best='auto' takes the first
    assert ours(tiny, found, ('cat', 'dog'), iou_thrs=0.9, prefix='val')['val/bbox_mAP'] == pytest.approx(0.5)


def test_result_files_are_read_by_pycocotools(case, tmp_path):
    ann_file, samples, classes = case
    prefix = str(tmp_path / 'new/results')
    kinds = ['bbox', 'segm']
    values = ours(ann_file, samples, classes, metric=kinds, metric_items=NAMES, outfile_prefix=prefix)
    assert sorted(os.listdir(tmp_path / 'new')) == ['results.bbox.json', 'results.segm.json']
    for kind in kinds:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(ann_file))
            evaluation = COCOeval(coco, coco.loadRes(f'{prefix}.{kind}.json'), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        got = [values[f'coco/{kind}_{name}'] for name in NAMES]
        np.testing.assert_allclose(got, evaluation.stats, rtol=0, atol=1e-12)


def test_format_only_needs_no_annotations(tiny, tmp_path):
    content = json.loads(tiny.read_text())
    del content['annotations']
    tiny.write_text(json.dumps(content))
    found = [prediction(5, [[2, 2, 12, 9]], [1]), *EMPTY[1:]]
    got = ours(tiny, found, ('cat', 'dog'), format_only=True, outfile_prefix=str(tmp_path / 'r'))
    assert got == {}
    entries = json.loads((tmp_path / 'r.bbox.json').read_text())
    assert entries == [dict(image_id=5, category_id=1, bbox=[2, 2, 10, 7], score=1)]
    ours(tiny, found, ('cat', 'dog'), format_only=True, outfile_prefix=str(tmp_path / 'old'), offset=1.0)
    assert json.loads((tmp_path / 'old.bbox.json').read_text())[0]['bbox'] == [2, 2, 11, 8]  # mmdetection 0.x


def test_an_interrupted_write_keeps_the_old_file(tiny, tmp_path, monkeypatch):
    (tmp_path / 'r.bbox.json').write_text('old')

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left on device: .*r.bbox.json'):
        ours(tiny, EMPTY, ('cat', 'dog'), outfile_prefix=str(tmp_path / 'r'))
    assert (tmp_path / 'r.bbox.json').read_text() == 'old'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ann.json', 'r.bbox.json']


def test_one_metric_serves_several_epochs(tiny):
    metric = CocoMetric(ann_file=str(tiny), metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=('cat', 'dog'))
    rle = coco_mask.frPyObjects([[2, 2, 12, 2, 12, 12, 2, 12]], 30, 40)
    found = [prediction(5, [[2, 2, 12, 12]], [0], masks=rle), *EMPTY[1:]]
    values = []
    for samples in (found, EMPTY, found):
        metric.process(None, samples)
        values.append(metric.evaluate(3))
    assert values[0] == values[2] != values[1]
    assert values[0]['coco/segm_mAP'] == pytest.approx(0.5)


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        (dict(ann_file='gone.json'), FileNotFoundError, 'no annotation file gone.json'),
        (dict(ann_file=None), ValueError, 'ann_file'),
        (dict(metric='boxes'), ValueError, "'boxes' is unknown"),
        (dict(metric_items=['AP']), ValueError, "'AP' is unknown.*mAP"),
        (dict(backend='coco'), ValueError, 'hotcoco'),
        (dict(backend='faster-coco-eval'), ValueError, 'pycocotools'),
        (dict(format_only=True), ValueError, 'outfile_prefix'),
        (dict(max_dets=()), ValueError, 'max_dets'),
        (dict(max_dets=(1, 0)), ValueError, 'max_dets'),
        (dict(proposal_nums=('10',)), ValueError, 'proposal_nums'),
    ],
)
def test_wrong_settings(tiny, kwargs, error, message):
    with pytest.raises(error, match=message):
        CocoMetric(**(dict(ann_file=str(tiny)) | kwargs))


@pytest.mark.parametrize(
    'samples, classes, metric, message',
    [
        ([prediction(5, [[0, 0, 5, 5]], [2])], ('cat', 'dog'), 'bbox', 'label 2 .* 2 classes .*num_classes'),
        ([prediction(5, [[0, 0, 5, 5]], [-1])], ('cat', 'dog'), 'bbox', 'label -1'),
        (EMPTY, ('cat', 'cow'), 'bbox', "'cow' are not in .*'cat', 'dog'"),
        ([prediction(8)], ('cat', 'dog'), 'bbox', 'image 8 .* same ann_file'),
        ([prediction(5)], ('cat', 'dog'), 'segm', 'predicts none'),
        ([], ('cat', 'dog'), 'bbox', 'no image was evaluated'),
    ],
)
def test_wrong_use_ends_in_one_clear_line(tiny, samples, classes, metric, message):
    with pytest.raises(ValueError, match=message) as error:
        ours(tiny, samples, classes, metric=metric)
    assert '\n' not in str(error.value)


def test_a_strange_image_is_met_before_the_others_are_tested(tiny):
    metric = CocoMetric(ann_file=str(tiny))
    metric.dataset_meta = dict(classes=('cat', 'dog'))
    with pytest.raises(ValueError, match='image 8 .* same ann_file'):
        metric.process(None, [prediction(8)])


def test_classes_must_be_known(tiny):
    with pytest.raises(ValueError, match='dataset_meta'):
        CocoMetric(ann_file=str(tiny)).process(None, EMPTY)


def wrong_predictions():
    boxes, one = [[0, 0, 5, 5], [1, 1, 6, 6]], [0, 0]
    good = coco_mask.encode(np.ones((30, 40), dtype=np.uint8, order='F'))
    nan, inf = float('nan'), float('inf')
    yield prediction(5, boxes, one, scores=torch.ones(1)), "{'bboxes': (2, 4), 'scores': (1,), 'labels': (2,)}"
    yield prediction(5, boxes, [0]), "'labels': (1,)}"
    yield prediction(5, boxes, one, scores=torch.ones(2, 1)), "'scores': (2, 1)"
    yield prediction(5, boxes, one, bboxes=torch.ones(2, 5)), "'bboxes': (2, 5)"
    yield prediction(5, boxes, one, masks=[good]), "'masks': (1,)"
    yield prediction(5, boxes, one, scores=torch.tensor([0.5, nan]), masks=[good, good]), 'not finite on image 5'
    yield prediction(5, [[0, 0, 5, inf], [1, 1, 6, 6]], one, masks=[good, good]), 'not finite on image 5'
    yield prediction(5, boxes, one, masks=torch.ones(2, 40, 30)), 'size (40, 30)'
    yield prediction(5, boxes, one, masks=torch.full((2, 30, 40), 0.8)), 'not of numbers from 0.8 to 0.8; compare prob'
    yield prediction(5, boxes, one) | dict(pred_instances=dict(
        bboxes=boxes, scores=[1, 1], labels=[0, 0.7])), 'labels that are no whole numbers, such as 0.7'
    yield prediction(5, boxes, one, masks=[good, dict(size=[3, 4], counts=[12])]), 'size (3, 4)'
    yield prediction(5, boxes, one, masks=[good, dict(good, counts=b'')]), 'predicted mask on image 5: the counts'
    yield prediction(5, boxes, one, masks=[good, dict(good, counts=b'0a0')]), 'sum to 17, its image has 1200 pixels'


@pytest.mark.parametrize('backend', ['hotcoco', 'pycocotools'])
@pytest.mark.parametrize('sample, message', [*wrong_predictions()])
def test_predictions_that_do_not_fit(tiny, sample, message, backend):
    with pytest.raises(ValueError) as error:
        metric = 'segm' if 'masks' in sample['pred_instances'] else 'bbox'
        ours(tiny, [sample], ('cat', 'dog'), metric=metric, backend=backend)
    assert message in str(error.value)


@pytest.mark.parametrize('backend', ['hotcoco', 'pycocotools'])
def test_boxes_of_negative_size_are_said_and_passed_over(tiny, backend, monkeypatch):
    """As pycocotools does."""
    image = json.loads(tiny.read_text())['annotations'][0]
    x, y, width, height = image['bbox']
    right, values, said = [x, y, x + width, y + height], [], []
    monkeypatch.setattr('mmdet.evaluation.coco.say', said.append)
    for first in [20, 5, 15, 9], [5, 20, 9, 15], [20, 20, 22, 22]:
        sample = prediction(image['image_id'], [first, right], [0, 0], scores=torch.tensor([0.9, 0.5]))
        values.append(ours(tiny, [sample], ('cat', 'dog'), metric='bbox', backend=backend)['coco/bbox_mAP'])
        assert sum('boxes of negative size' in text for text in said) == min(len(values), 2)
    assert values == pytest.approx([1, 1, 0.5])


def damaged(tiny, segmentation):
    content = json.loads(tiny.read_text())
    content['annotations'][1]['segmentation'] = segmentation
    tiny.write_text(json.dumps(content))


@pytest.mark.parametrize(
    'segmentation, message',
    [
        ([[[1, 2], [8, 2], [8, 9]]], 'a segmentation is a list of polygons'),
        (dict(size=[3, 4], counts=[12]), r'RLE mask is of size \(3, 4\)'),
        (dict(size=[30, 40], counts=[-5, 1205]), 'with negative ones among them'),
        (dict(size=[30, 40], counts='garbage!!'), 'cut off'),
        (dict(size=[30, 40], counts=''), 'empty'),
        (dict(size=[30, 40], counts='0'), 'sum to 0, its image has 1200 pixels'),
        (dict(size=[30, 40], counts='P'), 'cut off'),
    ],
)
def test_annotated_masks_that_are_none(tiny, segmentation, message):
    """Refused as soon as the classes are known, before a model has run."""
    damaged(tiny, segmentation)
    with pytest.raises(UserError, match='ann.json: the annotation {.*' + message):
        CocoMetric(ann_file=str(tiny), metric='segm').dataset_meta = dict(classes=('cat', 'dog'))
    CocoMetric(ann_file=str(tiny), metric='bbox').dataset_meta = dict(classes=('cat', 'dog'))


@pytest.mark.parametrize('segmentation', [None, [], [[]], [[10, 10]], [[1, 2, 3, 4]]])
def test_objects_without_a_mask_are_left_out(tiny, said, segmentation):
    """What training does not learn from is not looked for either, whoever counts; boxes are."""
    damaged(tiny, segmentation)
    assert masks_from_coco([segmentation], 30, 40).areas == 0
    rle = coco_mask.frPyObjects([[2, 2, 12, 2, 12, 12, 2, 12]], 30, 40)
    found = [prediction(5, [[2, 2, 12, 12]], [0], masks=rle), *EMPTY[1:]]
    for backend in ('hotcoco', 'pycocotools'):
        said.clear()
        got = ours(tiny, found, ('cat', 'dog'), metric=['bbox', 'segm'], backend=backend)
        assert got['coco/segm_mAP'] == pytest.approx(1) and got['coco/bbox_mAP'] == pytest.approx(0.5)
        assert len(said) == 1 and "1 of the 2 objects of" in said[0] and "left out of 'segm'" in said[0]


def test_segm_without_any_annotated_mask(tiny):
    content = json.loads(tiny.read_text())
    for annotation in content['annotations']:
        annotation['segmentation'] = []
    tiny.write_text(json.dumps(content))
    with pytest.raises(UserError, match="lack them; use metric='bbox'"):
        ours(tiny, EMPTY, ('cat', 'dog'), metric='segm')


def test_ids_of_any_kind(tiny):
    content = json.loads(tiny.read_text())
    names = {5: 'five', 2: 7, 0: 1.5}
    for key, field in (('images', 'id'), ('annotations', 'image_id')):
        for entry in content[key]:
            entry[field] = names[entry[field]]
    for key, field in (('categories', 'id'), ('annotations', 'category_id')):
        for entry in content[key]:
            entry[field] = str(entry[field])
    tiny.write_text(json.dumps(content))
    found = [prediction('five', [[2, 2, 12, 12]], [0]), prediction(7), prediction(1.5, [[2, 2, 12, 7]], [1])]
    got = ours(tiny, found, ('cat', 'dog'), classwise=True, metric_items=['mAP_50'], iou_thrs=[0.5, 0.6])
    assert got == pytest.approx({'coco/bbox_mAP_50': 1, 'coco/cat_precision': 1, 'coco/dog_precision': 0.5})


# --- subclasses as they are written for mmdetection


class Swapped(CocoMetric):
    """Writes its own files: classes changed about."""

    def results2json(self, results, outfile_prefix):
        entries = []
        for result in results:
            for i, label in enumerate(result['labels']):
                entries.append(dict(
                    image_id=result['img_id'], bbox=self.xyxy2bbox(result['bboxes'][i]).tolist(),
                    score=float(result['scores'][i]), category_id=self.cat_ids[1 - label]))
        Path(f'{outfile_prefix}.mine.json').write_text(json.dumps(entries))
        return dict(bbox=f'{outfile_prefix}.mine.json')


@pytest.mark.parametrize('backend', ['hotcoco', 'pycocotools'])
def test_what_an_overriding_results2json_writes_is_evaluated(tiny, tmp_path, backend):
    found = [prediction(5, [[2, 2, 12, 12]], [0]), prediction(2), prediction(0, [[2, 2, 12, 12]], [1])]
    wrong = [prediction(5, [[2, 2, 12, 12]], [1]), prediction(2), prediction(0, [[2, 2, 12, 12]], [0])]
    prefix = str(tmp_path / 'r')
    assert ours(tiny, found, ('cat', 'dog'), kind=Swapped, backend=backend)['coco/bbox_mAP'] == 0
    got = ours(tiny, wrong, ('cat', 'dog'), kind=Swapped, backend=backend, outfile_prefix=prefix)
    assert got == pytest.approx(ours(tiny, found, ('cat', 'dog')))
    assert len(json.loads((tmp_path / 'r.mine.json').read_text())) == 2
    assert ours(tiny, wrong, ('cat', 'dog'), kind=Swapped, format_only=True, outfile_prefix=prefix) == {}


# --- the data set, before a model has run


def coco_dataset(root, ann_file):
    return CocoDataset(ann_file=str(ann_file), data_prefix=dict(img=str(root)), metainfo=dict(classes=('cat', 'dog')),
                       pipeline=[], test_mode=True)  # fmt: skip


def test_images_that_ids_do_not_tell_apart(tiny, tmp_path):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        for number in (5, 2, 0):
            (tmp_path / folder / f'{number}.jpg').write_bytes(b'')
    a, b = (coco_dataset(tmp_path / folder, tiny) for folder in ('a', 'b'))
    content = json.loads(tiny.read_text())
    for entry, key in [*((i, 'id') for i in content['images']), *((i, 'image_id') for i in content['annotations'])]:
        entry[key] += 10
    (tmp_path / 'other.json').write_text(json.dumps(content))
    other = coco_dataset(tmp_path / 'a', tmp_path / 'other.json')
    metric = CocoMetric(str(tiny))
    metric.dataset_meta = a.metainfo
    for whole in (a, ConcatDataset([a]), RepeatDataset(a, 2)):
        metric.check_dataset(whole)
    with pytest.raises(UserError, match='two images of the data set .* have the id 5, .*a/5.jpg and .*b/5.jpg'):
        metric.check_dataset(ConcatDataset([a, b]))
    with pytest.raises(UserError, match='image 15 of the data set is not in .*ann.json'):
        metric.check_dataset(ConcatDataset([a, other]))
