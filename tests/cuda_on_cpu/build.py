"""mmdet's CUDA kernels, run on the CPU.

`load()` compiles all of mmdet/ops/csrc/cuda with g++ and registers what it registers for CUDA in place of the CPU
kernels of `torch.ops.mmdet`. With CUDA_ON_CPU=ORDER in the environment tests/conftest.py does so, so that any test
runs over the kernels as they are, e.g.

    CUDA_ON_CPU=reversed python -m pytest tests/ops/test_nms.py        ORDER: forward, reversed or shuffled:SEED

ORDER is the order in which the threads of a block, and the blocks, take turns: a result that changes with it lacks a
barrier. Threads change only at barriers and warp exchanges; a barrier that not all threads reach, too much shared
memory and a launch that no GPU accepts are errors; shared memory and fresh tensors hold NaN. With MMDET_SANITIZE=1,
and libasan preloaded (CONTRIBUTING.md), reads and writes out of bounds of global or shared memory are errors too.

The sources are compiled as they stand but for three things that are no C++: launches `kernel<T><<<...>>>(...)` (name
template arguments explicitly), `__shared__` variables (one a declaration), and the dispatch key. A further .cu file
needs nothing here, unless it uses a part of CUDA that include/ lacks. No GPU's memory model, scheduling or speed is
emulated: a missing fence between blocks, a race that no order of whole threads shows, and slowness stay unseen.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA = ROOT / 'mmdet' / 'ops' / 'csrc' / 'cuda'
BUILD = ROOT / 'build' / 'cuda_on_cpu'

_LAUNCH = re.compile(r'(\w[\w:]*(?:<(?:[^<>;]|<[^<>]*>)*>)?)\s*<<<(.*?)>>>\s*\(', re.S)
_ALIGNED = r'(?:__align__\(\d+\)\s*)?'
_DYNAMIC = re.compile(rf'extern\s+__shared__\s+{_ALIGNED}([\w:\s]+?)\s+(\w+)\[\]\s*;')
_SHARED = re.compile(rf'__shared__\s+{_ALIGNED}([\w:<>\s]+?)\s+(\w+)((?:\[[^\];]*\])*)\s*;')


def translate(source: str, name: str) -> str:
    """The C++ of a .cu file, line for line.

    Raises:
        ValueError: a launch or a shared variable is written in a way that is not understood.
    """
    numbers = count()

    def launch(match):
        kernel, arguments = match.groups()
        call = f'cuda_on_cpu::launch("{kernel.split("<")[0]}", {kernel}, {arguments})('
        return '\n' * (match[0].count('\n') - call.count('\n')) + call

    source = _LAUNCH.sub(launch, source)
    source = _DYNAMIC.sub(r'\1* const \2 = cuda_on_cpu::dynamic_shared<\1>();', source)
    source = _SHARED.sub(lambda m: f'auto& {m[2]} = cuda_on_cpu::shared<{m[1]}{m[3]}>({next(numbers)});', source)
    source = re.sub(r'(TORCH_LIBRARY_IMPL\(mmdet, (?:Autograd)?)CUDA,', r'\1CPU,', source)
    for number, line in enumerate(source.splitlines(), 1):
        if '<<<' in line or '__shared__' in line.split('//')[0]:
            raise ValueError(f'{name}, line {number}: not understood: {line.strip()}')
    return f'#include "cuda_on_cpu.h"\n#line 1 "{name}"\n{source}'


def build(sources: dict[str, str], torch: bool = True, sanitize: bool = False) -> Path:
    """Compile .cu texts by name, with the emulator, into one library; nothing is compiled twice."""
    flags = ['-std=c++20', '-O1', '-g1', '-fPIC', '-ffp-contract=off', '-Wall', '-Wno-unknown-pragmas']
    folders = [f'-I{HERE / "include"}', f'-iquote{CUDA}']
    link = ['-shared']
    if sanitize:
        flags += ['-fsanitize=address,undefined', '-fno-sanitize=vptr', '-fno-sanitize-recover=undefined',
                  '-fno-omit-frame-pointer']
        link += ['-fsanitize=address,undefined']
    parts = [(HERE / 'fibers.cpp').read_text()]
    if torch:
        from torch import __path__, __version__, compiled_with_cxx11_abi

        include, lib = Path(__path__[0]) / 'include', Path(__path__[0]) / 'lib'
        folders += [f'-isystem{include}', f'-isystem{include}/torch/csrc/api/include']
        flags += [f'-DTORCH="{__version__}"', f'-D_GLIBCXX_USE_CXX11_ABI={compiled_with_cxx11_abi():d}']
        link += [f'-L{lib}', '-ltorch', '-ltorch_cpu', '-lc10']
        parts.append((HERE / 'memory.cpp').read_text())
    parts += [translate(text, name) for name, text in sources.items()]
    headers = [path.read_text() for folder in (HERE, CUDA.parent) for path in sorted(folder.rglob('*.*h'))]
    BUILD.mkdir(parents=True, exist_ok=True)

    def compile_part(text):
        made = BUILD / f'{_digest([text, *flags, *headers])}.o'
        source = made.with_suffix('.cpp')
        if not made.exists():
            source.write_text(text)
        _once(made, lambda target: ['g++', '-c', *flags, *folders, str(source), '-o', target])
        return made

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        objects = [str(made) for made in pool.map(compile_part, parts)]
    library = BUILD / f'{_digest([*objects, *link])}.so'
    _once(library, lambda target: ['g++', *objects, *link, '-o', target])
    return library


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256('\0'.join(texts).encode()).hexdigest()[:16]


def _once(made: Path, command) -> None:
    """Run a compiler command unless its result is there; a second process never sees half a file."""
    if made.exists():
        return
    unfinished = made.with_suffix(f'.{os.getpid()}')
    result = subprocess.run(command(str(unfinished)), capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f'{" ".join(command(str(made)))}\n{result.stderr}')
    unfinished.rename(made)


def load() -> None:
    """Replace mmdet's CPU kernels, where a CUDA kernel of the same operator exists, for the rest of the process."""
    import torch

    from mmdet.ops import COMPILED

    if not COMPILED:
        raise RuntimeError('the CUDA kernels run on the CPU beside the compiled ops, which are missing')
    sources = {f'{path.parent.name}/{path.name}': path.read_text() for path in sorted(CUDA.iterdir())}
    torch.ops.load_library(str(build(sources, sanitize=os.environ.get('MMDET_SANITIZE') == '1')))
