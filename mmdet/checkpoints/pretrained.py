"""Addresses of weights: ``torchvision://resnet50``, ``open-mmlab://NAME``, http(s), and local files."""

import os
import re
from hashlib import sha256
from urllib.parse import urlsplit

import torch

from mmdet.checkpoints.reading import Checkpoint, read_checkpoint
from mmdet.config.errors import UserError, at_most, one_line, suggest


class NoDownload(UserError):
    """Weights that are not on this machine cannot be downloaded; `uri` is their address."""

    def __init__(self, message: str, uri: str):
        super().__init__(message)
        self.uri = uri


def load_pretrained(uri: str) -> Checkpoint:
    """Open the weights at an address; what is not on this machine is downloaded once, by one process for all.

    A download is kept in TORCH_HOME (default ~/.cache/torch) under its own name, if that ends with a checksum as those
    of model zoos do; 'epoch_12.pth' of one address is not that of another, and gets a mark of its address.

    ``torchvision://NAME`` is torchvision's file. NAME may carry the weights' version, ``resnet50.imagenet1k_v2``;
    without one it means the first version, as in mmdetection's configs.

    Raises:
        NoDownload: names the file and the ways out.
        UserError: no such address, or a file that cannot be read.
    """
    url = _url(uri)
    if not url.startswith(('http://', 'https://')):
        return read_checkpoint(url.removeprefix('file://'))
    name = _kept_name(url)
    cached = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    try:
        _download_where_missing(url, cached)
    except OSError as error:
        raise NoDownload(
            f'weights {uri} cannot be downloaded ({one_line(error)}). Ways out: put {name} (from {url}) into '
            f'{os.path.dirname(cached)}; or set TORCH_HOME to a folder with hub/checkpoints/{name}; or name a local '
            'file instead', uri) from error
    return Checkpoint(read_checkpoint(cached), uri)


def _download_where_missing(url: str, path: str) -> None:
    """Download once per machine (a collective: in a process group all ranks must come here).

    Local rank 0 downloads it and checks that it can be read, since torch takes a connection that breaks off for the
    end of the file. The others wait. Raises OSError on all ranks when one fails.
    """
    failure = None
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not os.path.isfile(path):
        part = f'{path}.{os.getpid()}.part'
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(url, part, progress=False)
            read_checkpoint(part)
            os.replace(part, path)
        except Exception as error:
            failure = one_line(error).replace(part, path)
        finally:
            if os.path.exists(part):
                os.remove(part)
    if torch.distributed.is_initialized():
        failures = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(failures, failure)
        failure = next((f for f in failures if f), None)
    if failure:
        raise OSError(failure)


def _kept_name(url: str) -> str:
    name = os.path.basename(urlsplit(url).path)
    return name if re.search(r'-[0-9a-f]{8,}\.', name) else f'{sha256(url.encode()).hexdigest()[:8]}-{name}'


def _url(uri: str) -> str:
    if uri.startswith('torchvision://'):
        return _torchvision_url(uri)
    if uri.startswith('open-mmlab://'):
        from mmengine.runner.checkpoint import get_external_models

        name, known = uri.removeprefix('open-mmlab://'), get_external_models()
        if name not in known:
            raise UserError(f'{uri}: no such name.{suggest(name, known)}')
        return known[name]
    return uri


def _torchvision_url(uri: str) -> str:
    import torchvision

    name, _, version = uri.removeprefix('torchvision://').partition('.')
    try:
        choices = torchvision.models.get_model_weights(name)
    except ValueError as error:
        raise UserError(f'{uri}: torchvision has no model {name!r}.'
                        f'{suggest(name, torchvision.models.list_models(torchvision.models))}') from error
    for weights in choices:
        if version.lower() in ('', weights.name.lower()):
            return weights.url
    raise UserError(f'{uri}: {name} has the weights {at_most(w.name.lower() for w in choices)}')
