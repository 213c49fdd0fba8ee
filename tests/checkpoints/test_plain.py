"""What is written: plain data that comes back as it was."""

from collections import Counter, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmdet.checkpoints import read_checkpoint
from mmdet.checkpoints.plain import from_plain, plain_meta, to_plain
from mmdet.engine import saving  # noqa: F401  (it knows mmengine's objects)


def test_plain_form_survives_weights_only_loading(tmp_path):
    history = HistoryBuffer([1.0, 2.5], [1, 2], max_length=10)
    value = dict(array=np.arange(6.0).reshape(2, 3), names=np.array(['a', 'b']), number=np.float64(0.5),
                 count=np.int64(3), milestones=Counter({8: 1, 11: 1}), ids=deque([1, 2]), kinds={1, 2},
                 path=Path('a/b'), history=history, shape=(3, 4), nothing=None, flag=True)  # fmt: skip
    torch.save(to_plain(value), tmp_path / 'x.pth')
    back = from_plain(torch.load(tmp_path / 'x.pth', weights_only=True))
    assert back['array'].tolist() == value['array'].tolist() and back['array'].dtype == np.float64
    assert back['names'] == ['a', 'b'] and back['milestones'] == value['milestones']
    assert (back['number'], back['count'], back['ids'], back['kinds']) == (0.5, 3, deque([1, 2]), {1, 2})
    assert back['path'] == 'a/b' and back['shape'] == (3, 4) and back['flag'] is True and back['nothing'] is None
    assert [a.tolist() for a in back['history'].data] == [a.tolist() for a in history.data]
    assert back['history'].max_length == 10


def test_no_plain_form_is_named():
    with pytest.raises(TypeError, match='torch.nn.modules.linear.Linear'):
        to_plain(dict(a=[nn.Linear(1, 1)]))


@pytest.mark.parametrize('kind', [list, tuple])
def test_nested_references_are_visited_once(kind, tmp_path):
    """A few hundred bytes that would unfold to 2**60 parts."""
    bomb = 'x'
    for _ in range(60):
        bomb = kind([bomb, bomb])
    history = dict(log_scalars=HistoryBuffer([1.0], [1]))
    for hub in ({}, history):  # plain, and as a Runner of mmengine alone saves it
        torch.save(dict(meta=dict(epoch=bomb, CLASSES=bomb), state_dict={}, message_hub=hub), tmp_path / 'x.pth')
        meta = read_checkpoint(str(tmp_path / 'x.pth')).meta
        assert plain_meta(meta)['epoch'][0][1][0][0][0][1] is not None
    parts = [{}]
    for _ in range(60):
        parts.append(dict(a=parts[-1], b=parts[-1]))
    assert from_plain(to_plain(parts[-1]))['a']['b']['a'].keys() == {'a', 'b'}


def test_meta_that_has_no_plain_form_is_not_published():
    assert plain_meta(dict(epoch=torch.float32, iter=3, dataset_meta=dict(classes=('a',)), seed=1)) == dict(
        iter=3, dataset_meta=dict(classes=('a',)))
