"""What Python does between a batch and its losses, counted."""

import sys
from collections import Counter
from pathlib import Path

import torch
from factories import batch, model_cfg

import mmdet
from mmdet.registry import MODELS

PACKAGE = str(Path(mmdet.__file__).parent)


def frames_entered(run) -> Counter:
    """How often `run` enters each function (and each turn of a generator) of this package."""
    entered = Counter()

    def count(frame, event, argument):
        code = frame.f_code
        if event == 'call' and code.co_filename.startswith(PACKAGE):
            entered[Path(code.co_filename).name, code.co_name] += 1

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return entered


def test_faster_rcnn_enters_few_frames_from_batch_to_losses():
    torch.manual_seed(0)
    model = MODELS.build(model_cfg('faster_rcnn')).train()
    data = model.data_preprocessor(batch([2, 3]), True)
    model(**data, mode='loss')  # fills caches
    entered = frames_entered(lambda: model(**data, mode='loss'))
    assert entered['conv.py', 'conv_norm'] == 53 + 3 + 5  # the backbone's, FPN's with a sum, the RPN's on five levels
    assert entered.total() <= 450, entered.most_common(20)
