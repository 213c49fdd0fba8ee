"""``--compile``: the parts of a detector that compute the same whatever it sees, through torch.compile.

A class names them, with what their first dimension counts: ``compiles = dict(extract_feat='images')``, methods from
tensors to tensors. What depends on the values, such as NMS, RoIAlign and masks, stays as it is.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import is_main_process
from torch import Tensor, nn

from mmdet.config.contracts import call_unchecked


def compile_for_inference(model: nn.Module) -> nn.Module:
    """Compile a detector's static parts, each when it is first called, for images of any size and any number of RoIs.

    Where sizes make PyTorch choose another way, as for small maps, a part is compiled once more.
    On a CPU the weights of the first call become constants: a change afterwards has no effect. A line says how long
    each part took. Where compiling fails, as without a C++ compiler, one line says so and the model stays uncompiled.
    """
    state = _State()
    for name, module in model.named_modules():
        call_unchecked(module)
        for method, counted in getattr(module, 'compiles', {}).items():
            if counted == 'images' and not all(getattr(part, 'fixed_padding', True) for part in module.modules()):
                _say(f'--compile: {method} stays as it is, the padding in its backbone follows the size of the image')
                continue
            part = _Part(getattr(module, method), f'{name}.{method}'.lstrip('.'), counted == 'images', state)
            setattr(module, method, part)
    return model


class _State:
    """What the parts of one model share."""

    failed = False


class _Part:
    """A method that takes tensors, or tuples of them, compiled at its first call in inference."""

    def __init__(self, eager: Callable, name: str, of_images: bool, state: _State):
        self.eager, self.name, self.of_images, self.state = eager, name, of_images, state
        self.compiled = torch.compile(eager, dynamic=True)
        self.seen: set = set()

    def __call__(self, *args) -> Any:
        first = args[0] if isinstance(args[0], Tensor) else args[0][0]
        # torch compiles a size of 1 on its own: worth it for a single image, not for a single RoI
        if torch.is_grad_enabled() or self.state.failed or len(first) < 2 - self.of_images:
            return self.eager(*args)
        kind = min(len(first), 2), first.dtype, torch.is_inference_mode_enabled()
        start, new = time.perf_counter(), kind not in self.seen
        try:
            with _settings(freezing=first.device.type == 'cpu'):
                outputs = self.compiled(*args)
        except _compiler_errors() as error:
            self.state.failed = True
            _say(f'--compile: {self.name} stays as it is, and what follows: {_cause(error)}')
            return self.eager(*args)
        if new:
            self.seen.add(kind)
            _say(f'--compile: {self.name} {time.perf_counter() - start:.1f} s')
        return outputs


@contextmanager
def _settings(freezing: bool):
    import torch._inductor.config as inductor
    from torch.fx.experimental import _config as shapes

    # else a square image would be compiled for square images alone
    with inductor.patch(freezing=freezing), shapes.patch(use_duck_shape=False):
        yield


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InvalidCxxCompiler

    return TorchDynamoException, InvalidCxxCompiler


def _cause(error: BaseException) -> str:
    error = getattr(error, 'inner_exception', None) or error.__cause__ or error
    return f'{type(error).__name__}: {error}'.splitlines()[0][:200]


def _say(line: str) -> None:
    if is_main_process():
        print(line, flush=True)
