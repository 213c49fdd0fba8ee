"""What is recognised, how it is renamed, and what is refused."""

import hashlib
import pickle
from types import SimpleNamespace

import known_keys as known
import numpy as np
import pytest
import torch
from factories import build, model_cfg, small_cfg
from mmengine.logging import HistoryBuffer
from torchvision.models import resnet50

from mmdet.checkpoints import (
    convert,
    load_checkpoint,
    needs_legacy_options,
    read_checkpoint,
    to_torchvision,
)
from mmdet.checkpoints.classes import COCO_IDS
from mmdet.config.errors import UserError
from mmdet.registry import MODELS


def narrow(name: str, num_classes: int = 3):
    """A detector of ResNet-50's depth and few channels, every parameter random."""
    model = build(small_cfg(name.removesuffix('_r50_fpn'), 50, 8, channels=16, hidden=8, num_classes=num_classes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


# ------------------------------------------------------------------ mmdetection 2.x and 3.x


MMDET3 = {
    'faster_rcnn_r50_fpn': known.mmdet_fpn() + known.mmdet_rpn() + known.mmdet_box_head(),
    'mask_rcnn_r50_fpn': known.mmdet_fpn() + known.mmdet_rpn() + known.mmdet_box_head() + known.mmdet_mask_head(),
    'fast_rcnn_r50_fpn': known.mmdet_fpn() + known.mmdet_box_head(),
    'rpn_r50_fpn': known.mmdet_fpn() + known.mmdet_rpn(),
    'retinanet_r50_fpn': known.mmdet_fpn(3, 5) + known.mmdet_retina_head(),
    'cascade_rcnn_r50_fpn': known.mmdet_fpn()
    + known.mmdet_rpn()
    + [k for i in range(3) for k in known.mmdet_box_head(f'roi_head.bbox_head.{i}')],
    'cascade_mask_rcnn_r50_fpn': known.mmdet_fpn()
    + known.mmdet_rpn()
    + [k for i in range(3) for k in known.mmdet_box_head(f'roi_head.bbox_head.{i}')]
    + [k for i in range(3) for k in known.mmdet_mask_head(f'roi_head.mask_head.{i}')],
}


@pytest.mark.parametrize('name', MMDET3)
def test_mmdet3_keys(name):
    with torch.device('meta'):
        keys = list(MODELS.build(model_cfg(name.removesuffix('_r50_fpn'))).state_dict())
    assert sorted(keys) == sorted(known.mmdet_backbone() + MMDET3[name])


@pytest.mark.parametrize(
    'change, backbone',
    [
        (dict(depth=101), known.mmdet_backbone(101)),
        (dict(type='ResNeXt', depth=101, groups=64, base_width=4), known.mmdet_backbone(101)),
        (dict(style='caffe'), known.mmdet_backbone()),
        (dict(norm_cfg=dict(type='GN', num_groups=32)), known.mmdet_backbone(norm='gn')),
    ],
    ids=['r101', 'x101', 'caffe', 'gn'],
)
def test_mmdet3_backbone_keys(change, backbone):
    cfg = model_cfg('retinanet')
    cfg.backbone.update(change)
    with torch.device('meta'):
        model = MODELS.build(cfg)
    assert sorted(k for k in model.state_dict() if k.startswith('backbone.')) == sorted(backbone)
    stride = model.backbone.layer2[0].conv1.stride if change.get('style') == 'caffe' else None
    assert stride in (None, (2, 2))


def test_mmdet3_gn_head_keys():
    cfg = model_cfg('mask_rcnn')
    norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)
    cfg.neck.norm_cfg = norm_cfg
    cfg.roi_head.bbox_head.update(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg)
    cfg.roi_head.mask_head.norm_cfg = norm_cfg
    with torch.device('meta'):
        keys = list(MODELS.build(cfg).state_dict())
    expected = known.mmdet_fpn(norm='gn') + known.mmdet_box_head(convs=4, fcs=1, norm='gn')
    expected += known.mmdet_mask_head(norm='gn') + known.mmdet_rpn()
    assert sorted(keys) == sorted(known.mmdet_backbone() + expected)


def test_mmdet3_file_loads_unchanged(tmp_path):
    model = narrow('mask_rcnn_r50_fpn')
    meta = dict(mmengine_version='0.10.7', dataset_meta=dict(classes=('a', 'b', 'c')), epoch=12, iter=100, seed=1)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / 'x.pth')
    other = narrow('mask_rcnn_r50_fpn')
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    checkpoint = load_checkpoint(other, str(tmp_path / 'x.pth'))
    assert checkpoint['meta']['dataset_meta']['classes'] == ('a', 'b', 'c')
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())
    assert not needs_legacy_options(read_checkpoint(str(tmp_path / 'x.pth')))


def test_mmdet3_training_file_loads_without_its_history(tmp_path):
    """mmengine's Runner saves HistoryBuffer and numpy objects, which weights-only loading refuses."""
    state = narrow('rpn_r50_fpn').state_dict()
    hub = dict(log_scalars=dict(loss=HistoryBuffer([1.0, 2.0], [1, 1])), runtime_info=dict(iter=np.int64(3)))
    meta = dict(epoch=12, iter=100, seed=np.int64(3), mmengine_version='0.10.7')
    torch.save(dict(meta=meta, state_dict=state, message_hub=hub, optimizer=dict(lr=np.float64(1))), tmp_path / 'x.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'x.pth', weights_only=True)
    checkpoint = read_checkpoint(str(tmp_path / 'x.pth'))
    assert set(checkpoint) == {'meta', 'state_dict'}
    assert checkpoint['meta'] == dict(epoch=12, iter=100, mmengine_version='0.10.7')
    assert all(torch.equal(checkpoint['state_dict'][k], v) for k, v in state.items())


# ------------------------------------------------------------------ mmdetection 1.x


def as_mmdet1(state: dict) -> dict:
    """Names without roi_head, background first."""
    old = {}
    for key, value in state.items():
        if 'fc_cls' in key:
            value = torch.cat([value[-1:], value[:-1]])
        elif 'conv_logits' in key or ('fc_reg' in key and len(value) > 4):
            rows = 1 if 'conv_logits' in key else 4
            value = torch.cat([torch.randn_like(value[:rows]), value])
        old[key.removeprefix('roi_head.')] = value
    return old


@pytest.mark.parametrize('name', ['faster_rcnn_r50_fpn', 'mask_rcnn_r50_fpn', 'cascade_mask_rcnn_r50_fpn'])
def test_mmdet1_classes_and_names(name):
    state = narrow(name).state_dict()
    converted = convert(dict(meta=dict(mmdet_version='1.2.0', mmcv_version='0.5'), state_dict=as_mmdet1(state)))
    assert converted.source == 'mmdetection 1.2.0'
    assert converted.state_dict.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in converted.state_dict.items())


def test_mmdet1_retinanet_is_known_by_its_version(tmp_path):
    state = narrow('retinanet_r50_fpn').state_dict()
    for version, legacy in (('1.0rc1', True), ('2.3.0', False)):
        torch.save(dict(meta=dict(mmdet_version=version, mmcv_version='0.4'), state_dict=state), tmp_path / 'x.pth')
        assert needs_legacy_options(read_checkpoint(str(tmp_path / 'x.pth'))) == legacy


# ------------------------------------------------------------------ classes


def test_91_rows_become_80_or_90():
    state = {'backbone.body.conv1.weight': torch.zeros(1), 'roi_heads.box_predictor.cls_score.bias': torch.arange(91)}
    state['roi_heads.box_predictor.bbox_pred.bias'] = torch.arange(364)
    for num_classes, ids in ((None, COCO_IDS), (80, COCO_IDS), (90, list(range(1, 91)))):
        new = convert(state, num_classes).state_dict
        assert new['roi_head.bbox_head.fc_cls.bias'].tolist() == [*ids, 0]
        assert new['roi_head.bbox_head.fc_reg.bias'].tolist() == [4 * i + j for i in ids for j in range(4)]


def test_old_torchvision_names():
    old = {
        'backbone.body.conv1.weight': torch.zeros(1),
        'backbone.fpn.inner_blocks.2.weight': torch.zeros(2),
        'backbone.fpn.layer_blocks.0.bias': torch.zeros(3),
        'rpn.head.conv.weight': torch.zeros(4),
        'roi_heads.mask_head.mask_fcn3.bias': torch.zeros(5),
    }
    new = convert(old).state_dict
    assert {key: len(value) for key, value in new.items()} == {
        'backbone.conv1.weight': 1,
        'neck.lateral_convs.2.conv.weight': 2,
        'neck.fpn_convs.0.conv.bias': 3,
        'rpn_head.rpn_conv.weight': 4,
        'roi_head.mask_head.convs.2.conv.bias': 5,
    }
    retina = {'backbone.body.conv1.weight': torch.zeros(1), 'head.regression_head.conv.4.bias': torch.zeros(2)}
    retina.update({
        'head.classification_head.conv.0.weight': torch.zeros(3),
        'head.classification_head.cls_logits.weight': torch.zeros(9 * 4, 1),
        'head.regression_head.bbox_reg.weight': torch.zeros(36, 1),
    })
    assert {'bbox_head.reg_convs.2.conv.bias', 'bbox_head.cls_convs.0.conv.weight'} <= set(convert(retina).state_dict)


# ------------------------------------------------------------------ refusals


class Evil:
    def __reduce__(self):
        return (open, ('evil_ran', 'w'))


@pytest.mark.parametrize('write', [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(dict(state_dict={}, evil=Evil()), tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'may run (any )?code.*refused.*convert_checkpoint.py --trust') as error:
        read_checkpoint(str(tmp_path / 'x.pth'))
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'evil_ran').exists()


def test_misfits_name_at_most_ten_keys(tmp_path):
    model = narrow('faster_rcnn_r50_fpn')

    def message(state: dict) -> str:
        torch.save(dict(state_dict=state), tmp_path / 'x.pth')
        with pytest.raises(UserError) as error:
            load_checkpoint(model, str(tmp_path / 'x.pth'))
        assert '\n' not in str(error.value) and str(error.value).count('.weight') <= 10
        return str(error.value)

    other_classes = narrow('faster_rcnn_r50_fpn', num_classes=5)
    text = message(other_classes.state_dict())
    assert 'fc_cls.weight' in text and '(6, 8)' in text and '(4, 8)' in text
    assert 'not in the file' in message(narrow('rpn_r50_fpn').state_dict())
    assert 'not in the model' in message(narrow('mask_rcnn_r50_fpn').state_dict())
    assert 'not a checkpoint of a known detector' in message({'encoder.weight': torch.zeros(1)})
    assert 'backbone alone' in message(resnet50().state_dict())


def test_truncated_and_missing(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.zeros(1000)}), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match='damaged'):
        read_checkpoint(str(path))
    whole = pickle.dumps({'conv1_w': np.zeros(1000)})
    path.write_bytes(whole[:500])
    with pytest.raises(UserError, match='damaged'):
        read_checkpoint(str(path))
    with pytest.raises(FileNotFoundError, match='not found'):
        read_checkpoint(str(tmp_path / 'y.pth'))


def test_export_refuses_what_torchvision_lacks():
    with pytest.raises(UserError, match='Cascade'):
        to_torchvision(narrow('cascade_rcnn_r50_fpn').state_dict())


# ------------------------------------------------------------------ tools


@pytest.fixture
def tool(run_tool):
    """Function `tool(name, *args)`: runs tools/NAME.py as a program; its status, stdout and stderr."""

    def call(name: str, *args) -> SimpleNamespace:
        status, out, err = run_tool(f'{name}.py', *args)
        return SimpleNamespace(returncode=status, stdout=out, stderr=err)

    return call


def test_convert_tool_both_ways(tmp_path, tool):
    model = narrow('mask_rcnn_r50_fpn')
    torch.save(dict(meta=dict(epoch=3), state_dict=model.state_dict(), optimizer={}), tmp_path / 'ours.pth')
    out = tool('convert_checkpoint', tmp_path / 'ours.pth', tmp_path / 'tv.pth', '--to', 'torchvision')
    assert out.returncode == 0, out.stderr
    assert 'recognised: mmdetection' in out.stdout and 'dropped: optimizer' in out.stdout
    back = tool('convert_checkpoint', tmp_path / 'tv.pth', tmp_path / 'back.pth')
    assert 'recognised: torchvision Mask R-CNN' in back.stdout and '-> neck.lateral_convs.#.conv\n' in back.stdout
    state = torch.load(tmp_path / 'back.pth', weights_only=True)['state_dict']
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    again = tool('convert_checkpoint', tmp_path / 'tv.pth', tmp_path / 'back.pth')
    assert again.returncode == 2 and 'exists' in again.stderr and len(again.stderr.splitlines()) == 1


def test_backbone_goes_to_torchvision_and_back(tmp_path, tool):
    cfg = model_cfg('rpn')
    model = MODELS.build(cfg)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'rpn.pth')
    out = tool('convert_checkpoint', tmp_path / 'rpn.pth', tmp_path / 'tv.pth', '--to', 'torchvision-backbone')
    assert out.returncode == 0 and 'arrays beside the backbone' in out.stdout
    classifier = resnet50()
    lacking = classifier.load_state_dict(torch.load(tmp_path / 'tv.pth', weights_only=True), strict=False)
    assert lacking.missing_keys == ['fc.weight', 'fc.bias'] and not lacking.unexpected_keys
    torch.save(classifier.state_dict(), tmp_path / 'resnet50.pth')
    cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet50.pth'))
    other = MODELS.build(cfg)
    other.init_weights()
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in other.backbone.state_dict().items())


def test_convert_tool_reads_code_only_when_trusted(tmp_path, tool):
    path = tmp_path / 'x.pth'
    torch.save(dict(state_dict=narrow('rpn_r50_fpn').state_dict(), note=np.dtype('f4'), path=tmp_path), path)
    refused = tool('convert_checkpoint', path, tmp_path / 'out.pth')
    assert refused.returncode == 2 and '--trust' in refused.stderr and not (tmp_path / 'out.pth').exists()
    trusted = tool('convert_checkpoint', '--trust', path, tmp_path / 'out.pth')
    assert trusted.returncode == 0, trusted.stderr
    assert read_checkpoint(str(tmp_path / 'out.pth'))['state_dict'].keys() >= {'rpn_head.rpn_cls.weight'}


def test_trusted_pickle_of_arrays(tmp_path, tool):
    path = tmp_path / 'model_final.pkl'
    state = {key: value.numpy() for key, value in narrow('rpn_r50_fpn').state_dict().items()}
    path.write_bytes(pickle.dumps(dict(model=state, where=tmp_path), protocol=2))
    assert tool('convert_checkpoint', path, tmp_path / 'out.pth').returncode == 2
    trusted = tool('convert_checkpoint', '--trust', path, tmp_path / 'out.pth')
    assert trusted.returncode == 0, trusted.stderr


def wrong_use(folder) -> dict[str, tuple[list, str]]:
    """What is given to convert_checkpoint.py, and what its one line says."""
    torch.save(narrow('rpn_r50_fpn').state_dict(), folder / 'rpn.pth')
    torch.save(resnet50().state_dict(), folder / 'resnet.pth')
    torch.save({1: torch.zeros(2)}, folder / 'numbers.pth')
    torch.save(dict(state_dict={}), folder / 'nothing.pth')
    torch.save(torch.nn.Linear(1, 1), folder / 'module.pth')
    (folder / 'text.pth').write_text('hello')
    out = folder / 'out.pth'
    return {
        'in is out': ([folder / 'rpn.pth', folder / 'rpn.pth'], 'rpn.pth exists'),
        'out is a folder': ([folder / 'rpn.pth', folder], 'exists'),
        'folder of out is a file': ([folder / 'rpn.pth', folder / 'text.pth' / 'x.pth'], 'cannot write there'),
        'numbers for names': ([folder / 'numbers.pth', out], 'no weights in it'),
        'nothing': ([folder / 'nothing.pth', out], 'no weights in it'),
        'a module': ([folder / 'module.pth', out], 'refused'),
        'a trusted module': (['--trust', folder / 'module.pth', out], 'holds a Linear'),
        'a trusted text': (['--trust', folder / 'text.pth', out], 'neither'),
        'a trusted folder': (['--trust', folder, out], 'is a folder'),
        'a backbone as detector': ([folder / 'resnet.pth', out, '--to', 'torchvision'], 'backbone alone'),
        'classes without effect': ([folder / 'rpn.pth', out, '--num-classes', '90'], "torchvision's 91 outputs"),
        'classes that are none': ([folder / 'rpn.pth', out, '--num-classes', '3'], 'choose from'),
    }


def test_wrong_use_of_the_tools_ends_in_one_line_and_loses_nothing(tmp_path, tool):
    cases = wrong_use(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name, (args, message) in cases.items():
        ended = tool('convert_checkpoint', *args)
        assert ended.returncode == 2 and message in ended.stderr and len(ended.stderr.splitlines()) == 1, name
    ended = tool('publish_model', tmp_path / 'rpn.pth', f'{tmp_path}/')
    assert ended.returncode == 2 and 'is a folder' in ended.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_converted_legacy_file_keeps_its_conventions(tmp_path, tool):
    state = as_mmdet1(narrow('faster_rcnn_r50_fpn').state_dict())
    torch.save(dict(meta=dict(mmdet_version='0.6.0', mmcv_version='0.2'), state_dict=state), tmp_path / 'x.pth')
    out = tool('convert_checkpoint', tmp_path / 'x.pth', tmp_path / 'y.pth')
    assert out.returncode == 0, out.stderr
    assert needs_legacy_options(read_checkpoint(str(tmp_path / 'y.pth')))
    converted = convert(read_checkpoint(str(tmp_path / 'y.pth')))
    assert not converted.changed and not converted.reordered


def test_publish_tool(tmp_path, tool):
    model = narrow('rpn_r50_fpn')
    meta = dict(epoch=12, cfg='secret = 1', seed=3, dataset_meta=dict(classes=('a',)), hostname='me')
    state = {**model.state_dict(), 'neck._extra_state': dict(count=3)}  # of a layer with get_extra_state()
    torch.save(dict(meta=meta, state_dict=state, optimizer=dict(a=1), message_hub={}), tmp_path / 'e.pth')
    out = tool('publish_model', tmp_path / 'e.pth', tmp_path / 'rpn.pth')
    assert out.returncode == 0, out.stderr
    (path,) = tmp_path.glob('rpn-????????.pth')
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:8] == path.stem[-8:]
    published = read_checkpoint(str(path))
    assert set(published) == {'meta', 'state_dict'} and set(published['meta']) == {'epoch', 'dataset_meta'}
