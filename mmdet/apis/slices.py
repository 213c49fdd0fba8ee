"""Detection in parts of a large image, whose small objects would vanish when the whole is made small.

W x H the image, S slices, D_s detections of a slice; boxes are xyxy in pixels.

supervision's and sahi's slicers keep a bitmap or polygons of the whole image for each object; here masks stay run
lengths, and the parts go through the model in batches.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from torch import nn

from mmdet.apis.images import to_input
from mmdet.apis.inference import detect, pipeline_of
from mmdet.apis.results import DetResult
from mmdet.config.errors import UserError
from mmdet.ops import apply_nms
from mmdet.structures import DetDataSample, DetectedInstances, RLEMasks
from mmdet.visualization.visualizer import read_image

NMS = dict(type='nms', iou_threshold=0.5)


def slice_windows(width: int, height: int, size: int, overlap: float = 0.2) -> list[tuple[int, int, int, int]]:
    """Windows (x1, y1, x2, y2) of at most `size` pixels a side that cover the image, neighbours overlapping.

    Raises:
        UserError: no size, or an overlap outside [0, 1).

    >>> slice_windows(1000, 500, 600, 0.5)
    [(0, 0, 600, 500), (300, 0, 900, 500), (400, 0, 1000, 500)]
    """
    if size < 1 or not 0 <= overlap < 1:
        raise UserError(f'slices of {size} pixels, overlap {overlap}: at least 1 pixel and less than 1 are needed')
    step = max(1, round(size * (1 - overlap)))

    def starts(length: int) -> list[int]:
        last = max(length - size, 0)
        return [*range(0, last, step), last]

    return [
        (x, y, min(x + size, width), min(y + size, height)) for y in starts(height) for x in starts(width)
    ]


def detect_slices(
    model: nn.Module,
    image: object,
    size: int = 640,
    overlap: float = 0.2,
    batch_size: int = 1,
    nms_cfg: Mapping = NMS,
    whole: bool = True,
) -> DetResult:
    """Detect in an image, part by part.

    Args:
        model: of `init_detector`.
        image: see `mmdet.apis.images.to_input`.
        size, overlap: of the parts, pixels a side and share of it.
        batch_size: parts that go through the model at a time.
        nms_cfg: what is found in several parts is kept once.
        whole: detect in the whole image as well, whose large objects no part holds.
    """
    loaded = to_input(image)
    pixels = loaded['img'] if 'img' in loaded else read_image(loaded['img_path'])[..., ::-1]
    height, width = pixels.shape[:2]
    windows = slice_windows(width, height, size, overlap)
    if whole and len(windows) > 1:
        windows.append((0, 0, width, height))
    pipeline, found = pipeline_of(model.cfg), []
    for start in range(0, len(windows), batch_size):
        parts = [pixels[y1:y2, x1:x2] for x1, y1, x2, y2 in windows[start : start + batch_size]]
        data = [pipeline(to_input(np.ascontiguousarray(part))) for part in parts]
        found += detect(model, dict(inputs=[d['inputs'] for d in data], data_samples=[d['data_samples'] for d in data]))
    merged = merge_results_by_nms(found, [window[:2] for window in windows], (height, width), nms_cfg)
    merged.set_metainfo(dict(img_path=loaded.get('img_path'), ori_shape=(height, width), img_shape=(height, width)))
    return DetResult.of(merged, model.dataset_meta, image)


def shift_predictions(
    det_data_samples: Sequence[DetDataSample], offsets: Sequence[Sequence[int]], src_image_shape: tuple[int, int]
) -> InstanceData:
    """Detections of S slices in pixels of the whole image.

    Args:
        offsets: (x, y) of each slice's upper left corner.
        src_image_shape: (h, w) of the whole image.
    """
    height, width = src_image_shape[:2]
    shifted = []
    for sample, (x, y) in zip(det_data_samples, offsets, strict=True):
        found = sample.pred_instances
        part = DetectedInstances(
            bboxes=found.bboxes + found.bboxes.new_tensor([x, y, x, y]), scores=found.scores, labels=found.labels
        )
        if 'masks' in found:
            part.masks = RLEMasks([_placed(mask, x, y, height, width) for mask in found.masks], height, width)
        shifted.append(part)
    return InstanceData.cat(shifted)


def _placed(mask: dict, x: int, y: int, height: int, width: int) -> dict:
    """A mask of a window in the whole image."""
    window = coco_mask.decode(dict(mask))
    whole = np.zeros((height, width), np.uint8, order='F')
    whole[y : y + window.shape[0], x : x + window.shape[1]] = window
    return coco_mask.encode(whole)


def merge_results_by_nms(
    results: Sequence[DetDataSample],
    offsets: Sequence[Sequence[int]],
    src_image_shape: tuple[int, int],
    nms_cfg: Mapping,
) -> DetDataSample:
    """The detections of S slices as those of the whole image (h, w), without what was found twice."""
    found = shift_predictions(results, offsets, src_image_shape)
    keep, scores = apply_nms(found.bboxes, found.scores, found.labels, nms_cfg)
    found = found[keep]
    found.scores = scores
    sample = results[0].clone()
    sample.pred_instances = found
    return sample
