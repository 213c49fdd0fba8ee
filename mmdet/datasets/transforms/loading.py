"""The beginning of a pipeline: images, annotations and proposals are read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from urllib.error import URLError

import mmengine.fileio as fileio
import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.config.errors import MissingFile, UserError, at_most, one_line
from mmdet.config.overrides import refuse_overrides
from mmdet.registry import TRANSFORMS
from mmdet.structures import BitmapMasks, PolygonMasks, masks_from_coco
from mmdet.structures.image_file import MAX_MEGAPIXELS, decode_image
from mmdet.structures.masks import outline


@TRANSFORMS.register_module()
class LoadImageFromFile(BaseTransform):
    """Read ``img_path`` into ``img``, (h, w, 3) uint8 BGR: grey, CMYK, palette and 16-bit images included.

    Args:
        to_float32: give float32 values (0 to 255) instead of uint8.
        color_type: mmcv's flag; 'color' obeys an EXIF orientation, 'color_ignore_orientation' does not.
        imdecode_backend: mmcv's decoder, 'cv2' or 'pillow'.
        ignore_empty: reject an image that cannot be read (return None) instead of raising.
        backend_args: mmengine's file backend.
        max_megapixels: refuse an image of more pixels, as its header says, before it is decoded; None for no limit.

    Raises:
        UserError: no such file; an empty, damaged, cut-off or oversized one; another size than the annotated one.
    """

    def __init__(
        self,
        to_float32: bool = False,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        ignore_empty: bool = False,
        backend_args: dict | None = None,
        max_megapixels: float | None = MAX_MEGAPIXELS,
    ) -> None:
        self.to_float32 = to_float32
        self.color_type = color_type
        self.imdecode_backend = imdecode_backend
        self.ignore_empty = ignore_empty
        self.backend_args = backend_args
        self.max_megapixels = max_megapixels

    def transform(self, results: dict) -> dict | None:
        if 'img_path' not in results:
            raise UserError(f'an image of the data set has no img_path; it has {at_most(results)}')
        try:
            img = self._read(results['img_path'])
        except (OSError, ValueError):
            if self.ignore_empty:
                return None
            raise
        shape = img.shape[:2]
        expected = (results.get('height', shape[0]), results.get('width', shape[1]))
        if shape != expected:
            raise UserError(
                f'image {results["img_path"]} is of size {shape} (h, w), its annotations say {expected}; '
                "correct them or, if it is a turned photo, set color_type='color_ignore_orientation'"
            )
        return self._with_image(results, img)

    def _with_image(self, results: dict, img: np.ndarray) -> dict:
        results['img'] = img.astype(np.float32) if self.to_float32 else img
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        results['scale_factor'] = (1.0, 1.0)  # until a Resize
        return results

    def _read(self, path: str) -> np.ndarray:
        try:
            data = fileio.get(path, backend_args=self.backend_args)
        except FileNotFoundError:
            raise UserError(f'no image {path}; check data_root and data_prefix') from None
        except URLError as error:
            raise UserError(f'image {path} cannot be downloaded: {one_line(error)}') from error
        return decode_image(data, path, self.max_megapixels, self.color_type, self.imdecode_backend)


@TRANSFORMS.register_module()
class LoadImageFromNDArray(LoadImageFromFile):
    """Take the image that is in ``img`` already, (h, w, 3) uint8 BGR, in the place of `LoadImageFromFile`."""

    def transform(self, results: dict) -> dict:
        results.setdefault('img_path', None)
        return self._with_image(results, results['img'])


@TRANSFORMS.register_module()
class InferencerLoader(BaseTransform):
    """Load what an inferencer is given: a path, an array, or a dict that has ``img_path`` or ``img``.

    Args:
        options: those of `LoadImageFromFile`.
    """

    def __init__(self, **options) -> None:
        self.from_file, self.from_array = LoadImageFromFile(**options), LoadImageFromNDArray(**options)

    def transform(self, given: str | np.ndarray | dict) -> dict:
        if not isinstance(given, dict):
            given = dict(img=given) if isinstance(given, np.ndarray) else dict(img_path=str(given))
        return (self.from_array if 'img' in given else self.from_file)(given)


@TRANSFORMS.register_module()
@refuse_overrides(
    'extend/transform.md', _process_masks='_load_masks', _poly2mask='_load_masks', _load_seg_map='transform',
)  # fmt: skip
class LoadAnnotations(BaseTransform):
    """Turn ``instances`` (see `CocoDataset.parse_data_info`) into arrays and masks.

    Polygons stay polygons, so that an image with them is resized and flipped in a fraction of the time
    bitmaps take. An image that has an object with an RLE mask gets bitmaps; a crowd's RLE, which is no target,
    becomes its outline. With masks, an object that has none is ignored in training (neither object nor
    background).

    Args:
        with_bbox, with_label, with_mask: what to load.
        poly2mask: rasterise polygons at once.
    """

    loads_annotations = True

    def __init__(
        self,
        with_bbox: bool = True,
        with_label: bool = True,
        with_mask: bool = False,
        poly2mask: bool = False,
    ) -> None:
        self.with_bbox = with_bbox
        self.with_label = with_label
        self.with_mask = with_mask
        self.poly2mask = poly2mask

    def transform(self, results: dict) -> dict:
        results['gt_ignore_flags'] = np.array(_of_instances(results, 'ignore_flag'), dtype=bool)
        if self.with_bbox:
            self._load_bboxes(results)
        if self.with_label:
            self._load_labels(results)
        if self.with_mask:
            self._load_masks(results)
        return results

    def _load_bboxes(self, results: dict) -> None:
        results['gt_bboxes'] = np.array(_of_instances(results, 'bbox'), dtype=np.float32).reshape(-1, 4)

    def _load_labels(self, results: dict) -> None:
        results['gt_bboxes_labels'] = np.array(_of_instances(results, 'bbox_label'), dtype=np.int64)

    def _load_masks(self, results: dict) -> None:
        height, width = results['ori_shape']
        try:
            masks = self._masks(results.get('instances', []), height, width)
        except ValueError as error:
            raise UserError(f'image {results.get("img_path")}: {error}') from None
        if isinstance(masks, PolygonMasks):
            without = np.array([not parts for parts in masks.polygons], dtype=bool)
        else:
            without = ~masks.masks.any(axis=(1, 2))
        results['gt_ignore_flags'] = results['gt_ignore_flags'] | without
        results['gt_masks'] = masks

    def _masks(self, instances: list[dict], height: int, width: int) -> PolygonMasks | BitmapMasks:
        segmentations = [x.get('mask') for x in instances]
        if not self.poly2mask:
            for i, (x, mask) in enumerate(zip(instances, segmentations)):
                if x['ignore_flag'] and isinstance(mask, dict):
                    segmentations[i] = outline(mask, height, width)
        return masks_from_coco(segmentations, height, width, bitmap=self.poly2mask)


def _of_instances(results: dict, key: str) -> list:
    """That entry of each object of an image."""
    try:
        return [instance[key] for instance in results.get('instances', [])]
    except KeyError:
        raise UserError(f'an instance of image {results.get("img_path")} has no {key}; the data set gives dicts '
                        'of bbox [x1, y1, x2, y2], bbox_label, ignore_flag and, for masks, mask') from None


@TRANSFORMS.register_module()
class LoadProposals(BaseTransform):
    """Boxes that an RPN found, for Fast R-CNN: ``proposals`` (P, 4) float32 xyxy in pixels.

    Args:
        proposal_file: COCO results, as ``tools/test.py configs/rpn/... --format-only`` writes them
            (results.proposal.json). A data set with a `proposal_file` gives it to this step.
        num_max_proposals: how many of each image to keep, the best; None for all.

    Raises:
        MissingFile: no such file.
        UserError: not JSON, or an image that the file does not have.
    """

    def __init__(self, proposal_file: str | None = None, num_max_proposals: int | None = None) -> None:
        if proposal_file is None:
            raise UserError('LoadProposals needs a proposal_file, its own or that of the data set')
        remedy = 'make one with tools/test.py RPN_CONFIG FILE --format-only'
        if not proposal_file.endswith('.json'):
            raise UserError(f'LoadProposals: {proposal_file} is not a .json file; {remedy}')
        if not os.path.isfile(proposal_file):
            raise MissingFile(f'LoadProposals: no proposal_file {proposal_file}; {remedy}')
        self.proposal_file = proposal_file
        with open(proposal_file) as file:
            try:
                entries = json.load(file)
            except ValueError as error:
                raise UserError(f'LoadProposals: {proposal_file} is not JSON: {error}') from None
        found: dict = {}
        for entry in sorted(entries, key=lambda e: -e['score']):
            boxes = found.setdefault(entry['image_id'], [])
            if num_max_proposals is None or len(boxes) < num_max_proposals:
                boxes.append(entry['bbox'])
        self._proposals = {img_id: np.array(boxes, dtype=np.float32) for img_id, boxes in found.items()}

    def transform(self, results: dict) -> dict:
        if results['img_id'] not in self._proposals:
            raise UserError(f'LoadProposals: {self.proposal_file} has nothing for image {results["img_id"]}')
        boxes = self._proposals[results['img_id']].copy()
        boxes[:, 2:] += boxes[:, :2]
        results['proposals'] = boxes
        return results


@TRANSFORMS.register_module()
class ProposalBroadcaster(BaseTransform):
    """The steps `transforms`, one after the other: each of ours moves proposals with the other boxes anyway."""

    def __init__(self, transforms: Sequence[dict]) -> None:
        self.transforms = [TRANSFORMS.build(t) if isinstance(t, dict) else t for t in transforms]

    def transform(self, results: dict) -> dict | None:
        for step in self.transforms:
            results = step(results)
            if results is None:
                return None
        return results
