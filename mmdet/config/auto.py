"""``num_classes='auto'``: the number of classes of the data set, written into the config in its place.

A neck's ``in_channels='auto'`` is answered where it is built: `build_neck` of mmdet/models/detectors/parts.py.
"""

from typing import Any

from mmengine.config import Config

from mmdet.config.errors import UserError
from mmdet.config.values import class_of, walk

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def fill_num_classes(cfg: Config) -> None:
    """Set each ``num_classes='auto'`` of the model, in place; the config that a checkpoint keeps has the number.

    Raises:
        UserError: no data set says what its classes are.
    """
    parts = [part for _, part in walk(cfg.get('model') or {}) if isinstance(part, dict)]
    parts = [part for part in parts if part.get('num_classes') == 'auto']
    if not parts:
        return
    found = (_classes((cfg.get(loader) or {}).get('dataset')) for loader in _LOADERS)
    classes = next(filter(None, found), None)
    if classes is None:
        raise UserError(
            "model: num_classes='auto' needs a data set that names its classes: train_dataloader.dataset.metainfo="
            'dict(classes=...)'
        )
    for part in parts:
        part['num_classes'] = len(classes)


def _classes(dataset: Any) -> tuple | None:
    """The classes of a data set's config, or of the first that it wraps."""
    if not isinstance(dataset, dict):
        return None
    inner = dataset.get('datasets') or [dataset.get('dataset')]
    if inner[0] is not None:
        return _classes(inner[0])
    load = getattr(class_of(dataset), '_load_metainfo', None)  # mmengine's, of every BaseDataset
    return load(dataset.get('metainfo')).get('classes') if load else None
