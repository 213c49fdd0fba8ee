"""A data set in a new format, and a metric for it.

A line of the annotation file is an image: its name and size, then its objects as class and corners in pixels.

    000001.jpg 96 64; star 10.5 12 40 41; circle 3 4 20 22
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from torchvision.ops import box_iou

from mmdet.config.errors import UserError
from mmdet.registry import DATASETS, METRICS


def read_boxlist(path: str) -> list[tuple[str, int, int, list[tuple[str, list[float]]]]]:
    """(name, width, height, [(class, [x1, y1, x2, y2])]) of each line.

    Raises:
        UserError: a line that cannot be read, with its number.
    """
    images = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        try:
            (name, width, height), *objects = (part.split() for part in line.split(';'))
            boxes = [(label, [float(x1), float(y1), float(x2), float(y2)]) for label, x1, y1, x2, y2 in objects]
            images.append((name, int(width), int(height), boxes))
        except ValueError:
            raise UserError(f"{path} line {number}: 'NAME WIDTH HEIGHT; CLASS X1 Y1 X2 Y2; ...' is needed") from None
    return images


@DATASETS.register_module()
class BoxlistDataset(BaseDataset):
    """Images and boxes of a boxlist file.

    Args:
        ann_file: below `data_root`.
        data_prefix: ``dict(img_path=folder)``, below `data_root`.
        metainfo: ``dict(classes=names)``; labels follow this order.
    """

    def load_data_list(self) -> list[dict]:
        classes = self.metainfo['classes']
        images = []
        for number, (name, width, height, boxes) in enumerate(read_boxlist(self.ann_file)):
            instances = [dict(bbox=box, bbox_label=classes.index(label), ignore_flag=0) for label, box in boxes]
            path = str(Path(self.data_prefix['img_path']) / name)
            images.append(dict(img_id=number, img_path=path, width=width, height=height, instances=instances))
        return images


@METRICS.register_module()
class BoxRecall(BaseMetric):
    """Share of the objects that some detection of their class covers with an IoU of at least `iou_thr`.

    Args:
        ann_file: boxlist file of the data set that is evaluated.
    """

    default_prefix = 'boxlist'

    def __init__(self, ann_file: str, iou_thr: float = 0.5):
        super().__init__()
        self.objects = [boxes for *_, boxes in read_boxlist(ann_file)]
        self.iou_thr = iou_thr

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """`results` gets one entry per image; mmengine gathers them from all processes, without repeated images."""
        for sample in data_samples:
            found, objects = sample['pred_instances'], self.objects[sample['img_id']]
            covered = 0
            for label, box in objects:
                own = found['bboxes'][found['labels'] == self.dataset_meta['classes'].index(label)].cpu()
                covered += bool((box_iou(torch.tensor([box]), own) >= self.iou_thr).any())
            self.results.append((covered, len(objects)))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        covered, objects = (sum(column) for column in zip(*results))
        return dict(recall=covered / max(objects, 1))
