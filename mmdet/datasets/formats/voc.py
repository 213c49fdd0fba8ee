"""Pascal VOC: one XML file an image, as labelImg and many others write it, read as `XMLDataset` reads it.

labelformat 0.1.17, supervision 0.31 and hotcoco 1.3 stop at the first file they cannot read, and drop ``difficult``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmdet.config.errors import UserError
from mmdet.datasets.formats.annotated import (
    SPLITS,
    AnnotatedImage,
    ImageFiles,
    Notes,
    Object,
    as_seen,
    boxed,
    note_size,
    seen_size,
)
from mmdet.structures.voc_file import VocFile, load_voc_file


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
            content = load_voc_file(str(path))
        except UserError as error:
            notes.add('XML that cannot be read: left out', error)
            continue
        image = _image(content, path, files, notes)
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
    for name, split in reversed(SPLITS.items()):
        for path in source.rglob(f'ImageSets/Main/{name}.txt'):
            found.update((line.split()[0], split) for line in path.read_text().splitlines() if line.strip())
    for path in source.rglob('ImageSets/Main/val.txt'):  # is in trainval, too
        found.update((line.split()[0], 'val') for line in path.read_text().splitlines() if line.strip())
    return found


def _image(content: VocFile, path: Path, files: ImageFiles, notes: Notes) -> AnnotatedImage | None:
    # the file keeps the name that the image had when it was opened; its own name is what its folder knows
    found = files.find(path.stem, path.parent)
    if found is None and content.file_name:
        found = files.find(content.file_name, path.parent)
    if found is None:
        notes.add('annotation of an image that is not there: left out', f'{path}: {content.file_name}')
        return None
    seen = seen_size(found)
    if seen is None:
        notes.add('image that cannot be read: left out', found)
        return None
    size, orientation = seen
    declared = (content.height, content.width) if content.height and content.width else None
    note_size(notes, declared, seen, path)
    if content.without_box:
        notes.add('object without a bndbox: left out', path, content.without_box)
    image = AnnotatedImage(found, *size)
    for one in content.objects:
        corners = as_seen(np.array(one.bbox).reshape(2, 2), declared, size, orientation)
        image.objects.append(Object(one.name, boxed(corners), crowd=one.difficult))
    return image
