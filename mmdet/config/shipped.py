"""Configs that come with mmdet, found by name: ``cbn/mask_rcnn_r50_fpn_1x``, ``mmdet::cbn/...`` in a ``_base_``.

mmengine 0.10.7 looks ``package::`` up with pkg_resources, which setuptools has no more, in a folder that openmim makes.
What replaces that here can go when it asks importlib.
"""

import functools
import os
from pathlib import Path

from mmengine.config import Config

_PREFIX = 'mmdet::'
# Folders of recipes that mmdetection has too.
ZOO = ('faster_rcnn', 'mask_rcnn', 'cascade_rcnn', 'retinanet', 'rpn', 'fast_rcnn', 'ssd')
_PACKAGE = Path(__file__).resolve().parent.parent


@functools.cache
def shipped_folder() -> Path:
    """The folder of the recipes: inside an installed package; beside the package in a checkout."""
    inside = _PACKAGE / 'configs'
    return inside if inside.is_dir() else _PACKAGE.parent / 'configs'


def shipped_names() -> list[str]:
    """All of them as one types them, without '.py': 'cbn/mask_rcnn_r50_fpn_1x'."""
    folder = shipped_folder()
    return [path.relative_to(folder).with_suffix('').as_posix() for path in sorted(folder.rglob('*.py'))]


def find_config(name: str) -> str:
    """Path of a config: `name` itself where there is such a file, else the recipe of that name; else `name`.

    'configs/' may stand before the name, '.py' may be left out, and mmdetection's spelling
    ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py') will do. So will a name of its model zoo, see `zoo_config`.
    """
    if os.path.exists(name) or os.path.isabs(name):
        return name
    wanted = name.removeprefix(_PREFIX).removeprefix('./').removeprefix('configs/')
    wanted = wanted if wanted.endswith(('.py', '.json', '.yaml', '.yml')) else f'{wanted}.py'
    for spelling in (wanted, wanted.replace('-', '_').replace('_coco.py', '.py')):
        path = shipped_folder() / spelling
        if path.is_file():
            return str(path)
    return zoo_config(name) or name


def zoo_config(name: str) -> str | None:
    """Path of the recipe that a name of mmdetection's model zoo means, 'mask-rcnn_r50_fpn_1x_coco'; None for none."""
    wanted = name.removesuffix('.py').replace('-', '_')
    if wanted.endswith('_coco') and '/' not in name:
        folder = shipped_folder()
        for stem in (wanted.removesuffix('_coco'), wanted):
            found = [path for family in ZOO for path in (folder / family).glob(f'{stem}.py')]
            if found:
                return str(found[0])
    return None


def base_path(base: str, config: str) -> str:
    """Path of a ``_base_`` of the file `config`."""
    return find_config(base) if base.startswith(_PREFIX) else os.path.join(os.path.dirname(config), base)


_mmengines = Config._get_cfg_path


def _cfg_path(base: str, config: str) -> tuple[str, str | None]:
    return (base_path(base, config), None) if base.startswith(_PREFIX) else _mmengines(base, config)


Config._get_cfg_path = staticmethod(_cfg_path)
