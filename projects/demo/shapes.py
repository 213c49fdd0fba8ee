"""A small data set of textured shapes in COCO's format, generated from one seed.

    python -m projects.demo.shapes data/shapes --train 400 --val 60 --size 160 --seed 0

writes ``train/``, ``val/`` and ``annotations/instances_{train,val}.json``: one to five objects per image,
of four classes told apart by outline alone (colour, texture, size, turn and light are drawn at random), lying
over each other and over the border, on textured ground. Polygons follow the visible part. Some images hold
a heap of small objects annotated as one crowd, and one in each split is empty.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError, run_main

CLASSES = ('circle', 'square', 'triangle', 'star')
_ZOOM = 4  # outlines and visible parts are worked out on a grid this much finer
_SHAPES_FILE = 'shapes.json'  # settings of a finished set; written last


def write_shapes(out: str | Path, train: int = 400, val: int = 60, size: int = 160, seed: int = 0) -> Path:
    """Write the data set to the folder `out`; equal arguments give equal files.

    Everything is written beside `out` and moved there when complete, so an interrupted run leaves no `out`.
    A finished set of the same settings is left as it is.

    Args:
        out: folder to make.
        train, val: numbers of images.
        size: width and height of an image in pixels, at least 96.
        seed: same seed, same set.

    Raises:
        UserError: a number out of range, or `out` holds something else.
    """
    out = Path(out)
    settings = dict(train=train, val=val, size=size, seed=seed)
    if train < 1 or val < 1:
        raise UserError(f'train={train} and val={val} must be at least 1')
    if size < 96:
        raise UserError(f'size={size} is too small for objects of 32 pixels and more; use at least 96')
    if out.exists():
        done = out / _SHAPES_FILE
        if done.is_file() and json.loads(done.read_text()) == settings:
            return out
        raise UserError(f'{out} exists and is not the set of {settings}; remove it or name another folder')

    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f'.{out.name}.{os.getpid()}')
    try:
        (unfinished / 'annotations').mkdir(parents=True)
        for split, (name, count) in enumerate((('train', train), ('val', val))):
            _write_split(unfinished, name, count, size, (seed, split))
        (unfinished / _SHAPES_FILE).write_text(json.dumps(settings))
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _write_split(root: Path, name: str, count: int, size: int, seed: tuple[int, ...]) -> None:
    (root / name).mkdir()
    images, annotations = [], []
    for number in range(count):
        rng = np.random.default_rng((*seed, number))
        # the second image is empty; every eighth has a crowd
        objects = 0 if number == 1 else int(rng.integers(1, 6))
        pixels, records = draw_image(rng, size, objects, crowd=number % 8 == 5)
        info = dict(id=number + 1, file_name=f'{number + 1:06d}.jpg', height=size, width=size)
        if not cv2.imwrite(str(root / name / info['file_name']), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OSError(f'cannot write {root / name / info["file_name"]}; is the disk full?')
        images.append(info)
        for record in records:
            annotations.append(dict(id=len(annotations) + 1, image_id=info['id'], **record))
    content = dict(
        info=dict(description='textured shapes', seed=list(seed)),
        images=images,
        annotations=annotations,
        categories=[dict(id=i, name=c, supercategory='shape') for i, c in enumerate(CLASSES, start=1)],
    )
    (root / 'annotations' / f'instances_{name}.json').write_text(json.dumps(content))


def draw_image(
    rng: np.random.Generator, size: int, objects: int, crowd: bool = False
) -> tuple[np.ndarray, list[dict]]:
    """One image, (size, size, 3) uint8 BGR, and its COCO annotations without ids."""
    canvas = _ground(rng, size)
    layers = []  # from the back to the front: (label, mask on the fine grid), a crowd being one layer
    if crowd:
        layers.append(_draw_crowd(rng, canvas))
    for _ in range(objects):
        for _ in range(20):
            label, outline = _random_outline(rng, size)
            mask = _fill([outline], size)
            if _leaves_enough(mask, [m for _, m in layers]):
                _paint(rng, canvas, mask)
                layers.append((label, mask))
                break
    pixels = _grain(rng, canvas)

    records = []
    covered = np.zeros((size * _ZOOM,) * 2, dtype=np.uint8)
    for index in reversed(range(len(layers))):
        label, mask = layers[index]
        visible = mask & ~covered
        covered |= mask
        records.append(_crowd_record(label, visible) if crowd and index == 0 else _record(label, visible))
    return pixels, records[::-1]


def _random_outline(rng: np.random.Generator, size: int) -> tuple[int, np.ndarray]:
    """Label and (V, 2) vertices in pixels of an object 32 to 96 pixels across, mostly inside."""
    across = np.exp(rng.uniform(np.log(32), np.log(min(96, 0.6 * size))))
    centre = rng.uniform(0.3 * across, size - 0.3 * across, size=2)
    label = int(rng.integers(len(CLASSES)))
    outline = _outline(CLASSES[label], across, rng.uniform(-0.5, 0.5), rng.uniform(0.8, 1.0))
    return label, outline + centre


def _outline(name: str, across: float, turn: float, squeeze: float) -> np.ndarray:
    """(V, 2) vertices around the origin; `turn` in radians from upright, `squeeze` the ratio of the axes."""
    corners = dict(circle=48, square=4, triangle=3, star=10)[name]
    first = np.pi / 4 if name == 'square' else -np.pi / 2  # tip up, in rows that count downwards
    angles = first + 2 * np.pi * np.arange(corners) / corners
    radius = np.full(corners, across / 2)
    if name == 'star':
        radius[1::2] *= 0.45
    points = np.stack([np.cos(angles) * radius, np.sin(angles) * radius * squeeze], axis=1)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return points @ rotation


def _fill(outlines: list[np.ndarray], size: int) -> np.ndarray:
    """0/1 mask on the fine grid."""
    mask = np.zeros((size * _ZOOM,) * 2, dtype=np.uint8)
    for points in outlines:
        # shift=4: vertices in sixteenths of a fine cell; a cell's centre is at whole numbers
        fixed = np.round((points * _ZOOM - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 1, shift=4)
    return mask


def _leaves_enough(mask: np.ndarray, others: list[np.ndarray]) -> bool:
    """Whether each layer stays at least two thirds visible, unpierced, with `mask` put on top."""
    for position, other in enumerate(others):
        above = mask.copy()
        for later in others[position + 1 :]:
            above |= later
        visible = other & ~above
        if 3 * np.count_nonzero(visible) < 2 * np.count_nonzero(other) or _has_hole(visible):
            return False
    return True


def _has_hole(mask: np.ndarray) -> bool:
    hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[1]
    return hierarchy is not None and bool((hierarchy[0, :, 3] >= 0).any())


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise in [0, 1] with about `cells` bumps across."""
    coarse = rng.random((cells + 3, cells + 3), dtype=np.float32)
    return np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def _colour(rng: np.random.Generator, saturation: tuple, value: tuple) -> np.ndarray:
    """A random BGR colour in [0, 1]."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]], dtype=np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0]


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) float32 ground: two muted colours mixed by noise of several scales."""
    texture = sum(_noise(rng, size, cells) * weight for cells, weight in ((3, 0.5), (9, 0.3), (40, 0.2)))
    first = _colour(rng, (0.1, 0.45), (0.35, 0.8))
    second = np.clip(first + rng.uniform(-0.22, 0.22, 3), 0.1, 0.95).astype(np.float32)
    ground = first + (second - first) * texture[..., None]
    return ground * (0.85 + 0.3 * _noise(rng, size, 1))[..., None]


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size) float32 in [0, 1]: plain, stripes, checks, dots or marble."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 12)
    u = (np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period) + rng.uniform(0, 2 * np.pi)
    v = (np.cos(angle) * y - np.sin(angle) * x) * (2 * np.pi / period) + rng.uniform(0, 2 * np.pi)
    kind = rng.integers(5)
    if kind == 0:
        return np.zeros((size, size), dtype=np.float32)
    if kind == 1:
        wave = 3 * np.sin(u)
    elif kind == 2:
        wave = 6 * np.sin(u) * np.sin(v)
    elif kind == 3:
        wave = 6 * (np.cos(u) + np.cos(v) - 0.9)
    else:
        wave = 4 * np.sin(u + 7 * _noise(rng, size, 8))
    return 1 / (1 + np.exp(-wave))


def _paint(rng: np.random.Generator, canvas: np.ndarray, fine_mask: np.ndarray) -> None:
    """Put an object onto the canvas: a soft shadow, then its two-coloured texture in slanting light."""
    size = len(canvas)
    alpha = cv2.resize(fine_mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    shift = np.array([[1, 0, rng.uniform(1, 3)], [0, 1, rng.uniform(1, 3)]], dtype=np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, shift, (size, size)), (0, 0), 2)
    canvas *= (1 - 0.4 * shadow)[..., None]

    first = _colour(rng, (0.25, 0.9), (0.35, 0.95))
    second = np.clip(first + rng.choice([-1, 1]) * rng.uniform(0.12, 0.35) * rng.uniform(0.5, 1, 3), 0, 1)
    surface = first + (second - first).astype(np.float32) * _texture(rng, size)[..., None]
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    light = rng.uniform(0, 2 * np.pi)
    depth = cv2.GaussianBlur(alpha, (0, 0), 3)  # darker towards the rim
    surface = surface * (0.75 + 0.3 * depth + 0.2 * (np.cos(light) * x + np.sin(light) * y))[..., None]
    canvas += alpha[..., None] * (surface - canvas)


def _draw_crowd(rng: np.random.Generator, canvas: np.ndarray) -> tuple[int, np.ndarray]:
    """Paint a heap of small objects of one class; returns label and mask of the heap."""
    size = len(canvas)
    label = int(rng.integers(len(CLASSES)))
    centre = rng.uniform(0.25 * size, 0.75 * size, size=2)
    heap = np.zeros((size * _ZOOM,) * 2, dtype=np.uint8)
    for _ in range(int(rng.integers(8, 14))):
        across = rng.uniform(10, 18)
        points = _outline(CLASSES[label], across, rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.0))
        mask = _fill([points + centre + rng.normal(0, 0.09 * size, size=2)], size)
        _paint(rng, canvas, mask)
        heap |= mask
    return label, heap


def _grain(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """A slightly soft lens and a noisy sensor."""
    pixels = cv2.GaussianBlur(canvas, (0, 0), 0.5) + rng.normal(0, 0.02, canvas.shape).astype(np.float32)
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _record(label: int, visible: np.ndarray) -> dict:
    """Annotation of the visible part, as polygons in pixels."""
    contours, _ = cv2.findContours(visible, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    area = 0.0
    for contour in contours:
        # a contour runs through the centres of its fine cells: grow it by half a cell
        points = np.clip(_grow(contour[:, 0].astype(np.float64) + 0.5), 0, len(visible)) / _ZOOM
        points = cv2.approxPolyDP(points.astype(np.float32)[:, None], 0.25, True)[:, 0]
        if len(points) >= 3 and cv2.contourArea(points) >= 4:  # no slivers
            polygons.append([round(float(v), 2) for v in points.ravel()])
            area += cv2.contourArea(points)
    corners = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
    return _annotation(label, corners.min(axis=0), corners.max(axis=0), area, polygons, iscrowd=0)


def _grow(points: np.ndarray) -> np.ndarray:
    """Move the vertices of a contour half a unit outwards."""
    tangent = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    x, y = points.T
    turning = np.sign(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    return points - turning * 0.5 * normal / np.maximum(length, 1e-9)


def _crowd_record(label: int, visible: np.ndarray) -> dict:
    """Annotation of a crowd: uncompressed run lengths, as COCO's own files have them."""
    size = len(visible) // _ZOOM
    mask = cv2.resize(visible * 255, (size, size), interpolation=cv2.INTER_AREA) >= 128
    flat = np.concatenate([[0], mask.ravel(order='F').astype(np.int8), [0]])
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], changes, [size * size]]))
    if changes.size and changes[-1] == size * size:  # the last run is of ones
        counts = counts[:-1]
    rle = dict(size=[size, size], counts=counts.tolist())
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    low, high = (columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)
    return _annotation(label, np.array(low), np.array(high), np.count_nonzero(mask), rle, iscrowd=1)


def _annotation(label: int, low: np.ndarray, high: np.ndarray, area: float, segmentation, iscrowd: int) -> dict:
    return dict(
        category_id=label + 1,
        bbox=[round(float(v), 2) for v in (*low, *(high - low))],
        area=round(float(area), 2),
        segmentation=segmentation,
        iscrowd=iscrowd,
    )


def main() -> None:
    parser = Parser('Write a small COCO-format set of textured shapes.')
    parser.add_argument('out', help='folder to make')
    parser.add_argument('--train', type=int, default=400, help='training images (default 400)')
    parser.add_argument('--val', type=int, default=60, help='validation images (default 60)')
    parser.add_argument('--size', type=int, default=160, help='width and height in pixels (default 160)')
    parser.add_argument('--seed', type=int, default=0, help='same seed, same set (default 0)')
    args = parser.parse_args()
    out = write_shapes(args.out, args.train, args.val, args.size, args.seed)
    print(f'{out}: {args.train} training and {args.val} validation images of {args.size}x{args.size}')


if __name__ == '__main__':
    run_main(main)
