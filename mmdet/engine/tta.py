"""Test-time augmentation as a config asks for it: `tta_model` and `tta_pipeline`, or a mirrored view beside the plain
one where it names none."""

from collections.abc import Iterator, Sequence

from mmengine.config import Config

from mmdet.config.errors import UserError
from mmdet.config.values import class_of, names_a
from mmdet.datasets.transforms import TestTimeAug


def use_tta(cfg: Config) -> None:
    """Test with augmentation: the data sets' pipelines and the loop of a config, in place.

    Raises:
        UserError: `tta_pipeline` has no TestTimeAug.
    """
    use_tta_pipeline(cfg)
    cfg.test_cfg = {**(cfg.get('test_cfg') or {}), 'type': 'TTALoop', 'tta_model': tta_model_of(cfg)}


def tta_model_of(cfg: Config) -> dict:
    """Config of what merges the views."""
    return dict(cfg.get('tta_model') or dict(type='DetTTAModel'))


def use_tta_pipeline(cfg: Config) -> None:
    """Let `test_dataloader` give several views of each image, in place; raises UserError as `use_tta` does."""
    for dataset in _with_pipeline((cfg.get('test_dataloader') or {}).get('dataset') or {}):
        steps = cfg.get('tta_pipeline') or dataset['pipeline']
        if not any(names_a(step, TestTimeAug) for step in steps):
            if cfg.get('tta_pipeline'):
                raise UserError("tta_pipeline has no TestTimeAug, [dict(type='LoadImageFromFile'), "
                                "dict(type='TestTimeAug', transforms=[[...], ...])]")
            steps = with_flip(steps)
        dataset['pipeline'] = steps


def with_flip(steps: Sequence[dict]) -> list[dict]:
    """A test pipeline with a second view, mirrored behind the first step that moves pixels (Resize), before Pad and
    before annotations that are loaded for the original image."""
    moving = [i for i, step in enumerate(steps) if getattr(class_of(step), 'changes_geometry', False)]
    place = moving[0] + 1 if moving else len(steps) - 1
    flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
    return [*steps[:place], dict(type='TestTimeAug', transforms=[flips, *([step] for step in steps[place:])])]


def _with_pipeline(dataset: dict) -> Iterator[dict]:
    """The data sets inside ConcatDataset and the like."""
    if 'pipeline' in dataset:
        yield dataset
    for inner in [dataset.get('dataset'), *(dataset.get('datasets') or ())]:
        if inner:
            yield from _with_pipeline(inner)
