"""Where a detector's time goes: each stage of `test_step` under a stopwatch."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import nn

from mmdet.apis.counts import DENSE_HEADS, stage_name
from mmdet.apis.inference import detect
from mmdet.structures import DetDataSample

STAGES = ('load', 'preprocess', 'backbone', 'neck', 'backbone, neck', 'rpn head', 'dense head', 'proposals', 'roi head',
          'masks', 'postprocess')  # fmt: skip


class Stopwatch:
    """Seconds by stage. What a stage calls counts as its own, unless that is a stage itself; of 'masks' all counts."""

    def __init__(self, device: str) -> None:
        self.wait = torch.cuda.synchronize if device.startswith('cuda') else lambda: None
        self.seconds: dict[str, float] = defaultdict(float)
        self.running: list[str] = []
        self.since = 0.0

    @contextmanager
    def stage(self, name: str):
        if self.running and self.running[-1] == 'masks':
            yield
            return
        self._switch(lambda: self.running.append(name))
        try:
            yield
        finally:
            self._switch(self.running.pop)

    def _switch(self, change: Callable[[], Any]) -> None:
        self.wait()
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        change()
        self.since = time.perf_counter()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Let a call of the object's method be a stage."""
        call = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return call(*args, **kwargs)

        setattr(owner, method, timed)


def watch_detector(model: nn.Module, watch: Stopwatch, compiled: bool = False) -> None:
    """Put the stages of a detector of `init_detector` under the watch; of a compiled one, backbone and neck as one."""
    watch.watch(model.data_preprocessor, 'forward', 'preprocess')
    watch.watch(model, 'predict', 'postprocess')  # what is left of it
    if compiled:
        watch.watch(model, 'extract_feat', 'backbone, neck')
    else:
        watch.watch(model.backbone, 'forward', 'backbone')
        if model.neck is not None:
            watch.watch(model.neck, 'forward', 'neck')
    for name in DENSE_HEADS:
        if hasattr(model, name):
            watch.watch(getattr(model, name), 'forward', stage_name(name))
            watch.watch(getattr(model, name), 'predict', 'proposals' if name == 'rpn_head' else 'postprocess')
    if hasattr(model, 'roi_head'):
        watch.watch(model.roi_head, 'forward', 'roi head')
        if model.roi_head.mask_head is not None:
            watch.watch(model.roi_head, 'predict_masks', 'masks')


def time_stages(
    model: nn.Module, batches: Sequence[Callable[[], dict]], repeats: int, compiled: bool = False
) -> dict[str, float]:
    """Medians over `repeats`, in seconds, of each stage and of the 'total', after one batch to warm up.

    Args:
        model: of `init_detector`; it is of no other use afterwards.
        batches: each makes a collated batch ('load'); the repeats go round them.
    """
    watch = Stopwatch(next(model.parameters()).device.type)
    watch_detector(model, watch, compiled)
    runs = []
    for repeat in range(-len(batches), repeats):  # those below 0 warm up: each size once
        watch.seconds.clear()
        with watch.stage('load'):
            batch = batches[repeat % len(batches)]()
        with watch.stage('postprocess'):
            detect(model, batch)
        if repeat >= 0:
            runs.append({**watch.seconds, 'total': sum(watch.seconds.values())})
    return {name: statistics.median(run.get(name, 0.0) for run in runs)
            for name in (*STAGES, 'total') if any(name in run for run in runs)}


def random_batch(size: tuple[int, int], images: int, proposals: int = 1000) -> dict:
    """Noise of `size` (h, w), with proposals for models that make none."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for index in range(images):
        corners = torch.rand(proposals, 2, 2, generator=generator) * torch.tensor([size[1], size[0]])
        boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
        sample = DetDataSample(metainfo=dict(img_id=index, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        sample.proposals = InstanceData(bboxes=boxes)
        noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        batch.append(dict(inputs=noise, data_samples=sample))
    return pseudo_collate(batch)


def peak_memory(device: str) -> float:
    """MiB: of the GPU's allocator, or of this process from its start on."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10)
