"""Detect from Python: ``init_detector`` once, ``inference_detector`` for each image."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from torch import nn

from mmdet.apis.export import ExportedDetector, is_exported
from mmdet.apis.images import expand, to_input
from mmdet.apis.results import DetResult
from mmdet.checkpoints import adapt_config, config_of, is_checkpoint, load_checkpoint, load_pretrained
from mmdet.config.errors import UserError
from mmdet.config.load import adopt_vocabulary, load_config
from mmdet.config.values import class_of, names_a
from mmdet.datasets.pipeline import build_steps
from mmdet.datasets.transforms import LoadAnnotations, LoadImageFromFile, LoadImageFromNDArray, TestTimeAug
from mmdet.engine.amp import half_precision
from mmdet.engine.compiled import compile_for_inference
from mmdet.engine.runner import drop_pretrained, fast_layout
from mmdet.engine.tta import tta_model_of, use_tta_pipeline
from mmdet.layers import pack
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.visualization.visualizer import palette_colour


def init_detector(
    config: str | Path | Config,
    checkpoint: str | None = None,
    palette: str | Sequence = 'none',
    device: str | None = None,
    cfg_options: dict | None = None,
    amp: bool = False,
    tta: bool = False,
    compile: bool = False,
) -> nn.Module:
    """Build a detector in evaluation mode.

    Args:
        config: a config file or a loaded config; or a checkpoint that holds its config, and no `checkpoint`; or a file
            of ``mmdet export``, and nothing else but a device and a palette.
        checkpoint: path or address of weights; every one must have its place in the model. None keeps random weights.
        palette: colours of the classes in drawings, see `mmdet.visualization.visualizer.palette_colour`; 'none' takes
            those of the checkpoint or the data set, if it names any.
        device: 'cpu' or 'cuda:0'; by default the first GPU where there is one.
        cfg_options: dotted keys of the config and their new values.
        amp: `inference_detector` computes in float16 on a GPU, in bfloat16 on a CPU that has instructions for it.
        tta: test-time augmentation by the config's `tta_model` and `tta_pipeline`, by default each image also mirrored.
        compile: the first image takes half a minute, see `mmdet.engine.compiled`; all others are faster.

    Returns:
        the model, with `cfg` and `dataset_meta` (classes) as attributes.

    Raises:
        UserError, FileNotFoundError: config or checkpoint missing, damaged or not fitting, or no such device.
    """
    if isinstance(palette, str) and palette.split(':')[0] in ('cpu', 'cuda'):
        raise UserError(f'palette={palette!r} is a device: write init_detector(config, checkpoint, device={palette!r})')
    palette_colour(palette, 0)
    if is_exported(config):
        given = dict(checkpoint=checkpoint, cfg_options=cfg_options, amp=amp, tta=tta, compile=compile)
        if any(given.values()):
            wrong = ', '.join(name for name, value in given.items() if value)
            raise UserError(f'{config} is exported, and runs as it is: leave {wrong} out')
        model = ExportedDetector(config, device)
        return _with_palette(model, palette)
    device = _checked_device(device)
    if checkpoint is None and is_checkpoint(config):
        checkpoint = load_pretrained(str(config))
        config = config_of(checkpoint, cfg_options)
    elif not isinstance(config, Config):
        config = load_config(config, cfg_options)
    else:
        if cfg_options:
            config = copy.deepcopy(config)
            config.merge_from_dict(cfg_options)
        adopt_vocabulary(config)
    init_default_scope('mmdet')
    opened = load_pretrained(checkpoint) if isinstance(checkpoint, str) else checkpoint
    if opened is not None:
        adapt_config(config, opened)
    model_cfg = config.model.to_dict()
    drop_pretrained(model_cfg)
    model = MODELS.build(model_cfg)
    meta = None if opened is None else load_checkpoint(model, opened).meta.get('dataset_meta')
    if tta:
        config = copy.deepcopy(config)
        use_tta_pipeline(config)
        model = MODELS.build(dict(tta_model_of(config), module=model))
    model.cfg = config
    model.dataset_meta = dict(meta or _classes_of(config))
    _with_palette(model, palette)
    model.half_precision = half_precision(device) if amp else None
    model = pack(fast_layout(model.to(device))).eval()
    return compile_for_inference(model) if compile else model


def _with_palette(model: nn.Module, palette: str | Sequence) -> nn.Module:
    if palette != 'none':
        model.dataset_meta['palette'] = palette
    return model


def _checked_device(device: str | None) -> str:
    if device is None:
        return 'cuda:0' if torch.cuda.is_available() else 'cpu'
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UserError(f"no device is called {device!r}; use 'cpu', or 'cuda:0' for the first GPU") from None
    if wanted.type == 'cuda' and (wanted.index or 0) >= torch.cuda.device_count():
        raise UserError(f'device {device}: PyTorch finds {torch.cuda.device_count()} GPUs here')
    return device


def _classes_of(config: Config) -> dict:
    dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
    defaults = getattr(class_of(dataset), 'METAINFO', None) or {}
    return {**defaults, **dataset.get('metainfo', {})}


class ImagePipeline:
    """The steps of a test pipeline, for a dict of ``img_path`` or ``img`` (see `to_input`).

    Annotations are not loaded. A first step that is one's own reads files; an array takes its place.
    """

    def __init__(self, steps: Sequence[dict]) -> None:
        steps = _without_annotations(steps)
        if not steps:
            raise UserError('the test pipeline of the config is empty; it begins with LoadImageFromFile')
        first, options = steps[0], {}
        if isinstance(first, dict) and names_a(first, LoadImageFromFile):
            options = {key: value for key, value in first.items() if key != 'type'}
        self.load, *rest = build_steps(steps)
        self.take, self.rest = LoadImageFromNDArray(**options), Compose(rest)

    def __call__(self, given: dict | str | np.ndarray) -> dict:
        given = given if isinstance(given, dict) else to_input(given)
        loaded = (self.load if given.get('img_path') else self.take)(given)
        if loaded is None or (packed := self.rest(loaded)) is None:
            raise UserError(f'the test pipeline rejects {given.get("img_path") or "an array"}: a step returns None')
        return packed


def _without_annotations(steps: Sequence[dict]) -> list[dict]:
    """The steps without LoadAnnotations, inside TestTimeAug too."""
    kept = []
    for step in steps:
        if isinstance(step, dict) and names_a(step, TestTimeAug):
            views = filter(None, map(_without_annotations, step['transforms']))
            kept.append(dict(step, transforms=list(views)))
        elif not (isinstance(step, dict) and names_a(step, LoadAnnotations)):
            kept.append(step)
    return kept


def pipeline_of(cfg: Config) -> ImagePipeline:
    """The test pipeline of a config; raises UserError where it has none."""
    return ImagePipeline(detection_steps(cfg))


def detection_steps(cfg: Config) -> list[dict]:
    """The steps of the test pipeline, without those that load annotations.

    Raises:
        UserError: there is no pipeline.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and dataset:  # RepeatDataset, ConcatDataset
        dataset = dataset.get('dataset') or (dataset.get('datasets') or [{}])[0]
    if not dataset:
        raise UserError('the config has no test_dataloader.dataset.pipeline, which says how an image is prepared')
    return _without_annotations(dataset['pipeline'])


def detect(model: nn.Module, batch: dict) -> list[DetDataSample]:
    """The samples of a collated batch with `pred_instances`, on the CPU."""
    # an exported file has no parameters
    device, half = next(model.parameters(), torch.empty(0)).device, getattr(model, 'half_precision', None)
    with torch.inference_mode(), torch.autocast(device.type, half, enabled=half is not None):
        samples = model.test_step(batch)
    return [sample.to('cpu') if device.type != 'cpu' else sample for sample in samples]


def inference_detector(
    model: nn.Module,
    imgs: Any,
    test_pipeline: Callable[[dict], dict] | None = None,
    text_prompt: str | None = None,
    custom_entities: bool = False,
    batch_size: int = 1,
) -> DetResult | list[DetResult]:
    """Detect objects in one image or several.

    Args:
        model: of `init_detector`.
        imgs: an image (see `to_input`: a path, array, PIL image, tensor or the bytes of a file), a folder, or a list.
        test_pipeline: what prepares an image, given a dict of img_id and img_path or img; by default the config's.
        text_prompt, custom_entities: mmdetection's, for models that read; there is none here.
        batch_size: images that go through the model at a time.

    Returns:
        a data sample, or a list for a list or folder; `pred_instances` holds bboxes (D, 4) xyxy in pixels of the image,
        scores (D,), labels (D,) and, with a mask head, masks (`RLEMasks`); all on the CPU.

    Raises:
        UserError, FileNotFoundError, ValueError: an image that is not there, is damaged or has another layout.
    """
    if text_prompt is not None or custom_entities:
        raise UserError('text_prompt: no model here reads text; leave it out, or use mmdetection for GLIP and the like')
    images, single = expand(imgs)
    pipeline = test_pipeline or pipeline_of(model.cfg)
    found = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        inputs = [dict(to_input(image), img_id=i) for i, image in enumerate(part, start)]
        samples = detect(model, pseudo_collate([pipeline(given) for given in inputs]))
        found += [DetResult.of(sample, model.dataset_meta, image) for sample, image in zip(samples, part)]
    return found[0] if single else found
