"""The config that a checkpoint holds, so that the file alone is enough to test it or to detect with it.

mmdetection 0.x to 3.x and this toolbox write the config's text into it. It is read as data, see `mmdet.config.text`.
"""

from typing import Any
from urllib.parse import urlsplit

from mmengine.config import Config

from mmdet.checkpoints.reading import Checkpoint
from mmdet.config.errors import UserError
from mmdet.config.load import load_text


def is_checkpoint(name: Any) -> bool:
    """Whether what stands in the place of a config names a checkpoint, by its ending; an address may have a query."""
    name = str(name)
    return (urlsplit(name).path if '://' in name else name).endswith(('.pth', '.pt', '.ckpt', '.pkl'))


def config_of(checkpoint: Checkpoint, cfg_options: dict[str, Any] | None = None) -> Config:
    """The config of an opened file, in today's vocabulary, with ``--cfg-options`` applied.

    Raises:
        UserError: it holds none, or one that is more than data.
    """
    if not checkpoint.config_text:
        raise UserError(f'{checkpoint} holds no config (a published or converted file?); name one: CONFIG {checkpoint}')
    return load_text(checkpoint.config_text, f'the config in {checkpoint}', cfg_options)
