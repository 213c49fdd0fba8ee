"""A checkpoint alone: the config that it holds is read as data, translated, and fits its weights."""

import json

import cv2
import numpy as np
import pytest
import torch

from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.checkpoints import config_of, is_checkpoint, read_checkpoint
from mmdet.checkpoints.classes import background_first
from mmdet.config.errors import UserError
from mmdet.config.load import load_config
from mmdet.registry import MODELS

# As the method's release wrote it, but small: Faster R-CNN with CBN.
OLD = """
normalize = dict(type='CBN', buffer_num=3, burnin=8, frozen=False)
model = dict(
    type='FasterRCNN',
    pretrained='modelzoo://resnet18',
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1, style='pytorch'),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=5, normalize=normalize),
    rpn_head=dict(type='RPNHead', in_channels=16, feat_channels=16, anchor_scales=[8], anchor_ratios=[0.5, 1.0, 2.0],
                  anchor_strides=[4, 8, 16, 32, 64], target_means=[.0] * 4, target_stds=[1.0] * 4,
                  use_sigmoid_cls=True),
    bbox_roi_extractor=dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', out_size=7, sample_num=2),
                            out_channels=16, featmap_strides=[4, 8, 16, 32]),
    bbox_head=dict(type='ConvFCBBoxHead', num_shared_convs=1, num_shared_fcs=1, in_channels=16, conv_out_channels=16,
                   fc_out_channels=32, roi_feat_size=7, num_classes=4, target_means=[0., 0., 0., 0.],
                   target_stds=[0.1, 0.1, 0.2, 0.2], reg_class_agnostic=False, normalize=normalize))
train_cfg = dict(
    rpn=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
             sampler=dict(type='RandomSampler', num=256, pos_fraction=0.5), smoothl1_beta=1 / 9.0),
    rcnn=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
              sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25)))
test_cfg = dict(
    rpn=dict(nms_across_levels=False, nms_pre=50, nms_post=50, max_num=50, nms_thr=0.7, min_bbox_size=0),
    rcnn=dict(score_thr=0.0, nms=dict(type='nms', iou_thr=0.5), max_per_img=20))
data_root = 'ROOT/'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
split = dict(type='CocoDataset', ann_file=data_root + 'a.json', img_prefix=data_root, img_scale=(96, 64),
             img_norm_cfg=img_norm_cfg, size_divisor=32, flip_ratio=0, with_mask=False, with_crowd=True,
             with_label=True)
data = dict(imgs_per_gpu=4, workers_per_gpu=0, train=split, val=split, test=split)
optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=1.0 / 3, step=[8, 11])
checkpoint_config = dict(interval=1)
total_epochs = 12
dist_params = dict(backend='nccl')
work_dir = './work_dirs/x'
load_from = None
resume_from = None
workflow = [('train', 1)]
"""


@pytest.fixture(scope='module')
def old_file(tmp_path_factory):
    """checkpoint, config file and image folder of 2019."""
    folder = tmp_path_factory.mktemp('old')
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / '1.png'), image)
    names = [dict(id=i, name=name) for i, name in enumerate(('person', 'bicycle', 'car'), 1)]
    box = dict(id=1, image_id=1, category_id=2, bbox=[5, 5, 40, 30], area=1200, iscrowd=0)
    coco = dict(images=[dict(id=1, file_name='1.png', height=64, width=96)], annotations=[box], categories=names)
    (folder / 'a.json').write_text(json.dumps(coco))
    text = OLD.replace('ROOT', str(folder))
    (folder / 'config.py').write_text(text)
    torch.manual_seed(0)
    cfg = load_config(folder / 'config.py')
    cfg.model.backbone.init_cfg = None
    state = {key: value.clone() for key, value in MODELS.build(cfg.model).state_dict().items()}
    for key in state:
        if key.endswith(('fc_cls.weight', 'rpn_cls.weight')):
            state[key] *= 30
    background_first(state)
    old = {key.removeprefix('roi_head.'): value for key, value in state.items()
           if key.startswith('backbone.') or not key.endswith('num_batches_tracked')}  # fmt: skip
    meta = dict(mmdet_version='0.6.0+d0ff4b5', mmcv_version='0.2.10', epoch=12, iter=9, time='',
                config=f'/home/somebody/configs/x.py\n{text}')  # fmt: skip
    torch.save(dict(meta=meta, state_dict=old), folder / 'epoch_12.pth', _use_new_zipfile_serialization=False)
    return folder


def test_it_detects_what_config_and_file_do(old_file):
    image = str(old_file / '1.png')
    alone = inference_detector(init_detector(str(old_file / 'epoch_12.pth')), image).pred_instances
    both = init_detector(str(old_file / 'config.py'), str(old_file / 'epoch_12.pth'))
    beside = inference_detector(both, image).pred_instances
    assert len(alone) == 20 and torch.equal(alone.bboxes, beside.bboxes) and torch.equal(alone.scores, beside.scores)
    assert both.cfg.model.rpn_head.anchor_generator.rounded  # the conventions of those years
    few = init_detector(str(old_file / 'epoch_12.pth'), cfg_options={'model.test_cfg.rcnn.max_per_img': 3})
    assert len(inference_detector(few, image).pred_instances) == 3


def test_one_command_evaluates_it(old_file, run_tool, tmp_path, monkeypatch, on_the_cpu):
    monkeypatch.chdir(tmp_path)
    options = ['test_dataloader.dataset.metainfo.classes=(person,bicycle,car)']
    status, out, err = run_tool(
        'test.py', old_file / 'epoch_12.pth', '--eval', 'bbox', '--work_dir', 'w', '--cfg-options', *options
    )
    assert status == 0, err
    assert 'coco/bbox_mAP' in out
    assert 'options of older versions: --work_dir is --work-dir\n' in err and (tmp_path / 'w').is_dir()


def test_one_command_detects_with_it(old_file, run_tool, tmp_path):
    status, out, err = run_tool(
        'predict.py', old_file / 'epoch_12.pth', old_file / '1.png', '--out-dir', tmp_path, '--score-thr', 0.01
    )
    assert status == 0, err
    assert len(json.loads((tmp_path / 'predictions.json').read_text())['annotations']) > 5
    status, _, err = run_tool('predict.py', old_file / 'config.py', old_file / 'epoch_12.pth')
    assert status == 2 and 'no images: give files' in err


def test_an_address_is_as_good_as_a_file(old_file, run_tool, tmp_path, monkeypatch, on_the_cpu, serve):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    address, asked = serve(old_file)
    model, image = f'{address}/epoch_12.pth', str(old_file / '1.png')
    found = inference_detector(init_detector(model), image).pred_instances
    expected = inference_detector(init_detector(str(old_file / 'epoch_12.pth')), image).pred_instances
    assert len(found) == 20 and torch.equal(found.bboxes, expected.bboxes)
    given = DetInferencer(weights=model, show_progress=False)(image)['predictions'][0]
    assert given['scores'] == pytest.approx(expected.scores.tolist(), abs=1e-5)
    options = ['test_dataloader.dataset.metainfo.classes=(person,bicycle,car)']
    for command in [model], [str(old_file / 'config.py'), model]:
        status, out, err = run_tool('test.py', *command, '--eval', 'bbox', '--cfg-options', *options)
        assert status == 0, err
        assert 'coco/bbox_mAP' in out
    assert asked == ['/epoch_12.pth']
    status, _, err = run_tool('test.py', f'{address}/epoch_13.pth', '--eval', 'bbox')
    assert status == 2 and f'{address}/epoch_13.pth cannot be downloaded (HTTP Error 404' in err


def test_what_is_written_here_holds_its_config(tmp_path):
    cfg = load_config('configs/cbn/faster_rcnn_r50_fpn_1x.py')
    torch.save(dict(meta=dict(cfg=cfg.pretty_text), state_dict=dict(x=torch.zeros(1))), tmp_path / 'a.pth')
    opened = read_checkpoint(str(tmp_path / 'a.pth'))
    assert config_of(opened).to_dict() == cfg.to_dict()
    assert config_of(opened, {'model.backbone.depth': 101}).model.backbone.depth == 101


@pytest.mark.parametrize(
    'meta, expected',
    [
        ({}, 'a.pth holds no config'),
        (dict(config=5), 'a.pth holds no config'),
        (dict(config="import os\nos.system('true')"), "line 1: 'import os' is not an assignment"),
        (dict(cfg="model = dict(type='X')\ncustom_imports = dict(imports=['os'])"), 'runs no code'),
    ],
)
def test_a_config_that_is_not_there_or_more_than_data(meta, expected, tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save(dict(meta=meta, state_dict=dict(x=torch.zeros(1))), path)
    assert 'config' not in read_checkpoint(path).meta  # mmengine would run it
    with pytest.raises(UserError, match=expected):
        config_of(read_checkpoint(path))
    with pytest.raises(UserError, match=expected):
        init_detector(path)


def test_a_config_alone_cannot_be_tested(run_tool):
    status, _, err = run_tool('test.py', 'configs/cbn/faster_rcnn_r50_fpn_1x.py', '--eval', 'bbox')
    assert status == 2 and 'a CHECKPOINT is needed after the config' in err


def test_what_names_a_checkpoint():
    assert is_checkpoint('https://x.org/y/epoch_12.pth') and is_checkpoint('a/R-50.pkl')
    assert is_checkpoint('https://x.org/y/epoch_12.pth?download=1')
    assert not any(is_checkpoint(name) for name in ('a.py', 'b.json', 'c.yaml', 'cbn/mask_rcnn_r50_fpn_1x'))
