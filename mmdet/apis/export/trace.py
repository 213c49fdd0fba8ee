"""One graph of a detector.

C, h, w    channels, height and width of an image as the test pipeline gives it, not normalised and not padded
D          detections, as many as there are: no padding
"""

import copy
import inspect
import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mmdet.apis.export.fold import fold_norms
from mmdet.config.contracts import call_unchecked, must_have
from mmdet.config.errors import UserError


class DetectorGraph(nn.Module):
    """A detector as a function of an image (C, h, w): what its `find` gives, in pixels of that image.

    Normalisation and padding are inside; resizing, and what follows from the image's own size, is outside.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        must_have(detector, 'find', like='SingleStageDetector')
        must_have(detector.data_preprocessor, 'prepared', like='DetDataPreprocessor')
        self.detector = detector

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.detector.find(self.detector.data_preprocessor.prepared(image), tuple(image.shape[-2:]))


def trace(detector: nn.Module, image: Tensor, dynamic: bool) -> ExportedProgram:
    """torch.export's graph of a detector in evaluation mode, its norms folded into the convolutions before them.

    Args:
        image: (C, h, w), an example; the graph takes images of its type, and of its size unless `dynamic`.
        dynamic: height and width are symbols, from the first size on that gives the coarsest map two positions.

    Raises:
        UserError: the detector, or an option of its test_cfg, has no counterpart in other runtimes.
    """
    overrides = 'allow_override' in inspect.signature(torch.library.register_fake).parameters
    if not (overrides and hasattr(torch.compiler, 'is_exporting')):
        raise UserError(f'torch {torch.__version__} is too old to export a detector; update it')
    settings = detector.final_test_cfg or {}
    if settings.get('min_bbox_size', 0) > 0:
        raise UserError(
            f'test_cfg: min_bbox_size={settings["min_bbox_size"]} is in pixels of the original image, which the graph '
            'does not see; set it to 0'
        )
    graph = copy.deepcopy(DetectorGraph(detector)).eval().to('cpu', memory_format=torch.contiguous_format)
    for module in graph.modules():
        call_unchecked(module)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # torchvision's operators, of torch's names
        # the call also fills what the parts keep between calls, where nothing of the trace may stay
        fold_norms(graph, lambda: graph(image))
        shapes = dict(image={1: _side('height', detector), 2: _side('width', detector)}) if dynamic else None
        return torch.export.export(graph, (image,), dynamic_shapes=shapes, strict=False)


def smallest_side(detector: nn.Module) -> int:
    """Pixels; a map of one position along a side would be another case."""
    head = getattr(detector, 'rpn_head', None) or detector.head
    return int(max(head.anchor_generator.strides)) + 1


def _side(name: str, detector: nn.Module) -> Dim:
    return Dim(name, min=smallest_side(detector))
