"""Detect from Python: ``init_detector`` once, ``inference_detector`` for each image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from torch import nn

from mmdet.checkpoints import adapt_config, load_checkpoint, load_pretrained
from mmdet.config.errors import UserError
from mmdet.config.load import adopt_vocabulary, load_config
from mmdet.config.values import names_a
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.engine.amp import half_precision
from mmdet.engine.compiled import compile_for_inference
from mmdet.engine.runner import drop_pretrained, fast_layout
from mmdet.layers import pack
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample


def init_detector(
    config: str | Path | Config,
    checkpoint: str | None = None,
    device: str = 'cpu',
    cfg_options: dict | None = None,
    amp: bool = False,
    compile: bool = False,
) -> nn.Module:
    """Build a detector in evaluation mode.

    Args:
        config: a config file or a loaded config.
        checkpoint: path or address of weights; every one must have its place in the model. None keeps random weights.
        device: 'cpu' or 'cuda:0'.
        cfg_options: dotted keys of the config and their new values.
        amp: `inference_detector` computes in float16 on a GPU, in bfloat16 on a CPU that has instructions for it.
        compile: the first image takes half a minute, see `mmdet.engine.compiled`; all others are faster.

    Returns:
        the model, with `cfg` and `dataset_meta` (classes) as attributes.

    Raises:
        UserError, FileNotFoundError: config or checkpoint missing, damaged or not fitting, or no such device.
    """
    _check_device(device)
    if not isinstance(config, Config):
        config = load_config(config, cfg_options)
    elif cfg_options:
        raise UserError('cfg_options apply to a config file; change the loaded config itself')
    else:
        adopt_vocabulary(config)
    init_default_scope('mmdet')
    opened = None if checkpoint is None else load_pretrained(checkpoint)
    if opened is not None:
        adapt_config(config, opened)
    model_cfg = config.model.to_dict()
    drop_pretrained(model_cfg)
    model = MODELS.build(model_cfg)
    meta = None if opened is None else load_checkpoint(model, opened).meta.get('dataset_meta')
    model.cfg = config
    model.dataset_meta = meta or _classes_of(config)
    model.half_precision = half_precision(device) if amp else None
    model = pack(fast_layout(model.to(device))).eval()
    return compile_for_inference(model) if compile else model


def _check_device(device: str) -> None:
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UserError(f"no device is called {device!r}; use 'cpu', or 'cuda:0' for the first GPU") from None
    if wanted.type == 'cuda' and (wanted.index or 0) >= torch.cuda.device_count():
        raise UserError(f'device {device}: PyTorch finds {torch.cuda.device_count()} GPUs here')


def _classes_of(config: Config) -> dict:
    dataset = config.test_dataloader.dataset
    defaults = getattr(DATASETS.get(dataset.get('type', '')), 'METAINFO', None) or {}
    return {**defaults, **dataset.get('metainfo', {})}


def inference_detector(
    model: nn.Module,
    imgs: str | Path | np.ndarray | Sequence[str | Path | np.ndarray],
    batch_size: int = 1,
) -> DetDataSample | list[DetDataSample]:
    """Detect objects in one image or several.

    Args:
        model: of `init_detector`.
        imgs: a file, an array (H, W, 3) uint8 BGR as OpenCV reads it, or a list of these.
        batch_size: images that go through the model at a time.

    Returns:
        one data sample, or a list; `pred_instances` holds bboxes (D, 4) xyxy in pixels of the image,
        scores (D,), labels (D,) and, with a mask head, masks (D RLE dicts); all on the CPU.

    Raises:
        UserError, FileNotFoundError, ValueError: an image that is not there, is damaged or has another layout.
    """
    single = isinstance(imgs, (str, Path, np.ndarray))
    images = [imgs] if single else list(imgs)
    steps = model.cfg.test_dataloader.dataset.pipeline
    steps = [step for step in steps if not names_a(step, LoadAnnotations)]
    if not steps or not steps[0]['type'].startswith('LoadImage'):
        raise UserError('the test pipeline of the config does not begin with LoadImageFromFile')
    load, rest = Compose(steps[:1]), Compose(steps[1:])
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(images), batch_size):
        data = [rest(_loaded(load, image, start + i))
                for i, image in enumerate(images[start:start + batch_size])]
        half = getattr(model, 'half_precision', None)
        with torch.inference_mode(), torch.autocast(device.type, half, enabled=half is not None):
            batch = model.data_preprocessor(pseudo_collate(data), False)
            found += [sample.to('cpu') if device.type != 'cpu' else sample
                      for sample in model(**batch, mode='predict')]
    return found[0] if single else found


def _loaded(load: Compose, image: str | Path | np.ndarray, img_id: int) -> dict:
    if not isinstance(image, np.ndarray):
        return load(dict(img_path=str(image), img_id=img_id))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f'an image must be (height, width, 3) uint8, got {image.shape} {image.dtype}')
    shape = image.shape[:2]
    return dict(img=image, img_path=None, img_id=img_id, img_shape=shape, ori_shape=shape,
                height=shape[0], width=shape[1])
