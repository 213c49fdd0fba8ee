"""Several views of one image."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product

from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose

from mmdet.config.errors import UserError
from mmdet.datasets.pipeline import build_steps
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
class TestTimeAug(BaseTransform):
    """Every combination of one step of each list, for `DetTTAModel`: the last step of a test pipeline.

    Args:
        transforms: lists of alternatives, ``[[Resize, Resize], [RandomFlip(prob=0), RandomFlip(prob=1)],
            [PackDetInputs]]`` for four views.

    Returns what a pipeline returns, with a list of V values in the place of each: dict(inputs=[(3, h, w)] of V,
    data_samples=[...] of V).

    Raises:
        UserError: `transforms` are not lists, or a step rejects the image.
    """

    __test__ = False  # pytest takes it for a test

    def __init__(self, transforms: Sequence[Sequence[dict]]) -> None:
        if not transforms or not all(isinstance(steps, (list, tuple)) and steps for steps in transforms):
            raise UserError('TestTimeAug: transforms must be lists of steps, one step of each list makes a view')
        self.transforms = [Compose(build_steps(steps)) for steps in product(*transforms)]

    def transform(self, results: dict) -> dict:
        views = [view(copy.deepcopy(results)) for view in self.transforms]
        if any(view is None for view in views):
            raise UserError(f'TestTimeAug: a step rejects {results.get("img_path") or "an image"}')
        return {key: [view[key] for view in views] for key in views[0]}
