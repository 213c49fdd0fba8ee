"""What an image carries through the pipeline (`DetDataSample`) and into the model (`Target`).

G ground-truth boxes, I ignored ones, P proposals and D detections of an image; boxes are xyxy in pixels.
"""

from typing import NamedTuple

from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor


class DetDataSample(BaseDataElement):
    """One image's annotations and predictions, at the edges of the model.

    Fields, each an `InstanceData`:

    - ``gt_instances``: bboxes (G, 4) float xyxy pixels, labels (G,) int64, masks (`BitmapMasks` or
      `PolygonMasks`, only when loaded);
    - ``ignored_instances``: bboxes (I, 4) of crowds and ignored objects, labels, masks;
    - ``proposals``: bboxes (P, 4) in input pixels, for models without an RPN;
    - ``pred_instances``: bboxes (D, 4) in pixels of the original image, scores (D,), labels (D,),
      masks (`RLEMasks` of the original size, only for models with a mask head).

    Metainfo: img_id, img_path, ori_shape (h, w), img_shape (h, w) after the transforms and before
    padding to a batch, scale_factor (w, h), flip, flip_direction; the preprocessor adds
    batch_input_shape (h, w) and pad_shape (h, w), the image's own padded size.
    """

    gt_instances: InstanceData
    ignored_instances: InstanceData
    proposals: InstanceData
    pred_instances: InstanceData


SampleList = list[DetDataSample]
OptSampleList = SampleList | None


class Target(NamedTuple):
    """The plain ground truth of one image inside the model; boxes are xyxy in input pixels.

    boxes (G, 4) float; labels (G,) int64 in [0, num_classes); masks of length G or None;
    ignored_boxes (I, 4) float: neither object nor background; image_shape (h, w) without
    padding; pad_shape (h, w) with the padding of this image alone, None where it does not matter.
    """

    boxes: Tensor
    labels: Tensor
    masks: object | None
    ignored_boxes: Tensor
    image_shape: tuple[int, int]
    pad_shape: tuple[int, int] | None = None
