import contextlib
import io
import json
import os

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing as mp
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdet.evaluation import CocoMetric
from mmdet.structures import DetDataSample

NAMES = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
NAMES += ['AR@1', 'AR@10', 'AR@100', 'AR_s@100', 'AR_m@100', 'AR_l@100']


def quiet_coco(ann_file):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(ann_file))


def perturbed(ann_file, seed=0, tie=False):
    """Ground truth as detections: moved, with wrong classes, missing and doubled objects, random scores."""
    coco = quiet_coco(ann_file)
    classes = [c['name'] for c in coco.dataset['categories']]
    label = {c['id']: k for k, c in enumerate(coco.dataset['categories'])}
    rng = np.random.default_rng(seed)
    samples = []
    for image in coco.dataset['images']:
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


def by_pycocotools(ann_file, samples, kind, classes, max_dets=None, img_ids=None):
    """The twelve numbers as anyone would compute them."""
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
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(entries), 'segm' if kind == 'segm' else 'bbox')
        if max_dets:
            evaluation.params.useCats = 0
            evaluation.params.maxDets = list(max_dets)
        if img_ids:
            evaluation.params.imgIds = img_ids
        evaluation.evaluate()
        evaluation.accumulate()
        if not max_dets:
            evaluation.summarize()
    return evaluation


def ours(ann_file, samples, classes, batch=3, **kwargs):
    metric = CocoMetric(ann_file=str(ann_file), **kwargs)
    metric.dataset_meta = dict(classes=tuple(classes))
    for start in range(0, len(samples), batch):
        metric.process(None, samples[start : start + batch])
    return metric.evaluate(len(samples))


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
    np.testing.assert_allclose(list(got.values()), expected, rtol=0, atol=1e-6)
    assert 0.2 < expected[0] < 0.8  # worth comparing


def test_equal_to_pycocotools_with_tied_scores_and_exact_masks(real_data):
    ann_file = real_data / 'nuclei_dsb2018/val/instances_rle.json'
    samples, classes = perturbed(ann_file, seed=1, tie=True)
    samples = samples[:25]
    ids = [s['img_id'] for s in samples]
    for kind in ('bbox', 'segm'):
        got = ours(ann_file, samples[::-1], classes, metric=kind, metric_items=NAMES)
        expected = by_pycocotools(ann_file, samples, kind, classes, img_ids=ids).stats
        np.testing.assert_allclose(list(got.values()), expected, rtol=0, atol=1e-6)


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
    evaluation = by_pycocotools(ann_file, samples, 'proposal', classes, max_dets=(5, 20, 100))
    recall = evaluation.eval['recall']  # T, 1, A, M
    expected = [recall[:, 0, 0, m].mean() for m in range(3)] + [recall[:, 0, a, 2].mean() for a in (1, 2, 3)]
    assert list(got) == [f'coco/AR{n}' for n in ('@5', '@20', '@100', '_s@100', '_m@100', '_l@100')]
    np.testing.assert_allclose(list(got.values()), expected, rtol=0, atol=1e-6)


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
    init = f'file://{folder / "init"}'
    torch.distributed.init_process_group('gloo', init_method=init, rank=rank, world_size=len(shares))
    for way, collect_dir in (('group', None), ('folder', str(folder / 'parts'))):
        metric = CocoMetric(ann_file, ['bbox', 'segm'], metric_items=NAMES, collect_dir=collect_dir)
        metric.dataset_meta = dict(classes=classes)
        for index in shares[rank]:
            metric.process(None, [samples[index]])
        (folder / f'{way}.{rank}').write_text(json.dumps(metric.evaluate(len(samples))))
    metric.results.append(dict(samples[0], img_id=-1))  # a picture nobody knows
    try:
        metric.evaluate(1)
    except ValueError as error:
        (folder / f'error.{rank}').write_text(str(error))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(case, tmp_path):
    """Shares of unequal length, and pictures that both saw, as a padding sampler has it; the predictions
    travel through the process group or, if asked, through a folder. An error is raised in each process."""
    ann_file, samples, classes = case
    samples = samples[:31]
    one = ours(ann_file, samples, classes, metric=['bbox', 'segm'], metric_items=NAMES)
    shares = [[*range(0, 31, 2), 1, 3], [*range(1, 31, 2), 0]]
    mp.spawn(_evaluate_in_process, (tmp_path, str(ann_file), samples, classes, shares), nprocs=2)
    for rank in range(2):  # every process learns the numbers
        for way in ('group', 'folder'):
            assert json.loads((tmp_path / f'{way}.{rank}').read_text()) == one
        assert 'image -1' in (tmp_path / f'error.{rank}').read_text()


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


def test_a_subset_of_pictures_is_said_to_be_one(tiny, monkeypatch):
    warnings = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, message: warnings.append(message))
    got = ours(tiny, [prediction(5, [[2, 2, 12, 12]], [0])], ('cat', 'dog'))
    assert got['coco/bbox_mAP'] == pytest.approx(1)  # of the one class and picture there
    assert len(warnings) == 1 and '1 of the 3 images' in warnings[0]


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
        np.testing.assert_allclose(got, evaluation.stats, rtol=0, atol=1e-6)


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
        (dict(format_only=True), ValueError, 'outfile_prefix'),
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


def test_a_strange_picture_is_met_before_the_others_are_tested(tiny):
    metric = CocoMetric(ann_file=str(tiny))
    metric.dataset_meta = dict(classes=('cat', 'dog'))
    with pytest.raises(ValueError, match='image 8 .* same ann_file'):
        metric.process(None, [prediction(8)])


def test_classes_must_be_known(tiny):
    with pytest.raises(ValueError, match='dataset_meta'):
        CocoMetric(ann_file=str(tiny)).process(None, EMPTY)


@pytest.mark.parametrize(
    'segmentation, message',
    [
        (None, 'lack them'),
        ([], 'lack them'),
        ([[[1, 2], [8, 2], [8, 9]]], 'a segmentation is a list of polygons'),
        (dict(size=[3, 4], counts=[12]), r'ann.json: the annotation {.*RLE mask is of size \(3, 4\)'),
    ],
)
def test_segm_without_annotated_masks(tiny, segmentation, message):
    """Refused as soon as the classes are known, before a model has run."""
    content = json.loads(tiny.read_text())
    content['annotations'][1]['segmentation'] = segmentation
    tiny.write_text(json.dumps(content))
    metric = CocoMetric(ann_file=str(tiny), metric='segm')
    with pytest.raises(ValueError, match=message):
        metric.dataset_meta = dict(classes=('cat', 'dog'))
    CocoMetric(ann_file=str(tiny), metric='bbox').dataset_meta = dict(classes=('cat', 'dog'))


def test_an_rle_that_only_the_engine_looks_into(tiny):
    content = json.loads(tiny.read_text())
    content['annotations'][1]['segmentation'] = dict(size=[30, 40], counts='garbage!!')
    tiny.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='cannot evaluate segm on .*ann.json: .*RLE'):
        ours(tiny, EMPTY, ('cat', 'dog'), metric='segm')


