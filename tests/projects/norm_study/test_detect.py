"""The detection part: what its configs say, and one cell from start to record."""

import json
from pathlib import Path

import pytest

from mmdet.layers import CrossIterBatchNorm2d
from mmdet.registry import MODELS
from projects.norm_study import detect

NORMS = ('none', 'BN', 'SyncBN', 'GN', 'naive', 'CBN')


def config(name='bccd', norm='CBN', batch=1, processes=1, full=False):
    cell = dict(set=name, norm=norm, batch=batch, seed=0)
    return detect.build_config(cell, Path('/nowhere'), 'unused', processes, full)


@pytest.mark.parametrize('name', detect.SETS)
def test_the_norm_is_all_that_differs(name):
    def without_norm(cfg):
        cfg = cfg.to_dict()
        heads = [cfg['model']['neck'], *(v for k, v in cfg['model']['roi_head'].items() if k.endswith('_head'))]
        norms = [head.pop('norm_cfg') for head in heads]
        cfg.pop('norm_cfg', None)
        return cfg, norms

    first, _ = without_norm(config(name, 'none'))
    for norm in NORMS[1:]:
        other, norms = without_norm(config(name, norm))
        assert other == first
        assert all(n == detect.norm_cfg(norm, False) for n in norms) and len(norms) == 2 + (name != 'bccd')


def test_the_learning_rate_follows_the_images_of_a_step():
    rates = [config(batch=b, processes=p).optim_wrapper.optimizer.lr for b, p in ((1, 1), (2, 1), (2, 2))]
    assert rates == pytest.approx([rates[0], 2 * rates[0], 4 * rates[0]])


@pytest.mark.parametrize('name, layers', [('bccd', 8 + 4), ('nuclei_dsb2018', 8 + 4 + 4)])
def test_the_model_has_the_norm_in_neck_and_heads_alone(name, layers):
    model = MODELS.build(config(name).model)
    found = [n for n, m in model.named_modules() if isinstance(m, CrossIterBatchNorm2d)]
    assert len(found) == layers and not any(n.startswith(('backbone', 'rpn_head')) for n in found)


def test_a_pretrained_backbone_is_loaded_and_its_first_stage_frozen():
    cell = dict(set='bccd', norm='CBN', batch=1, seed=0, backbone='nuclei.pth')
    backbone = detect.build_config(cell, Path('/nowhere'), 'unused', 1, False).model.backbone
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint='nuclei.pth')
    frozen = {n for n, p in MODELS.build(backbone).named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith(('conv1', 'gn1', 'layer1')) for name in frozen)


@pytest.mark.slow
def test_a_cell_leaves_its_record(real_data, tmp_path, monkeypatch):
    small = detect.SCALES[False]._replace(epochs=1, size=(96, 96))
    monkeypatch.setitem(detect.SCALES, False, small)
    out = tmp_path / 'record.json'
    detect.run_cell(dict(set='bccd', norm='CBN', batch=4, seed=0), real_data, 1, False, out)
    record = json.loads(out.read_text())
    assert record['images'] == 205 and record['lr'] == pytest.approx(0.04)
    assert out.with_suffix('.pth').exists()
    assert 0 <= record['metrics']['bbox_mAP'] < record['metrics']['bbox_mAP_50'] <= 1
