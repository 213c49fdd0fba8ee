"""Loads the compiled operators, or says once why torchvision's serve instead."""

import warnings
from pathlib import Path

import torch

from mmdet.ops.sources import digest

_HERE = Path(__file__).resolve().parent


def _load() -> tuple[dict[str, str], str]:
    """(what was compiled, '') or ({}, why nothing is loaded)."""
    libraries = sorted(_HERE.glob('_C*.so')) + sorted(_HERE.glob('_C*.pyd'))
    if not libraries:
        return {}, 'they are not compiled'
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        return {}, f'{libraries[0].name} does not load ({error})'
    info = dict(item.split('=', 1) for item in torch.ops.mmdet.build_info().split())
    running = torch.__version__.split('+')[0]
    if info['torch'] != running:
        return {}, f'they are compiled for torch {info["torch"]}, but {running} runs'
    if info.get('sources') != digest():
        return {}, 'they are compiled from other sources than these'
    return info, ''


BUILD, _REASON = _load()
COMPILED = bool(BUILD)

if not COMPILED:
    warnings.warn(
        f"mmdet's compiled ops are not used: {_REASON}. torchvision's serve; some are far slower. "
        'With a C++ compiler (g++) run `pip install .` or `python setup.py build_ext --inplace`.', stacklevel=2)


def describe() -> str:
    """What is compiled and which kernels serve, one fact a line."""
    if not COMPILED:
        return f'compiled ops: none ({_REASON})\nkernels: torchvision and plain torch'
    cuda = BUILD['cuda'] == '1'
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU here'
    return '\n'.join([
        f'compiled ops: for torch {BUILD["torch"]} by {BUILD["compiler"]}',
        f'cpu kernels: {BUILD["simd"]}, {torch.get_num_threads()} threads'
        + ('' if BUILD['openmp'] == '1' else ' (built without OpenMP: one thread)'),
        f'cuda kernels: {"compiled" if cuda else "not compiled, torchvision serves CUDA tensors"} ({gpu})',
    ])


def exporting() -> bool:
    """Whether torch.export is looking: the operators of torch and torchvision then serve, which other runtimes know."""
    return getattr(torch.compiler, 'is_exporting', lambda: False)()  # torch before 2.7 has none


def serves(tensor: torch.Tensor) -> bool:
    """Whether the compiled kernels take this tensor's device (else the fallback does)."""
    if not COMPILED or exporting():
        return False
    return tensor.device.type in ('cpu', 'meta') or (tensor.is_cuda and BUILD['cuda'] == '1')
