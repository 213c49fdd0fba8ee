"""Formats of other annotation tools, each a module with ``recognises(folder)`` and ``read(folder, notes)``.

`coco_content` makes COCO's format of what they return, `split` divides it.
"""

from mmdet.datasets.formats import coco, cvat, labelme, voc, yolo
from mmdet.datasets.formats.annotated import AnnotatedImage, Notes, Object
from mmdet.datasets.formats.splitting import coco_content, split

FORMATS = dict(coco=coco, labelme=labelme, cvat=cvat, voc=voc, yolo=yolo)  # in the order in which they are tried

__all__ = ['FORMATS', 'AnnotatedImage', 'Notes', 'Object', 'coco_content', 'split']
