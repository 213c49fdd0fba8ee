"""Modules of mmdetection 3 that have another place here: importing one finds it, or says what is there instead.

Python asks `_Finder` last, for what no file gives. Nothing of this project needs it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The module, with all below it, and where its names are.
_PLACES = {
    'mmdet.datasets.api_wrappers': 'mmdet.datasets.api_wrappers',
    'mmdet.datasets.base_det_dataset': 'mmdet.datasets',
    'mmdet.datasets.dataset_wrappers': 'mmdet.datasets',
    'mmdet.datasets.transforms.transforms': 'mmdet.datasets.transforms',
    'mmdet.engine.hooks.num_class_check_hook': 'mmdet.engine.hooks',
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
    'mmdet.models.utils': 'mmdet.models.utils',
    'mmdet.structures.bbox': 'mmdet.structures.bbox',
    'mmdet.structures.det_data_sample': 'mmdet.structures',
    'mmdet.structures.mask': 'mmdet.structures.mask',
    'mmdet.utils': 'mmdet.utils',
    'mmdet.visualization.local_visualizer': 'mmdet.visualization',
}
# The module, with all below it, and what to use instead.
_SENTENCES = {
    'mmdet.core': 'it is of mmdetection 2; structures, evaluation, visualization and models.task_modules have what it '
                  'had, see docs/compatibility.md',
    'mmdet.datasets.pipelines': 'it is of mmdetection 2; transforms are in mmdet.datasets.transforms',
    'mmdet.evaluation.functional': 'the metrics count by themselves: CocoMetric, VOCMetric; the classes are '
                                   'metainfo["classes"] of a data set',
    'mmdet.models.builder': 'it is of mmdetection 2; use mmdet.registry.MODELS.build(cfg)',
    'mmdet.datasets.builder': 'it is of mmdetection 2; use mmdet.registry.DATASETS and mmengine.runner.Runner',
    'mmdet.testing': 'build a model by mmdet.registry.MODELS.build(cfg.model)',
    'mmdet.visualization.palette': 'the colours are metainfo["palette"] of a data set',
}  # fmt: skip
_NAMES = dict(
    BaseDetector='subclass TwoStageDetector, SingleStageDetector, or mmengine.model.BaseModel (docs/extend/head.md)',
    BaseDenseHead='subclass RPNHead or RetinaHead (docs/extend/head.md)',
    AnchorHead='subclass RPNHead or RetinaHead (docs/extend/head.md)',
    BaseRoIHead='subclass StandardRoIHead or CascadeRoIHead (docs/extend/head.md)',
)


class _Finder(MetaPathFinder, Loader):
    """What is below a module of the tables is, too."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith('mmdet.'):
            return None
        above = name
        while above:
            if above in _SENTENCES:
                raise _absent(f'{above} is not here: {_SENTENCES[above]}')
            if above in _PLACES:
                return ModuleSpec(name, self, loader_state=_PLACES[above], is_package=True)
            above = above.rpartition('.')[0]
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        place = module.__spec__.loader_state

        def lookup(name: str) -> Any:
            if name.startswith('__'):
                raise AttributeError(f'module {module.__name__!r} has no attribute {name!r}')
            there = importlib.import_module(place)
            try:
                return getattr(there, name)
            except AttributeError:
                sentence = _NAMES.get(name, f'what there is of that module is in {place}')
                raise _absent(f'{module.__name__} has no {name} here: {sentence}') from None

        module.__getattr__ = lookup


def _absent(text: str) -> ImportError:
    from mmdet.config.absent import AbsentName

    return AbsentName(text)


sys.meta_path.append(_Finder())
