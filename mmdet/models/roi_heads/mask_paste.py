"""Masks on the image as mmdetection 0.x / 1.x drew them.

D detections, h and w of the predicted masks, H and W of the image.
"""

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor


def resized_masks_to_rle(
    masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float = 0.5
) -> list[dict]:
    """Each mask (D, h, w) resized into its box (D, 4), xyxy in pixels, whose corners are cut to whole pixels and belong
    to it.

    Returns:
        dict(size=[H, W], counts=bytes) for each, true where the resized probability is above `threshold`.
    """
    height, width = image_shape
    rles = []
    for mask, box in zip(masks.float().cpu().numpy(), boxes.detach().cpu().numpy().astype(np.int32)):
        x1, y1, x2, y2 = box.tolist()
        size = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        inside = cv2.resize(mask, size) > threshold
        image = np.zeros((height, width), np.uint8, order='F')
        window = image[y1 : y1 + size[1], x1 : x1 + size[0]]  # a box may reach past the border by rounding
        window[:] = inside[: window.shape[0], : window.shape[1]]
        rles.append(coco_mask.encode(image))
    return rles
