"""From a list of images to one normalised, padded batch.

N images, C channels, h and w of an image, H and W of the padded batch, G ground-truth boxes of an image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn

from mmdet.config.contracts import described, on_first_call
from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, Target

_NEEDED = ('img_shape', 'ori_shape', 'scale_factor')  # to give detections in pixels of the original image


@MODELS.register_module()
@refuse_overrides('compatibility.md', _get_pad_shape='forward', pad_gt_masks='forward', pad_gt_sem_seg='forward')
class DetDataPreprocessor(BaseDataPreprocessor):
    """Normalise uint8 images and pad them right and bottom to one batch (N, C, H, W).

    Args:
        mean, std: per channel, in the channel order after `bgr_to_rgb`, pixel values 0..255.
        bgr_to_rgb, rgb_to_bgr: either reverses the order of the first three channels of the images as read.
        pad_size_divisor: H and W are the smallest multiples that hold every image.
        pad_value: value of the padding, after normalisation.
        non_blocking: copy images to the GPU without waiting, which takes effect where they are in pinned memory.
        batch_augments: what to do with training batches, ``dict(type='BatchFixedSizePad', size=(h, w))``.

    Raises:
        UserError: options that do not go together.
    """

    def __init__(
        self,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        bgr_to_rgb: bool = False,
        pad_size_divisor: int = 1,
        pad_value: float = 0.0,
        non_blocking: bool = True,
        batch_augments: list[dict] | None = None,
        rgb_to_bgr: bool = False,
    ):
        super().__init__(non_blocking)
        if rgb_to_bgr and bgr_to_rgb:
            raise UserError('DetDataPreprocessor: bgr_to_rgb and rgb_to_bgr exclude each other; set one of them')
        if mean and std and len(mean) != len(std):
            raise UserError(f'DetDataPreprocessor: {len(mean)} values of mean, {len(std)} of std; give as many')
        self.register_buffer('mean', torch.tensor(mean or [0.0]).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std or [1.0]).view(-1, 1, 1), persistent=False)
        self.normalises = any(mean or ()) or any(value != 1 for value in std or ())
        self.flip_channels = bgr_to_rgb or rgb_to_bgr
        self.pad_size_divisor = pad_size_divisor
        self.pad_value = pad_value
        self.batch_augments = nn.ModuleList(MODELS.build(cfg) for cfg in batch_augments or ())
        on_first_call(self, 'forward', takes=_a_batch)

    def forward(self, data: dict, training: bool = False) -> dict:
        """dict(inputs=[(C, h, w)], data_samples=[...]) -> the same with inputs (N, C, H, W) on the model's device.

        Raises:
            UserError: an image of other channels than `mean` has, or a data sample without its sizes.
        """
        images = [image.to(self.device, non_blocking=self._non_blocking) for image in data['inputs']]
        divisor = self.pad_size_divisor
        shapes = [tuple(-(-side // divisor) * divisor for side in image.shape[-2:]) for image in images]
        height, width = (max(sides) for sides in zip(*shapes))
        # one batch, written in place: padding and stacking each image would copy it twice more
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        size = (len(images), images[0].shape[0], height, width)
        batch = torch.full(size, self.pad_value, dtype=dtype, device=self.device)
        for image, padded in zip(images, batch):
            self._normalise(image, out=padded[:, : image.shape[-2], : image.shape[-1]])
        samples = data.get('data_samples')
        for sample, shape in zip(samples or [], shapes):
            missing = [key for key in (('img_shape',) if training else _NEEDED) if key not in sample]
            if missing:
                raise UserError(f'a data sample lacks {", ".join(missing)}; name it in meta_keys of PackDetInputs')
            if 'img_norm_cfg' in sample and self.normalises:
                raise UserError('Normalize in the pipeline, and mean and std in model.data_preprocessor: images would '
                                'be normalised twice; drop Normalize from the pipeline')
            sample.set_metainfo(dict(batch_input_shape=(height, width), pad_shape=shape))
        for augment in self.batch_augments if training else ():
            batch, samples = augment(batch, samples)
        return dict(inputs=batch, data_samples=samples)

    def prepared(self, image: Tensor) -> Tensor:
        """One image (C, h, w) -> (1, C, H, W) as `forward` makes it, writing nothing in place: for torch.export."""
        if self.flip_channels and len(image) >= 3:
            image = torch.cat([image[:3].flip(0), image[3:]])
        bottom, right = (-side % self.pad_size_divisor for side in image.shape[-2:])
        return F.pad((image.float() - self.mean) / self.std, (0, right, 0, bottom), value=self.pad_value)[None]

    def _normalise(self, image: Tensor, out: Tensor) -> None:
        if len(image) != len(out):
            raise UserError(f'a batch has images of {len(out)} and of {len(image)} channels; leave LoadImageFromFile '
                            "its color_type='color', which makes them three")
        if len(self.mean) not in (1, len(image)):  # of a grey image the first would be taken for all
            raise UserError(
                f'DetDataPreprocessor: {len(self.mean)} values of mean, an image has {len(image)} channels; set as '
                "many, or leave LoadImageFromFile its color_type='color'"
            )
        if self.flip_channels and len(image) >= 3:  # alpha, depth and whatever else follows keep their place
            image = image.flip(0) if len(image) == 3 else torch.cat([image[:3].flip(0), image[3:]])
        torch.sub(image.float(), self.mean, out=out).div_(self.std)


def _a_batch(data: Any, training: bool = False) -> str | None:
    images = data.get('inputs') if isinstance(data, dict) else None
    if images is not None and all(isinstance(image, Tensor) and image.dim() == 3 for image in images):
        return None
    return ('a batch dict(inputs=[images (C, h, w)], data_samples=[DetDataSample]), of items as PackDetInputs makes '
            f'them; the data loader gives {described(data)}' + (f' with inputs {described(images)}' if images else ''))


@MODELS.register_module()
class BatchFixedSizePad(nn.Module):
    """Pad every training batch right and bottom to `size` (h, w), so that all steps have one shape.

    Args:
        img_pad_value: value of the padding, after normalisation.

    Raises:
        UserError: a batch larger than `size`.
    """

    def __init__(self, size: tuple[int, int], img_pad_value: float = 0):
        super().__init__()
        self.size = tuple(size)
        self.value = img_pad_value

    def forward(self, batch: Tensor, samples: list[DetDataSample]) -> tuple[Tensor, list[DetDataSample]]:
        """(N, C, H, W) -> (N, C, h, w) of `size`, and the samples with their new padded sizes."""
        extra = [wanted - given for wanted, given in zip(self.size, batch.shape[-2:])]
        if min(extra) < 0:
            raise UserError(
                f'BatchFixedSizePad: a batch of {tuple(batch.shape[-2:])} is larger than size={self.size}; crop the '
                'images, or use a larger size'
            )
        for sample in samples:
            sample.set_metainfo(dict(batch_input_shape=self.size, pad_shape=self.size))
        return F.pad(batch, (0, extra[1], 0, extra[0]), value=self.value), samples


def to_target(sample: DetDataSample, device: torch.device, num_classes: int | None = None) -> Target:
    """The plain tensors of one data sample, sent to `device` without a wait; masks stay on the host.

    Raises:
        UserError: no boxes, or labels outside of 0, ..., `num_classes` - 1.
    """
    gt = sample.gt_instances
    if not isinstance(gt.bboxes, Tensor):
        raise UserError(f'gt_instances.bboxes is {described(gt.bboxes)}; a tensor (G, 4) is needed')
    if num_classes is not None and gt.labels.device.type == 'cpu':
        strange = gt.labels[(gt.labels < 0) | (gt.labels >= num_classes)]
        if len(strange):
            image = sample.get('img_path') or sample.get('img_id', '?')
            raise UserError(f'image {image} has an object of label {strange[0]}, and the model num_classes='
                            f'{num_classes}: its labels are 0 to {num_classes - 1}')
    ignored = sample.get('ignored_instances')
    nothing = ignored is None or 'bboxes' not in ignored
    ignored_boxes = gt.bboxes.new_zeros((0, 4)) if nothing else ignored.bboxes
    pad_shape = sample.get('pad_shape')
    return Target(
        boxes=gt.bboxes.to(device, non_blocking=True),
        labels=gt.labels.to(device, non_blocking=True),
        masks=gt.get('masks'),
        ignored_boxes=ignored_boxes.to(device, non_blocking=True),
        image_shape=sample.img_shape[:2],
        pad_shape=None if pad_shape == sample.get('batch_input_shape') else pad_shape,  # nothing lies beyond it
    )
