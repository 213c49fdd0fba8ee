"""Inference as mmdetection 0.6 did it, slowly and from its own key names, for tests.

Written from a description of that release's conventions; it shares no code with the package. One image at a time,
numpy and plain loops for everything that is not a convolution.
"""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
STRIDES = (4, 8, 16, 32, 64)


# ------------------------------------------------------------------ network


def batch_norm(state, name, x):
    return F.batch_norm(
        x,
        state[f'{name}.running_mean'],
        state[f'{name}.running_var'],
        state[f'{name}.weight'],
        state[f'{name}.bias'],
        eps=1e-5,
    )


def conv_norm(state, name, x, padding):
    x = F.conv2d(x, state[f'{name}.conv.weight'], state.get(f'{name}.conv.bias'), padding=padding)
    if f'{name}.gn.weight' in state:
        return F.group_norm(x, 32, state[f'{name}.gn.weight'], state[f'{name}.gn.bias'])
    if f'{name}.bn.num_batches_tracked' in state:
        return batch_norm(state, f'{name}.bn', x)
    if f'{name}.bn.weight' in state:  # CBN: eps outside the root
        mean, var, weight, bias = (
            state[f'{name}.bn.{part}'][:, None, None] for part in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / (var.sqrt() + 1e-5) * weight + bias
    return x


def backbone(state, x):
    x = F.relu(batch_norm(state, 'backbone.bn1', F.conv2d(x, state['backbone.conv1.weight'], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for layer, blocks in zip((1, 2, 3, 4), (3, 4, 6, 3)):
        for block in range(blocks):
            name = f'backbone.layer{layer}.{block}'
            stride = 2 if layer > 1 and block == 0 else 1
            y = F.relu(batch_norm(state, f'{name}.bn1', F.conv2d(x, state[f'{name}.conv1.weight'])))
            y = F.conv2d(y, state[f'{name}.conv2.weight'], stride=stride, padding=1)
            y = F.relu(batch_norm(state, f'{name}.bn2', y))
            y = batch_norm(state, f'{name}.bn3', F.conv2d(y, state[f'{name}.conv3.weight']))
            if block == 0:
                x = F.conv2d(x, state[f'{name}.downsample.0.weight'], stride=stride)
                x = batch_norm(state, f'{name}.downsample.1', x)
            x = F.relu(x + y)
        maps.append(x)
    return maps


def pyramid(state, maps):
    laterals = [conv_norm(state, f'neck.lateral_convs.{i}', x, 0) for i, x in enumerate(maps)]
    for i in (3, 2, 1):
        laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=laterals[i - 1].shape[-2:], mode='nearest')
    outputs = [conv_norm(state, f'neck.fpn_convs.{i}', x, 1) for i, x in enumerate(laterals)]
    return [*outputs, outputs[-1][..., ::2, ::2]]


def box_head(state, x):
    for i in range(4):
        x = F.relu(conv_norm(state, f'bbox_head.shared_convs.{i}', x, 1))
    x = F.relu(F.linear(x.flatten(1), state['bbox_head.shared_fcs.0.weight'], state['bbox_head.shared_fcs.0.bias']))
    scores = F.softmax(F.linear(x, state['bbox_head.fc_cls.weight'], state['bbox_head.fc_cls.bias']), 1)
    return scores.numpy(), F.linear(x, state['bbox_head.fc_reg.weight'], state['bbox_head.fc_reg.bias']).numpy()


def mask_head(state, x):
    for i in range(4):
        x = F.relu(conv_norm(state, f'mask_head.convs.{i}', x, 1))
    x = F.conv_transpose2d(x, state['mask_head.upsample.weight'], state['mask_head.upsample.bias'], stride=2).relu()
    x = F.conv2d(x, state['mask_head.conv_logits.weight'], state['mask_head.conv_logits.bias'])
    return x.sigmoid().numpy()


# ------------------------------------------------------------------ boxes


def level_anchors(stride):
    boxes = []
    for ratio in (0.5, 1.0, 2.0):
        width, height = stride * 8 / math.sqrt(ratio), stride * 8 * math.sqrt(ratio)
        centre = 0.5 * (stride - 1)
        corners = (
            centre - 0.5 * (width - 1),
            centre - 0.5 * (height - 1),
            centre + 0.5 * (width - 1),
            centre + 0.5 * (height - 1),
        )
        boxes.append([float(np.round(c)) for c in corners])
    return boxes


def decode(box, delta, stds, image_shape):
    dx, dy, dw, dh = (float(d) * s for d, s in zip(delta, stds))
    limit = abs(math.log(0.016))
    dw, dh = min(max(dw, -limit), limit), min(max(dh, -limit), limit)
    x1, y1, x2, y2 = (float(v) for v in box)
    width, height = x2 - x1 + 1, y2 - y1 + 1
    gx, gy = 0.5 * (x1 + x2) + width * dx, 0.5 * (y1 + y2) + height * dy
    gw, gh = width * math.exp(dw), height * math.exp(dh)
    new = [gx - gw * 0.5 + 0.5, gy - gh * 0.5 + 0.5, gx + gw * 0.5 - 0.5, gy + gh * 0.5 - 0.5]
    right, bottom = image_shape[1] - 1, image_shape[0] - 1
    return [min(max(v, 0), bound) for v, bound in zip(new, (right, bottom, right, bottom))]


def nms(boxes, scores, threshold):
    """Rows kept, best first."""
    order = list(np.argsort(-scores, kind='stable'))
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    keep = []
    while order:
        best = order.pop(0)
        keep.append(best)
        rest = np.array(order, dtype=int)
        width = np.minimum(boxes[rest, 2], boxes[best, 2]) - np.maximum(boxes[rest, 0], boxes[best, 0]) + 1
        height = np.minimum(boxes[rest, 3], boxes[best, 3]) - np.maximum(boxes[rest, 1], boxes[best, 1]) + 1
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        order = [r for r, i in zip(order, inter / (areas[rest] + areas[best] - inter)) if i <= threshold]
    return keep


def proposals(state, features, image_shape, most):
    boxes, scores = [], []
    for stride, x in zip(STRIDES, features):
        x = F.relu(F.conv2d(x, state['rpn_head.rpn_conv.weight'], state['rpn_head.rpn_conv.bias'], padding=1))
        objectness = F.conv2d(x, state['rpn_head.rpn_cls.weight'], state['rpn_head.rpn_cls.bias'])[0].sigmoid().numpy()
        deltas = F.conv2d(x, state['rpn_head.rpn_reg.weight'], state['rpn_head.rpn_reg.bias'])[0].numpy()
        found = []
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                for a, (x1, y1, x2, y2) in enumerate(level_anchors(stride)):
                    shift_x, shift_y = column * stride, row * stride
                    anchor = (x1 + shift_x, y1 + shift_y, x2 + shift_x, y2 + shift_y)
                    found.append((objectness[a, row, column], anchor, deltas[4 * a : 4 * a + 4, row, column]))
        found.sort(key=lambda f: -f[0])
        found = found[:2000]
        level_boxes = np.array([decode(anchor, delta, (1, 1, 1, 1), image_shape) for _, anchor, delta in found])
        level_scores = np.array([score for score, _, _ in found])
        keep = nms(level_boxes, level_scores, 0.7)[:2000]
        boxes.append(level_boxes[keep])
        scores.append(level_scores[keep])
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    return boxes[np.argsort(-scores, kind='stable')[:most]]


# ------------------------------------------------------------------ RoIs


def sample(feature, ys, xs):
    """Bilinear values of a (C, H, W) map at every pair of ys and xs; zero more than one cell outside."""
    height, width = feature.shape[1:]
    outside = ((ys < -1) | (ys > height))[:, None] | ((xs < -1) | (xs > width))[None]
    ys, xs = ys.clip(0, height - 1), xs.clip(0, width - 1)
    top, left = ys.astype(int), xs.astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    fy, fx = (ys - top)[:, None], (xs - left)[None]
    values = (
        feature[:, top][:, :, left] * (1 - fy) * (1 - fx)
        + feature[:, top][:, :, right] * (1 - fy) * fx
        + feature[:, bottom][:, :, left] * fy * (1 - fx)
        + feature[:, bottom][:, :, right] * fy * fx
    )
    return np.where(outside, 0, values)


def pool(features, boxes, size):
    output = []
    for x1, y1, x2, y2 in boxes:
        area = (x2 - x1 + 1) * (y2 - y1 + 1)
        level = int(min(max(math.floor(math.log2(math.sqrt(area) / 56 + 1e-6)), 0), 3))
        scale, feature = 1 / STRIDES[level], features[level][0].numpy()
        left, top, right, bottom = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        step_x, step_y = max(right - left, 0) / size, max(bottom - top, 0) / size
        bins = (np.arange(2 * size) + 0.5) / 2  # two samples a bin
        values = sample(feature, top + bins * step_y, left + bins * step_x)
        output.append(values.reshape(-1, size, 2, size, 2).mean((2, 4)))
    return torch.from_numpy(np.stack(output))


def paste(mask, box, shape):
    x1, y1, x2, y2 = (int(v) for v in box[:4])
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    image = np.zeros(shape, np.uint8)
    image[y1 : y1 + height, x1 : x1 + width] = cv2.resize(mask, (width, height)) > 0.5
    return image


# ------------------------------------------------------------------ all of it


@torch.no_grad()
def detect(state, image, scale, num_proposals=2000):
    """uint8 BGR (H, W, 3) -> [(score, label from 0, box (4,), mask (H, W) or None)]; `state` is float64."""
    height, width = image.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    resized = cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)))
    shape = resized.shape[:2]
    padded = np.zeros((-(-shape[0] // 32) * 32, -(-shape[1] // 32) * 32, 3))
    padded[: shape[0], : shape[1]] = (resized[..., ::-1] - MEAN) / STD
    features = pyramid(state, backbone(state, torch.from_numpy(padded.transpose(2, 0, 1).copy())[None]))
    rois = proposals(state, features, shape, num_proposals)
    scores, deltas = box_head(state, pool(features, rois, 7))
    found = []
    for label in range(1, scores.shape[1]):
        rows = np.nonzero(scores[:, label] > 0.05)[0]
        if not len(rows):
            continue
        boxes = [
            decode(rois[r], deltas[r, 4 * label : 4 * label + 4], (0.1, 0.1, 0.2, 0.2), shape) for r in rows
        ]
        boxes = np.array(boxes) / factor
        for k in nms(boxes, scores[rows, label], 0.5):
            found.append((scores[rows[k], label], label, boxes[k]))
    found = sorted(found, key=lambda f: -f[0])[:100] if len(found) > 100 else found
    masks = [None] * len(found)
    if 'mask_head.upsample.weight' in state and found:
        rois = np.array([box for _, _, box in found]) * factor
        masks = mask_head(state, pool(features, rois, 14))
    return [
        (score, label - 1, box, None if mask is None else paste(mask[label], box, (height, width)))
        for (score, label, box), mask in zip(found, masks)
    ]
