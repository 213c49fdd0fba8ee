"""Sizes from headers, against Pillow; what is refused without decoding."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from mmdet.config.errors import UserError
from mmdet.structures.image_file import decode_image, image_size

FORMATS = [
    ('PNG', {}), ('JPEG', {}), ('JPEG', dict(progressive=True)), ('JPEG', dict(exif=b'Exif\0\0' + bytes(300))),
    ('WEBP', {}), ('WEBP', dict(lossless=True)), ('WEBP', dict(exif=b'Exif\0\0')), ('TIFF', {}),
    ('TIFF', dict(compression='tiff_lzw')), ('TIFF', dict(big_tiff=True)), ('BMP', {}), ('GIF', {}), ('PPM', {}),
    ('JPEG2000', {}), ('AVIF', {}),
]  # fmt: skip


def encoded(kind: str, **options) -> bytes:
    if kind not in Image.registered_extensions().values():
        pytest.skip(f'this Pillow writes no {kind}')
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize('kind, options', FORMATS)
def test_sizes_of_every_format(kind, options, capfd):
    data = encoded(kind, **options)
    assert image_size(data) == (37, 53)
    assert decode_image(data, 'a').shape == (37, 53, 3)
    assert decode_image(data, 'a', max_megapixels=37 * 53 / 1e6).shape == (37, 53, 3)
    with pytest.raises(UserError, match=r'a.x has 53 x 37 = 0 megapixels, more than max_megapixels=0.001 of'):
        decode_image(data, 'a.x', max_megapixels=0.001)
    for end in range(0, 300, 7):  # a header that ends early says nothing, or the size
        assert image_size(data[:end]) in (None, (37, 53))


def test_sizes_as_other_writers_put_them():
    """Big-endian TIFF, OS/2 bitmaps and those from top to bottom, JPEG with stray and fill bytes before a marker."""
    tiff = b'MM\0*' + struct.pack('>IH', 8, 2) + struct.pack('>HHIHH', 256, 3, 1, 53, 0) + struct.pack(
        '>HHII', 257, 4, 1, 37)  # fmt: skip
    assert image_size(tiff) == (37, 53)
    assert image_size(b'BM' + bytes(12) + struct.pack('<IHH', 12, 53, 37)) == (37, 53)
    assert image_size(b'BM' + bytes(12) + struct.pack('<Iii', 40, 53, -37)) == (37, 53)
    jpeg = encoded('JPEG')
    second = 4 + int.from_bytes(jpeg[4:6], 'big')
    assert image_size(jpeg[:second] + b'\1\2\xff\0\xff\xff' + jpeg[second:]) == (37, 53)


def test_real_images(real_data):
    for path in sorted(real_data.glob('photos/**/*.*')):
        if path.suffix in ('.jpg', '.jpeg', '.png'):
            with Image.open(path) as image:
                assert image_size(path.read_bytes()) == image.size[::-1], path


def test_without_a_limit_pillow_keeps_its_own(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
    with pytest.raises(UserError, match='image a cannot be decoded: Image size .1961 pixels. exceeds limit'):
        decode_image(encoded('PNG'), 'a', max_megapixels=None, backend='pillow')
