"""Why AP is what it is, in sentences.

Each finding's cost is measured: the fault is repaired in the detections (or its objects are taken away) and they are
counted again. Systematic faults (boxes in other coordinates, classes in another order) are looked for first and stay
repaired while the rest is looked for, so that their consequences are not named as faults of their own.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from mmdet.config.errors import at_most
from mmdet.evaluation.detections import Counter, Detections, Errors, Overlaps, errors, mean, moved
from mmdet.structures.masks import rle_areas

_MIN_COST = 0.003  # of AP; less is not reported
_MIN_SHARE = 0.1  # of a class's objects that are called another class
_MIN_SHIFT_GAIN = 0.03  # of the AP of the classes that it concerns; noise has a median, too
_MIN_PAIRS = 10  # objects that a statement on boxes needs
_LOST = 0.2  # a class with a smaller share of its AP after a repair is lost without the repair

# What to look at, or to do, by the kind of a finding.
_REMEDIES = {
    'no detections':
        'Look whether the checkpoint is the trained one, whether the loss fell, and whether score_thr of the '
        "model's test_cfg is low (0.05).",
    'coordinates':
        'Write boxes in pixels of the original image: xyxy in a .pkl; x, y, width, height in a .json of COCO '
        'results.',
    'shifted boxes':
        'Look for an offset in how boxes are written or scaled back: half pixels, a crop, padding, or another '
        'image size than in training.',
    'stretched boxes':
        'Look at how boxes are scaled back to the original image, and whether x2 is written where a width is '
        'read.',
    'swapped classes':
        'Compare the order of metainfo.classes with the one that the model was trained with (its checkpoint '
        'names it). In a .json, category_id is the id in the annotation file, not the label.',
    'order of classes':
        'Compare the order of metainfo.classes with the one that the model was trained with (its checkpoint '
        'names it). In a .json, category_id is the id in the annotation file, not the label.',
    'class never predicted':
        'Look whether the training set has objects of it (mmdet browse counts them) under the same name, '
        'and whether num_classes of the heads covers it. The cost assumes that it would be found as well as '
        'the others.',
    'confused classes':
        'Look at these objects: do the classes look alike at this size, are the labels consistent, has the '
        'class enough examples in training?',
    'several classes':
        'The classes are hard to tell apart here; longer training lowers the scores of the wrong ones. Where '
        'each object may have one name only, NMS over all classes together helps.',
    'duplicates':
        "Lower iou_threshold of nms in the model's test_cfg. Look whether NMS runs, and whether results of "
        'overlapping tiles or of several runs were joined.',
    'partial detections':
        'Parts of objects, groups, or boxes that NMS leaves because they overlap too little. Longer training '
        'lowers their scores; few objects of that size in training are a cause, too.',
    'false detections':
        'Look at the likely label errors: are objects not annotated? Else images without objects, or longer '
        'training, lower their scores.',
    'missed objects':
        'Small ones need larger images in training and testing, rare classes more examples. A high score_thr '
        'or a low max_per_img in test_cfg removes detections as well.',
    'loose boxes':
        'Longer training, larger images, or Cascade R-CNN. Where objects have few pixels, look at how exact '
        'the annotations are.',
    'loose masks':
        'Longer training or larger images. Look at how exact the annotated polygons are.',
    'masks worse than boxes':
        'Large objects with holes or thin parts need finer masks than 28 x 28. Look whether polygons and '
        'boxes of the annotations agree.',
    'limit of detections':
        "Raise max_dets of CocoMetric and max_per_img in the model's test_cfg to that number.",
    'small objects':
        'Train and test on larger images (the scale of Resize), or on tiles of them.',
    'overconfident scores':
        'AP does not suffer: it only ranks. Who shows or counts detections needs a higher threshold; the '
        'table of classes has the best one of each.',
    'cut scores':
        "Set score_thr of the model's test_cfg to 0.05 for an evaluation.",
    'missed proposals':
        'Scales and ratios of the anchors have to fit the objects. nms_pre and max_per_img of test_cfg.rpn '
        'limit how many proposals there are.',
}


@dataclass
class Finding:
    """One cause of lost AP."""

    kind: str  # such as 'swapped classes'
    text: str  # what is the case
    cost: float | None  # AP that is gained when it is repaired; None: it costs no AP, or it cannot be counted
    classes: list[str] = field(default_factory=list)  # that it names, or takes nearly all AP from
    severe: bool = False  # whether it takes nearly all AP from a class
    remedy: str = ''  # what to look at, or to do

    def __post_init__(self) -> None:
        self.remedy = _REMEDIES[self.kind]


def find(counter: Counter, detections: Detections, threshold: float) -> tuple[list[Finding], Detections]:
    """Findings, and the detections with their systematic faults repaired. Faults that take nearly all AP from a class
    come first, and of these and of the others the costliest.

    Args:
        threshold: score from which on detections are the model's answer.
    """
    objects = sum(not one['iscrowd'] for one in counter.objects.values())
    if not objects:
        return [], detections
    if not len(detections):
        text = f'There is no detection at all, and there are {objects} objects.'
        return [Finding('no detections', text, 1.0 if counter.by_class else None)], detections
    if not counter.by_class:
        return list(_proposals(counter, detections)), detections
    case = _Case(counter, detections, threshold)
    for systematic in (_limit, _coordinates, _geometry, _class_order):
        systematic(case)
    repaired = case.detections
    for single in (_never_predicted, _confusions, _several_classes, _duplicates, _partial, _background, _missed, _loose,
                   _masks, _small, _scores):  # fmt: skip
        single(case)
    return sorted(case.findings, key=lambda finding: (not finding.severe, -(finding.cost or 0))), repaired


@dataclass(frozen=True)
class _Gain:
    """What a repair brings."""

    ap: float
    lost: set[int]  # categories that have hardly any AP without it


class _Case:
    """Detections in the state of repair that the search has reached."""

    def __init__(self, counter: Counter, detections: Detections, threshold: float) -> None:
        self.counter, self.threshold = counter, threshold
        self.names = {category['id']: category['name'] for category in counter.truth.categories}
        self.objects = {key: one for key, one in counter.objects.items() if not one['iscrowd']}
        self.of_class = Tally(one['category_id'] for one in self.objects.values())
        self.findings: list[Finding] = []
        self.accounted: set[int] = set()  # ids of objects that a finding has accounted for
        self.set(detections)
        self.repaired = False

    def set(self, detections: Detections) -> None:
        self.repaired = True
        self.detections = detections
        self.overlaps = Overlaps(self.counter, detections)
        self.errors: Errors = errors(self.counter, detections, self.overlaps)
        self.values = self.counter.class_ap(detections)  # (K,)
        self.ap = mean(self.values)
        self.sure = detections.scores >= self.threshold

    def gain(self, detections: Detections, **options) -> _Gain:
        return self.gain_to(self.counter.class_ap(detections, **options))

    def gain_to(self, values: np.ndarray) -> _Gain:
        """`values`: (K,) AP of each category after a repair, NaN where it takes all objects away."""
        lost = np.flatnonzero(self.values < np.where(np.isnan(values), 0.01, _LOST * values)) + 1
        return _Gain(mean(values) - self.ap, {c for c in lost.tolist() if self.of_class[c] > 2})

    def add(self, kind: str, gain: _Gain | None, text: str, named: Collection[int] = ()) -> None:
        """`named`: categories that the text names."""
        lost = gain.lost if gain else set()
        if lost - set(named) and len(lost) < len(self.of_class):
            text += f' It takes nearly all AP from {at_most([self.names[c] for c in sorted(lost)], 5)}.'
        classes = [self.names[c] for c in sorted(lost.union(named))]
        self.findings.append(Finding(kind, text, gain and max(gain.ap, 0.0), classes, bool(lost)))

    def classes(self, objects: np.ndarray) -> np.ndarray:
        """Category of each object, given by its id."""
        return np.array([self.counter.objects[i]['category_id'] for i in objects.tolist()], int)

    def at_50_and_75(self) -> str:
        """': AP50 90.0, AP75 10.0', or nothing where a repair has changed them."""
        if self.repaired:
            return ''
        values = [_points(self.counter.ap(self.detections, ious=[iou])) for iou in (0.5, 0.75)]
        return f': AP50 {values[0]}, AP75 {values[1]}'

    def of_them_sure(self, which: np.ndarray) -> str:
        """', 12 of them with a score of 0.40 or more' where that says something."""
        sure = (which & self.sure).sum()
        return f', {sure} of them with a score of {self.threshold:.2f} or more' if sure < which.sum() else ''

    @property
    def what(self) -> str:
        return 'boxes' if self.detections.masks is None else 'masks'


# ---------------------------------------------------------------------- systematic faults


def _limit(case: _Case) -> None:
    """Images with more objects of a class than detections that count."""
    limit = case.counter.metric.max_dets[case.counter.name][-1]
    counts = Tally((one['image_id'], one['category_id']) for one in case.objects.values())
    over, most = {image for (image, _), count in counts.items() if count > limit}, max(counts.values())
    if over:
        case.counter = Counter(case.counter.metric, case.counter.name, case.counter.images, most)
        case.add('limit of detections', case.gain(case.detections), f'{len(over)} images have more than {limit} '
                 f'objects of a class, up to {most}, but of a class and image only {limit} detections count.')
        case.set(case.detections)


def _coordinates(case: _Case) -> None:
    """Boxes that are written in other coordinates than they are read in."""
    touched = len(case.overlaps.pairs[0])
    if case.detections.masks is not None or touched > 0.5 * min(len(case.objects), len(case.detections)):
        return
    tries = {what: replace(case.detections, boxes=boxes) for what, boxes in _readings(case).items()}
    values = {what: case.counter.ap(one, any_class=True, ious=[0.5]) for what, one in tries.items()}
    what = max(values, key=values.get)
    if values[what] > case.counter.ap(case.detections, any_class=True, ious=[0.5]) + 0.1:
        case.add('coordinates', case.gain(tries[what]),
                 f'The boxes are {what}: detections touch {_share(touched, len(case.objects))} of the objects as they '
                 'stand.')
        case.set(tries[what])


def _readings(case: _Case) -> dict[str, np.ndarray]:
    """What the boxes may be, and what they would be in pixels then."""
    x, y, w, h = case.detections.boxes.T
    images = [case.counter.truth.images[number] for number in case.detections.images.tolist()]
    sizes = np.array([(image['width'], image['height']) for image in images], float)
    objects = np.array([one['bbox'] for one in case.objects.values()], float)
    of_objects, ours = (np.median(np.sqrt(np.maximum(boxes[:, 2] * boxes[:, 3], 1e-12)))
                        for boxes in (objects, case.detections.boxes[case.sure]))  # fmt: skip
    factor = of_objects / ours
    scaled = replace(case.detections, boxes=factor * case.detections.boxes)
    positions, found = Overlaps(case.counter, scaled).pairs
    if len(positions):  # exactly, from where they lie
        there = np.array([case.counter.objects[i]['bbox'] for i in found.tolist()], float)
        factor = float(np.median(_centres(there) / np.maximum(_centres(case.detections.boxes[positions]), 1e-9)))
    size = f'smaller by a factor of {factor:.2f}' if factor > 1 else f'larger by a factor of {1 / factor:.2f}'
    return {
        'x1, y1, x2, y2 where x, y, width, height are read': np.column_stack([x, y, w - x, h - y]),
        'x, y, width, height where x1, y1, x2, y2 are read': np.column_stack([x, y, w + x, h + y]),
        'between 0 and 1, as shares of the image': case.detections.boxes * np.tile(sizes, 2),
        'y, x, height, width where x, y, width, height are read': np.column_stack([y, x, h, w]),
        'centres with sizes where corners with sizes are read': np.column_stack([x - w / 2, y - h / 2, w, h]),
        'mirrored from left to right': np.column_stack([sizes[:, 0] - x - w, y, w, h]),
        'mirrored from top to bottom': np.column_stack([x, sizes[:, 1] - y - h, w, h]),
        f'{size} than the objects, as in a resized image': factor * case.detections.boxes,
    }


def _centres(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] + boxes[:, 2:] / 2


def _geometry(case: _Case) -> None:
    """Boxes that lie, or end, on one side of their objects: all of them, else those of single classes."""
    positions, objects = case.overlaps.pairs
    sure = case.sure[positions]
    positions, objects = positions[sure], objects[sure]
    if _aim(case, positions, objects, np.ones(len(case.detections), bool), ''):
        return
    called, meant = case.detections.categories, case.classes(objects)
    for category, name in case.names.items() if len(case.of_class) > 1 else ():
        mine = meant == category
        usual = np.bincount(called[positions[mine]]).argmax() if mine.any() else 0  # the classes may be swapped
        _aim(case, positions[mine], objects[mine], called == usual, f' of class {name}', {category})


def _aim(case: _Case, positions: np.ndarray, objects: np.ndarray, which: np.ndarray, whose: str,
         named: Collection[int] = ()) -> bool:
    """Repair the detections `which` by one shift and one stretching, if these bring AP; says whether they do."""
    if len(positions) < _MIN_PAIRS:
        return False
    least = max(_MIN_SHIFT_GAIN / (len(case.of_class) if whose else 1), _MIN_COST)
    boxes = case.detections.boxes[positions]
    there = np.array([case.counter.objects[i]['bbox'] for i in objects.tolist()], float)
    sides = np.maximum(boxes[:, 2:], 1e-9)
    off = _centres(boxes) - _centres(there)
    pixels, share = _middle(off), _middle(off / sides)
    stretch = np.exp(_middle(np.log(np.maximum(there[:, 2:], 1e-9) / sides)))
    if case.detections.masks is not None:
        stretch = np.ones(2)
    tries = []
    for scale in (np.ones(2), stretch):
        for relative, shift in ((False, pixels), (True, share)):
            sayings = _shift_in_words(shift, relative) + _stretch_in_words(scale)
            if sayings and sayings not in [one[1] for one in tries]:
                by = -shift * (case.detections.boxes[:, 2:] if relative else 1) * which[:, None]
                repaired = moved(case.detections, by, np.where(which[:, None], scale, 1.0))
                tries.append((case.gain(repaired), sayings, repaired))
    none = (_Gain(0.0, set()), [], None)
    gain, sayings, repaired = max(tries, key=lambda one: one[0].ap, default=none)  # of equal gains the simplest
    if gain.ap < least:
        return False
    case.add('shifted boxes' if 'shifted' in sayings[0] else 'stretched boxes', gain,
             f'The {case.what}{whose} are {" and ".join(sayings)}{"" if whose else case.at_50_and_75()}.', named)
    case.set(repaired)
    return True


def _middle(values: np.ndarray) -> np.ndarray:
    """Median of each column of (n, 2); 0 where it is within 4 standard errors of it."""
    medians = np.median(values, axis=0)
    spread = 1.4826 * np.median(np.abs(values - medians), axis=0)
    return np.where(np.abs(medians) > 4 * 1.2533 * spread / np.sqrt(len(values)), medians, 0.0)


def _shift_in_words(shift: np.ndarray, relative: bool) -> list[str]:
    parts = []
    for value, ways in zip(shift.tolist(), (('to the left', 'to the right'), ('up', 'down'))):
        if abs(value) >= (0.01 if relative else 0.3):
            parts.append((f'{100 * abs(value):.0f} % of their size ' if relative else f'{abs(value):.1f} px ')
                         + ways[value > 0])  # fmt: skip
    return [f'shifted by {" and ".join(parts)}'] if parts else []


def _stretch_in_words(scale: np.ndarray) -> list[str]:
    """`scale`: what their sides have to be multiplied by."""
    return [f'{100 * abs(1 / value - 1):.0f} % too {ways[value < 1]}'
            for value, ways in zip(scale.tolist(), (('narrow', 'wide'), ('low', 'high'))) if abs(1 - value) > 0.01]


def _class_order(case: _Case) -> None:
    """Classes whose objects are called by another class's name."""
    if len(case.names) > 2 and _one_off(case):
        return
    positions, objects = case.overlaps.pairs
    sure = case.sure[positions]
    table = np.zeros((max(case.names) + 1,) * 2, int)  # objects of the first class that are called the second
    np.add.at(table, (case.classes(objects[sure]), case.detections.categories[positions[sure]]), 1)
    swapped = _swaps(case, table)
    renamed = {category: int(table[category].argmax()) for category, count in case.of_class.items()
               if category not in swapped and table[category].max() > max(0.5 * count, 2)}  # fmt: skip
    for group in _renamed_groups(renamed):
        back = {renamed[category]: category for category in group}
        repaired = _called_by(case.detections, back)
        gain = case.gain(repaired)
        if gain.ap >= _MIN_COST:
            calls = [_calls(case, table, c, renamed[c]) for c in group]
            more = f', and so on for {len(calls) - 3} more' if len(calls) > 3 else ''
            case.add('order of classes', gain,
                     f'{len(group)} classes bear other names, as in another order: {", ".join(calls[:3])}{more}.',
                     group)
            case.set(repaired)


def _one_off(case: _Case) -> bool:
    numbers = case.counter.truth.numbers  # of each label
    label = np.argsort(numbers)[case.detections.categories - 1]
    for step, word, neighbour in ((1, 'low', 'before'), (-1, 'high', 'after')):
        repaired = replace(case.detections, categories=numbers[(label + step) % len(numbers)])
        gain = case.gain(repaired)
        if gain.ap > 0.1:
            case.add('order of classes', gain, f'All labels are one too {word}: each class is called by the name of '
                     f'the one {neighbour} it.')
            case.set(repaired)
            return True
    return False


def _swaps(case: _Case, table: np.ndarray) -> set[int]:
    """Pairs of classes both of which gain when they change names; where one is only called the other, one loses."""
    swapped: set[int] = set()
    for a, b in zip(*np.nonzero(np.triu(table + table.T, 1))):
        a, b = int(a), int(b)
        often = any(table[x, y] > max(0.3 * case.of_class[x], 2) for x, y in ((a, b), (b, a)))
        if not often or {a, b} & swapped or not case.of_class[a] or not case.of_class[b]:
            continue
        repaired = _called_by(case.detections, {a: b, b: a})
        values = case.counter.class_ap(repaired)
        gains = (values - case.values)[[a - 1, b - 1]]
        if (gains < 0).any() or gains.mean() < 0.05:
            continue
        case.add('swapped classes', case.gain_to(values), f'Classes {case.names[a]} and {case.names[b]} are swapped: '
                 f'{_calls(case, table, a, b)}, {_calls(case, table, b, a)}.', (a, b))
        case.set(repaired)
        swapped |= {a, b}
    return swapped


def _calls(case: _Case, table: np.ndarray, a: int, b: int) -> str:
    return f'{_share(table[a, b], case.of_class[a])} of the {case.names[a]} objects are called {case.names[b]}'


def _called_by(detections: Detections, names: dict[int, int]) -> Detections:
    categories = np.array([names.get(category, category) for category in detections.categories.tolist()])
    return replace(detections, categories=categories)


def _renamed_groups(renamed: dict[int, int]) -> Iterator[list[int]]:
    """Groups of classes that bear one another's names, no two the same. One class alone that is called by another's
    name is confused with it, not renamed."""
    left = {a for a, b in renamed.items() if a != b}
    while left:
        group = {left.pop()}
        while more := {a for a in left if renamed[a] in group or a in {renamed[g] for g in group}}:
            group |= more
            left -= more
        borne = {renamed[a] for a in group}
        if len(borne) == len(group) > 1 and all(renamed.get(b) != b for b in borne):
            yield sorted(group)


# ---------------------------------------------------------------------- single faults


def _never_predicted(case: _Case) -> None:
    """Classes that no detection names. The cost: what their objects would bring if they were called by their names, or
    else if they were found as well as those of the other classes."""
    absent = sorted(case.of_class.keys() - set(case.detections.categories.tolist()))
    if not absent:
        return
    mistaken = np.flatnonzero(case.errors.kinds == 'class')
    mistaken = mistaken[np.isin(case.classes(case.errors.objects[mistaken]), absent)]
    categories = case.detections.categories.copy()
    categories[mistaken] = case.classes(case.errors.objects[mistaken])
    others = [case.values[category - 1] for category in case.of_class if category not in absent]
    assumed = case.values.copy()
    assumed[np.array(absent) - 1] = mean(np.array(others or [1.0]))
    renamed = case.counter.class_ap(replace(case.detections, categories=categories))
    count = sum(case.of_class[category] for category in absent)
    called = Tally(case.detections.categories[mistaken[case.sure[mistaken]]].tolist()).most_common(1)
    if len(absent) > 1:
        more = f' and {len(absent) - 5} more' if len(absent) > 5 else ''
        names = ', '.join(case.names[category] for category in absent[:5]) + more
        text = f'{len(absent)} classes are never predicted: {names}. Their {count} objects are lost'
    else:
        text = f'Class {case.names[absent[0]]} is never predicted: its {count} objects are lost'
    if called and called[0][1] > 0.3 * count:
        text += f', {_share(called[0][1], count)} of them called {case.names[called[0][0]]}'
    case.add('class never predicted', case.gain_to(max(assumed, renamed, key=mean)), text + '.', absent)
    case.accounted |= {key for key, one in case.objects.items() if one['category_id'] in absent}


def _confusions(case: _Case) -> None:
    """Objects of one class that are called another, and not found as what they are."""
    errors, categories = case.errors, case.detections.categories
    of_class = errors.kinds == 'class'
    meant = np.zeros(len(categories), int)
    meant[of_class] = case.classes(errors.objects[of_class])
    lost = of_class & case.sure & ~np.isin(errors.objects, errors.objects[errors.right & case.sure])
    pairs: dict[tuple[int, int], set[int]] = {}
    for i in np.flatnonzero(lost).tolist():
        pairs.setdefault((int(meant[i]), int(categories[i])), set()).add(int(errors.objects[i]))
    for (a, b), objects in sorted(pairs.items(), key=lambda item: -len(item[1])):
        if len(objects) < max(3, _MIN_SHARE * case.of_class[a]) or objects & case.accounted:
            continue
        gain = case.gain(replace(case.detections, categories=np.where((meant == a) & (categories == b), a, categories)))
        if gain.ap >= _MIN_COST:
            case.add('confused classes', gain, f'{_share(len(objects), case.of_class[a])} of the {case.of_class[a]} '
                     f'{case.names[a]} objects are called {case.names[b]}.', (a, b))


def _several_classes(case: _Case) -> None:
    """Second detections, under another class's name, of objects that are found as what they are."""
    errors = case.errors
    second = (errors.kinds == 'class') & np.isin(errors.objects, errors.objects[errors.right])
    gain = case.gain(case.detections[~second])
    if gain.ap >= _MIN_COST:
        objects = len(set(errors.objects[second].tolist()))
        case.add('several classes', gain, f'{_share(objects, len(case.objects))} of the objects are detected under '
                 f'several classes: {second.sum()} detections have the right place and a wrong class.')


def _duplicates(case: _Case) -> None:
    double = case.errors.kinds == 'duplicate'
    gain = case.gain(case.detections[~double])
    if gain.ap >= _MIN_COST:
        case.add('duplicates', gain, f'{_share(double.sum(), len(double))} of the detections ({double.sum()}) are '
                 'second ones, of objects that are found already.')


def _partial(case: _Case) -> None:
    """Detections of the right class that cover a part, or the surroundings, of objects that are found already."""
    errors = case.errors
    partial = (errors.kinds == 'location') & np.isin(errors.objects, errors.objects[errors.right])
    gain = case.gain(case.detections[~partial])
    if gain.ap >= _MIN_COST:
        case.add('partial detections', gain, f'{partial.sum()} detections lie partly (IoU 0.1 to 0.5) on objects that '
                 f'are found already{case.of_them_sure(partial)}.')


def _background(case: _Case) -> None:
    nothing = np.isin(case.errors.kinds, ['background', 'both'])
    gain = case.gain(case.detections[~nothing])
    if gain.ap >= _MIN_COST:
        classes = _most(case, Tally(case.detections.categories[nothing & case.sure].tolist()))
        case.add('false detections', gain, f'{nothing.sum()} detections fit no object{case.of_them_sure(nothing)}'
                 f'{classes}.')


def _missed(case: _Case) -> None:
    missed = set(case.errors.missed.tolist()) - case.accounted
    if not missed:
        return
    gain = case.gain(case.detections, without=missed)
    if gain.ap < _MIN_COST:
        return
    total, with_objects = len(case.objects), {one['image_id'] for one in case.objects.values()}
    empty = len(with_objects - set(case.detections.images.tolist()))
    on_empty = f' {empty} of {len(with_objects)} images with objects have no detection at all.' if empty else ''
    classes = Tally(case.objects[key]['category_id'] for key in missed)
    case.add('missed objects', gain, f'{_share(len(missed), total)} of the objects ({len(missed)} of {total}) are '
             f'missed: no detection of any score fits{_by_size(case.counter, missed)}'
             f'{_most(case, classes, case.of_class)}.{on_empty}')


def _by_size(counter: Counter, missed: set[int]) -> str:
    """' (60 % of the small, 10 % of the large ones)'."""
    parts = []
    for area, (least, most) in counter.metric.area_ranges.items():
        inside = [key for key, one in counter.objects.items() if not one['iscrowd'] and least <= one['area'] <= most]
        if area and inside:
            parts.append(f'{_share(sum(key in missed for key in inside), len(inside))} of the {area_name(area)}')
    return f' ({", ".join(parts)} ones)' if len(parts) > 1 else ''


def _most(case: _Case, classes: Tally, total: dict[int, int] | None = None) -> str:
    """'; 60 % are cup' where one class has more than its share."""
    if len(case.of_class) < 2 or not classes:
        return ''
    category, count = classes.most_common(1)[0]
    usual = total[category] / sum(total.values()) if total else 1 / len(case.of_class)
    whole = sum(classes.values())
    stands_out = count > max(2, 0.2 * whole, 1.5 * usual * whole)
    return f'; {_share(count, whole)} are {case.names[category]}' if stands_out else ''


def _loose(case: _Case) -> None:
    """Right classes on boxes, or masks, that fit badly: repaired, each is its object's own."""
    errors, detections = case.errors, case.detections
    near = np.flatnonzero((errors.kinds == 'location') & ~np.isin(errors.objects, errors.objects[errors.right]))
    near = near[np.argsort(-detections.scores[near], kind='stable')]
    near = near[np.unique(errors.objects[near], return_index=True)[1]]  # the best of each object
    better = np.concatenate([np.flatnonzero(errors.right), near])
    if not len(better):
        return
    boxes, masks = detections.boxes.copy(), None if detections.masks is None else list(detections.masks)
    for i in better.tolist():
        one = case.counter.objects[int(errors.objects[i])]
        boxes[i] = one['bbox']
        if masks is not None:
            masks[i] = one['segmentation']
    gain, median = case.gain(replace(detections, boxes=boxes, masks=masks)), float(np.median(errors.ious[better]))
    if gain.ap >= _MIN_SHIFT_GAIN and median < 0.95:
        mild = 'do not fit well' if median < 0.8 else 'could fit better'
        case.add(f'loose {case.what}', gain, f'The {case.what} {mild}, their IoU with the objects being {median:.2f} '
                 f'in the median{case.at_50_and_75()}.')


def _masks(case: _Case) -> None:
    """Masks that lose what their boxes had found."""
    right = np.flatnonzero(case.errors.right)
    if case.detections.masks is None or not len(right):
        return
    boxes = Counter(case.counter.metric, 'bbox', case.counter.images, case.counter.limit)
    gain = case.gain_to(boxes.class_ap(replace(case.detections, masks=None)))
    if gain.ap < 0.03:
        return
    areas = rle_areas([case.detections.masks[i] for i in right])
    there = rle_areas([case.counter.objects[i]['segmentation'] for i in case.errors.objects[right].tolist()])
    ratio = float(np.median(areas / np.maximum(there, 1)))
    area = f' The masks have {100 * ratio:.0f} % of the area of their objects in the median.'
    case.add('masks worse than boxes', gain, f'The masks score {_points(gain.ap)} points less than the boxes of the '
             f'same detections.{area if abs(1 - ratio) > 0.1 else ""}')


def _small(case: _Case) -> None:
    """The smallest objects, where they keep AP down."""
    ranges = sorted(limits for area, limits in case.counter.metric.area_ranges.items() if area)
    small = {key for key, one in case.objects.items() if one['area'] < ranges[0][1]}
    if len(ranges) < 2 or not 0.1 < len(small) / len(case.objects) < 0.95:
        return
    evaluation = case.counter.evaluate(case.detections)
    evaluation.accumulate()
    precision = evaluation.eval['precision'][..., -1]
    areas = list(case.counter.metric.area_ranges.values())
    values = [mean(np.where(precision > -1, precision, np.nan)[..., areas.index(limits)]) for limits in ranges]
    if values[0] < 0.6 * max(values[1:]):
        found = np.isin(case.errors.objects, list(small)) & case.errors.right
        side = round(ranges[0][1] ** 0.5)
        gain = case.gain(case.detections[~found], without=small)
        if gain.ap >= _MIN_COST:
            case.add('small objects', gain,
                     f'Objects under {side} x {side} pixels, {_share(len(small), len(case.objects))} of all, have AP '
                     f'{_points(values[0])}; larger ones up to {_points(max(values[1:]))}.')


def _scores(case: _Case) -> None:
    """What costs no AP: scores that promise too much, and detections that were cut off."""
    scores, errors = case.detections.scores, case.errors
    high = (errors.right | (errors.kinds != '')) & (scores >= 0.5)
    if high.sum() >= 20 and scores[high].mean() - errors.right[high].mean() > 0.15:
        case.add('overconfident scores', None, f'The scores are overconfident: detections of 0.5 and more have '
                 f'{scores[high].mean():.2f} on average, and {_share(errors.right[high].sum(), high.sum())} of them '
                 'are right.')
    if scores.min() >= 0.15 and len(set(errors.missed.tolist()) - case.accounted) > 0.05 * len(case.objects):
        case.add('cut scores', None, f'No detection has a score under {scores.min():.2f}: the results seem to be cut '
                 'off. AP counts detections of all scores.')


def _proposals(counter: Counter, detections: Detections) -> Iterator[Finding]:
    """What proposals, or detections whose class does not count, do not reach."""
    status = counter.evaluate(detections, brief=True).image_diagnostics(iou_thr=0.5)['gt_status']
    objects = {key: one for key, one in counter.objects.items() if not one['iscrowd']}
    missed = {key for key in objects if status.get(key) == 'fn'}
    if missed:
        names = {category['id']: category['name'] for category in counter.truth.categories}
        total, lost = (Tally(objects[key]['category_id'] for key in keys) for keys in (objects, missed))
        worst = sorted(lost, key=lambda category: -lost[category] / total[category])[:3]
        classes = ', '.join(f'{_share(lost[category], total[category])} of {names[category]}' for category in worst)
        yield Finding('missed proposals', f'{_share(len(missed), len(objects))} of the objects ({len(missed)} of '
                      f'{len(objects)}) are missed at IoU 0.5{_by_size(counter, missed)}'
                      f'{f"; {classes}" if len(total) > 1 else ""}.', None)


def area_name(area: str) -> str:
    """A range of areas in words, '_s' being CocoMetric's."""
    return dict(_s='small', _m='medium', _l='large').get(area, area[1:])


def _share(part: float, whole: float) -> str:
    """'12 %'; a small share is not rounded to nothing, nor a large one to all."""
    share = 100 * part / whole if whole else 0.0
    return f'{share:.1f} %' if 0 < share < 1 or 99 < share < 100 else f'{share:.0f} %'


def _points(value: float) -> str:
    """AP as it is printed, in points of 100."""
    return f'{100 * value:.1f}'
