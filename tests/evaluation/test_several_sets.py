"""Validation on several data sets: together, or each with its own metric; equal ids are kept apart."""

import json
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric, Evaluator

from mmdet.config.errors import UserError
from mmdet.datasets import CocoDataset, ConcatDataset
from mmdet.engine.data_checks import check_annotations, evaluated_data
from mmdet.evaluation import CocoMetric, DumpDetResults, MultiDatasetsEvaluator, VOCMetric

CLASSES = ('cat', 'dog')
# x, y, width, height of the cat and the dog on each image of a set
A, B = ([10, 10, 20, 20], [50, 50, 20, 20]), ([70, 10, 20, 20], [10, 60, 20, 20])


def coco_file(path, boxes, ids, first_category):
    """One cat and one dog on each image of `ids`, the categories numbered from `first_category`."""
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=100, height=100) for i in ids],
        categories=[dict(id=first_category + 1 - k, name=name) for k, name in enumerate(CLASSES)],
        annotations=[dict(id=n, image_id=i, category_id=first_category + 1 - k, bbox=boxes[k], area=400, iscrowd=0)
                     for n, (i, k) in enumerate((i, k) for i in ids for k in range(2))])  # fmt: skip
    path.write_text(json.dumps(content))
    for i in ids:
        (path.parent / f'{i}.jpg').write_bytes(b'')
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Two files with images 1 and 2, other boxes and other category ids."""
    paths = []
    for name, boxes, first in (('a', A, 1), ('b', B, 7)):
        (tmp_path / name).mkdir()
        paths.append(coco_file(tmp_path / name / 'ann.json', boxes, (1, 2), first))
    return paths


def sample(img_id, index, boxes, scores=(0.9, 0.8)):
    bboxes = torch.tensor(boxes, dtype=torch.float32)
    bboxes[:, 2:] += bboxes[:, :2]
    instances = dict(bboxes=bboxes, labels=torch.tensor([0, 1]))
    return dict(img_id=img_id, dataset_index=index, pred_instances=instances | dict(scores=torch.tensor(scores)),
                gt_instances=dict(bboxes=torch.tensor([[10.0, 10, 30, 30]]), labels=torch.tensor([0])))


def predictions(b_is_right=True):
    return [sample(1, 0, A), sample(2, 0, A), sample(1, 1, B), sample(2, 1, B if b_is_right else A)]


def evaluated(evaluator, samples):
    evaluator.dataset_meta = dict(classes=CLASSES)
    evaluator.process(samples[:3])
    evaluator.process(samples[3:])
    return evaluator.evaluate(len(samples))


def concat(files):
    return ConcatDataset([CocoDataset(ann_file=file, data_prefix=dict(img=str(Path(file).parent)), pipeline=[],
                                      metainfo=dict(classes=CLASSES), test_mode=True) for file in files])  # fmt: skip


@pytest.mark.parametrize('backend', ['hotcoco', 'pycocotools'])
def test_together(files, backend):
    """As if the second file's images had other ids, all in one file."""
    metric = CocoMetric(files, backend=backend, classwise=False)
    assert evaluated(Evaluator(metric), predictions())['coco/bbox_mAP'] == pytest.approx(1)
    contents = [json.loads(Path(file).read_text()) for file in files]
    names = {c['id']: c['name'] for content in contents for c in content['categories']}
    for entry, key in [*((i, 'id') for i in contents[1]['images']),
                       *((a, 'image_id') for a in contents[1]['annotations'])]:
        entry[key] += 10
    one = dict(images=contents[0]['images'] + contents[1]['images'], categories=contents[0]['categories'],
               annotations=[dict(a, id=n, category_id=2 - CLASSES.index(names[a['category_id']])) for n, a in
                            enumerate(contents[0]['annotations'] + contents[1]['annotations'])])  # fmt: skip
    whole = Path(files[0]).with_name('whole.json')
    whole.write_text(json.dumps(one))
    samples = predictions(b_is_right=False)
    renamed = [dict(s, img_id=s['img_id'] + 10 * s['dataset_index']) for s in samples]
    want = evaluated(Evaluator(CocoMetric(str(whole), backend=backend)), renamed)
    got = evaluated(Evaluator(CocoMetric(files, backend=backend)), samples)
    assert got == pytest.approx(want, abs=1e-12) and 0 < got['coco/bbox_mAP'] < 1


def test_each_with_its_own_numbers(files, tmp_path):
    evaluator = MultiDatasetsEvaluator([dict(type=CocoMetric, ann_file=files[0]), VOCMetric()], ['cats', 'cards'])
    evaluator.metrics.insert(0, DumpDetResults(str(tmp_path / 'all.pkl')))  # as --out does
    got = evaluated(evaluator, predictions())
    assert got['cats/coco/bbox_mAP'] == pytest.approx(1) and got['cards/pascal_voc/mAP'] == 0
    assert next(iter(got)) == 'cats/coco/bbox_mAP' and (tmp_path / 'all.pkl').is_file()
    assert evaluated(evaluator, predictions()) == got  # nothing is left from the first time


class Ids(BaseMetric):
    """Which images were counted, as a metric of mmengine's kind gets them."""

    def process(self, data_batch, data_samples):
        self.results += [s['img_id'] for s in data_samples]

    def evaluate(self, size):
        self.size = size
        return {'n': len(self.results)}

    def compute_metrics(self, results):
        return {}


@pytest.mark.parametrize('sizes', [(3, 2), (1, 4), (2, 7), (5, 1)])
@pytest.mark.parametrize('ranks', [1, 2, 3, 4])
def test_images_that_a_sampler_repeats_count_once(monkeypatch, sizes, ranks):
    """As `GatheredMetric` deals the shares of the processes: each data set's images once, whatever pads the shares."""
    whole = [(index, i) for index, size in enumerate(sizes) for i in range(size)]
    shares = [[], []]
    evaluators = []
    for rank in range(ranks):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, ranks))
        evaluator = MultiDatasetsEvaluator([Ids(), Ids()])
        evaluator.process([dict(img_id=whole[i][1], dataset_index=whole[i][0])
                           for i in DefaultSampler(whole, shuffle=False)])  # fmt: skip
        evaluators.append(evaluator)
        for share, metric in zip(shares, evaluator.own):
            share.append(list(metric.results))
    seen = [e._seen for e in evaluators]
    monkeypatch.setattr('mmdet.evaluation.multi_datasets.all_gather_object', lambda _: seen)
    evaluators[0].evaluate(len(whole))
    assert tuple(metric.size for metric in evaluators[0].own) == sizes
    for share, size in zip(shares, sizes):
        dealt = [i for row in zip_longest(*share) for i in row if i is not None][:size]
        assert sorted(dealt) == list(range(size))


def test_data_sets_that_do_not_fit_their_metrics(files, tmp_path):
    whole = concat(files)
    metric = CocoMetric(files)
    metric.dataset_meta = whole.metainfo
    metric.check_dataset(whole)
    with pytest.raises(UserError, match='2 annotation files.* the data set must be a ConcatDataset of as many'):
        metric.check_dataset(whole.datasets[0])
    with pytest.raises(UserError, match=r'the id 1, .*a/1.jpg and .*b/1.jpg: .* as a list, ann_file=\[...\]'):
        one = CocoMetric(files[0])
        one.dataset_meta = whole.metainfo
        one.check_dataset(whole)
    with pytest.raises(UserError, match='writes result files of one ann_file'):
        CocoMetric(files, outfile_prefix=str(tmp_path / 'x'))
    with pytest.raises(UserError, match=r"dataset_prefixes=\['a'\] must be 2 different names"):
        MultiDatasetsEvaluator([Ids(), Ids()], ['a'])
    evaluator = MultiDatasetsEvaluator([Ids(), metric])
    assert [own for _, own in evaluated_data(evaluator, whole)] == whole.datasets
    for wrong in (whole.datasets[0], ConcatDataset(whole.datasets + whole.datasets)):
        with pytest.raises(UserError, match='has 2 metrics: its data set must be a ConcatDataset of 2 data sets'):
            list(evaluated_data(evaluator, wrong))
    with pytest.raises(UserError, match='must be a ConcatDataset of as many data sets'):
        evaluator.process([dict(img_id=1)])


@pytest.mark.parametrize('steps, words', [
    ([], 'has no LoadAnnotations'),
    ([dict(type='LoadAnnotations'), dict(type='Resize', scale=(9, 9))], 'moves pixels after LoadAnnotations'),
    ([dict(type='Resize', scale=(9, 9)), dict(type='LoadAnnotations')], None),
])  # fmt: skip
def test_voc_metric_wants_boxes_of_the_original_image(files, steps, words):
    whole = ConcatDataset([CocoDataset(ann_file=files[0], data_prefix=dict(img=str(Path(files[0]).parent)),
                                       metainfo=dict(classes=CLASSES), test_mode=True, pipeline=steps)])  # fmt: skip
    if words is None:
        return check_annotations(VOCMetric(), whole)
    with pytest.raises(UserError, match=words):
        check_annotations(VOCMetric(), whole)
