"""Encoded image files: their size as the header says it, and decoding that refuses what a decoder passes over."""

import io
import re
import struct
from collections.abc import Iterator

import cv2
import mmcv
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from mmdet.config.errors import UserError

MAX_MEGAPIXELS = 200.0  # OpenCV's own limit is 1074 (2^30 pixels), which take 3 GB and more


def decode_image(
    data: bytes,
    path: str,
    max_megapixels: float | None = MAX_MEGAPIXELS,
    color_type: str = 'color',
    backend: str = 'cv2',
) -> np.ndarray:
    """Decode an image file to (h, w) or (h, w, channels), BGR.

    Args:
        data: content of the file.
        path: its name, for messages.
        max_megapixels: refuse an image of more pixels before it is decoded; None sets no limit.
        color_type, backend: mmcv's flag ('color', 'grayscale', 'unchanged', ...) and decoder ('cv2', 'pillow', ...).

    Raises:
        UserError: an empty, oversized, cut-off, damaged or unknown file.
    """
    if not data:
        raise UserError(f'image {path} is an empty file; fetch it again or drop it from the set')
    height, width = image_size(data) or (0, 0)
    megapixels = height * width / 1e6
    if max_megapixels is not None and megapixels > max_megapixels:
        raise UserError(f'image {path} has {width} x {height} = {megapixels:.0f} megapixels, more than '
                        f'max_megapixels={max_megapixels:g} of LoadImageFromFile: set that higher, or shrink the image')
    if _is_cut_off_jpeg(data):
        raise UserError(f'image {path} is cut off; fetch it again or drop it from the set')
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # else it logs lines without a name
    try:
        image = mmcv.imfrombytes(data, flag=color_type, backend=backend)
    except (cv2.error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f'image {path} cannot be decoded: {reason}') from None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if image is None:
        raise UserError(f'image {path} is damaged or of no known format; fetch it again or drop it from the set')
    # what a decoder does not find it makes grey; only then is the file looked at again, by a second decoder
    if data[:2] == b'\xff\xd8' and any((image[y, x] == 128).all() for y in (0, -1) for x in (0, -1)):
        if _is_closed_early(data):
            raise UserError(f'image {path} is cut off; fetch it again or drop it from the set')
    return image


# ---------------------------------------------------------------------- size without decoding


def image_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels from the header of an image file, before any orientation is applied.

    PNG, JPEG, WebP, TIFF, BMP, GIF and Radiance HDR are read here, JPEG 2000, AVIF, PNM and Sun raster by Pillow; None
    for another format or a broken header.
    """
    try:
        for magic, read in _HEADERS.items():
            if data.startswith(magic):
                return read(data)
        return _size_by_pillow(data)
    except (struct.error, IndexError):  # a file that ends in its header
        return None


def _png(data: bytes) -> tuple[int, int]:
    position = 8
    while data[position + 4 : position + 8] != b'IHDR':
        position += 12 + struct.unpack_from('>I', data, position)[0]
    width, height = struct.unpack_from('>II', data, position + 8)
    return height, width


def _jpeg(data: bytes) -> tuple[int, int] | None:
    for marker, position in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            return struct.unpack_from('>HH', data, position + 3)
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of the content of each segment, up to the start of scan; stray bytes are passed over as
    libjpeg does."""
    position = 2
    while (position := data.find(b'\xff', position)) >= 0:
        while data[position] == 0xFF:  # a marker may have fill bytes before it
            position += 1
        marker, position = data[position], position + 1
        if marker == 0:
            continue
        yield marker, position
        if marker == 0xDA:
            return
        if marker != 0x01 and not 0xD0 <= marker <= 0xD7:  # these have no content
            position += struct.unpack_from('>H', data, position)[0]


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b'VP8 ':
        width, height = struct.unpack_from('<HH', data, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b'VP8L':
        (bits,) = struct.unpack_from('<I', data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b'VP8X':
        width, width_high, height, height_high = struct.unpack_from('<HBHB', data, 24)
        return (height | height_high << 16) + 1, (width | width_high << 16) + 1
    return None


def _tiff(data: bytes) -> tuple[int, int]:
    order = '<' if data[:2] == b'II' else '>'
    big = struct.unpack_from(order + 'H', data, 2)[0] == 43
    start, count, entry, value = ('Q', 'Q', 20, 12) if big else ('I', 'H', 12, 8)
    (position,) = struct.unpack_from(order + start, data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + count, data, position)
    position += struct.calcsize(count)
    sides = {256: 0, 257: 0}  # tags of width and height
    for at in range(position, position + entries * entry, entry):
        tag, kind = struct.unpack_from(order + 'HH', data, at)
        if tag in sides:
            (sides[tag],) = struct.unpack_from(order + {3: 'H', 16: 'Q'}.get(kind, 'I'), data, at + value)
    return sides[257], sides[256]


def _bmp(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from('<I', data, 14)
    width, height = struct.unpack_from('<HH' if header == 12 else '<ii', data, 18)
    return abs(height), abs(width)


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from('<HH', data, 6)
    return height, width


def _hdr(data: bytes) -> tuple[int, int] | None:
    sides = re.search(rb'\n-Y +(\d+) +\+X +(\d+)', data[:65536])
    return sides and (int(sides[1]), int(sides[2]))


_HEADERS = {
    b'\x89PNG': _png, b'\xff\xd8': _jpeg, b'RIFF': _webp, b'II*\0': _tiff, b'MM\0*': _tiff, b'II+\0': _tiff,
    b'MM\0+': _tiff, b'BM': _bmp, b'GIF8': _gif, b'#?RADIANCE': _hdr, b'#?RGBE': _hdr,
}  # fmt: skip


def _size_by_pillow(data: bytes) -> tuple[int, int] | None:
    Image.init()
    for name in ('JPEG2000', 'AVIF', 'PPM', 'SUN'):
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or accepts(data[:16]) is not True:
            continue
        try:
            # not Image.open, whose own limit is another one
            with factory(io.BytesIO(data), '') as image:
                return image.size[::-1]
        except (SyntaxError, ValueError, TypeError, EOFError, OSError):
            return None
    return None


# ---------------------------------------------------------------------- what decoders pass over


def _is_cut_off_jpeg(data: bytes) -> bool:
    """Whether a JPEG's scan never ends; decoders fill the missing part with grey and say nothing."""
    if data[:2] != b'\xff\xd8':
        return False
    try:
        *_, (_, position) = _jpeg_segments(data)
    except (struct.error, IndexError, ValueError):
        return True
    return data.find(b'\xff\xd9', position) < 0


def _is_closed_early(data: bytes) -> bool:
    """Whether a JPEG's only scan ends before its last block; also where an end marker was put behind what is left.

    With a few bytes of padding instead of the end marker, a whole scan decodes to its end, and another one asks for
    more. Progressive files, and those of several scans, are taken for whole.
    """
    *segments, (_, position) = _jpeg_segments(data)
    end = re.search(rb'\xff[^\x00\xff\xd0-\xd7]', data[position:])
    if end is None or end[0] != b'\xff\xd9' or not {0xC0, 0xC1} & {marker for marker, _ in segments}:
        return False
    try:
        with JpegImageFile(io.BytesIO(data[: position + end.start()] + bytes(8))) as image:
            image.load()
    except (OSError, SyntaxError):
        return True
    return False
