"""Modules and names of mmdetection 3 that have another place here: importing one finds it, or says what to do.

Python asks `_Finder` last, for what no file gives: for a module, and for a name that a package lacks
(``from mmdet.models.detectors import BaseDetector``), which might be a module. Nothing of this project needs it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from mmdet.config.absent import AbsentName
from mmdet.config.errors import UserError, suggest

# The module, with all below it, and where its names are.
_PLACES = {
    'mmdet.datasets.api_wrappers': 'mmdet.datasets.api_wrappers',
    'mmdet.datasets.base_det_dataset': 'mmdet.datasets',
    'mmdet.datasets.dataset_wrappers': 'mmdet.datasets',
    'mmdet.datasets.transforms.transforms': 'mmdet.datasets.transforms',
    'mmdet.datasets.xml_style': 'mmdet.datasets',
    'mmdet.engine.optimizers': 'mmdet.engine',
    'mmdet.engine.schedulers': 'mmdet.engine',
    'mmdet.engine.hooks.num_class_check_hook': 'mmdet.engine.hooks',
    'mmdet.engine.hooks.utils': 'mmdet.engine.hooks',
    'mmdet.engine.hooks.visualization_hook': 'mmdet.engine.hooks',
    'mmdet.evaluation.metrics': 'mmdet.evaluation.metrics',
    'mmdet.models.data_preprocessors': 'mmdet.models',
    'mmdet.models.dense_heads.anchor_head': 'mmdet.models.dense_heads',
    'mmdet.models.dense_heads.base_dense_head': 'mmdet.models.dense_heads',
    'mmdet.models.detectors.base': 'mmdet.models.detectors',
    'mmdet.models.layers': 'mmdet.models.layers',
    'mmdet.models.losses': 'mmdet.models.losses',
    'mmdet.models.roi_heads.base_roi_head': 'mmdet.models.roi_heads',
    'mmdet.models.roi_heads.bbox_heads': 'mmdet.models.roi_heads',
    'mmdet.models.roi_heads.mask_heads': 'mmdet.models.roi_heads',
    'mmdet.models.roi_heads.roi_extractors': 'mmdet.models.roi_heads',
    'mmdet.models.roi_heads.shared_heads': 'mmdet.models.roi_heads',
    'mmdet.models.task_modules.assigners': 'mmdet.models.task_modules',
    'mmdet.models.task_modules.coders': 'mmdet.models.task_modules',
    'mmdet.models.task_modules.prior_generators': 'mmdet.models.task_modules',
    'mmdet.models.task_modules.samplers': 'mmdet.models.task_modules',
    'mmdet.models.test_time_augs': 'mmdet.models',
    'mmdet.models.utils': 'mmdet.models.utils',
    'mmdet.structures.bbox': 'mmdet.structures.bbox',
    'mmdet.structures.det_data_sample': 'mmdet.structures',
    'mmdet.structures.mask': 'mmdet.structures.mask',
    'mmdet.utils': 'mmdet.utils',
    'mmdet.visualization.local_visualizer': 'mmdet.visualization',
}
_TRACKING = 'tracking is not here'
_DATA = 'use CocoDataset with metainfo=dict(classes=(...)), or write one on BaseDetDataset (docs/extend/dataset.md)'
# The module, with all below it, and what to use instead.
_SENTENCES = {
    'mmdet.configs': "configs are files, found by name: _base_ = ['mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x.py'] "
                     '(docs/configs.md)',
    'mmdet.core': 'it is of mmdetection 2; structures, evaluation, visualization and models.task_modules have what it '
                  'had, see docs/compatibility.md',
    'mmdet.datasets.pipelines': 'it is of mmdetection 2; transforms are in mmdet.datasets.transforms',
    'mmdet.evaluation.functional': 'the metrics count by themselves: CocoMetric, VOCMetric; the classes are '
                                   'metainfo["classes"] of a data set',
    'mmdet.models.builder': 'it is of mmdetection 2; use mmdet.registry.MODELS.build(cfg)',
    'mmdet.datasets.builder': 'it is of mmdetection 2; use mmdet.registry.DATASETS and mmengine.runner.Runner',
    **dict.fromkeys(('mmdet.datasets.base_video_dataset', 'mmdet.models.mot', 'mmdet.models.reid',
                     'mmdet.models.trackers', 'mmdet.models.tracking_heads', 'mmdet.models.vis',
                     'mmdet.structures.reid_data_sample', 'mmdet.structures.track_data_sample'), _TRACKING),
    **dict.fromkeys(('mmdet.models.language_models', 'mmdet.models.seg_heads'),
                    'the models here find boxes and masks; bring it as a module of yours (docs/extend)'),
    **dict.fromkeys((f'mmdet.datasets.{name}' for name in (
        'cityscapes', 'coco_panoptic', 'crowdhuman', 'deepfashion', 'isaid', 'lvis', 'objects365', 'openimages',
        'refcoco', 'wider_face')), _DATA),
    'mmdet.testing': 'build a model by mmdet.registry.MODELS.build(cfg.model)',
    'mmdet.visualization.palette': 'the colours are metainfo["palette"] of a data set',
}  # fmt: skip
# Names, wherever they are looked for, and what to use instead.
_BASE = 'subclass {} (docs/extend/head.md)'
_OLD = 'it is of mmdetection 2; {}'
_OLD_REGISTRY = _OLD.format('use mmdet.registry.MODELS')
_YOLO = 'YOLOX and RTMDet are not here'
_NAMES = {
    'BaseDetector': _BASE.format('TwoStageDetector, SingleStageDetector, or mmengine.model.BaseModel'),
    'BaseDenseHead': _BASE.format('RPNHead or RetinaHead'),
    'AnchorHead': _BASE.format('RPNHead or RetinaHead'),
    'AnchorFreeHead': _BASE.format('mmengine.model.BaseModule'),
    'BaseRoIHead': _BASE.format('StandardRoIHead or CascadeRoIHead'),
    'BaseRoIExtractor': _BASE.format('SingleRoIExtractor'),
    'GenericRoIExtractor': _BASE.format('SingleRoIExtractor, whose roi_layers has one a level'),
    'SemiBaseDetector': 'semi-supervised training is not here',
    'build_detector': _OLD.format('use mmdet.registry.MODELS.build(cfg.model)'),
    **dict.fromkeys(('build_backbone', 'build_neck', 'build_head', 'build_loss', 'build_roi_extractor',
                     'build_shared_head', 'build_assigner', 'build_sampler', 'build_bbox_coder',
                     'build_prior_generator', 'build_anchor_generator', 'build_linear_layer', 'build_transformer'),
                    _OLD.format('use build(cfg) of mmdet.registry.MODELS or TASK_UTILS')),
    **dict.fromkeys(('BACKBONES', 'DETECTORS', 'HEADS', 'LOSSES', 'NECKS', 'ROI_EXTRACTORS', 'SHARED_HEADS'),
                    _OLD_REGISTRY),
    **dict.fromkeys(('build_dataset', 'build_dataloader', 'replace_ImageToTensor', 'PIPELINES', 'CustomDataset'),
                    _OLD.format('use DATASETS.build(cfg), Runner.build_dataloader(cfg), BaseDetDataset')),
    **dict.fromkeys(('train_detector', 'single_gpu_test', 'multi_gpu_test', 'set_random_seed', 'init_random_seed'),
                    _OLD.format('use mmengine.runner.Runner.from_cfg(cfg), its train() and test()')),
    **dict.fromkeys(('show_result_pyplot', 'show_result'), _OLD.format('use DetInferencer(...)(image, out_dir=FOLDER), '
                    'or mmdet.visualization.DetLocalVisualizer')),
    'async_inference_detector': 'use inference_detector, in a thread of yours',
    **dict.fromkeys(('inference_mot', 'init_track_model'), _TRACKING),
    **dict.fromkeys(('get_classes', 'coco_classes', 'voc_classes'),
                    "classes are names of a data set: CocoDataset.METAINFO['classes'], model.dataset_meta['classes']"),
    **dict.fromkeys(('get_palette', 'palette_val', 'jitter_color'),
                    "colours are metainfo['palette'] of a data set; mmdet.visualization.visualizer.palette_colour"),
    **dict.fromkeys(('eval_map', 'eval_recalls', 'average_precision'), 'the metrics count by themselves: CocoMetric, '
                    'VOCMetric; recall is CocoMetric(metric="proposal")'),
    'PipelineSwitchHook': 'train the last epochs as a second run, with the other pipeline and load_from=CHECKPOINT',
    'YOLOXModeSwitchHook': _YOLO,
    'MeanTeacherHook': 'semi-supervised training is not here; EMAHook averages weights',
    'SetEpochInfoHook': 'give the model its epoch in before_train_epoch of a hook (docs/extend/hook.md)',
    'SyncNormHook': 'use SyncNormStatsHook',
    'MemoryProfilerHook': 'the log has the memory of each interval',
    'trigger_visualization_hook': 'set default_hooks.visualization=dict(type="DetVisualizationHook", draw=True)',
    'QuadraticWarmupLR': 'use LinearLR, or torch\'s schedulers through mmengine',
    'LearningRateDecayOptimizerConstructor': 'set optim_wrapper.paramwise_cfg',
    'ImageToTensor': _OLD.format('use PackDetInputs'),
    'DefaultFormatBundle': _OLD.format('use PackDetInputs'),
    'Collect': _OLD.format('use PackDetInputs'),
    'Compose': 'use mmcv.transforms.Compose',
    'inverse_sigmoid': 'use torch.logit(x, eps)',
    'find_latest_checkpoint': 'use mmengine.runner.find_latest_checkpoint',
    'get_loading_pipeline': 'mmdet browse draws what a pipeline gives',
    'PanopticSegmentor': 'panoptic segmentation is not here',
    'ReIDDataSample': _TRACKING,
    'TrackDataSample': _TRACKING,
    'iSAIDDataset': _DATA,
}
# What is said of any other name that a package does not have.
_ROOMS = {
    'mmdet': 'see docs/compatibility.md',
    'mmdet.apis': 'see docs/inference.md',
    'mmdet.datasets': 'write one on BaseDetDataset (docs/extend/dataset.md)',
    'mmdet.datasets.samplers': 'mmengine.dataset has DefaultSampler and InfiniteSampler; or register one of torch\'s '
                               'kind in DATA_SAMPLERS',
    'mmdet.datasets.transforms': 'Albu and TorchvisionTransform reach those of two libraries; or write one '
                                 '(docs/extend/transform.md)',
    'mmdet.engine.hooks': 'mmengine.hooks has more; or write one (docs/extend/hook.md)',
    'mmdet.evaluation': 'write one (docs/extend/metric.md)',
    'mmdet.models': 'bring it as a class of yours (docs/extend)',
    'mmdet.models.backbones': "TimmBackbone and TorchvisionBackbone are those of two libraries (SwinTransformer is "
                              "timm's swin_tiny_patch4_window7_224); or write one (docs/extend/backbone.md)",
    'mmdet.models.dense_heads': 'write one (docs/extend/head.md)',
    'mmdet.models.detectors': 'write one (docs/extend/head.md)',
    'mmdet.models.layers': "mmdetection's layers are not here, but for one; bring those that you need",
    'mmdet.models.losses': 'a loss is an nn.Module in MODELS; write one (docs/extend/head.md)',
    'mmdet.models.necks': 'a neck is an nn.Module in MODELS from maps to maps; write one (docs/compatibility.md)',
    'mmdet.models.roi_heads': 'write one (docs/extend/head.md)',
    'mmdet.models.task_modules': 'write one (docs/extend/head.md)',
    'mmdet.models.utils': "mmdetection's helpers of heads are not here, but for a few; bring those that you need",
    'mmdet.visualization': 'see docs/inference.md',
}  # fmt: skip


class _NoModule(UserError, ModuleNotFoundError):
    """An import of a module of mmdetection that this project does not have."""


class _Stand(ModuleType):
    """A module of mmdetection without a file here, or what someone takes for a function of that name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        place = self.__spec__.loader_state
        try:
            return getattr(importlib.import_module(place), name)
        except AttributeError:
            raise _absent(self.__name__, name, place) from None

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        package, _, name = self.__name__.rpartition('.')
        raise _absent(package, name, package)


class _Finder(MetaPathFinder, Loader):
    """What is below a module of the tables is, too."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith('mmdet.'):
            return None
        package, _, last = name.rpartition('.')
        if last in _NAMES or last[0].isupper():
            raise _absent(package, last, package)
        above = name
        while above:
            if above in _SENTENCES:
                raise AbsentName(f'{above} is not here: {_SENTENCES[above]}')
            if above in _PLACES:
                return ModuleSpec(name, self, loader_state=_PLACES[above], is_package=True)
            above = above.rpartition('.')[0]
        if package in _ROOMS and package.count('.') > 1:
            error = _NoModule(f'there is no {name} here: {_of_room(package)}')
            error.name = name
            raise error
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stand(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _absent(module: str, name: str, place: str) -> AbsentName:
    """The error of a name that a module does not have, whose names here are in `place`."""
    if name in _NAMES:
        return AbsentName(f'{module} has no {name} here: {_NAMES[name]}')
    hint = suggest(name, getattr(sys.modules.get(place), '__all__', ()), cutoff=0.85)
    return AbsentName(f'{module} has no {name} here{f".{hint}" if hint else ":"} {_of_room(place, module)}')


def _of_room(place: str, asked: str = '') -> str:
    """'it has BFP, FPN; write one (...)', of a package that was asked for, or the one that has its names."""
    names = [name for name in getattr(sys.modules.get(place), '__all__', ()) if name[0].isupper()]
    room = place
    while room not in _ROOMS:
        room = room.rpartition('.')[0]
    has = f'{"it" if place == asked else place} has {", ".join(names)}; ' if 0 < len(names) <= 12 else ''
    return has + _ROOMS[room]


sys.meta_path.append(_Finder())
