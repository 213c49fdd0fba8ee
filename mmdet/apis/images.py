"""What a detector can be given: files, folders, arrays, PIL images, tensors, bytes of a file, and lists of these."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps

from mmdet.config.errors import UserError, at_most
from mmdet.config.output import IMAGE_SUFFIXES
from mmdet.structures.image_file import decode_image

VIDEO_SUFFIXES = {'.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv'}


def expand(inputs: Any) -> tuple[list, bool]:
    """Single images, not yet read, and whether `inputs` is one of them and no list, folder or batch.

    Raises:
        UserError: a folder without images, or an empty name.
    """
    if hasattr(inputs, 'read'):  # a file, which can be read once
        inputs = inputs.read()
    if isinstance(inputs, str) and not inputs:
        raise UserError("'' is no name of an image")
    if isinstance(inputs, (str, Path)) and Path(inputs).is_dir():
        return images_in(Path(inputs)), False
    if isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
        return list(inputs), False
    if isinstance(inputs, (list, tuple)) or (isinstance(inputs, Iterable) and not _is_single(inputs)):
        return [image for part in inputs for image in expand(part)[0]], False
    return [inputs], True


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder and in the folders in it, in order.

    Raises:
        UserError: there is none.
    """
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES
                   and (path.is_file() or path.is_symlink()))  # no pipe, which is waited for
    if not found:
        raise UserError(f'{folder}: no image in this folder ({", ".join(sorted(IMAGE_SUFFIXES))})')
    return found


def _is_single(given: Any) -> bool:
    return isinstance(given, (str, Path, bytes, bytearray, memoryview, np.ndarray, torch.Tensor, Image.Image, dict))


def to_input(image: Any) -> dict:
    """One image as a pipeline takes it: ``img_path``, or ``img`` (h, w, 3) uint8 BGR.

    Args:
        image: a path; an array (h, w, 3) uint8 BGR as OpenCV reads it, or grey (h, w); a PIL image; a tensor (3, h, w)
            RGB, uint8 or float from 0 to 1; the bytes of an image file; a dict of such keys.

    Raises:
        UserError: anything else.
    """
    if isinstance(image, dict):
        if isinstance(image.get('img'), (str, Path)):
            raise UserError(f'{image["img"]} is a name, and img an array: give it as img_path')
        if not isinstance(image.get('img'), np.ndarray) and not (
            isinstance(image.get('img_path'), (str, Path)) and str(image['img_path'])
        ):
            raise UserError('a dict needs img_path, the name of an image file, or img, an array (h, w, 3); this one '
                            f'has {at_most(image) or "nothing"}')
        return image
    if isinstance(image, (str, Path)):
        if Path(image).suffix.lower() in VIDEO_SUFFIXES:
            raise UserError(f'{image} is a video: give it to tools/predict.py, or its frames one by one')
        return dict(img_path=str(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        image = decode_image(bytes(image), f'of {len(image)} bytes')
    elif isinstance(image, Image.Image):
        image = _from_pil(ImageOps.exif_transpose(image))
    elif isinstance(image, torch.Tensor):
        image = _from_tensor(image)
    if not isinstance(image, np.ndarray):
        raise UserError(f'an image is a path, array, tensor, PIL image or bytes, not {type(image).__name__}')
    shape = image.shape
    if image.ndim == 2 or image.ndim == 3 and shape[2] == 1:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.dtype == np.uint8 else image
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise UserError(f'an image must be (height, width, 3) uint8, got {shape} {image.dtype}')
    height, width = image.shape[:2]
    return dict(img=np.ascontiguousarray(image), img_path=None, img_shape=(height, width), ori_shape=(height, width),
                height=height, width=width)  # fmt: skip


def _from_pil(image: Image.Image) -> np.ndarray:
    """To BGR pixels. Of 16 bits the upper eight, as OpenCV reads a file; Pillow would make white of the rest."""
    if image.mode.startswith('I;16'):
        return (np.asarray(image) >> 8).astype(np.uint8)
    if image.mode in ('I', 'F'):
        raise UserError(f'a PIL image of mode {image.mode!r} says nothing of its range: give it as an array of uint8')
    return np.asarray(image.convert('RGB'))[..., ::-1]


def _from_tensor(image: torch.Tensor) -> np.ndarray:
    """RGB planes to BGR pixels."""
    kind = f'a tensor {tuple(image.shape)} {image.dtype}'
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f'{kind}: a tensor image is (3, height, width), RGB; a numpy array is (height, width, 3), BGR')
    image = image.detach().cpu()
    if image.is_floating_point():
        if image.numel() and not 0 <= image.min() <= image.max() <= 1:
            low, high = image.min(), image.max()
            raise UserError(f'{kind} has values from {low:.3g} to {high:.3g}: floats go from 0 to 1 (not normalised), '
                            'uint8 from 0 to 255')
        image = (image * 255).round().to(torch.uint8)
    return image.flip(0).permute(1, 2, 0).numpy()
