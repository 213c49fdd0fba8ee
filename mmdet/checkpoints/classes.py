"""Class order and class choice of output layers.

Elsewhere row 0 of an output layer is the background and the classes follow; here the background is the last row of
`fc_cls` and has no row in `fc_reg`, `conv_logits` and `retina_cls`.
"""

import re

import torch
from torch import Tensor

# Row of each of the 80 classes in outputs numbered by COCO's category ids, which have gaps (0 is the background).
_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = [i for i in range(1, 91) if i not in _GAPS]

_FC_CLS = re.compile(r'(roi_head\.)?bbox_head\.(\d+\.)?fc_cls\.(weight|bias)')
_FC_REG = re.compile(r'(roi_head\.)?bbox_head\.(\d+\.)?fc_reg\.(weight|bias)')
_SSD_CLS = re.compile(r'bbox_head\.cls_convs\.\d+\.0\.(weight|bias)')
_MASK = re.compile(r'(roi_head\.)?mask_head\.(\d+\.)?conv_logits\.(weight|bias)')


def foreground_rows(num_rows: int, num_classes: int | None) -> list[int]:
    """Rows of the classes among `num_rows` that begin with the background.

    91 rows are COCO's category ids; they become its 80 classes unless `num_classes` is 90.
    """
    if num_rows == 91 and num_classes in (None, 80):
        return COCO_IDS
    return list(range(1, num_rows))


def background_last(state: dict[str, Tensor], num_classes: int | None = None) -> list[str]:
    """Reorder the RoI heads' output layers in place; returns the keys touched.

    A box layer with 4 rows (class-agnostic) or a mask layer with 1 has no class order and stays.
    """
    touched = []
    for key, value in state.items():
        if _FC_CLS.fullmatch(key):
            state[key] = value[[*foreground_rows(len(value), num_classes), 0]]
        elif _FC_REG.fullmatch(key) and len(value) > 4:
            state[key] = value.unflatten(0, (-1, 4))[foreground_rows(len(value) // 4, num_classes)].flatten(0, 1)
        elif _MASK.fullmatch(key) and len(value) > 1:
            state[key] = value[foreground_rows(len(value), num_classes)]
        else:
            continue
        touched.append(key)
    return touched


def object_first(state: dict[str, Tensor]) -> list[str]:
    """Swap background and object in an RPN that compares both by a softmax, in place; returns the keys touched.

    Such a `rpn_cls` has two outputs for each anchor, half as many as `rpn_reg`.
    """
    touched = []
    for key in ('rpn_head.rpn_cls.weight', 'rpn_head.rpn_cls.bias'):
        deltas = state.get(key.replace('rpn_cls', 'rpn_reg'))
        if key in state and deltas is not None and 2 * len(state[key]) == len(deltas):
            state[key] = state[key].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
            touched.append(key)
    return touched


def background_first(state: dict[str, Tensor]) -> list[str]:
    """The reverse of `background_last`: the background's rows in `fc_reg` and `conv_logits`, never read, are zeros."""
    touched = []
    for key, value in state.items():
        if _FC_CLS.fullmatch(key):
            state[key] = value.roll(1, dims=0)
        elif _FC_REG.fullmatch(key) and len(value) > 4:
            state[key] = torch.cat([torch.zeros_like(value[:4]), value])
        elif _MASK.fullmatch(key) and len(value) > 1:
            state[key] = torch.cat([torch.zeros_like(value[:1]), value])
        else:
            continue
        touched.append(key)
    return touched


def ssd_background_last(state: dict[str, Tensor], num_classes: int | None = None) -> list[str]:
    """Reorder the output layers of an SSD in place, class by class of each anchor; returns the keys touched.

    Of each level the layer of deltas, 4 rows an anchor, says how many anchors there are.
    """
    touched = [key for key in state if _SSD_CLS.fullmatch(key)]
    for key in touched:
        num_anchors = len(state[key.replace('cls_convs', 'reg_convs')]) // 4
        rows = state[key].unflatten(0, (num_anchors, -1))
        state[key] = rows[:, [*foreground_rows(rows.shape[1], num_classes), 0]].flatten(0, 1)
    return touched


def ssd_background_first(state: dict[str, Tensor]) -> list[str]:
    """The reverse."""
    touched = [key for key in state if _SSD_CLS.fullmatch(key)]
    for key in touched:
        num_anchors = len(state[key.replace('cls_convs', 'reg_convs')]) // 4
        state[key] = state[key].unflatten(0, (num_anchors, -1)).roll(1, dims=1).flatten(0, 1)
    return touched


def drop_background_column(state: dict[str, Tensor], num_anchors: int, num_classes: int | None = None) -> list[str]:
    """Remove class 0 of each anchor from a dense sigmoid output (`retina_cls`), where it never fires."""
    touched = [key for key in state if re.fullmatch(r'bbox_head\.retina_cls\.(weight|bias)', key)]
    for key in touched:
        rows = state[key].unflatten(0, (num_anchors, -1))
        state[key] = rows[:, foreground_rows(rows.shape[1], num_classes)].flatten(0, 1)
    return touched


def add_background_column(state: dict[str, Tensor], num_anchors: int) -> list[str]:
    """The reverse: class 0 of each anchor gets a bias that keeps its score at 0."""
    touched = [key for key in state if re.fullmatch(r'bbox_head\.retina_cls\.(weight|bias)', key)]
    for key in touched:
        rows = state[key].unflatten(0, (num_anchors, -1))
        first = torch.full_like(rows[:, :1], -1e4 if key.endswith('bias') else 0.0)
        state[key] = torch.cat([first, rows], dim=1).flatten(0, 1)
    return touched
