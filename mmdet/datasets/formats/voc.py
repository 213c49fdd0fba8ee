"""Pascal VOC: one XML file an image, as labelImg and many others write it.

Own code, since labelformat 0.1.17 and supervision 0.31 stop at the first file they cannot read, and drop ``difficult``.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from mmdet.config.errors import UserError
from mmdet.datasets.formats.annotated import AnnotatedImage, ImageFiles, Notes, Object, as_seen, boxed, seen_size
from mmdet.structures.voc_file import voc_root

_SPLITS = dict(train='train', trainval='train', val='val', test='test')


def recognises(source: Path) -> bool:
    file = next(source.rglob('*.xml'), None)
    return file is not None and b'<annotation' in file.read_bytes()[:2000].replace(b'<annotations', b'')


def read(source: Path, notes: Notes) -> list[AnnotatedImage]:
    """Images with an XML file; difficult objects become crowds, which training ignores."""
    files = ImageFiles(source)
    splits = _image_sets(source)
    images = []
    for path in sorted(source.rglob('*.xml')):
        try:
            root = voc_root(path.read_bytes())
        except (OSError, UserError) as error:
            notes.add('XML that cannot be read: left out', f'{path}: {error}')
            continue
        image = _image(root, path, files, notes)
        if image is not None:
            image.split = splits.get(path.stem)
            images.append(image)
    annotated = {image.path for image in images}
    for path in files.paths:
        if path.resolve() not in annotated:
            notes.add('image without an XML file: left out', path)
    return images


def _image_sets(source: Path) -> dict[str, str]:
    """Split of each image, from ImageSets/Main."""
    found = {}
    for name, split in reversed(_SPLITS.items()):
        for path in source.rglob(f'ImageSets/Main/{name}.txt'):
            found.update((line.split()[0], split) for line in path.read_text().splitlines() if line.strip())
    for path in source.rglob('ImageSets/Main/val.txt'):  # is in trainval, too
        found.update((line.split()[0], 'val') for line in path.read_text().splitlines() if line.strip())
    return found


def _image(root: ElementTree.Element, path: Path, files: ImageFiles, notes: Notes) -> AnnotatedImage | None:
    name = (root.findtext('filename') or '').strip()
    # labelImg keeps the name that the image had when it was opened; the XML's own name is what its folder knows
    found = files.find(path.stem, path.parent) or (files.find(name, path.parent) if name else None)
    if found is None:
        notes.add('annotation of an image that is not there: left out', f'{path}: {name}')
        return None
    seen = seen_size(found)
    if seen is None:
        notes.add('image that cannot be read: left out', found)
        return None
    size, orientation = seen
    declared = tuple(int(_number(root, f'size/{side}') or 0) for side in ('height', 'width'))
    if min(declared) > 0 and declared != size:
        turned = ' (EXIF-rotated)' if orientation > 4 else ''
        notes.add(f"annotated size is not that of the image{turned}: the image's is taken",
                  f'{path}: {declared} and {size}')
    image = AnnotatedImage(found, *size)
    # the benchmark counts pixels from 1, and a box's last one is inside; labelImg and its like count as everyone
    shift = np.array([[1, 1], [0, 0]]) * ('VOC' in (root.findtext('source/database') or ''))
    for element in root.iter('object'):
        corners = [_number(element, f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
        label = (element.findtext('name') or '').strip()
        if None in corners or not label:
            notes.add('object without a name or a box: left out', path)
            continue
        box = boxed(as_seen(np.array(corners).reshape(2, 2) - shift, declared, size, orientation))
        image.objects.append(Object(label, box, crowd=_number(element, 'difficult') == 1))
    return image


def _number(element: ElementTree.Element, path: str) -> float | None:
    try:
        value = float(element.findtext(path, ''))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
