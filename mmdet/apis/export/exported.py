"""Writing a detector into a file, and a file in the place of a detector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmdet.apis.export.formats import FORMATS, open_file
from mmdet.apis.images import to_input
from mmdet.config.data_files import check_data
from mmdet.config.errors import UserError
from mmdet.config.values import names_a
from mmdet.datasets.transforms import Resize
from mmdet.models.detections import Detections
from mmdet.models.roi_heads.common import masks_of
from mmdet.structures import DetDataSample, RLEMasks
from mmdet.structures.boxes import clip_boxes, unscale_boxes
from mmdet.version import __version__

_VERSION = 1  # of the metadata


def export_detector(
    model: nn.Module,
    path: str | Path,
    format: str = 'onnx',
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
) -> dict[str, Any]:
    """Write a detector of `init_detector` into a file that `init_detector` opens again.

    Args:
        path: the file; its ending is the format's, .pt2, .onnx or .xml (beside which OpenVINO has a .bin).
        format: 'torch.export', 'onnx' or 'openvino'.
        size: (h, w) of the images that the graph takes, into which each is fitted and padded; by default the `scale`
            of the test pipeline's Resize.
        dynamic: the graph takes images of any size, as the test pipeline gives them.

    Returns:
        what the file says of itself, see docs/inference.md.

    Raises:
        UserError: a library is missing, the ending is another format's, the pipeline gives images of several sizes, or
            a part of the detector has no counterpart in other runtimes.
    """
    from mmdet.apis.export.trace import smallest_side, trace
    from mmdet.apis.inference import ImagePipeline, detection_steps

    if format not in FORMATS:
        raise UserError(f'format {format!r}: {", ".join(FORMATS)} are known')
    kind, path = FORMATS[format], Path(path)
    if path.suffix != kind.suffix:
        raise UserError(f'{path}: a file of the format {format} ends with {kind.suffix}')
    if size is not None and dynamic:
        raise UserError('size and dynamic: an image of any size has none; leave one of them out')
    kind.check_libraries()
    preprocessor = model.data_preprocessor
    steps = detection_steps(model.cfg)
    if not dynamic:
        steps = _of_one_size(steps, size, _padding(preprocessor))
    pipeline = ImagePipeline(steps)
    wide, tall = (pipeline(to_input(np.zeros(shape, np.uint8)))['inputs'] for shape in ((480, 640, 3), (640, 480, 3)))
    if not dynamic and wide.shape != tall.shape:
        sizes = ' and '.join(f'{image.shape[1]} x {image.shape[2]}' for image in (wide, tall))
        raise UserError(f'the test pipeline gives images of several sizes, such as {sizes}; export with --dynamic')
    height, width = (None, None) if dynamic else wide.shape[1:]
    program = trace(model, wide, dynamic)
    meta = dict(
        version=_VERSION,
        mmdet=__version__,
        torch=torch.__version__,
        model=type(model).__name__,
        **{key: model.dataset_meta[key] for key in ('classes', 'palette') if model.dataset_meta.get(key)},
        pipeline=steps,
        image=dict(layout='CHW', type=str(wide.dtype).removeprefix('torch.'), channels=len(wide), height=height,
                   width=width, smallest_side=smallest_side(model) if dynamic else None),
        in_the_graph=dict(mean=preprocessor.mean.flatten().tolist(), std=preprocessor.std.flatten().tolist(),
                          flips_channels=preprocessor.flip_channels, pad_size_divisor=preprocessor.pad_size_divisor),
        masks={key: value for key, value in (model.final_test_cfg or {}).items() if key.startswith('mask_')},
    )  # fmt: skip
    meta = json.loads(json.dumps(meta, default=_as_text))
    kind.write(program, path, meta)
    return meta


def _of_one_size(steps: Sequence[dict], size: tuple[int, int] | None, pad_val: list[int]) -> list[dict]:
    """A pipeline whose Resize gives images of one (h, w), padded where it keeps the ratio."""
    steps = list(steps)
    for index, step in enumerate(steps):
        if names_a(step, Resize) and (size is not None or step.get('keep_ratio') and step.get('scale')):
            scale = step.get('scale')
            width, height = size[::-1] if size else (scale, scale) if isinstance(scale, int) else scale
            others = {key: step[key] for key in ('keep_ratio', 'backend', 'interpolation') if key in step}
            steps[index] = dict(type='FixShapeResize', width=width, height=height, pad_val=pad_val, **others)
            return steps
    if size is not None:
        raise UserError('--size: the test pipeline has no Resize that could give it')
    return steps


def _padding(preprocessor: nn.Module) -> list[int]:
    """What pixels become 0 by normalisation, the value of a batch's padding, in the channel order of the pipeline."""
    mean = [round(value) for value in preprocessor.mean.flatten().tolist()] * (3 // preprocessor.mean.numel() or 1)
    return mean[::-1] if preprocessor.flip_channels else mean


def _as_text(value: Any) -> str:
    if isinstance(value, type):
        return value.__name__
    raise UserError(f'the test pipeline holds {value!r}, which a file cannot keep; name it by dict(type=...)')


class ExportedDetector(nn.Module):
    """An exported file as `init_detector` gives it, in the place of the detector that it was made from.

    Images go through it one by one. Its ``cfg`` holds the test pipeline alone.

    Args:
        path: of `export_detector`.
        device: 'cpu', or 'cuda:0' where the file's runtime has it.

    Raises:
        UserError: the file is damaged or was not written here, or a library or device is missing.
    """

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        super().__init__()
        self.run = open_file(path, device)
        self.meta = self.run.meta
        if self.meta.get('version') != _VERSION:
            raise UserError(f'{path}: written by mmdet {self.meta.get("mmdet")}, whose files this one does not know')
        check_data(dict(pipeline=self.meta['pipeline']), str(path))
        self.cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=self.meta['pipeline']))))
        self.dataset_meta = {key: self.meta[key] for key in ('classes', 'palette') if key in self.meta}

    def test_step(self, batch: dict) -> list[DetDataSample]:
        """The samples of a collated batch with `pred_instances`."""
        for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
            self._check_size(image)
            self._add_instances(sample, self.run(image))
        return batch['data_samples']

    def _check_size(self, image: Tensor) -> None:
        side = self.meta['image']['smallest_side']
        if side is not None and min(image.shape[-2:]) < side:
            raise UserError(
                f'an image of {image.shape[-2]} x {image.shape[-1]} pixels, as the model would see it, is too small: '
                f'the file takes {side} and more'
            )

    def _add_instances(self, sample: DetDataSample, found: dict[str, Tensor]) -> None:
        meta = sample.metainfo
        boxes = unscale_boxes(found['boxes'], meta['scale_factor'])
        detections = Detections(boxes, found['scores'], found['labels'])
        # padding to one size lies inside the image that the graph saw
        inside = detections._replace(boxes=clip_boxes(boxes, meta['ori_shape'][:2]))
        sample.pred_instances = inside.to_instances()
        if 'masks' in found:
            (rles,) = masks_of(found['masks'], [detections], [meta], self.meta['masks'])
            sample.pred_instances.masks = RLEMasks(rles, *meta['ori_shape'][:2])
