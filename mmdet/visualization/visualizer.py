"""Drawn detections: boxes, labels and masks on the image."""

import colorsys
import os
import re
import string
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import cv2
import matplotlib
import matplotlib.colors
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_utils

from mmdet.config.errors import UserError, say
from mmdet.registry import VISUALIZERS
from mmdet.structures.image_file import decode_image

_LEAST_SIDE = 480  # pixels; images smaller than half of it are enlarged,
_LONGEST_SIDE = 1920  # but not beyond this


def class_colour(label: int) -> tuple[int, int, int]:
    """A bright RGB colour; neighbouring labels are far apart (steps of the golden ratio round the hues)."""
    hue = (0.58 + label * 0.61803398875) % 1.0
    value = (1.0, 0.85)[label // 8 % 2]
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.75, value))


PALETTES = ('none', 'random', 'coco', 'voc', 'citys')  # mmdetection's names


def palette_colour(palette: str | Sequence | None, label: int) -> tuple[int, int, int]:
    """The RGB colour of a label.

    Args:
        palette: colours by label, one for all, or a name that matplotlib knows; None and mmdetection's names of tables
            ('coco', ...) stand for `class_colour`, 'random' for colours drawn with a fixed seed.

    Raises:
        UserError: another name.

    >>> palette_colour([(255, 0, 0), (0, 0, 255)], 1), palette_colour('green', 7)
    ((0, 0, 255), (0, 128, 0))
    """
    if palette == 'random':
        return tuple(np.random.default_rng(label).integers(0, 256, 3).tolist())
    if palette is None or isinstance(palette, str) and palette in PALETTES or len(palette) == 0:
        return class_colour(label)
    if isinstance(palette, str):
        if not matplotlib.colors.is_color_like(palette):
            raise UserError(f'palette {palette!r} is no colour; use one, a list of them, or {", ".join(PALETTES)}')
        return tuple(round(255 * c) for c in matplotlib.colors.to_rgb(palette))
    colour = palette if isinstance(palette[0], (int, np.integer)) else palette[label % len(palette)]
    return palette_colour(colour, label) if isinstance(colour, str) else tuple(int(c) for c in colour)


def class_name(label: int, classes: tuple[str, ...]) -> str:
    """The label's class, or its number where the classes do not reach so far."""
    return classes[label] if label < len(classes) else str(label)


# matplotlib carries its font with it: the same letters on every machine, from Latin and Greek to Arabic and Hebrew.
_FONT = str(Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans-Bold.ttf'))


@lru_cache(maxsize=32)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _font_file(text: str) -> str:
    """A font that has all letters of a text: ours, else an installed one, a bold one if possible; else ours."""
    ours = _letters_of(_FONT)
    lacking = frozenset(letter for letter in text if letter.isprintable() and ord(letter) not in ours)
    return _installed_font(lacking) if lacking else _FONT


@cache
def _installed_font(letters: frozenset[str]) -> str:
    from matplotlib.font_manager import findSystemFonts  # it looks for all fonts when it is imported

    wanted = {ord(letter) for letter in [*letters, *string.printable[:95]]}
    for path in sorted(findSystemFonts(), key=lambda path: ('bold' not in path.lower(), path)):
        if wanted <= _letters_of(path) and 'lastresort' not in path.lower():  # which has boxes alone
            return path
    say(f'no installed font has {"".join(sorted(letters))!r} of the class names: they are drawn as boxes. Install a '
        'font for their script, such as one of the Noto family')
    return _FONT


@cache
def _letters_of(path: str) -> frozenset[int]:
    """Code points that a font has glyphs for."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a damaged font, or one of a kind that FreeType does not know
        return frozenset()


def _bitmaps(masks) -> list[np.ndarray]:
    if hasattr(masks, 'to_bitmap'):
        masks = masks.to_bitmap().masks
    return [mask_utils.decode(m).astype(bool) if isinstance(m, dict) else np.asarray(m, dtype=bool) for m in masks]


def draw_instances(
    image: np.ndarray,
    instances: InstanceData,
    classes: tuple[str, ...] = (),
    score_thr: float = 0.3,
    zoom: int | None = None,
    palette: str | Sequence | None = None,
    colour_by: str = 'class',
) -> np.ndarray:
    """Draw boxes, labels and masks on a copy of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: bboxes (D, 4) xyxy pixels, labels (D,), optionally scores (D,) and masks (D RLE dicts,
            bitmaps, or `PolygonMasks`/`BitmapMasks`), all of the image's size.
        classes: class names; a label beyond them is shown as its number.
        score_thr: detections below it are left out.
        zoom: enlarge the drawing; None enlarges small images, on which labels would hide the objects.
        palette: see `palette_colour`.
        colour_by: 'class', or 'instance': neighbours in the list differ, whatever they are.

    Returns:
        (zoom * H, zoom * W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    if zoom is None:
        zoom = max(1, min(_LEAST_SIDE // min(height, width), _LONGEST_SIDE // max(height, width)))
    height, width = zoom * height, zoom * width
    scores = instances.get('scores')
    keep = torch.arange(len(instances)) if scores is None else torch.where(scores.cpu() >= score_thr)[0]
    boxes = zoom * np.asarray(torch.as_tensor(instances.bboxes).cpu().detach().float())
    labels = torch.as_tensor(instances.labels).cpu().tolist()
    colours = [palette_colour(palette, i if colour_by == 'instance' else label) for i, label in enumerate(labels)]
    masks = _bitmaps(instances.masks) if 'masks' in instances else None
    sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = sorted(keep.tolist(), key=lambda i: -sizes[i])  # small objects on top of large ones

    canvas = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_CUBIC)
    line = max(1, round(min(height, width) / 350))
    if masks is not None:
        for i in order:
            mask = cv2.resize(255 * masks[i].astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
            _paint_mask(canvas, mask > 127, colours[i], line)
    for i in order:
        corners = np.rint(boxes[i]).astype(int)
        cv2.rectangle(canvas, corners[:2].tolist(), (corners[2:] - 1).tolist(), colours[i], line,
                      cv2.LINE_AA)
    drawing = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawing)
    taken: list[tuple[float, float, float, float]] = []
    for i in reversed(order):  # the smallest first: its label gets the best place
        name = class_name(labels[i], classes)
        text = name if scores is None else f'{name} {float(scores[i]):.2f}'
        _write_label(pen, text, boxes[i], colours[i], (width, height), taken)
    return np.asarray(drawing)


def _paint_mask(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], line: int) -> None:
    canvas[mask] = (0.55 * canvas[mask] + 0.45 * np.array(colour)).astype(np.uint8)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, colour, line, cv2.LINE_AA)


def _write_label(pen, text, box, colour, size, taken) -> None:
    """Write text on a tag at the box's upper left corner, or the nearest place inside the image that is free."""
    width, height = size
    full = float(np.clip(min(size) / 36, 9, 26))
    extent = float(np.sqrt(max(box[2] - box[0], 0) * max(box[3] - box[1], 0)))
    size = round(np.clip(extent / 5, max(8, 0.65 * full), full))  # small objects get small letters
    font = _font(_font_file(text), size)
    left, top, right, bottom = font.getbbox(text)
    pad = max(1, font.size // 6)
    w, h = right - left + 2 * pad, bottom - top + 2 * pad
    x = float(np.clip(box[0], 0, max(width - w, 0)))
    places = [box[1] - h, box[1], box[3] - h, box[3], box[1] + h]
    places = [float(np.clip(y, 0, max(height - h, 0))) for y in places]

    def overlap(y: float) -> float:
        return sum(
            max(0.0, min(x + w, b[2]) - max(x, b[0])) * max(0.0, min(y + h, b[3]) - max(y, b[1])) for b in taken)

    y = min(places, key=overlap)
    taken.append((x, y, x + w, y + h))
    pen.rectangle((x, y, x + w, y + h), fill=colour)
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.text((x + pad - left, y + pad - top), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)


@VISUALIZERS.register_module(name=['DetVisualizer', 'DetLocalVisualizer'])
class DetVisualizer(Visualizer):
    """mmengine's Visualizer, drawing data samples. Without a display it draws all the same."""

    _drawn: np.ndarray | None = None

    @classmethod
    def get_instance(cls, name: str = 'visualizer', **options) -> 'DetVisualizer':
        """mmengine's, which a registry calls; a config need not name its visualizer."""
        return super().get_instance(name, **options)

    def draw(self, image: np.ndarray, sample, score_thr: float = 0.3, draw_gt: bool = False) -> np.ndarray:
        """An image (H, W, 3) uint8 RGB with the sample's predictions, or its ground truth, in its own size."""
        meta = self.dataset_meta or {}
        instances = sample.gt_instances if draw_gt else sample.pred_instances
        options = dict(zoom=1, palette=meta.get('palette'))
        return draw_instances(image, instances, meta.get('classes') or (), score_thr, **options)

    def show(self, *args, backend: str = 'matplotlib', **kwargs) -> None:
        """Open a window.

        Raises:
            UserError: OpenCV would abort the process where there is no display.
        """
        headless = sys.platform == 'linux' and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'))
        if headless:
            raise UserError('there is no display to show images on; save them instead (out_file, --show-dir)')
        super().show(*args, backend=backend, **kwargs)

    def add_datasample(self, name, image, data_sample=None, draw_gt=False, draw_pred=True, show=False,
                       wait_time=0, pred_score_thr=0.3, out_file=None, step=0) -> None:
        """Draw ground truth and predictions side by side into `out_file` or the run's backends; `get_image` gives it."""
        drawn = [self.draw(image, data_sample, pred_score_thr, draw_gt=kind == 'gt_instances')
                 for kind, wanted in (('gt_instances', draw_gt), ('pred_instances', draw_pred))
                 if wanted and data_sample is not None and kind in data_sample]
        drawing = np.concatenate(drawn, axis=1) if drawn else image
        self._drawn = drawing
        if show:
            self.show(drawing, win_name=name, wait_time=wait_time)
        if out_file is not None:
            write_image(out_file, drawing)
        else:
            # backends make a file name of it, and callers take it from the data
            self.add_image(re.sub(r'[/\\\\]+', '_', name), drawing, step)

    def get_image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB: what `add_datasample` drew last, unless an image has been set since."""
        return super().get_image() if self._drawn is None else self._drawn

    def set_image(self, image: np.ndarray) -> None:
        self._drawn = None
        super().set_image(image)


def draw_file(
    path: str | Path, sample, out_file: str | Path, classes: tuple[str, ...] = (), score_thr: float = 0.3
) -> None:
    """Draw the predictions of a data sample on the image at `path` into `out_file` (its folder is made)."""
    write_image(out_file, draw_instances(read_image(path), sample.pred_instances, classes, score_thr))


def read_image(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, of any size: what is drawn on has passed the limit of the pipeline that read it.

    Raises:
        UserError: no readable image.
    """
    return decode_image(Path(path).read_bytes(), str(path), max_megapixels=None)[..., ::-1]


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Save (H, W, 3) uint8 RGB in the format of the file's ending."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **({'quality': 92} if str(path).lower().endswith(('jpg', 'jpeg')) else {}))
