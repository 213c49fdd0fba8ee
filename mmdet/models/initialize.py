"""The weights that training starts from: what the `init_cfg` of a model's parts say."""

from mmengine.logging import print_log
from mmengine.model import BaseModel, initialize
from mmengine.model import BaseModule as MMEngineModule
from mmengine.model.weight_init import PretrainedInit
from torch import nn

from mmdet.checkpoints import load_checkpoint, load_pretrained, weights_for_part
from mmdet.config.errors import UserError, at_most
from mmdet.registry import WEIGHT_INITIALIZERS


def init_weights(module: nn.Module) -> None:
    """Initialise a model as the `init_cfg` of each of its parts says: the whole before the parts, files last of all.

    `init_cfg` is one dict or a list of them, of mmengine's initialisers (Normal, Xavier, Kaiming, Constant, ...) or
    ``dict(type='Pretrained', checkpoint=...)``, see `Pretrained`. A part without it keeps what its constructor did.

    A part with a method `init_weights` of its own initialises itself and what is in it. As in mmengine, that is one of
    the parts of a `BaseModule` (a detector or head), or a `BaseModule` itself: a network of another library, which
    has such a method, too, keeps the weights that it was built with. So does a part whose `is_init` is true.

    Raises:
        UserError: a file of weights that does not fit.
    """
    files = _files(module)
    initialize(module, [c for c in _cfgs(module) if c not in files])
    for child in module.children():
        own = getattr(type(child), 'init_weights', None) not in (None, *_PLAIN)
        if getattr(child, 'is_init', False):
            continue
        if own and (isinstance(module, MMEngineModule) or isinstance(child, MMEngineModule)):
            child.init_weights()
        else:
            init_weights(child)
    for file in files:
        WEIGHT_INITIALIZERS.build(dict(file, type='Pretrained'))(module)


class BaseModule(MMEngineModule):
    """mmengine's, but that its `init_weights` is this file's: mmengine's loads whatever happens to fit."""

    def init_weights(self) -> None:
        """Initialise this part as its `init_cfg` and those of its parts say."""
        init_weights(self)


_PLAIN = MMEngineModule.init_weights, BaseModule.init_weights


def leave_out_files(model: nn.Module, loaded: set[str]) -> None:
    """Take the files out of the `init_cfg` of each part all of whose weights, `loaded`, will be replaced anyway."""
    for name, part in model.named_modules():
        files = _files(part)
        keys = [f'{name}.{key}' if name else key for key in part.state_dict()]
        if files and all(key in loaded or key.endswith('num_batches_tracked') for key in keys):
            part.init_cfg = [c for c in _cfgs(part) if c not in files]
            where = name or type(model).__name__
            names = at_most(str(c.get('checkpoint')) for c in files)
            print_log(f'{where}: {names} is not read, load_from has all these weights', 'current')


def parts_of_file(model: nn.Module, uri: str) -> list[str]:
    """The names of the parts whose `init_cfg` asks for the file at `uri`; '' for the whole model."""
    return [name for name, part in model.named_modules() if any(c.get('checkpoint') == uri for c in _files(part))]


def _cfgs(module: nn.Module) -> list[dict]:
    cfg = getattr(module, 'init_cfg', None) or []
    return [cfg] if isinstance(cfg, dict) else list(cfg)


def _files(module: nn.Module) -> list[dict]:
    return [c for c in _cfgs(module) if _is_file(c)]


def _is_file(init_cfg: dict) -> bool:
    return init_cfg.get('type') in ('Pretrained', PretrainedInit, Pretrained)


@WEIGHT_INITIALIZERS.register_module()
class Pretrained:
    """Weights from a file, into a whole detector or into one part of it.

    A part, such as the backbone, must find all its weights there. They may stand under the part's own names, as part of
    a detector (``backbone.``), or under the names of any project that `mmdet.checkpoints` knows. Whole branches that
    the part does not have, such as a classifier, are left out. Of a whole detector half suffices (other classes).

    Args:
        checkpoint: ``torchvision://resnet50``, ``open-mmlab://NAME``, an address, or a path.
        prefix: where in the file the part stands, ``backbone.``.

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """

    def __init__(self, checkpoint: str | None = None, prefix: str | None = None, map_location: str = 'cpu'):
        if not checkpoint:
            raise UserError("an init_cfg of type 'Pretrained' lacks its checkpoint")
        self.checkpoint = checkpoint
        self.prefix = prefix

    def __call__(self, module: nn.Module) -> None:
        if isinstance(module, BaseModel):
            load_checkpoint(module, self.checkpoint, strict=False)
            return
        weights = weights_for_part(module, load_pretrained(self.checkpoint), self.prefix)
        module.load_state_dict(weights)
        print_log(f'{type(module).__name__}: {len(weights)} arrays loaded from {self.checkpoint}', logger='current')
