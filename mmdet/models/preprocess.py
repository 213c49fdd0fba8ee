"""From a list of pictures to one normalised, padded batch.

N images, H and W of the padded batch.
"""

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, Target


@MODELS.register_module()
class DetDataPreprocessor(BaseDataPreprocessor):
    """Normalise uint8 pictures and pad them right and bottom with zeros to one batch (N, 3, H, W).

    Args:
        mean, std: per channel, in the channel order after `bgr_to_rgb`, pixel values 0..255.
        bgr_to_rgb: reverse the channel order of the pictures as read.
        pad_size_divisor: H and W are the smallest multiples that hold every picture.
        pad_value: value of the padding, after normalisation.
        pad_mask: accepted for configs written for mmdet 3; masks carry their own size here.
    """

    def __init__(
        self,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        bgr_to_rgb: bool = False,
        pad_size_divisor: int = 1,
        pad_value: float = 0.0,
        pad_mask: bool = False,
        non_blocking: bool = True,
    ):
        super().__init__(non_blocking)
        self.register_buffer('mean', torch.tensor(mean or [0.0, 0.0, 0.0]).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std or [1.0, 1.0, 1.0]).view(-1, 1, 1), persistent=False)
        self.bgr_to_rgb = bgr_to_rgb
        self.pad_size_divisor = pad_size_divisor
        self.pad_value = pad_value

    def forward(self, data: dict, training: bool = False) -> dict:
        images = [image.to(self.device, non_blocking=self._non_blocking) for image in data['inputs']]
        divisor = self.pad_size_divisor
        height = -(-max(image.shape[-2] for image in images) // divisor) * divisor
        width = -(-max(image.shape[-1] for image in images) // divisor) * divisor
        # one batch, written in place: padding and stacking each picture would copy it twice more
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        shape = (len(images), images[0].shape[0], height, width)
        batch = torch.full(shape, self.pad_value, dtype=dtype, device=self.device)
        for image, padded in zip(images, batch):
            self._normalise(image, out=padded[:, : image.shape[-2], : image.shape[-1]])
        samples = data.get('data_samples')
        for sample in samples or []:
            sample.set_metainfo(dict(batch_input_shape=(height, width)))
        return dict(inputs=batch, data_samples=samples)

    def _normalise(self, image: Tensor, out: Tensor) -> None:
        if self.bgr_to_rgb:
            image = image.flip(0)
        torch.sub(image.float(), self.mean, out=out).div_(self.std)


def to_target(sample: DetDataSample, device: torch.device) -> Target:
    """The plain tensors of one data sample, on `device`; masks stay on the host."""
    gt = sample.gt_instances
    ignored = sample.get('ignored_instances')
    return Target(
        boxes=gt.bboxes.to(device),
        labels=gt.labels.to(device),
        masks=gt.get('masks'),
        ignored_boxes=gt.bboxes.new_zeros((0, 4), device=device) if ignored is None else ignored.bboxes.to(device),
        image_shape=sample.img_shape[:2],
    )
