"""The end of a pipeline: what the model takes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import InstanceData

from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample


@TRANSFORMS.register_module()
class PackDetInputs(BaseTransform):
    """The end of the pipeline: ``dict(inputs=(3, h, w) uint8 tensor, data_samples=DetDataSample)``.

    Ignored objects (crowds) go to ``ignored_instances``, the others to ``gt_instances``.

    Args:
        meta_keys: what to keep as metainfo, as far as it is there.
    """

    # what is packed, one row an object, and its name there; a subclass may add to it
    mapping_table = dict(gt_bboxes='bboxes', gt_bboxes_labels='labels', gt_masks='masks')

    def __init__(
        self,
        meta_keys: Sequence[str] = (
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
            'flip',
            'flip_direction',
        ),
    ) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        img = np.ascontiguousarray(results['img'].reshape(*results['img'].shape[:2], -1))
        height, width, channels = img.shape
        planes = np.empty((channels, height, width), dtype=img.dtype)
        cv2.split(img, list(planes))  # several times faster than a transposed copy
        inputs = torch.from_numpy(planes)

        # mmcv's Normalize leaves img_norm_cfg: the preprocessor then knows that it must not normalise again; and
        # DetTTAModel has to know which views are mirrored
        kept = (*self.meta_keys, 'img_norm_cfg', 'flip', 'flip_direction')
        sample = DetDataSample(metainfo={key: results[key] for key in kept if key in results})
        gt, ignored = InstanceData(), InstanceData()
        flags = results.get('gt_ignore_flags')
        for key, name in self.mapping_table.items():
            if key not in results:
                continue
            values = results[key]
            split = (values, values[:0]) if flags is None else (values[~flags], values[flags])
            gt[name], ignored[name] = (torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in split)
        sample.gt_instances = gt
        sample.ignored_instances = ignored
        if 'proposals' in results:
            sample.proposals = InstanceData(bboxes=torch.from_numpy(results['proposals']))
        return dict(inputs=inputs, data_samples=sample)
