"""Stages under a stopwatch: whose time counts where, and that all of it counts."""

import time

import factories
import pytest
import torch

from mmdet.apis.stage_times import Stopwatch, random_batch, time_stages


class Parts:
    def outer(self):
        time.sleep(0.05)
        self.inner()
        time.sleep(0.05)

    def inner(self):
        time.sleep(0.1)


@pytest.mark.parametrize('name, outer, inner', [('postprocess', 0.1, 0.1), ('masks', 0.2, 0)])
def test_a_stage_inside_a_stage(name, outer, inner):
    watch, parts = Stopwatch('cpu'), Parts()
    watch.watch(parts, 'outer', name)
    watch.watch(parts, 'inner', 'backbone')
    start = time.perf_counter()
    parts.outer()
    whole = time.perf_counter() - start
    assert watch.seconds.get('backbone', 0) >= inner and watch.seconds[name] >= outer
    assert sum(watch.seconds.values()) == pytest.approx(whole, abs=0.05)  # a stage that counted twice is 0.1 off


def test_a_stage_that_fails_is_over():
    watch = Stopwatch('cpu')
    with pytest.raises(ValueError), watch.stage('a'), watch.stage('b'):
        raise ValueError
    assert watch.running == [] and set(watch.seconds) == {'a', 'b'}


@pytest.mark.parametrize('kind, stages', [
    ('mask_rcnn', {'neck', 'rpn head', 'proposals', 'roi head', 'masks'}),
    ('retinanet', {'neck', 'dense head'}),
    ('rpn', {'neck', 'rpn head', 'proposals'}),
])  # fmt: skip
def test_each_stage_of_a_detector_has_its_time_and_all_is_found(kind, stages):
    models = [factories.quick_detector(kind).eval() for _ in range(2)]
    expected, = models[0].test_step(random_batch((64, 96), 1))
    found = []
    batch = random_batch((64, 96), 1)
    seconds = time_stages(models[1], [lambda: found.append(random_batch((64, 96), 1)) or found[-1]], repeats=1)
    assert set(seconds) == {'load', 'preprocess', 'backbone', 'postprocess', 'total', *stages}
    assert all(second > 0 for second in seconds.values())
    assert sum(seconds.values()) == pytest.approx(2 * seconds['total'])
    assert len(found) == 2  # one to warm up
    seen = found[1]['data_samples'][0].pred_instances
    assert torch.equal(seen.bboxes, expected.pred_instances.bboxes) and len(batch['inputs']) == 1
