"""Drawn detections: boxes, labels and masks on the image."""

import colorsys
import itertools
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import matplotlib.colors
import numpy as np
import torch
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer
from PIL import Image
from pycocotools import mask as mask_utils

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.registry import VISUALIZERS
from mmdet.structures.image_file import decode_image
from mmdet.visualization.labels import write_caption, write_labels

_MIN_SIDE = 480  # pixels; images smaller than half of it are enlarged,
_MAX_SIDE = 1920  # but not beyond this


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
            raise UserError(f'palette {palette!r} is not a colour; use one, a list of them, or {", ".join(PALETTES)}')
        return tuple(round(255 * c) for c in matplotlib.colors.to_rgb(palette))
    colour = palette if isinstance(palette[0], (int, np.integer)) else palette[label % len(palette)]
    return palette_colour(colour, label) if isinstance(colour, str) else tuple(int(c) for c in colour)


def class_name(label: int, classes: tuple[str, ...]) -> str:
    """The label's class, or its number where the classes do not reach so far."""
    return classes[label] if label < len(classes) else str(label)


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
    line_width: int | None = None,
    alpha: float = 0.45,
    mask_palette: str | Sequence | None = None,
    text_palette: str | Sequence | None = None,
) -> np.ndarray:
    """Draw boxes, labels and masks on a copy of an image. Of more than 30 objects not all are labelled.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: bboxes (D, 4) xyxy pixels, labels (D,), optionally scores (D,) and masks (D RLE dicts,
            bitmaps, or `PolygonMasks`/`BitmapMasks`), all of the image's size.
        classes: class names; a label beyond them is shown as its number.
        score_thr: detections below it are left out.
        zoom: enlarge the drawing; None enlarges small images, on which labels would hide the objects.
        palette: see `palette_colour`.
        colour_by: 'class', or 'instance': neighbours in the list differ, whatever they are.
        line_width: of boxes, pixels; None fits the image.
        alpha: how much masks hide, from 0 to 1.
        mask_palette, text_palette: of the masks, None for that of the boxes; of the letters, None for black or white.

    Returns:
        (zoom * H, zoom * W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    if zoom is None:
        zoom = max(1, min(_MIN_SIDE // min(height, width), _MAX_SIDE // max(height, width)))
    height, width = zoom * height, zoom * width
    scores = instances.get('scores')
    scores = None if scores is None else torch.as_tensor(scores).cpu()
    keep = torch.arange(len(instances)) if scores is None else torch.where(scores >= score_thr)[0]
    boxes = zoom * np.asarray(torch.as_tensor(instances.bboxes).cpu().detach().float())
    labels = torch.as_tensor(instances.labels).cpu().tolist()
    numbers = range(len(labels)) if colour_by == 'instance' else labels
    colours, of_masks, of_texts = ([palette_colour(colour, number) for number in numbers]
                                   for colour in (palette, mask_palette or palette, text_palette))
    masks = _bitmaps(instances.masks) if 'masks' in instances else None
    sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = sorted(keep.tolist(), key=lambda i: -sizes[i])  # small objects on top of large ones

    canvas = np.ascontiguousarray(image).copy()
    if zoom != 1:
        canvas = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_CUBIC)
    line = float(np.clip(min(height, width) / 350, 1, 6))
    if masks is not None:
        for i in order:
            _paint_mask(canvas, masks[i], zoom, of_masks[i], max(1, round(line)), alpha)
    for i in order:
        (x1, y1, x2, y2), side = np.rint(boxes[i]).astype(int).tolist(), np.sqrt(max(sizes[i], 1))
        thickness = line_width or max(1, round(min(line, side / 12)))  # a small object is not hidden by its frame
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colours[i], thickness)
    kept = None if scores is None else [float(scores[i]) for i in order]
    return write_labels(canvas, boxes[order].reshape(-1, 4), [class_name(labels[i], classes) for i in order], kept,
                        [colours[i] for i in order], [of_texts[i] for i in order] if text_palette else None)


def _paint_mask(
    canvas: np.ndarray, mask: np.ndarray, zoom: int, colour: tuple[int, int, int], line: int, alpha: float
) -> None:
    """Colour the pixels of a mask (H, W), and its outline; only the window that it lies in is touched."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    if w == 0:
        return
    x1, y1, x2, y2 = max(x - 1, 0), max(y - 1, 0), min(x + w + 1, mask.shape[1]), min(y + h + 1, mask.shape[0])
    inside, window = mask[y1:y2, x1:x2].astype(np.uint8), canvas[zoom * y1 : zoom * y2, zoom * x1 : zoom * x2]
    if zoom != 1:
        size = window.shape[1::-1]
        inside = (cv2.resize(255 * inside, size, interpolation=cv2.INTER_LINEAR) > 127).astype(np.uint8)
    window[inside > 0] = ((1 - alpha) * window[inside > 0] + alpha * np.array(colour)).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlined = np.ascontiguousarray(window)
    cv2.drawContours(outlined, contours, -1, colour, line, cv2.LINE_AA)
    window[:] = outlined


_nameless = itertools.count()


@VISUALIZERS.register_module(name=['DetVisualizer', 'DetLocalVisualizer'])
@refuse_overrides(
    'compatibility.md', _draw_instances='draw', _draw_panoptic_seg='draw', _draw_sem_seg='draw',
)  # fmt: skip
class DetVisualizer(Visualizer):
    """mmengine's Visualizer, drawing data samples. Without a display it draws all the same.

    Colours are those of ``dataset_meta['palette']``, see `palette_colour`.

    Args:
        bbox_color, mask_color: a palette that takes its place, of masks too or of them alone.
        text_color: palette of the letters; by default they are black or white.
        line_width, alpha: see `draw_instances`.
        options: mmengine's.
    """

    _drawn: np.ndarray | None = None

    def __init__(
        self,
        name: str = 'visualizer',
        *args,
        bbox_color: str | Sequence | None = None,
        text_color: str | Sequence | None = None,
        mask_color: str | Sequence | None = None,
        line_width: int | None = None,
        alpha: float = 0.45,
        **options,
    ) -> None:
        super().__init__(name, *args, **options)
        self.palette, self.text_palette, self.mask_palette = bbox_color, text_color, mask_color
        self.line_width, self.alpha = line_width, alpha

    @classmethod
    def get_instance(cls, name: str | None = None, **options) -> 'DetVisualizer':
        """mmengine's, which a registry calls; without a name it is a new one."""
        return super().get_instance(name or f'visualizer_{next(_nameless)}', **options)

    def draw(self, image: np.ndarray, sample, score_thr: float = 0.3, draw_gt: bool = False) -> np.ndarray:
        """An image (H, W, 3) uint8 RGB with the sample's predictions, or its ground truth, in its own size."""
        meta = self.dataset_meta or {}
        instances = sample.gt_instances if draw_gt else sample.pred_instances
        palette = meta.get('palette') if self.palette is None else self.palette
        options = dict(zoom=1, palette=palette, line_width=self.line_width, alpha=self.alpha,
                       mask_palette=self.mask_palette, text_palette=self.text_palette)  # fmt: skip
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

    def add_datasample(self, name, image, data_sample=None, draw_gt=True, draw_pred=True, show=False,
                       wait_time=0, out_file=None, pred_score_thr=0.3, step=0) -> None:
        """Draw ground truth and predictions side by side into `out_file` or the backends; `get_image` gives it."""
        drawn = [self.draw(image, data_sample, pred_score_thr, draw_gt=kind == 'gt_instances')
                 for kind, wanted in (('gt_instances', draw_gt), ('pred_instances', draw_pred))
                 if wanted and data_sample is not None and 'bboxes' in data_sample.get(kind, ())]
        if len(drawn) == 2:
            drawn = [write_caption(*pair) for pair in zip(drawn, ('ground truth', 'predictions'))]
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
    path: str | Path, sample, out_file: str | Path, classes: tuple[str, ...] = (), score_thr: float = 0.3,
    palette: str | Sequence | None = None,
) -> None:
    """Draw the predictions of a data sample on the image at `path` into `out_file` (its folder is made)."""
    write_image(out_file, draw_instances(read_image(path), sample.pred_instances, classes, score_thr, palette=palette))


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
