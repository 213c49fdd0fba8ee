"""A metric that is given other names than it reads: one line, or its own error with what it was given."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from torch import nn

from mmdet.config.errors import UserError, run_main
from mmdet.engine.data_checks import check_data
from mmdet.evaluation.voc import VOCMetric


class Mine(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [sample['pred_boxes'] for sample in data_samples]

    def compute_metrics(self, results):
        return {}


@pytest.mark.parametrize('sample, came', [
    (dict(img_id=0, boxes=[]), r'a dict \(img_id, boxes\)'),
    (dict(img_id=0, pred_instances=dict(boxes=[], scores=[])), r'a dict \(boxes, scores\)'),
])  # fmt: skip
def test_our_metric_says_what_it_needs(sample, came):
    metric = VOCMetric()
    metric.dataset_meta = dict(classes=('a',))
    with pytest.raises(UserError, match=f'VOCMetric.process needs samples with pred_instances of .*given {came}$'):
        metric.process({}, [sample])
    none = dict(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.long))
    metric.process({}, [dict(img_id=0, pred_instances=none, gt_instances=none)])  # looked at once


def test_ones_own_metric_keeps_its_error_and_hears_what_it_was_given(capsys):
    evaluator = Evaluator([Mine()])
    loader = torch.utils.data.DataLoader([0])
    loop = SimpleNamespace(dataloader=loader, evaluator=evaluator)
    check_data(SimpleNamespace(cfg={}, _train_loop=None, _val_loop=loop, _test_loop=None), nn.Linear(1, 1))

    def main():
        evaluator.process([dict(img_id=0, pred_instances=dict(bboxes=[]))], {})

    with pytest.raises(SystemExit) as end:
        run_main(main)
    said = capsys.readouterr().err
    assert end.value.code == 1 and "self.results += [sample['pred_boxes']" in said  # a traceback
    last = said.splitlines()[-1]
    assert last == ('error: pred_boxes (in the first call of Mine.process, which is given '
                    'a dict (), a list (a dict (img_id, pred_instances (bboxes))))')  # fmt: skip
