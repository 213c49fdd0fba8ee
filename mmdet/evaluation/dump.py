"""`DumpDetResults`: detections in a file, for evaluation elsewhere."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log

from mmdet.config.output import write_atomically
from mmdet.evaluation.gathered import GatheredMetric
from mmdet.registry import METRICS


@METRICS.register_module()
class DumpDetResults(GatheredMetric):
    """Pickle the detections: a list of dicts in the order of the data set.

    Each holds img_id, img_path, ori_shape (h, w) and pred_instances: a dict of numpy arrays bboxes (D, 4) xyxy
    pixels, scores (D,), labels (D,) and, with a mask head, masks (D RLE dicts).
    """

    def __init__(self, out_file_path: str, collect_device: str = 'cpu', collect_dir: str | None = None) -> None:
        super().__init__(collect_device, prefix='dump', collect_dir=collect_dir)
        self.out_file_path = out_file_path

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            result = {key: sample.get(key) for key in ('img_id', 'img_path', 'ori_shape')}
            result['pred_instances'] = {key: _numpy(value) for key, value in sample['pred_instances'].items()}
            self.results.append(result)

    def compute_metrics(self, results: list[dict]) -> dict:
        write_atomically(self.out_file_path, pickle.dumps(results))
        print_log(f'Detections of {len(results)} images: {self.out_file_path}', logger='current')
        return {}


def _numpy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, list):  # of masks: plain dicts, which any program reads
        return [dict(v) if isinstance(v, dict) else v for v in value]
    return value if isinstance(value, dict) else np.asarray(value)
