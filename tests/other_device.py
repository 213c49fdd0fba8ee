"""An emulated accelerator: tensors that report the device 'meta' and compute on the CPU.

On a machine without a GPU everything runs on one device, and code that mixes host and device tensors passes. Within
`with OtherDevice() as device:` such a mixture raises as it would with a GPU, and what waits for the device is counted
in `device.waits` by operator. Tensors made of numbers or arrays on the host are counted in `device.made`: each is
copied to the device sooner or later. What depends on ``is_cuda`` is not reached.
"""

from collections import Counter

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device('meta')
# The result's size or value must be known on the host.
WAITING = {'_local_scalar_dense', 'nonzero', 'masked_select', 'equal', '_unique2', 'unique_consecutive', 'nms',
           'soft_nms'}  # fmt: skip
# May meet a tensor of the host.
MIXING = {'_to_copy', 'copy_'}


class DeviceTensor(Tensor):
    """A tensor of the emulated device around the CPU tensor that holds its data."""

    @staticmethod
    def __new__(cls, held: Tensor) -> 'DeviceTensor':
        return Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )

    def __init__(self, held: Tensor):
        self.held = held

    def __repr__(self, *, tensor_contents=None) -> str:
        return f'DeviceTensor({self.held!r})'

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f'{func} of a device tensor outside of `with OtherDevice()`')


class _FromNumbers(TorchFunctionMode):
    """Tensors made of Python numbers are made on the host, and then copied."""

    MAKERS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}

    def __init__(self, counts: Counter):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], DeviceTensor):
            self.counts['tolist'] += 1
            return args[0].held.tolist()
        if func in self.MAKERS:
            device = kwargs.pop('device', None)
            if func is Tensor.new_tensor:
                device = args[0].device if device is None else device
                kwargs.setdefault('dtype', args[0].dtype)
                func, args = torch.tensor, args[1:]
            elif func is torch.as_tensor and isinstance(args[0], Tensor):
                return args[0].to(device=device, **kwargs)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        return func(*args, **kwargs)


class OtherDevice(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.waits: Counter = Counter()
        self.made = 0
        self.numbers = _FromNumbers(self.waits)

    def clear(self) -> None:
        """Count from here on."""
        self.waits.clear()
        self.made = 0

    def __enter__(self):
        self.numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.numbers.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split('::')[1]
        self.made += name == 'lift_fresh'
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [isinstance(x, DeviceTensor) for x in given]
        if any(there) and name not in MIXING:
            host = [x for x, t in zip(given, there) if not t and x.dim()]
            if host:
                raise RuntimeError(f'{func} mixes the device with host tensors of {[tuple(x.shape) for x in host]}')
            masks = name == 'index' and any(x is not None and x.dtype == torch.bool for x in args[1])
            if masks or name in WAITING:
                self.waits[name] += 1
        target = kwargs.get('device')
        lands = any(there) if target is None else torch.device(target) == DEVICE
        if name == 'copy_':
            lands = there[0]
        asynchronous = kwargs.get('non_blocking') or (name == 'copy_' and len(args) > 2 and args[2])
        if name in MIXING and len({*there, lands}) == 2 and not asynchronous:
            self.waits['copy'] += 1
        if target is not None and torch.device(target) == DEVICE:
            kwargs = {**kwargs, 'device': torch.device('cpu')}
        held_args, held_kwargs = tree_map(lambda x: x.held if isinstance(x, DeviceTensor) else x, (args, kwargs))
        out = func(*held_args, **held_kwargs)
        if not lands:
            return out
        out = tree_map(lambda x: DeviceTensor(x) if isinstance(x, Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def move(self, model: torch.nn.Module) -> torch.nn.Module:
        """Put a model's parameters and buffers on the device, in place."""
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if isinstance(tensor, torch.nn.Parameter):
                        tensors[name] = torch.nn.Parameter(tensor.to(DEVICE), requires_grad=tensor.requires_grad)
                    elif tensor is not None:
                        tensors[name] = tensor.to(DEVICE)
        return model
