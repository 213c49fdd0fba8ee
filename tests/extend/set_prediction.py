"""A small detector that predicts a set (DETR, Carion et al. 2020): no anchors, no NMS, one-to-one matching.

N images, H and W of the padded batch, Q queries, C classes, G objects of an image; boxes are xyxy pixels outside of
the head and (cx, cy, w, h) relative to the padded batch inside.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample


@MODELS.register_module()
class SetPredictionHead(nn.Module):
    """Queries look at one map through a transformer decoder; each gives a class, or none, and a box.

    Args:
        in_channels: of the map.
        width: channels of the decoder.
        no_object_weight: weight in the classification loss of queries without an object.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        num_queries: int = 20,
        width: int = 64,
        layers: int = 2,
        no_object_weight: float = 0.1,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.project = nn.Conv2d(in_channels, width, 1)
        self.queries = nn.Embedding(num_queries, width)
        layer = nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.fc_cls = nn.Linear(width, num_classes + 1)  # the last is 'no object'
        self.fc_reg = nn.Linear(width, 4)
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        self.register_buffer('class_weight', weight, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, in_channels, h, w) -> logits (N, Q, C + 1), boxes (N, Q, 4)."""
        x = self.project(x)
        x = (x + positions(x)).flatten(2).transpose(1, 2)
        decoded = self.decoder(self.queries.weight.expand(len(x), -1, -1), x)
        return self.fc_cls(decoded), self.fc_reg(decoded).sigmoid()

    def loss(self, logits: Tensor, boxes: Tensor, targets: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """`targets`: boxes (G, 4) relative cxcywh and labels (G,) of each image."""
        classes = logits.new_full(logits.shape[:2], self.num_classes, dtype=torch.int64)
        found, wanted = [], []
        for row, (true_boxes, true_labels) in enumerate(targets):
            query, gt = match(logits[row].detach(), boxes[row].detach(), true_boxes, true_labels)
            classes[row, query] = true_labels[gt]
            found.append(boxes[row, query])
            wanted.append(true_boxes[gt])
        found, wanted = torch.cat(found), torch.cat(wanted)
        count = max(len(wanted), 1)
        giou = generalized_box_iou(*(box_convert(b, 'cxcywh', 'xyxy') for b in (found, wanted))).diagonal()
        return dict(
            loss_cls=F.cross_entropy(logits.transpose(1, 2), classes, self.class_weight),
            loss_bbox=5 * F.l1_loss(found, wanted, reduction='sum') / count,
            loss_iou=2 * (1 - giou).sum() / count,
        )

    def predict(self, logits: Tensor, boxes: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Relative cxcywh boxes (Q, 4), scores (Q,) and labels (Q,) of each image, best first."""
        scores, labels = logits.softmax(2)[..., :-1].max(2)
        order = scores.argsort(1, descending=True)
        return [(b[o], s[o], c[o]) for b, s, c, o in zip(boxes, scores, labels, order)]


def positions(x: Tensor) -> Tensor:
    """Sine and cosine codes (c, h, w) of the cells of a map (N, c, h, w): half the channels for y, half for x."""
    channels, height, width = x.shape[1:]
    frequency = 100 ** -torch.linspace(0, 1, channels // 4, device=x.device)
    codes = []
    for side in (height, width):
        angle = 2 * torch.pi * (torch.arange(side, device=x.device) + 0.5) / side * frequency[:, None]
        codes.append(torch.cat([angle.sin(), angle.cos()]))  # (c / 2, side)
    rows, columns = codes
    return torch.cat([rows[:, :, None].expand(-1, -1, width), columns[:, None, :].expand(-1, height, -1)])


def match(logits: Tensor, boxes: Tensor, true_boxes: Tensor, true_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of queries and of the objects that they are matched with, one to one, at the least total cost."""
    giou = generalized_box_iou(*(box_convert(b, 'cxcywh', 'xyxy') for b in (boxes, true_boxes)))
    cost = 5 * torch.cdist(boxes, true_boxes, p=1) - logits.softmax(1)[:, true_labels] - 2 * giou  # (Q, G)
    query, gt = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(query, device=boxes.device), torch.as_tensor(gt, device=boxes.device)


@MODELS.register_module()
class SetDetector(BaseModel):
    """Backbone and head; the coarsest map is used."""

    def __init__(self, backbone: dict, bbox_head: dict, data_preprocessor: dict | None = None):
        super().__init__(data_preprocessor=MODELS.build(data_preprocessor or dict(type='DetDataPreprocessor')))
        self.backbone = MODELS.build(backbone)
        self.bbox_head = MODELS.build(bbox_head)

    def forward(self, inputs: Tensor, data_samples: list[DetDataSample] | None = None, mode: str = 'tensor'):
        """Batch (N, 3, H, W) -> losses ('loss'), samples with `pred_instances` ('predict'), logits and boxes."""
        logits, boxes = self.bbox_head(self.backbone(inputs)[-1])
        size = boxes.new_tensor([inputs.shape[3], inputs.shape[2]] * 2)  # W, H, W, H
        if mode == 'loss':
            objects = [sample.gt_instances.to(inputs.device) for sample in data_samples]
            targets = [(box_convert(gt.bboxes, 'xyxy', 'cxcywh') / size, gt.labels) for gt in objects]
            return self.bbox_head.loss(logits, boxes, targets)
        if mode == 'predict':
            for sample, (found, scores, labels) in zip(data_samples, self.bbox_head.predict(logits, boxes)):
                found = box_convert(found * size, 'cxcywh', 'xyxy') / found.new_tensor(sample.scale_factor * 2)
                sample.pred_instances = InstanceData(bboxes=found, scores=scores, labels=labels)
            return data_samples
        return logits, boxes
