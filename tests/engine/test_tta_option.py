"""Test-time augmentation from the command line, and the pipeline that it makes of a config's own."""

import json
import pickle

import factories
import pytest
import torch

from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.config.errors import UserError
from mmdet.config.load import load_config
from mmdet.engine.tta import use_tta, with_flip

LOAD, RESIZE = dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96))
ANNOTATIONS, PACK = dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')
FLIPS = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A thin Mask R-CNN untrained, images of shapes, and a config with views of two scales, mirrored."""
    folder = tmp_path_factory.mktemp('tta')
    factories.write_detector(folder)
    (folder / 'own.py').write_text(
        "_base_ = './config.py'\n"
        "tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=3))\n"
        "scales = [dict(type='Resize', scale=s, keep_ratio=True) for s in ((96, 96), (128, 128))]\n"
        f"tta_pipeline = [{LOAD}, dict(type='TestTimeAug', transforms=[scales, {FLIPS}, [{ANNOTATIONS}], [{PACK}]])]\n"
    )
    (folder / 'wrong.py').write_text(f"_base_ = './config.py'\ntta_pipeline = [{LOAD}, {RESIZE}, {PACK}]\n")
    return folder


def results(path) -> list[dict]:
    with open(path, 'rb') as file:
        return pickle.load(file)


@pytest.mark.parametrize('config, most', [('config.py', 5), ('own.py', 3)])
def test_test_and_predict(folder, config, most, run_tool, monkeypatch, tmp_path, on_the_cpu):
    """--tta alone and with a config's own views; `predict` finds what `test` finds."""
    monkeypatch.chdir(folder)
    out = tmp_path / 'found.pkl'
    status, printed, error = run_tool('test.py', config, 'weights.pth', '--tta', '--eval', 'bbox', 'segm', '--out', out,
                                      '--work-dir', tmp_path)
    assert status == 0, error
    assert 'bbox_mAP' in printed + error
    found = results(out)
    assert len(found) == 2 and all(0 < len(one['pred_instances']['scores']) <= most for one in found)
    plain = tmp_path / 'plain.pkl'
    assert run_tool('test.py', config, 'weights.pth', '--out', plain, '--work-dir', tmp_path)[0] == 0
    assert any(str(a['pred_instances']) != str(b['pred_instances']) for a, b in zip(found, results(plain)))
    status, _, error = run_tool('test.py', config, 'weights.pth', '--tta', '--format-only', '--work-dir', tmp_path)
    assert status == 0, error
    model = init_detector(config, 'weights.pth', device='cpu', tta=True)
    for one in found:
        again = inference_detector(model, one['img_path']).pred_instances
        expected = one['pred_instances']
        torch.testing.assert_close(again.bboxes, torch.as_tensor(expected['bboxes']), atol=1e-3, rtol=0)
        torch.testing.assert_close(again.scores, torch.as_tensor(expected['scores']), atol=1e-4, rtol=0)
    assert json.dumps(model.dataset_meta['classes'])


@pytest.mark.parametrize('config', ['config.py', 'own.py'])
def test_the_inferencer_finds_what_the_function_finds(folder, config, monkeypatch):
    monkeypatch.chdir(folder)
    images = sorted(str(path) for path in (folder / 'shapes/val').glob('*.*'))[:2]
    inferencer = DetInferencer(config, 'weights.pth', 'cpu', show_progress=False, tta=True)
    found = inferencer(images, batch_size=2, return_vis=True, return_datasamples=True)
    model = init_detector(config, 'weights.pth', device='cpu', tta=True)
    assert len(found['predictions']) == len(found['visualization']) == len(images) == 2
    for sample, expected in zip(found['predictions'], inference_detector(model, images)):
        assert 0 < len(sample.pred_instances) and sample.img_path == expected.img_path
        torch.testing.assert_close(sample.pred_instances.bboxes, expected.pred_instances.bboxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(sample.pred_instances.scores, expected.pred_instances.scores, atol=1e-4, rtol=0)
    plain = DetInferencer(config, 'weights.pth', 'cpu', show_progress=False)(images, return_datasamples=True)
    assert any(str(a.pred_instances.scores) != str(b.pred_instances.scores)
               for a, b in zip(found['predictions'], plain['predictions']))  # fmt: skip


def test_predict_from_the_command_line(folder, monkeypatch, tmp_path):
    from mmdet.cli.predict import main

    monkeypatch.chdir(folder)
    main(['own.py', 'weights.pth', 'shapes/val', '--tta', '--score-thr', '0', '--out-dir', str(tmp_path), '--device',
          'cpu'])
    found = json.loads((tmp_path / 'predictions.json').read_text())
    assert 0 < len(found['annotations']) <= 2 * 3


@pytest.mark.parametrize(
    'steps, place',
    [
        ([LOAD, RESIZE, PACK], 2),
        ([LOAD, RESIZE, ANNOTATIONS, PACK], 2),
        ([LOAD, RESIZE, dict(type='Pad', size_divisor=32), PACK], 2),
        ([LOAD, dict(type='LoadProposals', num_max_proposals=5), RESIZE, PACK], 3),
        ([LOAD, PACK], 1),
    ],
)
def test_the_mirrored_view_begins_where_boxes_still_follow(steps, place):
    views = dict(type='TestTimeAug', transforms=[FLIPS, *([step] for step in steps[place:])])
    assert with_flip(steps) == [*steps[:place], views]


def test_every_data_set_gets_the_views_and_a_pipeline_without_views_is_refused(folder):
    cfg = load_config(folder / 'config.py')
    dataset = cfg.test_dataloader.dataset.to_dict()
    parts = [dataset, dict(type='RepeatDataset', dataset=dataset)]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    use_tta(cfg)
    first, second = cfg.test_dataloader.dataset.datasets
    assert first.pipeline[-1].type == second.dataset.pipeline[-1].type == 'TestTimeAug'
    with pytest.raises(UserError, match='tta_pipeline has no TestTimeAug'):
        use_tta(load_config(folder / 'wrong.py'))
