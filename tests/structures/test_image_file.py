"""Sizes from headers, against Pillow; what is refused without decoding."""

import io
import struct

import cv2
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


@pytest.mark.parametrize('program', [b'#?RADIANCE', b'#?RGBE'])
def test_radiance(program):
    """OpenCV reads it; its runs of equal pixels make an image of hundreds of megapixels a small file."""
    pixels = np.random.default_rng(0).random((37, 53, 3), dtype=np.float32)
    data = program + cv2.imencode('.hdr', pixels)[1].tobytes().partition(b'\n')[2].join([b'\n', b''])
    assert image_size(data) == decode_image(data, 'a').shape[:2] == (37, 53)
    with pytest.raises(UserError, match='a.hdr has 53 x 37 = 0 megapixels, more than max_megapixels=0.001 of'):
        decode_image(data, 'a.hdr', max_megapixels=0.001)


def test_real_images(real_data):
    for path in sorted(real_data.glob('photos/**/*.*')):
        if path.suffix in ('.jpg', '.jpeg', '.png'):
            with Image.open(path) as image:
                assert image_size(path.read_bytes()) == image.size[::-1], path


def test_without_a_limit_pillow_keeps_its_own(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
    with pytest.raises(UserError, match='image a cannot be decoded: Image size .1961 pixels. exceeds limit'):
        decode_image(encoded('PNG'), 'a', max_megapixels=None, backend='pillow')


def photo(real_data, mode: str = 'RGB', **options) -> bytes:
    file = io.BytesIO()
    with Image.open(real_data / 'photos/skimage_chelsea.png') as image:
        image.convert(mode).save(file, 'JPEG', **options)
    return file.getvalue()


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('options', [
    {}, dict(subsampling=0), dict(quality=97), dict(optimize=True), dict(restart_marker_blocks=50), dict(mode='L'),
])  # fmt: skip
def test_a_jpeg_cut_and_closed(real_data, options, backend, capfd):
    """Copied in part and given an end marker: decoders fill the rest with grey."""
    whole = photo(real_data, **options)
    assert decode_image(whole, 'a', backend=backend).std() > 10
    for share in (0.4, 0.7, 0.9, 0.99):
        cut = whole[: int(share * len(whole))]
        for data in (cut, cut + b'\xff\xd9', cut + b'\xff\xd9' + bytes(50)):
            with pytest.raises(UserError, match='image a.jpg is cut off; fetch it again or drop it'):
                decode_image(data, 'a.jpg', backend=backend)


def test_whole_images_with_grey_corners(real_data):
    for size in ((64, 64), (61, 43), (7, 5)):
        for mode in ('RGB', 'L'):
            file = io.BytesIO()
            Image.new(mode, size, 128 if mode == 'L' else (128,) * 3).save(file, 'JPEG')
            assert (decode_image(file.getvalue(), 'a') == 128).all()
            assert (decode_image(file.getvalue() + b'\xff\xd9 more', 'a') == 128).all()
    file = io.BytesIO()
    Image.new('RGB', (64, 64), (128,) * 3).save(file, 'JPEG', progressive=True)
    assert (decode_image(file.getvalue(), 'a') == 128).all()


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'JPEG2000', 'AVIF'])
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_other_formats_cut_off(kind, backend, capfd):
    whole = encoded(kind)
    for share in (0.5, 0.9):
        with pytest.raises(UserError, match='image a.x (is damaged|cannot be decoded)'):
            decode_image(whole[: int(share * len(whole))], 'a.x', backend=backend)
    assert capfd.readouterr() == ('', '')
