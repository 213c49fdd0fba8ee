"""One run of the detection study: a lean loop in one process, everything in memory.

N images of a batch; maps of the backbone (N, C, H, W).

What `mmdet train` would repeat each epoch is done once: images are decoded and resized, and what the frozen stages of
the backbone make of them, and of their mirror images, is kept in bfloat16. The rest is the toolbox's own: its model,
losses, optimizer, schedule and metric. Random numbers are functions of (seed, place): runs of one seed begin with the
same weights and see the same images in the same order, whatever their norm.
"""

import copy
import hashlib
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import Tensor

from mmdet.engine.hooks.precise_bn import precise_statistics
from mmdet.engine.memory import keeping
from mmdet.engine.runner import fast_layout
from mmdet.engine.seeding import derived_seed, seed_generators
from mmdet.layers.cbn import set_cbn_epoch
from mmdet.models.initialize import init_weights
from mmdet.models.task_modules.protocols import Assigner
from mmdet.registry import DATASETS, METRICS, MODELS, PARAM_SCHEDULERS, TRANSFORMS
from mmdet.structures import DetDataSample

STEP_LOOKED_AT = 5  # for what it keeps in memory
BATCHES_MEASURED = 200  # for the statistics under the final weights


# -- the model ----------------------------------------------------------------------------------------


def with_norm(model: dict, norm_cfg: dict | None) -> dict:
    """A model's config with this norm in neck and heads."""
    model = copy.deepcopy(model)
    for part in (model['neck'], model['roi_head']['bbox_head'], model['roi_head']['mask_head']):
        part['norm_cfg'] = norm_cfg
    return model


class Detector:
    """A model whose backbone takes the maps of its frozen stages.

    The initial weights are those of the model without norms: a norm takes the place of a convolution's bias, and
    would otherwise move the random numbers of all that is built after it.
    """

    def __init__(self, cfg: Config, norm_cfg: dict | None, seed: int, device: str = 'cpu') -> None:
        self.device = torch.device(device)
        models = []
        for norm in (None, norm_cfg):
            seed_generators(derived_seed(seed, 0))
            models.append(MODELS.build(with_norm(cfg.model, norm)))
        plain, self.model = models
        shared = self.model.state_dict().keys() & plain.state_dict().keys()
        self.model.load_state_dict({k: v for k, v in plain.state_dict().items() if k in shared}, strict=False)
        init_weights(self.model.backbone)
        self.model = fast_layout(self.model.to(self.device))
        backbone = self.model.backbone
        self.blocks = backbone.network.blocks
        self.cut = 1 + int(backbone.frozen_until.removeprefix('blocks.'))
        ends = [int(info['module'].removeprefix('blocks.')) for info in backbone.network.feature_info.info]
        self.ends = ends[-len(backbone.out_channels) :]  # the blocks whose maps the neck takes
        backbone.forward = self._trained_stages

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def frozen_maps(self, images: list[Tensor]) -> list[Tensor]:
        """Images as the pipeline gives them -> what the neck and the trained stages take."""
        inputs = self.model.data_preprocessor(dict(inputs=images))['inputs']
        network = self.model.backbone.network
        with self.autocast():
            x = network.bn1(network.conv_stem(inputs.contiguous(memory_format=torch.channels_last)))
            return self._through(x, 0, self.cut)

    def cached_maps(self, images: list[Tensor], cache: Path) -> list[list[Tensor]]:
        """`frozen_maps` of each image, from the file of earlier processes where these stages have seen these images."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in (*images, *self.model.backbone.state_dict().values()):
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        digest.update(f'{torch.__version__} {self.cut} {self.ends} {self.device.type}'.encode())
        file = cache / f'maps-{digest.hexdigest()}.pt'
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            self.model.eval()
            temporary = file.with_suffix(f'.{os.getpid()}')
            torch.save([self.frozen_maps([image]) for image in images], temporary)
            os.replace(temporary, file)
        return torch.load(file, mmap=True, weights_only=True)

    def _trained_stages(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return *maps, *self._through(maps[-1], self.cut, len(self.blocks))

    def _through(self, x: Tensor, start: int, end: int) -> list[Tensor]:
        found = []
        for index in range(start, end):
            x = self.blocks[index](x)
            if index in self.ends:
                found.append(x)
        return found


# -- the data -----------------------------------------------------------------------------------------


class View(NamedTuple):
    """An image or its mirror image: maps of the frozen stages, [(1, C, H, W)], and its sample."""

    maps: list[Tensor]
    sample: DetDataSample


class Data:
    """A data set in memory: of each image its views, the mirrored one last where the pipeline mirrors.

    Args:
        cache: folder in which the maps are kept for the next process.
    """

    def __init__(self, dataset_cfg: dict, detector: Detector, cache: Path) -> None:
        steps = list(dataset_cfg['pipeline'])
        mirror = [step for step in steps if step['type'] == 'RandomFlip']
        *first, pack = [step for step in steps if step['type'] != 'RandomFlip']
        dataset = DATASETS.build(dict(dataset_cfg, pipeline=first))
        self.metainfo = dataset.metainfo
        pack = TRANSFORMS.build(pack)
        flips = [dict, *(TRANSFORMS.build(dict(step, prob=1.0)) for step in mirror)]
        packed = [
            [pack(flip(dict(loaded))) for flip in flips] for loaded in map(dataset.__getitem__, range(len(dataset)))
        ]
        maps = detector.cached_maps([image['inputs'] for views in packed for image in views], cache)
        found = iter(maps)
        self.assigned: dict[int, tuple] = {}
        self.views = [[View(next(found), image['data_samples']) for image in views] for views in packed]

    def subset(self, indices: Sequence[int]) -> 'Data':
        part = copy.copy(self)
        part.views = [self.views[index] for index in indices]
        return part

    def __len__(self) -> int:
        return len(self.views)


class Remembered:
    """The RPN's assigner: anchors and objects of an image never change, so that each view is asked for once.

    Args:
        known: what earlier models were told, by the address of the ground truth.
    """

    def __init__(self, assigner: Assigner, known: dict[int, tuple]) -> None:
        self.assigner, self.known = assigner, known

    def assign(self, boxes: Tensor, gt_boxes: Tensor, ignored_boxes: Tensor) -> tuple[Tensor, Tensor]:
        key = gt_boxes.data_ptr()
        if key not in self.known:
            self.known[key] = self.assigner.assign(boxes, gt_boxes, ignored_boxes)
        return self.known[key]


def batches(size: int, batch: int, epochs: int, seed: int) -> Iterator[list[tuple[int, bool]]]:
    """Index, and whether it is mirrored, of each image of each step. What an epoch leaves over begins the next one."""
    generator = np.random.default_rng(derived_seed(seed, 2))
    order = np.concatenate([generator.permutation(size) for _ in range(epochs)])
    mirrored = generator.random(len(order)) < 0.5
    for start in range(0, len(order) - batch + 1, batch):
        yield [(int(i), bool(m)) for i, m in zip(order[start : start + batch], mirrored[start : start + batch])]


def collate(views: Sequence[View], device: torch.device) -> tuple[list[Tensor], list[DetDataSample]]:
    maps = [torch.cat(level).to(device) for level in zip(*(view.maps for view in views))]
    return maps, [view.sample for view in views]


# -- training and testing -----------------------------------------------------------------------------


def schedulers(cfgs: Sequence[dict], optimizer: OptimWrapper, epoch_length: int) -> list:
    built = []
    for cfg in map(dict, cfgs):
        kind = PARAM_SCHEDULERS.get(cfg.pop('type'))
        if cfg.pop('convert_to_iter_based', False):
            built.append(kind.build_iter_from_epoch(optimizer=optimizer, epoch_length=epoch_length, **cfg))
        else:
            built.append(kind(optimizer=optimizer, **cfg))
    return built


def train(detector: Detector, data: Data, cfg: Config, batch: int, seed: int) -> dict:
    """Train as the config says.

    Returns steps, the mean loss of the last tenth of them, the median of a step's CPU seconds, and the MiB that a step
    keeps for its backward pass.
    """
    model, epochs = detector.model, cfg.train_cfg.max_epochs
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    schedule = schedulers(cfg.param_scheduler, optimizer, len(data) // batch)
    if detector.device.type == 'cpu':
        model.rpn_head.assigner = Remembered(model.rpn_head.assigner, data.assigned)
    model.train()
    times, losses, kept = [], [], {}
    for step, chosen in enumerate(batches(len(data), batch, epochs, seed)):
        began = time.process_time()
        set_cbn_epoch(model, step * batch // len(data))
        seed_generators(derived_seed(seed, 3, step))
        maps, samples = collate([data.views[index][mirrored] for index, mirrored in chosen], detector.device)
        with detector.autocast(), keeping(kept, model.parameters()) if step == STEP_LOOKED_AT else nullcontext():
            loss, _ = model.parse_losses(model.loss(maps, samples))
        optimizer.update_params(loss)
        for scheduler in schedule:
            scheduler.step()
        losses.append(float(loss.detach()))
        times.append(time.process_time() - began)
        if not math.isfinite(losses[-1]):
            break
    return dict(
        steps=len(losses), loss=round(statistics.mean(losses[-max(len(losses) // 10, 1) :]), 4),
        step_seconds=round(statistics.median(times), 4), kept_mib=round(sum(kept.values()) / 2**20, 1),
    )  # fmt: skip


def measure_statistics(detector: Detector, data: Data, batch: int, seed: int) -> None:
    """Replace the running averages by the statistics of training batches under the final weights (PreciseBN)."""

    def forward(step: tuple[int, list]) -> None:
        seed_generators(derived_seed(seed, 4, step[0]))
        maps, samples = collate([data.views[index][mirrored] for index, mirrored in step[1]], detector.device)
        with detector.autocast():
            detector.model.loss(maps, samples)

    detector.model.train()
    steps = islice(enumerate(batches(len(data), batch, 1, seed)), BATCHES_MEASURED)
    precise_statistics(detector.model, forward, steps)


@torch.no_grad()
def test(detector: Detector, data: Data, ann_file: str) -> dict[str, float]:
    """AP of boxes and masks, in %."""
    metric = METRICS.build(dict(type='CocoMetric', ann_file=ann_file, metric=['bbox', 'segm'], classwise=False))
    metric.dataset_meta = data.metainfo
    detector.model.eval()
    for view, *_ in data.views:
        maps, samples = collate([view], detector.device)
        with detector.autocast():
            metric.process(None, detector.model.predict(maps, [copy.copy(samples[0])]))
    found = metric.evaluate(len(data))
    return {name.removeprefix('coco/'): round(100 * value, 3) for name, value in found.items()}
