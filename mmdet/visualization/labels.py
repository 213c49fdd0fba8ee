"""Labels of a drawing: letters of one size, no label over another, and fewer of them where objects crowd.

D objects; boxes are xyxy in pixels of the drawing.
"""

import string
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from mmdet.config.errors import say

CROWD = 30  # more objects than this are not all labelled,
_SHARE = 0.08  # and their labels cover no more of the image

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


# ---------------------------------------------------------------------- placing


def write_labels(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    scores: Sequence[float] | None,
    colours: Sequence[tuple[int, int, int]],
    letters: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """Write 'name 0.87' on a tag at each box (D, 4), inside the image (H, W, 3) uint8 RGB.

    The tags have the `colours`, D of them, and what is written there the colours `letters`; None for black or white.

    Where a label finds no free place its score is left out. Of a crowd the best of each class come first, and a label
    that finds no place, is much wider than its object, or would hide too much of the image is left out.
    """
    drawing = Image.fromarray(image)
    pen, (width, height) = ImageDraw.Draw(drawing), drawing.size
    crowded = len(boxes) > CROWD
    font_size = max(9, round((8 + min(width, height) / 90) * (0.8 if crowded else 1)))
    left = _SHARE * width * height if crowded else np.inf
    taken: list[tuple[float, float, float, float]] = []
    for i in _best_of_each_class(names, scores) if crowded else _smallest_first(boxes):
        texts = [names[i]] if scores is None else [f'{names[i]} {float(scores[i]):.2f}', names[i]]
        tags = [_Tag(text, font_size) for text in texts]
        if crowded:
            tags = [tag for tag in tags if tag.width <= 2 * (boxes[i][2] - boxes[i][0])]
        places = [(tag, *tag.place(boxes[i], (width, height), taken)) for tag in tags]
        free = [place for place in places if place[-1] == 0]
        if crowded and not (free and free[0][0].width * free[0][0].height <= left):
            continue
        tag, x, y, _ = free[0] if free else places[0]
        taken.append((x, y, x + tag.width, y + tag.height))
        left -= tag.width * tag.height
        tag.write(pen, x, y, colours[i], None if letters is None else letters[i])
    return np.asarray(drawing)


def _smallest_first(boxes: np.ndarray) -> list[int]:
    """The smallest object has the least choice of places."""
    return np.argsort((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind='stable').tolist()


def _best_of_each_class(names: Sequence[str], scores: Sequence[float] | None) -> list[int]:
    order = range(len(names)) if scores is None else np.argsort(-np.asarray(scores), kind='stable').tolist()
    seen: Counter = Counter()
    ranked = []
    for i in order:
        ranked.append((seen[names[i]], i))
        seen[names[i]] += 1
    return [i for _, i in sorted(ranked, key=lambda entry: entry[0])]


class _Tag:
    """A text on a ground of the object's colour."""

    def __init__(self, text: str, size: int) -> None:
        self.text, self.font = text, _font(_font_file(text), size)
        self.left, self.top, right, bottom = self.font.getbbox(text)
        self.pad = max(1, size // 6)
        self.width, self.height = right - self.left + 2 * self.pad, bottom - self.top + 2 * self.pad

    def place(self, box: np.ndarray, size: tuple[int, int], taken: list) -> tuple[float, float, float]:
        """Upper left corner of the place at the box that is the most free, and how much of it is not, in pixels."""
        x = float(np.clip(box[0], 0, max(size[0] - self.width, 0)))
        rows = (box[1] - self.height, box[1], box[3] - self.height, box[3], box[1] + self.height)
        rows = [float(np.clip(y, 0, max(size[1] - self.height, 0))) for y in rows]

        def overlap(y: float) -> float:
            return sum(
                max(0.0, min(x + self.width, b[2]) - max(x, b[0])) * max(0.0, min(y + self.height, b[3]) - max(y, b[1]))
                for b in taken
            )

        overlaps = [overlap(y) for y in rows]
        best = int(np.argmin(overlaps))
        return x, rows[best], overlaps[best]

    def write(
        self, pen: ImageDraw.ImageDraw, x: float, y: float, colour: tuple[int, int, int],
        letters: tuple[int, int, int] | None = None,
    ) -> None:
        pen.rectangle((x, y, x + self.width, y + self.height), fill=colour)
        dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        pen.text((x + self.pad - self.left, y + self.pad - self.top), self.text, font=self.font,
                 fill=letters or ((0, 0, 0) if dark else (255, 255, 255)))  # fmt: skip


def write_caption(image: np.ndarray, text: str) -> np.ndarray:
    """Say in the image's upper right corner what it shows."""
    drawing = Image.fromarray(image)
    tag = _Tag(text, max(9, round(8 + min(drawing.size) / 60)))
    tag.write(ImageDraw.Draw(drawing), drawing.size[0] - tag.width - 1, 0, (40, 40, 40))
    return np.asarray(drawing)
