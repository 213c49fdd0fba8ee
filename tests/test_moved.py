"""Modules of mmdetection 3 by their own paths: their names are found, or a sentence says where to look."""

import importlib
import importlib.util
import pickle
import subprocess
import sys

import pytest

from mmdet import moved
from mmdet.config.errors import UserError


@pytest.mark.parametrize('line', [
    'from mmdet.models.roi_heads.bbox_heads.convfc_bbox_head import ConvFCBBoxHead, Shared2FCBBoxHead',
    'from mmdet.models.roi_heads.bbox_heads import BBoxHead',
    'from mmdet.models.roi_heads.mask_heads import FCNMaskHead',
    'from mmdet.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead',
    'from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor',
    'from mmdet.models.roi_heads.standard_roi_head import StandardRoIHead',
    'from mmdet.models.dense_heads.rpn_head import RPNHead',
    'from mmdet.models.task_modules.assigners import MaxIoUAssigner',
    'from mmdet.models.task_modules.assigners.max_iou_assigner import MaxIoUAssigner',
    'from mmdet.models.task_modules.samplers import OHEMSampler, RandomSampler',
    'from mmdet.models.task_modules.samplers.random_sampler import RandomSampler',
    'from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder',
    'from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import DeltaXYWHBBoxCoder',
    'from mmdet.models.task_modules.prior_generators import AnchorGenerator',
    'from mmdet.models.detectors.two_stage import TwoStageDetector',
    'from mmdet.models.data_preprocessors import DetDataPreprocessor',
    'from mmdet.models.losses.utils import weight_reduce_loss, weighted_loss',
    'from mmdet.models.losses.focal_loss import FocalLoss',
    'from mmdet.models.utils.misc import multi_apply, unpack_gt_instances',
    'from mmdet.datasets.coco import CocoDataset',
    'from mmdet.datasets.base_det_dataset import BaseDetDataset',
    'from mmdet.datasets.transforms.loading import LoadAnnotations',
    'from mmdet.datasets.transforms.transforms import RandomFlip, Resize',
    'from mmdet.structures.det_data_sample import DetDataSample, OptSampleList, SampleList',
    'from mmdet.structures.bbox.transforms import bbox2roi, scale_boxes',
    'from mmdet.structures.mask.structures import BitmapMasks, PolygonMasks',
    'from mmdet.evaluation.metrics.coco_metric import CocoMetric',
    'from mmdet.visualization.local_visualizer import DetLocalVisualizer',
    'from mmdet.engine.hooks.visualization_hook import DetVisualizationHook',
    'from mmdet.utils.typing_utils import ConfigType, InstanceList',
    'import mmdet.models.roi_heads.bbox_heads.bbox_head',
])  # fmt: skip
def test_a_deep_path_is_found(line):
    exec(line, {})


@pytest.mark.parametrize('line, says', [
    ('from mmdet.core import bbox2roi', 'mmdet.core is not here: it is of mmdetection 2; '),
    ('from mmdet.core.bbox.assigners import AssignResult', 'mmdet.core is not here: it is of mmdetection 2; '),
    ('from mmdet.evaluation.functional import eval_map', 'mmdet.evaluation.functional is not here: the metrics count'),
    ('from mmdet.models.detectors.base import BaseDetector', 'has no BaseDetector here: subclass TwoStageDetector'),
    ('from mmdet.models.dense_heads.anchor_head import AnchorHead', 'has no AnchorHead here: subclass RPNHead'),
    ('from mmdet.models.roi_heads.base_roi_head import BaseRoIHead', 'has no BaseRoIHead here: subclass Standard'),
    ('from mmdet.models.task_modules.assigners import AssignResult', 'has no AssignResult here: an assigner is any'),
    ('from mmdet.models.task_modules.assigners import HungarianAssigner',
     'mmdet.models.task_modules.assigners has no HungarianAssigner here: mmdet.models.task_modules has Anchor'),
    ('from mmdet.models.task_modules.samplers import SamplingResult', 'has no SamplingResult here: a sampler is any'),
    ('from mmdet.datasets.lvis import LVISV1Dataset', 'mmdet.datasets.lvis is not here: use CocoDataset with'),
    ('from mmdet.models.seg_heads.panoptic_fusion_heads import HeuristicFusionHead', 'mmdet.models.seg_heads is not'),
    ('from mmdet.models.mot import ByteTrack', 'mmdet.models.mot is not here: tracking is not here'),
    ('from mmdet.structures.bbox.horizontal_boxes import HorizontalBoxes', 'has no HorizontalBoxes here: boxes are'),
])  # fmt: skip
def test_what_is_elsewhere_ends_in_a_sentence(line, says):
    with pytest.raises(ImportError) as error:
        exec(line, {})
    assert isinstance(error.value, UserError) and says in str(error.value) and '\n' not in str(error.value)


def test_a_module_of_no_project_is_missed_as_ever():
    for name in ('mmdet.models.of_no_project', 'mmdet.of_no_project'):
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{name}'"):
            importlib.import_module(name)
        assert importlib.util.find_spec(name) is None
    module = importlib.import_module('mmdet.models.task_modules.coders')
    with pytest.raises(AttributeError):
        module.__wrapped__  # noqa: B018


def test_it_is_the_class_itself():
    from mmdet.models.roi_heads import ConvFCBBoxHead
    deep = importlib.import_module('mmdet.models.roi_heads.bbox_heads.convfc_bbox_head').ConvFCBBoxHead
    assert deep is ConvFCBBoxHead and pickle.loads(pickle.dumps(deep)) is deep


def test_every_place_is_there_and_what_is_there_is_not_hidden():
    code = """
import importlib, sys
from mmdet import moved
sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, moved._Finder)]
for name, place in moved._PLACES.items():
    importlib.import_module(place)
    for absent in ({name} | set(moved._SENTENCES)) - {place}:
        try:
            importlib.import_module(absent)
        except ImportError:
            continue
        if absent != 'mmdet.models.task_modules.samplers':
            print(absent)
"""
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == ''
    assert any(isinstance(finder, moved._Finder) for finder in sys.meta_path)
