"""mmdetection 3's data sets and transforms, for subclasses that were written for them; nothing else needs this."""

from collections.abc import Callable
from typing import Any

from mmdet.config.errors import UserError
from mmdet.config.mmdet3 import OPTIONS, adopt_when_built
from mmdet.config.overrides import refuse_overrides
from mmdet.datasets import transforms
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.base import BaseDetDataset
from mmdet.datasets.coco import CocoDataset
from mmdet.datasets.voc import XMLDataset
from mmdet.datasets.wrappers import MultiImageMixDataset


class _NoAttribute(UserError, AttributeError):
    """An attribute of mmdetection's class that ours lacks."""


class _Found:
    """Made when it is asked for; a subclass may set the attribute."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def __get__(self, dataset: Any, owner: type) -> Any:
        return self.read(dataset)


def _no_index(dataset: Any) -> None:
    raise _NoAttribute('CocoDataset keeps no coco: mmdet.datasets.api_wrappers.COCO(dataset.ann_file) is the index of '
                       'its file (docs/compatibility.md)')


CocoDataset.COCOAPI = COCO
CocoDataset.ANN_ID_UNIQUE = True
CocoDataset.coco = _Found(_no_index)
CocoDataset.cat_img_map = _Found(lambda dataset: COCO(dataset.ann_file).cat_img_map)

# Methods of mmdetection's class that nothing here calls, by the one that takes their place.
_INSTEAD: dict[str, dict[type, dict[str, str]]] = {
    'extend/dataset.md': {
        XMLDataset: dict(load_data_list='parse_data_info _parse_instance_info',
                         __init__='sub_data_root bbox_min_size'),
        BaseDetDataset: dict(load_data_list='load_proposals'),
        MultiImageMixDataset: dict(__init__='update_skip_type_keys'),
    },
    'extend/transform.md': {
        transforms.Albu: dict(transform='albu_builder mapper _preprocess_results _postprocess_results'),
        transforms.CopyPaste: dict(transform='gen_masks_from_bboxes _get_selected_inds get_gt_masks _select_object '
                                             '_copy_paste get_updated_masks'),
        transforms.Expand: dict(transform='_random_prob _random_ratio _random_left_top'),
        transforms.FixShapeResize: dict(transform='_resize_img _resize_bboxes _resize_masks _resize_seg'),
        transforms.MinIoURandomCrop: dict(transform='_random_mode'),
        transforms.Mosaic: dict(transform='_mosaic_combine'),
        transforms.PhotoMetricDistortion: dict(transform='_random_flags'),
        transforms.RandomAffine: dict(transform='_get_random_homography_matrix _get_rotation_matrix '
                                                '_get_scaling_matrix _get_shear_matrix _get_translation_matrix'),
    },
}  # fmt: skip
for _guide, _classes in _INSTEAD.items():
    for _cls, _others in _classes.items():
        refuse_overrides(_guide, **{name: other for other, names in _others.items() for name in names.split()})(_cls)
for _name in OPTIONS:
    if hasattr(transforms, _name):
        adopt_when_built(getattr(transforms, _name))
