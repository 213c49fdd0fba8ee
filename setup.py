"""Build mmdet and its compiled ops.

MMDET_CUDA=auto|0|1     CUDA kernels: when a toolkit is found (default), never, or fail without one
TORCH_CUDA_ARCH_LIST    architectures to compile for, as for every torch extension
CXX                     the C++ compiler (default: c++); without one nothing is compiled, and torchvision's ops serve
MMDET_SANITIZE=1        address and undefined-behaviour sanitizers, for CONTRIBUTING.md's memory-safety run

Nothing is downloaded. The ops are compiled against the torch of the environment that is installed into.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = Path('mmdet', 'ops', 'csrc')


def say(text: str) -> None:
    print(f'mmdet setup: {text}', file=sys.stderr, flush=True)


def import_torch():
    """The installed torch, also from inside pip's isolated build, which hides the environment's packages."""
    try:
        import torch
    except ImportError:
        sys.path.append(sysconfig.get_path('purelib'))
        try:
            import torch
        except ImportError as error:
            sys.exit(f'mmdet setup: cannot import torch ({error}). The ops are compiled against the torch that '
                     'will run them: `pip install torch torchvision` first, or pass --no-build-isolation.')
    return torch


def find_toolkit() -> Path | None:
    """Root of the CUDA toolkit: CUDA_HOME, else what nvcc itself says (it may be a wrapper script)."""
    for variable in ('CUDA_HOME', 'CUDA_PATH'):
        if os.environ.get(variable):
            return Path(os.environ[variable])
    nvcc = shutil.which('nvcc')
    if nvcc is None:
        return Path('/usr/local/cuda') if Path('/usr/local/cuda/bin/nvcc').exists() else None
    dry = subprocess.run([nvcc, '--dryrun', '-x', 'cu', os.devnull], capture_output=True, text=True)
    top = re.search(r'_HERE_=(\S+)', dry.stderr)
    return Path(top[1]).parent if top else Path(nvcc).resolve().parent.parent


def cuda_toolkit(torch) -> Path | None:
    """The toolkit to compile CUDA kernels with, or None; says why."""
    wanted = os.environ.get('MMDET_CUDA', 'auto')
    if wanted not in ('auto', '0', '1'):
        sys.exit(f'mmdet setup: MMDET_CUDA={wanted!r} is none of auto, 0, 1')
    if wanted == '0':
        say('CUDA kernels left out: MMDET_CUDA=0')
        return None
    toolkit = find_toolkit()
    if torch.version.cuda is None:
        reason = f'the installed torch {torch.__version__} is built without CUDA'
    elif toolkit is None:
        reason = 'no CUDA toolkit: nvcc is not on PATH and CUDA_HOME is not set'
    elif not (toolkit / 'bin' / 'nvcc').exists():
        reason = f'no bin/nvcc in the CUDA toolkit {toolkit}'
    else:
        release = subprocess.run([toolkit / 'bin' / 'nvcc', '--version'], capture_output=True, text=True).stdout
        version = re.search(r'release (\d+)\.(\d+)', release)
        if version and version[1] == torch.version.cuda.split('.')[0]:
            say(f'CUDA kernels included: toolkit {version[1]}.{version[2]} in {toolkit}')
            return toolkit
        found = f'{version[1]}.{version[2]}' if version else 'of unknown version'
        reason = f'toolkit {found} in {toolkit}, but torch is built for CUDA {torch.version.cuda}'
    if wanted == '1':
        sys.exit(f'mmdet setup: MMDET_CUDA=1, but {reason}')
    say(f'CUDA kernels left out: {reason}')
    return None


def digest_source() -> Path:
    """The digest that mmdet/ops/library.py compares, in a file of its own: a macro would recompile every other."""
    path = Path('build', 'digest.cpp')
    digest = runpy.run_path(str(CSRC.parent / 'sources.py'))['digest']()
    text = f'extern const char mmdet_sources[] = "{digest}";\n'
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return path


def extensions(torch) -> list:
    """The compiled ops; none where there is nothing to compile them with."""
    if shutil.which(os.environ.get('CXX', 'c++').split()[0]):
        return [extension(torch)]
    text = 'no C++ compiler (c++, or the one that CXX names): the ops are not compiled'
    if os.environ.get('MMDET_CUDA') == '1':
        sys.exit(f'mmdet setup: MMDET_CUDA=1, but {text}')
    say(f"{text}. torchvision's serve, which are slower; for the fast ones install g++ and run this again")
    return []


def extension(torch):
    toolkit = cuda_toolkit(torch)
    if toolkit:  # must be set before torch.utils.cpp_extension is imported, which guesses it from PATH
        os.environ['CUDA_HOME'] = str(toolkit)
        if 'TORCH_CUDA_ARCH_LIST' not in os.environ and not torch.cuda.is_available():
            newest = ['8.0', '9.0'] if torch.version.cuda >= '12' else ['8.0']
            os.environ['TORCH_CUDA_ARCH_LIST'] = ';'.join(newest) + '+PTX'
            say(f'no GPU to ask: compiling for {os.environ["TORCH_CUDA_ARCH_LIST"]} (TORCH_CUDA_ARCH_LIST)')
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    sources = [*CSRC.glob('*.cpp'), *CSRC.glob('cpu/*.cpp'), *(CSRC.glob('cuda/*') if toolkit else ()), digest_source()]
    # No contraction: a * b + c rounded once would move sample points and IoUs off what other builds give.
    flags = {'cxx': ['-O3', '-ffp-contract=off'], 'nvcc': ['-O3', '-fmad=false']}
    link = []
    if sys.platform == 'linux' and 'backend: OpenMP' in torch.__config__.parallel_info():
        # at::parallel_for is an inline OpenMP region. Compiled so but not linked so: the symbols then resolve to
        # the OpenMP that torch itself loads, and no second thread pool competes with torch's.
        flags['cxx'].append('-fopenmp')
        if 'clang' in os.environ.get('CXX', ''):  # whose regions call functions that GNU's OpenMP does not have
            link.append('-fopenmp')
    if os.environ.get('MMDET_SANITIZE') == '1':
        say('compiling with address and undefined-behaviour sanitizers')
        sanitizers = '-fsanitize=address,undefined'
        flags['cxx'] += ['-O1', '-g', '-fno-omit-frame-pointer', sanitizers]
        link.append(sanitizers)
    macros = [('MMDET_WITH_CUDA', None)] if toolkit else []
    make = CUDAExtension if toolkit else CppExtension
    return make('mmdet.ops._C', sorted(map(str, sources)), extra_compile_args=flags, extra_link_args=link,
                define_macros=macros)


class BuildWithConfigs(build_py):
    """configs/ becomes mmdet/configs in what is installed; an editable install finds it beside the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree('configs', Path(self.build_lib, 'mmdet', 'configs'), dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns('__pycache__'))


def version(torch) -> str:
    """The release with torch's version as local part, so that no cache serves a build for another torch."""
    text = (ROOT / 'mmdet' / 'version.py').read_text()
    release = re.search(r"__version__ = '([^']+)'", text)[1]
    return f'{release}+torch{re.sub("[^0-9a-zA-Z]+", ".", torch.__version__)}'


def main() -> None:
    os.chdir(ROOT)
    torch = import_torch()
    modules = extensions(torch)
    from torch.utils.cpp_extension import BuildExtension

    setup(
        name='mmdet',
        version=version(torch),
        description='Object detection with Cross-Iteration Batch Normalization',
        license='Apache-2.0',
        python_requires='>=3.10',
        packages=find_packages(include=["mmdet", "mmdet.*"]),
        package_data={'mmdet.ops': ['csrc/*', 'csrc/*/*']},
        install_requires=Path('requirements.txt').read_text().split(),
        extras_require={
            'test': ['pytest', 'pytest-xdist', 'hypothesis', 'supervision', 'labelformat', 'sahi', 'pandas', 'timm'],
            'timm': ['timm'],
            'export': ['onnx', 'onnxscript', 'onnxruntime', 'openvino'],
        },
        ext_modules=modules,
        # the library registers operators and is no Python module: its name need not carry Python's version
        cmdclass={'build_ext': BuildExtension.with_options(no_python_abi_suffix=True), 'build_py': BuildWithConfigs},
        entry_points={'console_scripts': ['mmdet = mmdet.cli.command:run']},
        zip_safe=False,
    )


if __name__ == '__main__':
    main()
