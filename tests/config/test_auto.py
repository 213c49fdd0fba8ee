"""``num_classes='auto'``."""

import pytest
from mmengine.config import Config

from mmdet.config.auto import fill_num_classes
from mmdet.config.errors import UserError
from mmdet.config.load import load_config

CONFIG = 'configs/efficientnet/mask_rcnn_efficientnet_lite0_fpn_cbn.py'


def counts(cfg: Config) -> list:
    return [cfg.model.roi_head.bbox_head.num_classes, cfg.model.roi_head.mask_head.num_classes]


def test_the_number_of_the_training_sets_classes():
    assert counts(load_config(CONFIG)) == [80, 80]  # CocoDataset's own
    names = {'train_dataloader.dataset.metainfo': dict(classes=('a', 'b', 'c'))}
    cfg = load_config(CONFIG, names)
    assert counts(cfg) == [3, 3] and "'auto'," in cfg.pretty_text.replace("='auto'", "='auto',")  # in_channels
    assert 'num_classes=3' in cfg.pretty_text  # which the checkpoint keeps
    assert counts(load_config(CONFIG, {'train_dataloader.dataset.metainfo': dict(classes='one')})) == [1, 1]


def test_of_a_cascade_a_wrapped_set_and_a_test_alone():
    heads = [dict(type='Shared2FCBBoxHead', num_classes='auto') for _ in range(2)] + [dict(num_classes=7)]
    inner = dict(type='CocoDataset', metainfo=dict(classes=('a', 'b')))
    wrapped = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[inner, dict(type='CocoDataset')]))
    cfg = Config(dict(model=dict(roi_head=dict(bbox_head=heads)), test_dataloader=dict(dataset=wrapped)))
    fill_num_classes(cfg)
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [2, 2, 7]


@pytest.mark.parametrize('loader', [None, dict(dataset=dict(type='NoSuchSet'))])
def test_no_data_set_says_its_classes(loader):
    cfg = Config(dict(model=dict(bbox_head=dict(num_classes='auto')), train_dataloader=loader))
    with pytest.raises(UserError, match="num_classes='auto' needs a data set that names its classes"):
        fill_num_classes(cfg)
