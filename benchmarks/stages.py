"""Time by stage of a detector's step: a stopwatch around methods of this project, torchvision and mmdetection."""

import contextlib
import importlib
from collections import defaultdict

from common import Clock
from torch import nn

# A line: stage, then methods (of the model) and functions (module:name).
STAGES = {
    'ours': """
        preprocessing: data_preprocessor.forward
        anchors: rpn_head.anchor_generator.grid_priors bbox_head.anchor_generator.grid_priors
        assign, sample: rpn_head.sample bbox_head.sample roi_head.sample
        losses: rpn_head.loss bbox_head.loss roi_head.bbox_head.loss roi_head.mask_head.loss
        mask targets: mmdet.models.roi_heads.common:mask_targets_of
        proposals: rpn_head.predict
        RoIAlign: roi_head.bbox_roi_extractor.forward roi_head.mask_roi_extractor.forward
        heads: rpn_head.forward bbox_head.forward roi_head.bbox_head.forward roi_head.mask_head.forward
        post-processing: roi_head.predict bbox_head.predict
        masks out: mmdet.models.roi_heads.standard_roi_head:masks_of""",
    'torchvision': """
        preprocessing: transform.forward
        anchors: rpn.anchor_generator.forward anchor_generator.forward
        assign, sample: rpn.assign_targets_to_anchors rpn.fg_bg_sampler proposal_matcher
            roi_heads.select_training_samples
        losses: rpn.compute_loss compute_loss torchvision.models.detection.roi_heads:fastrcnn_loss
            torchvision.models.detection.roi_heads:maskrcnn_loss
        mask targets: torchvision.models.detection.roi_heads:project_masks_on_boxes
        proposals: rpn.filter_proposals rpn.box_coder.decode
        RoIAlign: roi_heads.box_roi_pool.forward roi_heads.mask_roi_pool.forward
        heads: rpn.head.forward head.forward roi_heads.box_head.forward roi_heads.box_predictor.forward
            roi_heads.mask_head.forward roi_heads.mask_predictor.forward
        post-processing: roi_heads.postprocess_detections postprocess_detections
        masks out: transform.postprocess""",
    'mmdetection': """
        preprocessing: data_preprocessor.forward
        anchors: rpn_head.get_anchors rpn_head.prior_generator.grid_priors bbox_head.get_anchors
            bbox_head.prior_generator.grid_priors
        assign, sample: rpn_head.get_targets bbox_head.get_targets roi_head.bbox_assigner.assign
            roi_head.bbox_sampler.sample
        losses: rpn_head.loss_by_feat bbox_head.loss_by_feat roi_head.bbox_head.loss_and_target
            roi_head.mask_head.loss_and_target
        mask targets: roi_head.mask_head.get_targets
        proposals: rpn_head.predict_by_feat
        RoIAlign: roi_head.bbox_roi_extractor.forward roi_head.mask_roi_extractor.forward
        heads: rpn_head.forward bbox_head.forward roi_head.bbox_head.forward roi_head.mask_head.forward
        post-processing: roi_head.bbox_head.predict_by_feat bbox_head.predict_by_feat
        masks out: roi_head.mask_head.predict_by_feat""",
}


def stages_of(name: str) -> dict[str, list[str]]:
    """{stage: paths} of a library."""
    lines = STAGES[name].replace('\n            ', ' ').strip().splitlines()
    return {stage.strip(): paths.split() for stage, _, paths in (line.partition(': ') for line in lines)}


class Stopwatch(contextlib.ExitStack):
    """Within `with`: milliseconds `spent` in each stage of a library's model, without the stages inside it."""

    def __init__(self, clock: Clock, model: nn.Module, library: str):
        super().__init__()
        self.clock, self.model, self.library = clock, model, library
        self.open: list[str] = ['the rest']
        self.spent: dict[str, float] = defaultdict(float)

    def __enter__(self) -> 'Stopwatch':
        for stage, paths in stages_of(self.library).items():
            for path in paths:
                owner, attribute = self._place(path)
                if owner is not None:
                    self.wrap(owner, attribute, stage)
        self.clock.wait()
        self.last = self.clock.now()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        self._turn()
        super().__exit__(*error)

    def _place(self, path: str):
        """The object that holds the method or function of a path; None where the model lacks the part."""
        if ':' in path:
            module, _, attribute = path.partition(':')
            return importlib.import_module(module), attribute
        *parents, attribute = path.split('.')
        owner = self.model
        for parent in parents:
            owner = getattr(owner, parent, None)
        return (owner if parents or hasattr(self.model, attribute) else None), attribute

    def wrap(self, owner, attribute: str, stage: str) -> None:
        """Time `owner.attribute` as `stage`."""
        function = getattr(owner, attribute)
        if isinstance(function, nn.Module):  # a child must stay a module
            owner, attribute, function = function, 'forward', function.forward

        def timed(*args, **kwargs):
            self._turn()
            self.open.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self.open.pop()

        if attribute in vars(owner):
            self.callback(object.__setattr__, owner, attribute, function)
        else:  # of the class
            self.callback(object.__delattr__, owner, attribute)
        object.__setattr__(owner, attribute, timed)

    def _turn(self) -> None:
        self.clock.wait()
        now = self.clock.now()
        self.spent[self.open[-1]] += (now - self.last) * 1e3
        self.last = now
