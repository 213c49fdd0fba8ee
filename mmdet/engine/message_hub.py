"""A device's numbers, taken to the host when somebody wants them.

mmengine 0.10.7 reads the gradient's norm and each logged loss in every iteration. On a GPU the host then waits for the
whole step, instead of preparing the next one meanwhile. These work-arounds can go when mmengine's MessageHub and
OptimWrapper keep tensors.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OptimWrapper
from torch import Tensor


class DeferredMessageHub(MessageHub):
    """mmengine's hub, which keeps the numbers of a device as tensors until their history is asked for.

    All are read at once then. A history somebody holds gets its latest values when the hub is asked for any.
    """

    most = 4096  # tensors kept, of half a kilobyte of a GPU's memory each

    def __init__(self, name: str, **held):
        super().__init__(name, **held)
        self._late: dict[str, list[tuple[Tensor, int]]] = {}

    def update_scalar(self, key: str, value, count: int = 1, resumed: bool = True) -> None:
        if not isinstance(value, Tensor) or value.device.type == 'cpu' or not value.is_floating_point():
            if key in self._late:
                self._read()
            super().update_scalar(key, value, count, resumed)
            return
        self._set_resumed_keys(key, resumed)
        self._log_scalars.setdefault(key, HistoryBuffer([], np.arange(0)))  # its place in the log line
        self._late.setdefault(key, []).append((value.detach().reshape(()), count))
        if sum(map(len, self._late.values())) >= self.most:
            self._read()

    def _read(self) -> None:
        late, self._late = self._late, {}
        values = [value for kept in late.values() for value, _ in kept]
        if values:
            numbers = iter(torch.stack([value.to(values[0].device) for value in values]).tolist())
            for key, kept in late.items():
                for _, count in kept:
                    super().update_scalar(key, next(numbers), count, self._resumed_keys[key])

    @property
    def log_scalars(self) -> dict[str, HistoryBuffer]:
        self._read()
        return self._log_scalars

    def get_scalar(self, key: str) -> HistoryBuffer:
        if key in self._log_scalars and key not in self._late:  # mmengine asks for the time in every iteration
            return self._log_scalars[key]
        return super().get_scalar(key)

    def state_dict(self) -> dict:
        self._read()
        return super().state_dict()


# One register for both: whoever asks mmengine for the current hub (OptimWrapper does) gets this one.
DeferredMessageHub._instance_dict = MessageHub._instance_dict


def defer_grad_norm(wrapper: OptimWrapper) -> None:
    """Let `wrapper` log the gradient's norm as a tensor."""
    clip = wrapper.clip_func

    def clip_and_log(parameters: list[Tensor], **options) -> None:  # of what is returned mmengine would make a float
        norm = clip(parameters, **options)
        if norm is not None:
            wrapper.message_hub.update_scalar(f'train/{wrapper.grad_name}', norm)

    wrapper.clip_func = clip_and_log


class AsyncCopy:
    """Numbers on their way to the host, which need not wait for them.

    Args:
        values: one-element tensors and Python numbers.
    """

    def __init__(self, values: Sequence[Tensor | float]):
        device = next((v.device for v in values if isinstance(v, Tensor) and v.device.type != 'cpu'), 'cpu')
        stacked = torch.stack([torch.as_tensor(value, device=device).detach().reshape(()) for value in values])
        self.event = torch.cuda.Event() if stacked.is_cuda else None
        self.numbers = stacked.to('cpu', non_blocking=stacked.is_cuda)  # pinned memory where it is
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(device))

    def arrived(self) -> bool:
        return self.event is None or self.event.query()

    def tolist(self) -> list[float]:
        """Waits until they have arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.numbers.tolist()
