"""Names that code written for mmdetection 3 imports: they do what is expected of them there, or say what to do here."""

import ast
import copy
import importlib
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torchvision.ops import box_iou, generalized_box_iou

from mmdet.config.errors import UserError
from mmdet.structures import DetDataSample, DetectedInstances, RLEMasks
from mmdet.structures.bbox import (
    bbox2roi,
    bbox_cxcywh_to_xyxy,
    bbox_overlaps,
    bbox_xyxy_to_cxcywh,
    get_box_tensor,
    roi2bbox,
)
from mmdet.structures.mask import BitmapMasks, PolygonMasks, encode_mask_results, mask2bbox

ROOT = Path(__file__).resolve().parents[2]
# Modules that stand here for attributes of mmdetection; the `__init__` beside each imports it, and nothing else.
ATTRIBUTES = ('models/mmdet3.py', 'datasets/mmdet3.py')
# Modules that stand here for the names alone.
FOR_NAMES = ('utils/__init__.py', 'utils/large_image.py', 'structures/bbox.py', 'structures/mask.py',
             'models/losses.py', 'models/utils.py', 'models/layers.py', 'evaluation/metrics.py',
             'datasets/api_wrappers.py')  # fmt: skip


@pytest.mark.parametrize('line', [
    'from mmdet.utils import register_all_modules, setup_cache_size_limit_of_dynamo, collect_env',
    'from mmdet.utils import ConfigType, OptConfigType, MultiConfig, OptMultiConfig, InstanceList, OptInstanceList',
    'from mmdet.utils import SampleList, OptSampleList, RangeType, get_test_pipeline_cfg',
    'from mmdet.utils import OptPixelList, PixelList, reduce_mean',
    'from mmdet.models.test_time_augs import DetTTAModel',
    'from mmdet.datasets.samplers.batch_sampler import AspectRatioBatchSampler',
    'from mmdet.datasets.api_wrappers import COCO, COCOeval',
    'from mmdet.models.utils import rename_loss_dict, reweight_loss_dict',
    'from mmdet.models.utils.misc import multi_apply',
    'from mmdet.models.losses.utils import weighted_loss',
    'from mmdet.utils.large_image import merge_results_by_nms, shift_predictions',
    'from mmdet.structures import DetDataSample',
    'from mmdet.structures.bbox import bbox2roi, bbox_overlaps, get_box_tensor, cat_boxes, scale_boxes, get_box_wh',
    'from mmdet.structures.mask import BitmapMasks, PolygonMasks, encode_mask_results, mask2bbox',
    'from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, RandomSampler',
    'from mmdet.models.utils import multi_apply, unpack_gt_instances, empty_instances',
    'from mmdet.models.roi_heads import StandardRoIHead, CascadeRoIHead, Shared2FCBBoxHead, FCNMaskHead',
    'from mmdet.models.detectors import FasterRCNN, MaskRCNN, RetinaNet, TwoStageDetector, SingleStageDetector',
    'from mmdet.models.necks import FPN, BFP',
    'from mmdet.models.backbones import ResNet, ResNeXt',
    'from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, L1Loss, weighted_loss, weight_reduce_loss',
    'from mmdet.models.layers import ExpMomentumEMA',
    'from mmdet.models import MaskRCNN, DetDataPreprocessor',
    'from mmdet.visualization import DetLocalVisualizer',
    'from mmdet.evaluation import CocoMetric, DumpDetResults',
    'from mmdet.evaluation.metrics import CocoMetric, DumpDetResults',
    'from mmdet.datasets import BaseDetDataset, CocoDataset',
    'from mmdet.datasets.transforms import LoadAnnotations, LoadImageFromNDArray, PackDetInputs, Resize',
    'from mmdet.engine.hooks import DetVisualizationHook, NumClassCheckHook',
    'from mmdet.apis import DetInferencer, inference_detector, init_detector',
    'from mmdet.apis.det_inferencer import DetInferencer',
    'from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS, RUNNERS, TASK_UTILS, TRANSFORMS, VISUALIZERS',
])  # fmt: skip
def test_names_can_be_imported(line):
    exec(line, {})


@pytest.mark.parametrize('module, name, says', [
    ('mmdet.structures.bbox', 'HorizontalBoxes', 'boxes are plain tensors (n, 4)'),
    ('mmdet.structures.mask', 'mask_target', 'masks.crop_and_resize'),
    ('mmdet.models.task_modules', 'AssignResult', 'assign(boxes, gt_boxes, ignored_boxes)'),
    ('mmdet.models.task_modules', 'BaseAssigner', 'task_modules/protocols.py'),
    ('mmdet.models.utils', 'images_to_levels', 'flattened once'),
    ('mmdet.models.losses', 'accuracy', 'heads return losses alone'),
    ('mmdet.models.layers', 'ResLayer', 'nn.Sequential of blocks'),
    ('mmdet.utils', 'replace_cfg_vals', '--cfg-options'),
    ('mmdet.evaluation.metrics', 'LVISMetric', 'use CocoMetric'),
])  # fmt: skip
def test_a_name_that_stands_for_something_else_says_what(module, name, says):
    with pytest.raises(ImportError) as error:
        exec(f'from {module} import {name}', {})
    text = str(error.value)
    assert isinstance(error.value, UserError) and '\n' not in text  # one line on the command line
    assert text.startswith(f'{module} has no {name} here') and says in text
    with pytest.raises(AttributeError):
        getattr(importlib.import_module(module), 'of_no_project')  # noqa: B009


@pytest.mark.parametrize('module, name, says', [
    ('mmdet.models.detectors', 'BaseDetector', 'subclass TwoStageDetector, SingleStageDetector, or '),
    ('mmdet.models.dense_heads', 'AnchorHead', 'subclass RPNHead or RetinaHead (docs/extend/head.md)'),
    ('mmdet.models.dense_heads.anchor_head', 'AnchorHead', 'subclass RPNHead or RetinaHead (docs/extend/head.md)'),
    ('mmdet.models.dense_heads', 'FCOSHead', 'it has RPNHead, RetinaHead, SSDHead; write one (docs/extend/head.md)'),
    ('mmdet.models.necks', 'PAFPN', 'it has BFP, FPN, L2Norm, SSDNeck; a neck is an nn.Module'),
    ('mmdet.models.backbones', 'SwinTransformer', 'swin_tiny_patch4_window7_224'),
    ('mmdet.models.backbones', 'ResNext', 'Did you mean ResNeXt?'),
    ('mmdet.models', 'build_detector', 'use mmdet.registry.MODELS.build(cfg.model)'),
    ('mmdet.models', 'DETECTORS', 'use mmdet.registry.MODELS'),
    ('mmdet.models.roi_heads.bbox_heads', 'DIIHead', 'mmdet.models.roi_heads has BBoxHead, '),
    ('mmdet.models.losses', 'SeesawLoss', 'a loss is an nn.Module in MODELS'),
    ('mmdet.models.layers.transformer', 'inverse_sigmoid', 'use torch.logit(x, eps)'),
    ('mmdet.evaluation', 'get_classes', "CocoDataset.METAINFO['classes']"),
    ('mmdet.visualization', 'get_palette', "metainfo['palette']"),
    ('mmdet.engine.hooks', 'PipelineSwitchHook', 'load_from=CHECKPOINT'),
    ('mmdet.engine.hooks', 'YOLOXModeSwitchHook', 'YOLOX and RTMDet are not here'),
    ('mmdet.engine.schedulers', 'QuadraticWarmupLR', 'LinearLR'),
    ('mmdet.apis', 'show_result_pyplot', 'DetInferencer'),
    ('mmdet.datasets', 'LVISDataset', 'docs/extend/dataset.md'),
    ('mmdet.datasets.transforms', 'LoadAnotations', 'Did you mean LoadAnnotations?'),
    ('mmdet.structures', 'TrackDataSample', 'tracking is not here'),
    ('mmdet.datasets.samplers', 'ClassAwareSampler', 'it has AspectRatioBatchSampler; mmengine.dataset has'),
    ('mmdet.datasets', 'iSAIDDataset', 'docs/extend/dataset.md'),
])  # fmt: skip
def test_any_other_class_of_mmdetection_is_answered_by_its_room(module, name, says):
    with pytest.raises(ImportError) as error:
        exec(f'from {module} import {name}', {})
    text = str(error.value)
    assert isinstance(error.value, UserError) and '\n' not in text
    assert text.startswith(f'{module} has no {name} here') and says in text
    for guide in re.findall(r'docs/[\w/]+\.md', text):
        assert (ROOT / guide).is_file(), guide


def test_a_module_that_is_not_here_says_what_its_package_has():
    with pytest.raises(ModuleNotFoundError, match='there is no mmdet.models.dense_heads.atss_head here: ') as error:
        exec('from mmdet.models.dense_heads.atss_head import ATSSHead', {})
    assert 'mmdet.models.dense_heads has RPNHead, RetinaHead, SSDHead' in str(error.value)
    assert error.value.name == 'mmdet.models.dense_heads.atss_head'
    with pytest.raises(ImportError, match=r"_base_ = \['mmdet::"):
        exec('from mmdet.configs._base_.models import x', {})


def test_a_function_that_is_not_here_says_so_when_it_is_called():
    """It might have been a module."""
    from mmdet.models.utils import sigmoid_geometric_mean

    with pytest.raises(UserError, match='mmdet.models.utils has no sigmoid_geometric_mean here: '):
        sigmoid_geometric_mean(1, 2)


def module_of(path: str) -> str:
    return 'mmdet.' + path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


@pytest.mark.slow
def test_without_these_modules_a_model_trains_and_predicts(tmp_path):
    """Each is replaced by an empty one."""
    names = ['mmdet.moved', *map(module_of, (*FOR_NAMES, *ATTRIBUTES))]
    (tmp_path / 'program.py').write_text(
        'import sys, types\n'
        f'for name in {names}:\n'
        '    sys.modules[name] = types.ModuleType(name)\n'
        'import factories\n'
        'from mmengine.config import Config\n'
        'from mmengine.runner import Runner\n'
        'from mmdet.apis import DetInferencer\n'
        'from pathlib import Path\n'
        'factories.write_detector(Path())\n'
        "cfg = Config.fromfile('config.py')\n"
        "cfg.work_dir = 'work'\n"
        'Runner.from_cfg(cfg).train()\n'
        "found = DetInferencer('config.py', 'weights.pth', device='cpu')('shapes/val')['predictions']\n"
        'print(len(found), sorted(found[0]))\n'
    )
    result = subprocess.run([sys.executable, 'program.py'], cwd=tmp_path, text=True, capture_output=True,
                            env=dict(os.environ, PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT / "tests"}'))  # fmt: skip
    assert result.stdout.splitlines()[-1:] == ["2 ['bboxes', 'labels', 'masks', 'scores']"], result.stderr[-2000:]


def test_nothing_of_the_package_needs_these_modules():
    modules = {module_of(path) for path in FOR_NAMES}
    for path in (ROOT / 'mmdet').rglob('*.py'):
        if str(path.relative_to(ROOT / 'mmdet')) in (*FOR_NAMES, *ATTRIBUTES):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [f'{node.module}.{a.name}' for a in node.names] if isinstance(node, ast.ImportFrom) else (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [])  # fmt: skip
            for name in names:
                assert name not in modules and name.rpartition('.')[0] not in modules, f'{path} imports {name}'


# ---------------------------------------------------------------------- what they do


def boxes(n: int, seed: int = 0) -> torch.Tensor:
    corners = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) * 50
    return torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:] + 1], dim=1)


def test_boxes():
    a, b = boxes(5), boxes(5, seed=1)
    for mode, expected in dict(iou=box_iou, giou=generalized_box_iou).items():
        torch.testing.assert_close(bbox_overlaps(a, b, mode), expected(a, b))
        torch.testing.assert_close(bbox_overlaps(a, b, mode, is_aligned=True), expected(a, b).diagonal())
    inner = torch.tensor([[0.0, 0, 10, 10]])
    assert bbox_overlaps(inner, torch.tensor([[0.0, 0, 5, 100]]), 'iof').item() == 0.5
    assert bbox_overlaps(inner, torch.tensor([[0.0, 0, 5, 100]]), 'iof', is_aligned=True).item() == 0.5
    with pytest.raises(UserError, match="mode='diou'"):
        bbox_overlaps(a, b, 'diou')
    torch.testing.assert_close(bbox_cxcywh_to_xyxy(bbox_xyxy_to_cxcywh(a)), a)
    assert bbox_xyxy_to_cxcywh(torch.tensor([[0.0, 10, 4, 30]])).tolist() == [[2, 20, 4, 20]]
    rois = bbox2roi([a, b[:2]])
    assert rois[:, 0].tolist() == [0] * 5 + [1] * 2 and torch.equal(roi2bbox(rois)[1], b[:2])
    assert get_box_tensor(a) is a


def test_masks():
    polygons = PolygonMasks([[[1, 1, 5, 1, 5, 4, 1, 4]], []], height=6, width=8)
    bitmaps = BitmapMasks(polygons.to_ndarray(), 6, 8)
    for masks in (polygons, bitmaps):
        assert masks.to_ndarray().shape == (2, 6, 8) and masks.to_ndarray().sum() == 12
        assert masks.to_tensor(torch.bool, 'cpu')[0, 2, 3]
        assert masks.get_bboxes().tolist() == [[1, 1, 5, 4], [0, 0, 0, 0]]
        twice = masks.rescale(2.0)
        assert (twice.height, twice.width) == (12, 16) and twice.get_bboxes()[0].tolist() == [2, 2, 10, 8]
        limited = masks.rescale((4, 3))
        assert (limited.height, limited.width) == (3, 4)
    encoded = encode_mask_results(bitmaps.to_tensor())
    assert encoded[0]['size'] == [6, 8] and isinstance(encoded[0]['counts'], bytes)
    assert encode_mask_results(RLEMasks(encoded, 6, 8)) == encoded and encode_mask_results([]) == []
    assert mask2bbox(bitmaps.to_tensor(torch.bool)).tolist() == [[1, 1, 5, 4], [0, 0, 0, 0]]


def test_masks_are_walked_over_moved_and_cut_from_arrays():
    polygons = PolygonMasks([[[1, 1, 5, 1, 5, 4, 1, 4]], []], height=6, width=8)
    bitmaps = polygons.to_bitmap()
    assert [len(parts) for parts in polygons] == [1, 0] and [mask.sum() for mask in bitmaps] == [12, 0]
    for masks in (polygons, bitmaps):
        moved = masks.translate((6, 9), 3).to_ndarray()
        expected = np.zeros((2, 6, 9), np.uint8)
        expected[:, :, 3:] = masks.to_ndarray()[:, :, :6]
        assert np.array_equal(moved, expected)
        assert masks.translate((6, 8), -2, 'vertical').to_ndarray()[0].sum() == 8
        boxes, indices = np.array([[1.0, 1, 5, 4], [0, 0, 8, 6]]), np.array([0, 0])
        cut = masks.crop_and_resize(boxes, indices, 4)
        assert torch.equal(cut, masks.crop_and_resize(torch.from_numpy(boxes), torch.from_numpy(indices), 4))
        assert cut[0].all() and not cut[1].all()
        with pytest.raises(UserError, match='before the indices'):
            masks.crop_and_resize(boxes, (4, 4), indices)
        with pytest.raises(UserError, match='border_value=1'):
            masks.translate((6, 8), 1, border_value=1)


def test_nothing_is_one_of_mmdetections_boxes():
    from mmdet.structures.bbox import BaseBoxes

    assert not isinstance(boxes(2), BaseBoxes)
    with pytest.raises(UserError, match='use the tensor itself'):
        BaseBoxes(boxes(2))


def test_arrays_are_refused_where_boxes_are_tensors():
    array = boxes(2).numpy()
    for call in (lambda: bbox_overlaps(array, boxes(2)), lambda: bbox2roi([array]), lambda: bbox_xyxy_to_cxcywh(array),
                 lambda: bbox_cxcywh_to_xyxy(array)):  # fmt: skip
        with pytest.raises(UserError, match=r'is given float32 ndarray \(2, 4\) and takes tensors: torch.as_tensor'):
            call()


def test_predicted_masks_answer_as_a_tensor_does():
    bitmaps = np.random.default_rng(0).random((4, 5, 7)) > 0.5
    masks = RLEMasks.of(bitmaps, 5, 7)
    assert np.array_equal(masks.cpu().numpy(), bitmaps) and masks.numpy().dtype == bool
    assert masks.shape == (4, 5, 7) and np.array_equal(np.asarray(masks), bitmaps)
    assert torch.equal(masks.to_tensor(), torch.from_numpy(bitmaps))
    wanted = torch.tensor([True, False, True, False])
    for index in (wanted, wanted.numpy(), torch.tensor([0, 2]), [0, 2], slice(0, 4, 2)):
        assert np.array_equal(masks[index].numpy(), bitmaps[[0, 2]])
    assert masks[[]].numpy().shape == masks[:0].cpu().numpy().shape == (0, 5, 7)
    assert np.array_equal(masks[-1].cpu().numpy(), bitmaps[-1]) and masks[np.int64(1)]['size'] == [5, 7]
    instances = InstanceData(scores=torch.tensor([0.1, 0.9, 0.2, 0.8]), masks=masks)
    best = instances[instances.scores > 0.5].cpu()
    assert np.array_equal(best.masks.numpy(), bitmaps[[1, 3]])
    assert np.array_equal(instances[instances.scores > 2].masks.numpy(), bitmaps[:0])
    moved = instances.to('cpu')
    assert np.array_equal(moved.masks.numpy(), bitmaps)
    assert masks.dtype == torch.bool and masks.any() and masks.float().dtype == torch.float32
    assert torch.equal(masks.sum((1, 2)), torch.from_numpy(bitmaps.sum((1, 2)))) and masks[1].sum() == bitmaps[1].sum()
    one, other, pair = masks[0], masks[1], torch.from_numpy(bitmaps[:2])
    for found, wanted in (
        (one & other, pair[0] & pair[1]), (one | other, pair[0] | pair[1]), (~one, ~pair[0]),
        (one * 255, pair[0] * 255),
        (one == 1, pair[0]), (one > 0.5, pair[0]), (one[..., None], pair[0][..., None]), (pair[0] & other, pair.all(0)),
        (masks[:, ::2, 1:], torch.from_numpy(bitmaps)[:, ::2, 1:]), (masks * 2, torch.from_numpy(bitmaps * 2)),
        (torch.stack(list(masks)), torch.from_numpy(bitmaps)), (torch.cat([masks, masks[:1]])[4], pair[0]),
    ):  # fmt: skip
        assert torch.equal(found, wanted)
    assert np.array_equal(one.astype(np.uint8), bitmaps[0].astype(np.uint8)) and one == dict(one) and masks == [*masks]
    assert masks.astype(np.float32).dtype == np.float32
    arrays = DetectedInstances(scores=instances.scores, masks=masks)[instances.scores > 0.5].cpu().numpy()
    assert type(arrays.masks) is np.ndarray and np.array_equal(arrays.masks, bitmaps[[1, 3]])
    assert np.array_equal(np.argwhere(arrays.masks[0]), np.argwhere(bitmaps[1]))
    with pytest.raises(AttributeError, match="'RLEMasks' object has no attribute 'to_bitmap'"):
        masks.to_bitmap()
    for copied in (pickle.loads(pickle.dumps(masks)), copy.deepcopy(masks)):
        assert isinstance(copied, RLEMasks) and copied == masks and copied.shape == masks.shape


def test_losses_of_ones_own():
    from mmdet.models.losses import weighted_loss

    @weighted_loss
    def log_l1(pred, target, scale=1.0):
        return torch.log1p((pred - target).abs() * scale)

    pred, target = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])
    rows = torch.log1p(pred)
    assert torch.equal(log_l1(pred, target, reduction='none'), rows)
    torch.testing.assert_close(log_l1(pred, target), rows.mean())
    torch.testing.assert_close(log_l1(pred, target, torch.tensor([1.0, 0.0]), avg_factor=4), rows[0] / 4)
    torch.testing.assert_close(log_l1(pred, target, reduction='sum', scale=2.0), torch.log1p(2 * pred).sum())
    with pytest.raises(UserError, match='reduction='):
        log_l1(pred, target, reduction='median')


def test_helpers_of_heads():
    from mmdet.models.utils import (
        empty_instances,
        mask2ndarray,
        multi_apply,
        rename_loss_dict,
        reweight_loss_dict,
        unpack_gt_instances,
    )
    from mmdet.utils import reduce_mean

    assert multi_apply(lambda a, b, c: (a + b, a * c), [1, 2], [3, 4], c=10) == ([4, 6], [10, 20])
    bitmaps = BitmapMasks(np.eye(3), 3, 3)
    for masks in (bitmaps, bitmaps.to_tensor(), bitmaps.to_ndarray(), RLEMasks.of(bitmaps.masks, 3, 3)):
        assert np.array_equal(mask2ndarray(masks), np.eye(3)[None])
    losses = dict(loss_a=torch.tensor(2.0), loss_b=[torch.tensor(1.0)], acc=torch.tensor(50.0))
    assert reweight_loss_dict(losses, 3) == dict(loss_a=6, loss_b=[3], acc=50)
    assert list(rename_loss_dict('rpn_', losses)) == ['rpn_loss_a', 'rpn_loss_b', 'rpn_acc']
    assert reduce_mean(torch.tensor(2.0)) == 2
    samples = [DetDataSample(metainfo=dict(img_id=i), gt_instances=InstanceData(bboxes=boxes(i))) for i in range(2)]
    gt, ignored, metas = unpack_gt_instances(samples)
    assert [len(g) for g in gt] == [0, 1] and ignored == [None, None] and metas[1]['img_id'] == 1
    assert empty_instances([{}], 'cpu')[0].bboxes.shape == (0, 4)


def test_momentum_falls_from_one():
    """Against the formula, from weights that jump from 0 to 1."""
    from mmdet.models.layers import ExpMomentumEMA

    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    average = ExpMomentumEMA(net, momentum=0.1, gamma=5)
    assert isinstance(average, ExponentialMovingAverage)
    average.update_parameters(net)  # mmengine copies the first time
    torch.nn.init.ones_(net.weight)
    expected = 0.0
    for step in range(1, 4):
        average.update_parameters(net)
        momentum = 0.9 * math.exp(-(1 + step) / 5) + 0.1
        expected += momentum * (1 - expected)
        assert average.module.weight.item() == pytest.approx(expected)
    with pytest.raises(UserError, match='gamma=0'):
        ExpMomentumEMA(net, gamma=0)


def test_scope_and_compiler(monkeypatch):
    from mmdet.utils import register_all_modules, setup_cache_size_limit_of_dynamo

    register_all_modules()
    assert DefaultScope.get_current_instance().scope_name == 'mmdet'
    import torch._dynamo

    monkeypatch.setattr(torch._dynamo.config, 'cache_size_limit', 8)
    monkeypatch.setenv('DYNAMO_CACHE_SIZE_LIMIT', '6')
    setup_cache_size_limit_of_dynamo()
    assert torch._dynamo.config.cache_size_limit == 6


def test_a_sentence_is_one_line_on_the_command_line(tmp_path):
    (tmp_path / 'old.py').write_text('from mmdet.structures.bbox import HorizontalBoxes\n')
    (tmp_path / 'config.py').write_text("custom_imports = dict(imports=['old'])\nmodel = dict(type='FasterRCNN')\n")
    result = subprocess.run([sys.executable, ROOT / 'tools' / 'print_config.py', 'config.py'], cwd=tmp_path, text=True,
                            capture_output=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))  # fmt: skip
    assert result.returncode == 2 and result.stderr.count('\n') == 1
    assert 'mmdet.structures.bbox has no HorizontalBoxes here' in result.stderr


# ---------------------------------------------------------------------- the table of docs/compatibility.md


def overrides() -> list[tuple[str, str, str]]:
    """(class, method of mmdetection, what is said to take its place) of each row."""
    text = (ROOT / 'docs' / 'compatibility.md').read_text().split('Your class overrides X: here it is Y')[1]
    rows, owners = [], []
    for line in text.split('The same name')[0].splitlines():
        cells = [re.findall(r'`([^`]+)`', cell) for cell in line.split('|')[1:-1]]
        if len(cells) == 3 and cells[1]:
            owners = cells[0] or owners
            rows += [(owner, method, cells[2]) for owner in owners for method in cells[1]]
    return rows


def test_the_table_of_overrides_is_true():
    from mmdet import apis, datasets, evaluation, models, visualization
    from mmdet.engine import hooks

    rows = overrides()
    assert len(rows) > 90
    for owner, method, instead in rows:
        rooms = models, datasets, evaluation, hooks, visualization, apis
        base = next(vars(room)[owner] for room in rooms if owner in vars(room))
        with pytest.raises(UserError, match='would never be called') as error:
            type('Mine', (base,), {method: lambda self: None})
        said = str(error.value).split(' override ')[1]
        assert any(f' {name} ' in f' {said} ' or f"'s {name} " in said for name in instead), (owner, method, said)
