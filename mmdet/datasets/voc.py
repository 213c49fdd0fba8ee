"""`XMLDataset` and `VOCDataset`: images and objects from Pascal VOC's folders, one XML file an image."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence

import mmengine.fileio as fileio
from mmengine.dataset import BaseDataset
from PIL import Image, UnidentifiedImageError

from mmdet.config.errors import MissingFile, UserError, at_most, say
from mmdet.config.output import IMAGE_SUFFIXES
from mmdet.datasets.common import check_packed, with_class_names
from mmdet.datasets.pipeline import build_steps, check_order
from mmdet.registry import DATASETS
from mmdet.structures.voc_file import VocFile, load_voc_file

VOC_CLASSES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog',
    'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip
_FILTERS = ('filter_empty_gt', 'min_size', 'bbox_min_size')
_ORIENTATION = 0x0112  # EXIF's tag; from 5 on the photo lies on its side


@DATASETS.register_module()
class XMLDataset(BaseDataset):
    """Images and objects from XML files in Pascal VOC's format, as labelImg, CVAT and Roboflow write it.

    An image is a dict as `CocoDataset` gives it. Its ``img_id`` is its line in `ann_file`. A box of VOC's own files
    runs from ``xmin - 1`` to ``xmax``: they count pixels from 1 (see `mmdet.structures.voc_file`). A difficult object
    is ignored (``ignore_flag`` 1): neither object nor background in training. Objects of other classes, objects without
    a bndbox, and boxes under one pixel inside the image are left out.

    Args:
        ann_file: list of images, one a line, below `data_root` unless absolute; '' for every XML file of `ann_subdir`.
        metainfo: dict(classes=names); labels follow this order.
        data_prefix: dict(sub_data_root=folder) below `data_root`, in which the two folders are.
        img_subdir, ann_subdir: folders of the images and of the XML files. The image of a line is the file of that name
            with the XML's own ending, or any that an image has.
        filter_cfg: for training, dict(filter_empty_gt=True) drops images without an object, dict(min_size=32) those
            with a side under 32 pixels; dict(bbox_min_size=16) ignores boxes with a side under 16.
        backend_args: mmengine's file backend for the XML files.
        test_mode: keep every image and box.
        pipeline, data_root, indices, serialize_data, lazy_init, max_refetch: see mmengine's `BaseDataset`.

    Raises:
        MissingFile: no `ann_file`, folder, XML file or image.
        UserError: an XML file that cannot be read; no classes, or none of them in the files; no image left; a pipeline
            in the wrong order.
    """

    METAINFO = dict(dataset_type='voc')

    @classmethod
    def check_config(cls, cfg: dict, path: str, whole: dict, training: bool) -> None:
        """Refuse a pipeline of known transforms none of which packs its results."""
        check_packed(cfg, path, whole)

    def __init__(
        self,
        ann_file: str = '',
        metainfo: dict | None = None,
        data_root: str = '',
        data_prefix: dict | None = None,
        img_subdir: str = 'JPEGImages',
        ann_subdir: str = 'Annotations',
        filter_cfg: dict | None = None,
        pipeline: Sequence = (),
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        name = type(self).__name__
        unknown = set(filter_cfg or {}) - set(_FILTERS)
        if unknown:
            raise UserError(f'{name}: filter_cfg has unknown {sorted(unknown)}; use {at_most(map(repr, _FILTERS))}')
        if not isinstance(data_prefix, (dict, type(None))) or set(data_prefix or ()) - {'sub_data_root'}:
            raise UserError(f"{name}: data_prefix={data_prefix!r} must be dict(sub_data_root='VOC2007/'), the folder "
                            "of img_subdir='JPEGImages' and ann_subdir='Annotations'")
        self.img_subdir, self.ann_subdir, self.backend_args = img_subdir, ann_subdir, backend_args
        pipeline = build_steps(pipeline)
        if not kwargs.get('test_mode', False):
            check_order(pipeline)
        super().__init__(
            ann_file=ann_file,
            metainfo=metainfo,
            data_root=data_root or '',
            data_prefix=data_prefix or dict(sub_data_root=''),
            filter_cfg=filter_cfg,
            pipeline=pipeline,
            **kwargs,
        )

    @classmethod
    def _load_metainfo(cls, metainfo=None) -> dict:
        return with_class_names(cls, super()._load_metainfo, metainfo)

    def load_data_list(self) -> list[dict]:
        root = self.data_prefix['sub_data_root']
        self._folder, xml_folder = (fileio.join_path(root, part) for part in (self.img_subdir, self.ann_subdir))
        names = self._names(xml_folder)
        files = [load_voc_file(fileio.join_path(xml_folder, f'{name}.xml'), self.backend_args) for name in names]
        self._check_objects(files, xml_folder)
        label = {name: number for number, name in enumerate(self._metainfo['classes'])}
        return [self._image(name, file, label) for name, file in zip(names, files)]

    def _names(self, xml_folder: str) -> list[str]:
        """The images' names, each once; they may be given with the ending of their image or XML file."""
        if not self.ann_file:
            if not os.path.isdir(xml_folder):
                raise MissingFile(f'no folder {xml_folder}; check data_root, data_prefix and ann_subdir')
            lines = sorted(file for file in os.listdir(xml_folder) if file.endswith('.xml'))
        else:
            try:
                lines = fileio.get_text(self.ann_file, 'utf-8-sig', backend_args=self.backend_args).splitlines()
            except FileNotFoundError:
                raise MissingFile(f'no list of images {self.ann_file}; check data_root and ann_file') from None
            except UnicodeDecodeError:
                raise UserError(f'{self.ann_file} is not a list of images: a text in UTF-8, one name a line') from None
        names = list(dict.fromkeys(_without_ending(line.strip()) for line in lines if line.strip()))
        if not names:
            raise UserError(f'{self.ann_file or xml_folder} lists no image')
        return names

    def _check_objects(self, files: Sequence[VocFile], xml_folder: str) -> None:
        found = Counter(one.name for file in files for one in file.objects)
        have = f'the files in {xml_folder} have ' + (at_most(map(repr, sorted(found)), 25) if found else 'no object')
        classes = self._metainfo.get('classes')
        if not classes:
            raise UserError(f'{type(self).__name__} needs metainfo=dict(classes=(...)); {have}')
        without_box = sum(file.without_box for file in files)
        if without_box:
            say(f'{xml_folder}: {without_box} objects have no bndbox and are left out')
        if found and not found.keys() & set(classes):
            raise UserError(f'no object of the classes {at_most(map(repr, classes), 5)}: {have}; set '
                            'metainfo=dict(classes=(...)) of the data set')
        if not found:
            say(f'{xml_folder}: no image has an object')
        absent, others = [name for name in classes if name not in found], sorted(found.keys() - set(classes))
        if found and absent and others:
            say(f'{xml_folder}: the classes {at_most(map(repr, absent), 5)} have no object; left out are those called '
                f'{at_most(map(repr, others), 5)}')

    def _image(self, name: str, file: VocFile, label: dict[str, int]) -> dict:
        path = self._image_path(name, file)
        height, width = (file.height, file.width) if file.height and file.width else self._size(path)
        instances = []
        for one in file.objects:
            x1, y1, x2, y2 = (min(max(value, 0), side) for value, side in zip(one.bbox, (width, height) * 2))
            smallest = min(x2 - x1, y2 - y1)
            if one.name in label and smallest >= 1:
                small = not self.test_mode and smallest < (self.filter_cfg or {}).get('bbox_min_size', 0)
                instances.append(dict(bbox=[x1, y1, x2, y2], bbox_label=label[one.name],
                                      ignore_flag=int(one.difficult or small)))
        return dict(img_id=name, img_path=path, height=height, width=width, instances=instances)

    def _image_path(self, name: str, file: VocFile) -> str:
        own = os.path.splitext(file.file_name or '')[1]
        stem = fileio.join_path(self._folder, name)
        if self.backend_args or '://' in self._folder:  # a look at each would take a request
            return stem + (own if own.lower() in IMAGE_SUFFIXES else '.jpg')
        endings = [own] * (own.lower() in IMAGE_SUFFIXES) + ['.jpg', *sorted(IMAGE_SUFFIXES)]
        for ending in (*endings, *map(str.upper, endings)):
            if os.path.isfile(stem + ending):
                return stem + ending
        raise MissingFile(f'no image {stem}.jpg, nor with another ending; check data_root, data_prefix and img_subdir')

    def _size(self, path: str) -> tuple[int, int]:
        """(height, width) of an image as it is read, for an XML file that does not say."""
        try:
            with Image.open(io.BytesIO(fileio.get(path, backend_args=self.backend_args))) as image:
                turned = image.getexif().get(_ORIENTATION, 1) >= 5
                return image.size if turned else image.size[::-1]
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f'image {path}, whose XML file does not say its size, cannot be read: {error}') from None

    def filter_data(self) -> list[dict]:
        if self.test_mode:
            return self.data_list
        config = self.filter_cfg or {}
        small = [min(x['height'], x['width']) < config.get('min_size', 0) for x in self.data_list]
        empty = [all(one['ignore_flag'] for one in x['instances']) for x in self.data_list]
        drop_empty = config.get('filter_empty_gt', False)
        kept = [x for x, s, e in zip(self.data_list, small, empty) if not s and not (e and drop_empty)]
        if not kept:
            raise UserError(f'no image of {self.ann_file or self._folder} is left after filter_cfg={config}: of '
                            f'{len(self.data_list)}, {sum(empty)} have no object of the '
                            f'{len(self._metainfo["classes"])} classes, {sum(small)} have a side under '
                            f'min_size={config.get("min_size", 0)}')
        return kept

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the objects on image `idx` (mmengine's ClassBalancedDataset asks for them)."""
        return [x['bbox_label'] for x in self.get_data_info(idx)['instances']]


@DATASETS.register_module()
class VOCDataset(XMLDataset):
    """Pascal VOC 2007 and 2012, with the 20 classes of VOC by default. See `XMLDataset`."""

    METAINFO = dict(dataset_type='voc', classes=VOC_CLASSES)


def _without_ending(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in IMAGE_SUFFIXES | {'.xml'} else name
