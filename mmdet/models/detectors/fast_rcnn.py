"""Fast R-CNN.

P proposals of an image.
"""

from torch import Tensor

from mmdet.config.errors import UserError
from mmdet.models.detectors.two_stage import TwoStageDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, Target


@MODELS.register_module()
class FastRCNN(TwoStageDetector):
    """The second stage alone (Girshick 2015), on the `proposals` that each data sample brings, in input pixels.

    Raises:
        UserError: a data sample without proposals.
    """

    def __init__(self, backbone: dict, roi_head: dict, **kwargs):
        super().__init__(backbone=backbone, rpn_head=None, roi_head=roi_head, **kwargs)

    def training_proposals(
        self, features: tuple[Tensor, ...], data_samples: list[DetDataSample], targets: list[Target]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        return self.proposals(features, data_samples), {}

    def find(self, inputs: Tensor, image_shape: tuple[int, int]) -> dict[str, Tensor]:
        raise UserError(
            'FastRCNN looks at proposals that come with each image; only a detector that makes its own can be exported'
        )

    def proposals(self, features: tuple[Tensor, ...], data_samples: list[DetDataSample]) -> list[Tensor]:
        for sample in data_samples:
            if 'proposals' not in sample:
                raise UserError(
                    f'FastRCNN: image {sample.get("img_id")} has no proposals; give the data set a proposal_file and '
                    'the pipeline LoadProposals'
                )
        return [sample.proposals.bboxes.to(features[0].device, non_blocking=True) for sample in data_samples]
