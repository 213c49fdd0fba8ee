"""Inference as detectron2 does it, from its own key names, for tests.

Written from reading its modules (anchor_generator, box_regression, fpn, proposal_utils, poolers, fast_rcnn,
cascade_rcnn, mask_head, retinanet, mask_ops of version 0.6); it shares no code with the package. Like detectron2 it
takes RoIAlign and NMS from torchvision. One image at a time.
"""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import batched_nms, roi_align

MEAN = np.array([103.53, 116.28, 123.675])  # BGR; no standard deviation
RATIOS = (0.5, 1.0, 2.0)  # height / width


# ------------------------------------------------------------------ network


def conv(state, name, x, stride=1, padding=0):
    x = F.conv2d(x, state[f'{name}.weight'], state.get(f'{name}.bias'), stride=stride, padding=padding)
    if f'{name}.norm.running_var' in state:
        parts = (state[f'{name}.norm.{part}'] for part in ('running_mean', 'running_var', 'weight', 'bias'))
        return F.batch_norm(x, *parts, eps=1e-5)
    if f'{name}.norm.weight' in state:
        return F.group_norm(x, 32, state[f'{name}.norm.weight'], state[f'{name}.norm.bias'], eps=1e-5)
    return x


def linear(state, name, x):
    return F.linear(x, state[f'{name}.weight'], state[f'{name}.bias'])


def bottom_up(state, x):
    prefix = 'backbone.bottom_up'
    x = F.max_pool2d(F.relu(conv(state, f'{prefix}.stem.conv1', x, 2, 3)), 3, 2, 1)
    maps = {}
    for stage, blocks in zip((2, 3, 4, 5), (3, 4, 6, 3)):
        for block in range(blocks):
            name = f'{prefix}.res{stage}.{block}'
            stride = 2 if stage > 2 and block == 0 else 1
            y = F.relu(conv(state, f'{name}.conv1', x, stride))  # STRIDE_IN_1X1
            y = F.relu(conv(state, f'{name}.conv2', y, padding=1))
            y = conv(state, f'{name}.conv3', y)
            x = F.relu(y + (conv(state, f'{name}.shortcut', x, stride) if block == 0 else x))
        maps[stage] = x
    return maps


def pyramid(state, maps):
    """Maps from fine to coarse, without the levels that a top block adds."""
    above, outputs = None, []
    for level in sorted(maps, reverse=True):
        if f'backbone.fpn_lateral{level}.weight' not in state:
            continue
        x = conv(state, f'backbone.fpn_lateral{level}', maps[level])
        above = x if above is None else x + F.interpolate(above, scale_factor=2, mode='nearest')
        outputs.insert(0, conv(state, f'backbone.fpn_output{level}', above, padding=1))
    return outputs


# ------------------------------------------------------------------ boxes


def anchors_of(feature, stride, sizes):
    """(H * W * A, 4): position by position, sizes before ratios."""
    cells = []
    for size in sizes:
        for ratio in RATIOS:
            width = math.sqrt(size**2 / ratio)
            cells.append([-width / 2, -ratio * width / 2, width / 2, ratio * width / 2])
    height, width = feature.shape[-2:]
    ys, xs = np.mgrid[:height, :width] * stride
    shifts = np.stack([xs, ys, xs, ys], -1).reshape(-1, 1, 4)
    return torch.from_numpy((shifts + np.array(cells)).reshape(-1, 4))


def decode(boxes, deltas, weights=(1, 1, 1, 1)):
    """Boxes (R, 4) moved by deltas (R, 4)."""
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(1), weights))
    limit = math.log(1000 / 16)
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + 0.5 * size + torch.stack([dx, dy], 1) * size
    size = size * torch.stack([dw, dh], 1).clamp(max=limit).exp()
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], 1)


def clip(boxes, shape):
    height, width = shape
    limits = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limits)


def not_empty(boxes):
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def rows(x, channels):
    """(1, A * channels, H, W) -> (H * W * A, channels)."""
    return x[0].unflatten(0, (-1, channels)).permute(2, 3, 0, 1).reshape(-1, channels)


def proposals(state, features, shape):
    boxes, logits, levels = [], [], []
    for level, (size, x) in enumerate(zip((32, 64, 128, 256, 512), features)):
        x = F.relu(conv(state, 'proposal_generator.rpn_head.conv', x, padding=1))
        score = rows(conv(state, 'proposal_generator.rpn_head.objectness_logits', x), 1)[:, 0]
        deltas = rows(conv(state, 'proposal_generator.rpn_head.anchor_deltas', x), 4)
        best, index = score.topk(min(1000, len(score)))
        boxes.append(clip(decode(anchors_of(x, 4 * 2**level, [size])[index], deltas[index]), shape))
        logits.append(best)
        levels.append(torch.full_like(index, level))
    boxes, logits, levels = torch.cat(boxes), torch.cat(logits), torch.cat(levels)
    there = not_empty(boxes)
    boxes, logits, levels = boxes[there], logits[there], levels[there]
    return boxes[batched_nms(boxes, logits, levels, 0.7)[:1000]]


def pool(features, boxes, size):
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    level = (4 + torch.log2(area.sqrt() / 224 + 2.2e-16)).floor().clamp(2, 5).long() - 2
    output = boxes.new_zeros(len(boxes), features[0].shape[1], size, size)
    for i, feature in enumerate(features[:4]):
        at = (level == i).nonzero()[:, 0]
        rois = F.pad(boxes[at], (1, 0))
        output[at] = roi_align(feature, rois, size, 1 / (4 * 2**i), sampling_ratio=0, aligned=True)
    return output


def box_head(state, features, boxes, stage=''):
    x = pool(features, boxes, 7)
    head = f'roi_heads.box_head{stage}'
    for i in range(1, 5):
        if f'{head}.conv{i}.weight' in state:
            x = F.relu(conv(state, f'{head}.conv{i}', x, padding=1))
    x = x.flatten(1)
    for i in range(1, 3):
        if f'{head}.fc{i}.weight' in state:
            x = F.relu(linear(state, f'{head}.fc{i}', x))
    predictor = f'roi_heads.box_predictor{stage}'
    return linear(state, f'{predictor}.cls_score', x).softmax(1), linear(state, f'{predictor}.bbox_pred', x)


def mask_probabilities(state, features, boxes, labels):
    x = pool(features, boxes, 14)
    for i in range(1, 5):
        x = F.relu(conv(state, f'roi_heads.mask_head.mask_fcn{i}', x, padding=1))
    deconv = 'roi_heads.mask_head.deconv'
    x = F.conv_transpose2d(x, state[f'{deconv}.weight'], state[f'{deconv}.bias'], stride=2).relu()
    return conv(state, 'roi_heads.mask_head.predictor', x)[torch.arange(len(labels)), labels].sigmoid()


def paste(mask, box, shape):
    x1, y1, x2, y2 = box.tolist()
    ys = (torch.arange(shape[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
    xs = (torch.arange(shape[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack(torch.meshgrid(xs, ys, indexing='xy'), -1)[None].to(mask)
    return (F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= 0.5).numpy()


# ------------------------------------------------------------------ all of it


def two_stages(state, features, shape):
    boxes = proposals(state, features, shape)
    if 'roi_heads.box_predictor.0.cls_score.weight' in state:
        scores = 0
        for stage in range(3):
            found, deltas = box_head(state, features, boxes, f'.{stage}')
            boxes = clip(decode(boxes, deltas, [w * (stage + 1) for w in (10, 10, 5, 5)]), shape)
            scores = scores + found / 3
        row, label = (scores[:, :-1] > 0.05).nonzero(as_tuple=True)
        boxes = boxes[row]
    else:
        scores, deltas = box_head(state, features, boxes)
        row, label = (scores[:, :-1] > 0.05).nonzero(as_tuple=True)
        boxes = clip(decode(boxes[row], deltas.unflatten(1, (-1, 4))[row, label], (10, 10, 5, 5)), shape)
    scores = scores[row, label]
    keep = batched_nms(boxes, scores, label, 0.5)[:100]
    return boxes[keep], scores[keep], label[keep]


def one_stage(state, maps, features, shape, clip_first):
    p6 = conv(state, 'backbone.top_block.p6', maps[5], 2, 1)
    features = [*features, p6, conv(state, 'backbone.top_block.p7', F.relu(p6), 2, 1)]
    found = []
    for level, x in enumerate(features):
        towers = []
        for tower in ('cls_subnet', 'bbox_subnet'):
            y = x
            for i in (0, 2, 4, 6):
                y = F.relu(conv(state, f'head.{tower}.{i}', y, padding=1))
            towers.append(y)
        logits = conv(state, 'head.cls_score', towers[0], padding=1)
        size = 32 * 2**level
        anchors = anchors_of(x, 8 * 2**level, [size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)])
        scores = rows(logits, len(state['head.cls_score.bias']) // 9).sigmoid()
        deltas = rows(conv(state, 'head.bbox_pred', towers[1], padding=1), 4)
        row, label = (scores > 0.05).nonzero(as_tuple=True)
        best = scores[row, label].argsort(descending=True)[:1000]
        row, label = row[best], label[best]
        found.append((decode(anchors[row], deltas[row]), scores[row, label], label))
    boxes, scores, labels = (torch.cat(part) for part in zip(*found))
    if clip_first:
        boxes = clip(boxes, shape)
        there = not_empty(boxes)
        boxes, scores, labels = boxes[there], scores[there], labels[there]
    keep = batched_nms(boxes, scores, labels, 0.5)[:100]
    return boxes[keep], scores[keep], labels[keep]


@torch.no_grad()
def detect(state, image, scale, clip_first=False):
    """uint8 BGR (H, W, 3) -> boxes (D, 4), scores, labels and bool masks (D, H, W) or None; `state` is float64.

    clip_first: let RetinaNet's NMS see boxes that are clipped to the image, and no empty one, as mmdetection's does.
    """
    height, width = image.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    resized = cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)))
    shape = resized.shape[:2]
    padded = np.zeros((-(-shape[0] // 32) * 32, -(-shape[1] // 32) * 32, 3))
    padded[: shape[0], : shape[1]] = resized - MEAN
    maps = bottom_up(state, torch.from_numpy(padded.transpose(2, 0, 1).copy())[None])
    features = pyramid(state, maps)
    if 'head.cls_score.weight' in state:
        boxes, scores, labels = one_stage(state, maps, features, shape, clip_first)
    else:
        features.append(features[-1][..., ::2, ::2])
        boxes, scores, labels = two_stages(state, features, shape)
    ratio = boxes.new_tensor([width / shape[1], height / shape[0]]).repeat(2)
    whole = clip(boxes * ratio, (height, width))
    there = not_empty(whole)
    boxes, whole, scores, labels = boxes[there], whole[there], scores[there], labels[there]
    masks = None
    if 'roi_heads.mask_head.deconv.weight' in state:
        probabilities = mask_probabilities(state, features, boxes, labels)
        masks = [paste(mask, box, (height, width)) for mask, box in zip(probabilities, whole)]
    return whole.numpy(), scores.numpy(), labels.numpy(), masks
