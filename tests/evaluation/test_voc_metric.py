"""VOCMetric beside the development kit's definition, written out step by step."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger

from mmdet.config.errors import UserError
from mmdet.evaluation import VOCMetric
from mmdet.evaluation.voc import area_under_curve, eleven_points

CLASSES = ('cat', 'dog', 'bird')


def random_images(count, seed=0, ties=False):
    """Images as the kit knows them, pixels counted from 1: objects (class, xmin, ymin, xmax, ymax, difficult) and
    detections (class, xmin, ymin, xmax, ymax, confidence)."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        objects, detections = [], []
        for _ in range(rng.integers(0, 6)):
            label, (x, y), (w, h) = rng.integers(2), rng.integers(1, 60, 2), rng.integers(4, 40, 2)  # never a bird
            objects.append((int(label), int(x), int(y), int(x + w - 1), int(y + h - 1), bool(rng.random() < 0.25)))
            for _ in range(rng.choice(4, p=[0.2, 0.4, 0.3, 0.1])):
                box = [int(v + d) for v, d in zip(objects[-1][1:5], rng.integers(-4, 5, 4))]
                box = sorted(box[::2]) + sorted(box[1::2])
                which = label if rng.random() < 0.9 else rng.integers(3)
                score = round(rng.random(), 1 if ties else 6)
                detections.append((int(which), box[0], box[2], box[1], box[3], score))
        images.append((objects, detections))
    return images


def kit_overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0
    areas = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return Fraction(width * height, sum(areas) - width * height)


def kit_average_precision(images, label, minoverlap, eleven):
    """VOCevaldet and VOCap, in whole numbers; None for a class without an object to find."""
    objects = [[o for o in objects if o[0] == label] for objects, _ in images]
    npos = sum(not o[5] for of_image in objects for o in of_image)
    detections = [(d[5], i, d[1:5]) for i, (_, found) in enumerate(images) for d in found if d[0] == label]
    detections.sort(key=lambda d: -d[0])  # stable
    taken, right, wrong, curve = set(), 0, 0, []
    for _, image, box in detections:
        best, nearest = Fraction(-1), None
        for j, one in enumerate(objects[image]):
            overlap = kit_overlap(box, one[1:5])
            if overlap > best:
                best, nearest = overlap, j
        if best >= minoverlap:
            if not objects[image][nearest][5]:
                if (image, nearest) not in taken:
                    right += 1
                    taken.add((image, nearest))
                else:
                    wrong += 1
        else:
            wrong += 1
        if right + wrong:
            curve.append((Fraction(right, npos) if npos else None, Fraction(right, right + wrong)))
    if npos == 0:
        return None
    if eleven:
        return sum(max((p for r, p in curve if r >= Fraction(t, 10)), default=0) for t in range(11)) / Fraction(11)
    recalls, total = sorted({r for r, _ in curve} - {0}), Fraction(0)
    for before, recall in zip([0, *recalls], recalls):
        total += (recall - before) * max(p for r, p in curve if r >= recall)
    return total


def samples_of(images):
    """The same as data samples: VOC's pixels 3 to 5 are the 3 from 2 to 5 in coordinates from 0."""

    def part(rows, *extra):
        boxes = torch.tensor([[r[1] - 1, r[2] - 1, r[3], r[4]] for r in rows], dtype=torch.float32).reshape(-1, 4)
        return dict(bboxes=boxes, labels=torch.tensor([r[0] for r in rows], dtype=torch.int64))

    samples = []
    for number, (objects, found) in enumerate(images):
        predicted = part(found) | dict(scores=torch.tensor([d[5] for d in found], dtype=torch.float64))
        samples.append(dict(img_id=number, pred_instances=predicted,
                            gt_instances=part([o for o in objects if not o[5]]),
                            ignored_instances=part([o for o in objects if o[5]])))
    return samples


def ours(images, **options):
    return evaluated(samples_of(images), **options)


def evaluated(samples, batch=3, **options):
    evaluator = Evaluator(VOCMetric(**options))
    evaluator.dataset_meta = dict(classes=CLASSES)
    for start in range(0, len(samples), batch):
        evaluator.process(samples[start : start + batch])
    return evaluator.evaluate(len(samples))


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('eval_mode', ['11points', 'area'])
def test_the_kits_numbers(eval_mode, ties):
    thresholds = (0.5, 0.75, 0.3)
    for seed in range(2):
        images = random_images(24, seed, ties)
        assert any(o[5] for objects, _ in images for o in objects)
        want = {f'AP{round(100 * t)}': [
            v for v in (kit_average_precision(images, k, Fraction(str(t)), eval_mode == '11points') for k in range(3))
            if v is not None] for t in thresholds}  # fmt: skip
        assert all(len(values) == 2 for values in want.values())
        got = ours(images, iou_thrs=thresholds, eval_mode=eval_mode)
        means = {name: float(sum(values) / len(values)) for name, values in want.items()}
        assert 0.1 < means['AP50'] < 0.9
        for name, mean in means.items():
            assert got[f'pascal_voc/{name}'] == pytest.approx(mean, abs=1e-9)
        assert got['pascal_voc/mAP'] == pytest.approx(sum(means.values()) / 3, abs=1e-9)
        assert next(iter(got)) == 'pascal_voc/mAP'  # what save_best='auto' takes


def test_detections_that_name_the_last_pixel():
    """The kit's own numbers less 1, as mmdetection's models give them."""
    images = random_images(24, seed=3)
    samples = samples_of(images)
    expected = evaluated(samples, iou_thrs=(0.5, 0.75))
    for sample in samples:
        sample['pred_instances']['bboxes'][:, 2:] -= 1
    assert evaluated(samples, iou_thrs=(0.5, 0.75), offset=1) == pytest.approx(expected, abs=1e-9)
    assert evaluated(samples, iou_thrs=(0.5, 0.75)) != pytest.approx(expected, abs=1e-3)


def test_an_iou_of_exactly_the_threshold_is_enough():
    """Pixels 1-10 and 6-10 of one row: 5 of 10, as the kit counts; in the detection's own pixels nothing is added."""
    images = [([(0, 1, 1, 10, 1, False)], [(0, 6, 1, 10, 1, 0.9)])]
    assert ours(images)['pascal_voc/AP50'] == 1
    assert ours(images, iou_thrs=0.51)['pascal_voc/AP51'] == 0
    assert ours([([(0, 1, 1, 9, 9, False)], [(0, 1, 1, 9, 9, 0.9)])], iou_thrs=1)['pascal_voc/AP100'] == 1


def test_difficult_objects():
    hit, other = (1, 1, 20, 20), (41, 41, 60, 60)
    difficult, plain = (0, *hit, True), (0, *other, False)
    once = [([difficult, plain], [(0, *other, 0.5)])]
    assert ours(once)['pascal_voc/AP50'] == 1  # the difficult one need not be found
    twice = [([difficult, plain], [(0, *hit, 0.9), (0, *hit, 0.8), (0, *other, 0.5)])]
    assert ours(twice)['pascal_voc/AP50'] == 1  # finding it, however often, is no mistake
    assert ours([([plain], [(0, *hit, 0.9), (0, *other, 0.5)])])['pascal_voc/AP50'] == 0.5
    assert ours([([difficult], [(0, *hit, 0.9)])])['pascal_voc/mAP'] == -1  # nothing to find


def test_a_second_detection_of_an_object_takes_no_other_one():
    """Two objects that overlap: both detections overlap the first one most, so the second is wrong."""
    images = [([(0, 1, 1, 20, 20, False), (0, 5, 1, 24, 20, False)], [(0, 1, 1, 20, 20, 0.9), (0, 2, 1, 21, 20, 0.8)])]
    assert ours(images)['pascal_voc/AP50'] == 0.5


def test_recalls_are_compared_exactly():
    """3 of 10 objects found without a mistake: precision 1 at recalls 0, 0.1, 0.2 and 0.3; then all of them."""
    assert eleven_points(np.array([1, 1, 1]), 10) == pytest.approx(4 / 11)
    assert area_under_curve(np.array([1, 1, 1]), 10) == pytest.approx(0.3)
    assert eleven_points(np.ones(10), 10) == area_under_curve(np.ones(10), 10) == 1
    assert eleven_points(np.array([], dtype=int), 10) == area_under_curve(np.array([], dtype=int), 10) == 0


def test_the_table(monkeypatch):
    """Of two cats the first threshold finds both, the second one (7 rows of 10 overlap); a dog is missed, another made
    up, and there is no bird."""
    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'info', lines.append)
    cats, dog = [(0, 1, 1, 10, 10, False), (0, 31, 1, 40, 10, False)], (1, 1, 31, 20, 40, False)
    images = [([*cats, dog], [(0, 1, 1, 10, 10, 0.9), (0, 31, 1, 40, 7, 0.8)]), ([], [(1, 1, 1, 9, 9, 0.7)])]
    ours(images, iou_thrs=[0.5, 0.75])
    assert lines == [f'Pascal VOC, 2 images (recall at an IoU of 0.50):\n{TABLE}']


TABLE = """\
+-------------------------------------------------+
| class  objects  detections  recall   AP50  AP75 |
+-------------------------------------------------+
| cat          2           2   100.0  100.0  50.0 |
| dog          1           1     0.0    0.0   0.0 |
| bird         0           0       -      -     - |
| mean         3           3           50.0  25.0 |
+-------------------------------------------------+"""


def test_images_without_anything():
    assert ours([([], []), ([(1, 1, 1, 9, 9, False)], [])]) == {'pascal_voc/mAP': 0, 'pascal_voc/AP50': 0}
    with pytest.raises(UserError, match='no image was evaluated'):
        ours([])


@pytest.mark.parametrize('options, words', [
    (dict(metric='bbox'), "metric 'bbox' is unknown; use 'mAP'"),
    (dict(eval_mode='12points'), "'12points' is unknown"),
    (dict(iou_thrs=50), 'must be numbers above 0'),
    (dict(iou_thrs=[]), 'must be numbers above 0'),
    (dict(iou_thrs=[0.5, 1.01]), 'must be numbers above 0, at most 1'),
    (dict(iou_thrs=[0.5, 0]), 'must be numbers above 0, at most 1'),
    (dict(iou_thrs=[0.5, 0.501]), 'differ by a hundredth'),
])  # fmt: skip
def test_options_that_mean_nothing(options, words):
    with pytest.raises(UserError, match=words):
        VOCMetric(**options)


def test_predictions_and_objects_that_cannot_be_counted():
    metric = VOCMetric()
    metric.dataset_meta = dict(classes=CLASSES)
    sample, = samples_of([([], [(0, 1, 1, 9, 9, 0.5)])])
    boxes = sample['gt_instances']['bboxes']
    for objects in {}, dict(bboxes=boxes):
        with pytest.raises(UserError, match='after Resize in the test pipeline'):
            metric.process(None, [dict(sample, gt_instances=objects)])
    sample['pred_instances']['labels'][0] = 3
    with pytest.raises(UserError, match='label 3 .* 3 classes'):
        metric.process(None, [sample])
