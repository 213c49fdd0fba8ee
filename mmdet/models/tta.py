"""Test-time augmentation: one image in several views, what is found in each brought together.

V views of an image, B detections of all views together, D of them remain; boxes are xyxy in pixels of the original
image.
"""

from collections.abc import Sequence

import torch
from mmengine.model import BaseTTAModel
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.models.detections import keep_best
from mmdet.models.settings import check_keys
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, DetectedInstances, RLEMasks
from mmdet.structures.boxes import flip_boxes


@MODELS.register_module()
@refuse_overrides('compatibility.md', _merge_single_sample='merge_preds', merge_aug_bboxes='merge_preds')
class DetTTAModel(BaseTTAModel):
    """A detector that is given V views of each image (`TestTimeAug`), scaled or mirrored.

    Boxes of all views go through NMS in the original image. A mask is the one that was predicted for its box, in the
    view where that was found. A single view is left as it is.

    Args:
        module: the detector, or its config.
        tta_cfg: dict(nms, max_per_img); by default those of the detector's test_cfg. What `soft_nms` has rescored is
            not rescored again: the default is then plain NMS of the same threshold.

    Raises:
        UserError: keys of `tta_cfg` that nothing reads, or none for a detector without such settings.
    """

    def __init__(self, module: nn.Module | dict, tta_cfg: dict | None = None, **options):
        super().__init__(module, **options)
        check_keys('tta_model.tta_cfg', tta_cfg, ('nms', 'max_per_img'))
        self.tta_cfg = {**_own_settings(self.module), **(tta_cfg or {})}
        missing = [key for key in ('nms', 'max_per_img') if key not in self.tta_cfg]
        if missing:
            raise UserError(f'tta_model.tta_cfg has no {" and no ".join(missing)}, which {type(self.module).__name__} '
                            'does not say by its test_cfg')

    def merge_preds(self, data_samples_list: Sequence[Sequence[DetDataSample]]) -> list[DetDataSample]:
        """The V samples of each image, with `pred_instances` -> one sample of each."""
        return [self._merge(views) for views in data_samples_list]

    @torch.no_grad()
    def _merge(self, views: Sequence[DetDataSample]) -> DetDataSample:
        boxes = torch.cat([_upright_boxes(view) for view in views])
        scores, labels = (torch.cat([view.pred_instances[key] for view in views]) for key in ('scores', 'labels'))
        keep = torch.arange(len(boxes), device=boxes.device)
        if len(views) > 1:
            keep, scores = keep_best(boxes, scores, labels, self.tta_cfg)
        sample = next((view for view in views if not view.get('flip')), views[0])
        found = DetectedInstances(bboxes=boxes[keep], scores=scores, labels=labels[keep])
        if all('masks' in view.pred_instances for view in views):
            found.masks = _upright_masks(views, keep)
        sample.pred_instances = found
        return sample


def _own_settings(module: nn.Module) -> dict:
    """NMS and number of detections of a detector, which may be wrapped for several processes."""
    cfg = getattr(getattr(module, 'module', module), 'final_test_cfg', None) or {}
    settings = {key: cfg[key] for key in ('nms', 'max_per_img') if key in cfg}
    if settings.get('nms', {}).get('type') == 'soft_nms':
        soft = settings['nms']
        shared = {key: soft[key] for key in ('offset', 'class_agnostic') if key in soft}
        threshold = soft.get('iou_threshold', soft.get('iou_thr', 0.3))  # the default of soft_nms
        settings['nms'] = dict(type='nms', iou_threshold=threshold, **shared)
    return settings


def _direction(view: DetDataSample) -> str | None:
    return view.flip_direction if view.get('flip') else None


def _upright_boxes(view: DetDataSample) -> Tensor:
    """The boxes of a view, on the image that is not mirrored."""
    boxes = view.pred_instances.bboxes
    return flip_boxes(boxes, view.ori_shape[:2], _direction(view)) if _direction(view) else boxes


def _upright_masks(views: Sequence[DetDataSample], keep: Tensor) -> RLEMasks:
    """The masks of those that remain, (D,) of B, on the image that is not mirrored."""
    rows = [(view, row) for view in views for row in range(len(view.pred_instances))]
    masks = []
    for view, row in (rows[index] for index in keep.tolist()):
        mask = view.pred_instances.masks[row : row + 1]
        masks += mask.flip(_direction(view)) if _direction(view) else mask
    return RLEMasks(masks, *views[0].ori_shape[:2])
