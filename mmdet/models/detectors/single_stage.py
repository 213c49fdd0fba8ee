"""Detectors of one head that looks at every position.

N images, C channels, H and W of the padded batch.
"""

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmdet.config.contracts import on_first_call, takes_ours
from mmdet.config.overrides import refuse_overrides
from mmdet.models import contracts
from mmdet.models.data_preprocessor import to_target
from mmdet.models.detections import Detections
from mmdet.models.detectors.parts import (
    build_backbone,
    build_neck,
    build_preprocessor,
    frame_of_input,
    look_at_maps,
    look_at_training,
    metas_of,
)
from mmdet.models.initialize import init_weights
from mmdet.models.settings import check_heads
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample


@MODELS.register_module()
@refuse_overrides(
    'extend/head.md', foreign=(),
    _forward='forward', add_pred_to_datasample='predict',
    forward_train='loss', simple_test='predict', aug_test='predict',
)  # fmt: skip
class SingleStageDetector(BaseModel):
    """Backbone, neck and one dense head, such as `RetinaHead` or `SSDHead`.

    Args:
        train_cfg, test_cfg: those of the head.
        init_cfg: see `mmdet.models.initialize`.
    """

    head_name = 'bbox_head'
    settings_key = ''  # of train_cfg and test_cfg: the part that is the head's, '' for the whole
    head_predicts = staticmethod(contracts.detections)
    compiles = dict(extract_feat='images')

    @classmethod
    def check_config(cls, cfg: dict, path: str, whole: dict, training: bool) -> None:
        check_heads(cfg, path, training, {cls.head_name: cls.settings_key})

    @classmethod
    def predicts(cls, cfg: dict) -> set[str]:
        """The fields of `pred_instances`, by the detector's config."""
        return {'bboxes', 'scores', 'labels'}

    def __init__(
        self,
        backbone: dict,
        neck: dict | list[dict] | None,
        bbox_head: dict,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(build_preprocessor(data_preprocessor), init_cfg)
        self.backbone = build_backbone(backbone)
        self.neck = build_neck(neck, self.backbone)
        # the head holds these too, so that model.test_cfg.score_thr can still be changed
        self.train_cfg, self.test_cfg = (None if cfg is None else ConfigDict(cfg) for cfg in (train_cfg, test_cfg))
        head = dict(bbox_head, train_cfg=self.train_cfg, test_cfg=self.test_cfg)
        self.add_module(self.head_name, MODELS.build(head))
        self.with_neck, self.with_bbox, self.with_mask = self.neck is not None, True, False
        look_at_maps(self.backbone, self.neck, self.head)
        look_at_training(self, SingleStageDetector)
        takes_ours(self.head, loss='loss(*head(features), targets)', predict='predict(*head(features), metas)')
        on_first_call(self.head, 'loss', contracts.losses)
        on_first_call(self.head, 'predict', self.head_predicts)

    @property
    def head(self) -> nn.Module:
        return getattr(self, self.head_name)

    @property
    def final_test_cfg(self) -> dict | None:
        """The part of test_cfg that the detections obey."""
        return self.head.test_cfg

    def init_weights(self) -> None:
        """Called by the Runner once, before training."""
        init_weights(self)

    def forward(self, inputs: Tensor, data_samples: list[DetDataSample] | None = None, mode: str = 'tensor'):
        """Batch (N, C, H, W) -> losses ('loss'), the samples with `pred_instances` ('predict'), maps ('tensor')."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        return self.extract_feat(inputs)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The maps of all levels, fine to coarse."""
        features = self.backbone(inputs)
        return features if self.neck is None else self.neck(features)

    def loss(self, inputs: Tensor, data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        """Losses of the head by their names."""
        outputs = self.head(self.extract_feat(inputs))
        classes = getattr(self.head, 'num_classes', None)  # an RPN has none
        return self.head.loss(*outputs, [to_target(sample, inputs.device, classes) for sample in data_samples])

    @torch.no_grad()
    def predict(
        self, inputs: Tensor, data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """The samples with `pred_instances`, in pixels of the original images; ``rescale=False``: of the input."""
        outputs = self.head(self.extract_feat(inputs))
        for sample, found in zip(data_samples, self.detections(outputs, metas_of(data_samples, rescale))):
            sample.pred_instances = found.to_instances()
        return data_samples

    def find(self, inputs: Tensor, image_shape: tuple[int, int]) -> dict[str, Tensor]:
        """The detections of one image, for torch.export.

        Args:
            inputs: (1, C, H, W).
            image_shape: (h, w) of the image without padding.

        Returns:
            boxes (D, 4) in pixels of the input, scores (D,) and labels (D,).
        """
        (found,) = self.detections(self.head(self.extract_feat(inputs)), [frame_of_input(image_shape)])
        return found._asdict()

    def detections(self, outputs: tuple, metas: list[dict]) -> list[Detections]:
        """Detections of each image, from what the head's `forward` gives."""
        return self.head.predict(*outputs, metas)
