"""What is written: plain data that comes back as it was."""

from collections import Counter, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmdet.checkpoints.plain import from_plain, to_plain
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
