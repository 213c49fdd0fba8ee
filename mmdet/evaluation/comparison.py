"""How far two sets of detections on the same images differ: hotcoco's paired bootstrap over the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmdet.config.errors import UserError
from mmdet.evaluation.coco import CocoMetric
from mmdet.evaluation.detections import Counter, Detections, Judged

_NAMES = dict(AP='mAP', AP50='mAP_50', AP75='mAP_75')


@dataclass
class Difference:
    """One number of A and of B, and where B - A lies in 95 of 100 samples of the images."""

    name: str
    a: float
    b: float
    least: float
    most: float

    @property
    def clear(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.least > 0 or self.most < 0


@dataclass
class ImageChange:
    """What changed on one image at IoU 0.5, with detections from each one's threshold on."""

    img_id: Any
    file_name: str
    a: Judged
    b: Judged
    f1: float  # of B less that of A


@dataclass
class Comparison:
    """B beside A, for one metric."""

    metric: str
    images: int
    samples: int
    overall: list[Difference]
    classes: list[Difference]
    thresholds: tuple[float, float]
    worse: list[ImageChange]
    better: list[ImageChange]
    verdict: str


def compare(metric: CocoMetric, name: str, a: Sequence[dict], b: Sequence[dict], samples: int = 200, shown: int = 4,
            seed: int = 0) -> Comparison:
    """Compare two models' detections on the images that both have.

    Args:
        metric, name: as for `analysis.analyse`.
        a, b: results as `CocoMetric.checked` gives them.
        samples: draws of the bootstrap.
        shown: how many images that became worse, and better, to list.

    Raises:
        UserError: no image in both; proposals; hotcoco is not installed.
    """
    if name == 'proposal':
        raise UserError('proposals have no AP to compare; analyze shows their recall')
    common = {result['number'] for result in a} & {result['number'] for result in b}
    if not common:
        raise UserError('the two results have no image in common')
    counter = Counter(metric, name, common)
    both = [Detections.of(metric, name, [one for one in results if one['number'] in common]) for results in (a, b)]
    overall = _differences(counter, both, samples, seed, 'all classes')
    classes = []
    if counter.by_class:
        objects = {one['category_id'] for one in counter.objects.values() if not one['iscrowd']}
        for category in counter.truth.categories:
            if category['id'] in objects:
                mine = [found[found.categories == category['id']] for found in both]
                classes += _differences(counter, mine, samples, seed, category['name'], category['id'])[:1]
        classes.sort(key=lambda one: one.b - one.a)
    thresholds = tuple(map(counter.threshold, both))
    changes = _changes(counter, both, thresholds)
    return Comparison(
        name, len(common), samples, overall, classes, thresholds,
        worse=[one for one in changes if one.f1 < 0][:shown],
        better=[one for one in reversed(changes) if one.f1 > 0][:shown],
        verdict=_verdict(overall[0], classes, len(common)),
    )


def _differences(counter: Counter, both: Sequence[Detections], samples: int, seed: int, name: str,
                 category: int | None = None) -> list[Difference]:
    """AP, AP50 and AP75 of all classes, or of one category."""
    evaluations = [counter.evaluate(found, brief=True, category=category) for found in both]
    found = counter.engine.compare(*evaluations, n_bootstrap=samples, seed=seed)
    rows = []
    for key, own in _NAMES.items():
        values = [max(found[side][key], 0.0) for side in ('metrics_a', 'metrics_b')]
        interval = found['ci'][key]
        rows.append(Difference(name if category else own, *values, interval['lower'], interval['upper']))
    return rows


def _changes(counter: Counter, both: Sequence[Detections], thresholds: Sequence[float]) -> list[ImageChange]:
    """All images, the one that lost most first."""
    of_a, of_b = (counter.by_image(found, least) for found, least in zip(both, thresholds))
    rows = [ImageChange(*counter.image(number), of_a[number], of_b[number], of_b[number].f1 - of_a[number].f1)
            for number in counter.images]  # fmt: skip
    return sorted(rows, key=lambda one: (one.f1, one.a.errors - one.b.errors))


def _verdict(ap: Difference, classes: Sequence[Difference], images: int) -> str:
    points, low, high = (100 * value for value in (ap.b - ap.a, ap.least, ap.most))
    interval = f'95 % interval {low:+.1f} to {high:+.1f}, {images} images'
    if not ap.clear:
        text = f'No clear difference: AP {100 * ap.a:.1f} and {100 * ap.b:.1f} ({points:+.1f}; {interval}).'
    else:
        text = (f'B is {"better" if points > 0 else "worse"}: AP {100 * ap.a:.1f} becomes {100 * ap.b:.1f} '
                f'({points:+.1f}; {interval}).')
    for word, some in (('worse', [one for one in classes if one.most < 0]),
                       ('better', [one for one in reversed(classes) if one.least > 0])):
        if some and len(classes) > 1:
            names = ', '.join(f'{one.name} {100 * (one.b - one.a):+.1f}' for one in some[:5])
            text += f' Clearly {word}: {names}{f" and {len(some) - 5} more" if len(some) > 5 else ""}.'
    return text

