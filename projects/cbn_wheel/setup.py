"""CBN for any PyTorch model: a wheel of mmdet/layers/cbn and mmdet/layers/batch_stats.py, which need torch alone.

    pip wheel --no-deps -w dist projects/cbn_wheel

No compiler, no mmdet. The files are copied when the wheel is built, so that they exist once.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
MMDET = HERE.parents[1] / 'mmdet'


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        package = Path(self.build_lib, 'cross_iteration_bn')
        shutil.copytree(MMDET / 'layers' / 'cbn', package / 'cbn', ignore=shutil.ignore_patterns('__pycache__'),
                        dirs_exist_ok=True)
        shutil.copy(MMDET / 'layers' / 'batch_stats.py', package)
        shutil.copy(HERE.parents[1] / 'LICENSE', package)


setup(
    name='cross-iteration-bn',
    version=runpy.run_path(str(MMDET / 'version.py'))['__version__'],
    description='Cross-Iteration Batch Normalization (CVPR 2021) for any PyTorch model',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=['cross_iteration_bn'],
    python_requires='>=3.10',
    install_requires=['torch>=2.4'],
    cmdclass=dict(build_py=BuildPy),
)
