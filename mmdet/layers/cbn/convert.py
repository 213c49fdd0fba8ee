"""CBN in any model: replace the BatchNorm2d layers that follow a convolution, and fold them back."""

import logging
from typing import NamedTuple

import torch
from torch import nn

from .layer import CrossIterBatchNorm2d
from .state import cbn_layers


class Plan(NamedTuple):
    """What ``convert_cbn`` does with a model.

    pairs: norm's name -> name of the convolution that it follows. left: norm's name -> why it stays BatchNorm.
    shared: norms of `pairs` whose convolution's output is used elsewhere, too, as far as torch.fx could see.
    """

    pairs: dict[str, str]
    left: dict[str, str]
    shared: set[str]

    def __str__(self) -> str:
        lines = [f'CBN: {len(self.pairs)} of {len(self.pairs) + len(self.left)} BatchNorm2d layers follow a Conv2d']
        lines += [f'  {norm} stays BatchNorm2d: {reason}' for norm, reason in self.left.items()]
        return '\n'.join(lines)


def plan_cbn(model: nn.Module) -> Plan:
    """Pair every BatchNorm2d with the Conv2d whose output it normalises.

    The model is traced with torch.fx; where that is not possible, its traceable parts are, and within the rest a
    norm belongs to the convolution registered just before it in the same module, if their channels agree.
    """
    modules = dict(model.named_modules())
    norms = {name: m for name, m in modules.items() if isinstance(m, nn.BatchNorm2d)}
    pairs, left, shared = {}, {}, set()
    untraced = _traced(model, '', pairs, left, shared)
    for parent in untraced:
        last_name = last = None
        for child_name, child in modules[parent].named_children():
            name = f'{parent}.{child_name}' if parent else child_name
            if isinstance(child, nn.BatchNorm2d) and name not in pairs:
                if isinstance(last, nn.Conv2d) and last.out_channels == child.num_features:
                    pairs[name] = last_name
                else:
                    left[name] = 'no Conv2d of as many channels is registered just before it'
            last_name, last = name, child
    users: dict[str, list[str]] = {}
    for norm, conv in pairs.items():
        users.setdefault(conv, []).append(norm)
    for conv, several in users.items():
        for norm in several if len(several) > 1 else ():
            left[norm] = f'several norms follow {conv}'
            del pairs[norm]
    return Plan(pairs, {name: left.get(name, 'it is never called') for name in norms if name not in pairs}, shared)


class _Followed:
    """Mixin for a norm that holds what comes behind it, as timm's BatchNormAct2d holds its dropout and activation."""

    def forward(self, *args, **kwargs) -> torch.Tensor:
        x = super().forward(*args, **kwargs)
        for child in self.children():
            x = child(x)
        return x


class _FollowedCBN(_Followed, CrossIterBatchNorm2d):
    pass


class _FollowedBatchNorm(_Followed, nn.BatchNorm2d):
    pass


class _Tracer(torch.fx.Tracer):
    """Enters no norm and no convolution, whoever's class it is."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(module, name)


def _traced(model: nn.Module, prefix: str, pairs: dict, left: dict, shared: set) -> list[str]:
    """Fill in what torch.fx sees below ``model``; return the names of the modules it cannot trace."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # tracing fails in as many ways as there are models
        untraced = [prefix]
        for name, child in model.named_children():
            below = f'{prefix}.{name}' if prefix else name
            if not isinstance(child, nn.BatchNorm2d) and len(list(child.children())):
                untraced += _traced(child, below, pairs, left, shared)
        return untraced
    modules = dict(model.named_modules())
    join = '{}.{}'.format if prefix else '{1}'.format
    for node in graph.nodes:
        if node.op != 'call_module' or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        source = node.args[0] if node.args else None
        before = modules.get(source.target) if getattr(source, 'op', '') == 'call_module' else None
        if isinstance(before, nn.Conv2d):
            pairs[join(prefix, node.target)] = join(prefix, source.target)
            if len(source.users) > 1:
                shared.add(join(prefix, node.target))
        else:
            left[join(prefix, node.target)] = 'its input is not the output of a Conv2d'
    return []


def convert_cbn(model: nn.Module, buffer_num: int = 3, burnin: int | None = None, **options) -> nn.Module:
    """Replace, in place, each BatchNorm2d of ``model`` that follows a Conv2d; returns the model.

    Weights, statistics, eps, momentum and whether gamma and beta are trained stay as they are, and so do the state dict
    and the modules that a norm holds (timm's BatchNormAct2d: its activation), which are applied behind it. What stays
    BatchNorm2d, and why, is logged; ``plan_cbn(model)`` says it beforehand. ``options`` are those of
    ``CrossIterBatchNorm2d``. A norm whose convolution turns out to be another one when the model runs raises ValueError
    there.

    Raises:
        ValueError: no norm of the model follows a convolution.

    >>> import torchvision
    >>> model = convert_cbn(torchvision.models.resnet18(), buffer_num=3, burnin_iters=500)
    >>> sum(isinstance(m, CrossIterBatchNorm2d) for m in model.modules())
    20
    """
    plan = plan_cbn(model)
    if not plan.pairs:
        raise ValueError(f'convert_cbn: no BatchNorm2d of {type(model).__name__} follows a Conv2d')
    logging.getLogger(__name__).info('%s', plan)
    for norm_name, conv_name in plan.pairs.items():
        old = model.get_submodule(norm_name)
        kind = _FollowedCBN if list(old.children()) else CrossIterBatchNorm2d
        new = kind(
            old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats, buffer_num, burnin, **options
        )
        _replace(model, norm_name, _take_over(old, new).follow(model.get_submodule(conv_name)))
    return model


def revert_cbn(model: nn.Module) -> nn.Module:
    """Replace, in place, each CBN layer of ``model`` by the BatchNorm2d that it is in eval mode; returns the model."""
    for name, old in cbn_layers(model).items():
        for conv in model.modules():
            old.unfollow(conv)
        kind = _FollowedBatchNorm if list(old.children()) else nn.BatchNorm2d
        plain = kind(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
        new = _take_over(old, plain)
        if name == '':
            return new
        _replace(model, name, new)
    return model


def _take_over(old: nn.Module, new: nn.Module) -> nn.Module:
    """Give ``new`` the very parameters, buffers and modules of ``old``, so that an optimizer keeps hold of them."""
    new._parameters.update(old._parameters)
    new._modules.update(old._modules)
    new._buffers.update(old._buffers)
    return new.train(old.training)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, new)
