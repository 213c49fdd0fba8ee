"""What setup.py and the loader say: reasons, versions, the absent extension."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmdet.ops import BUILD, COMPILED, describe

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    cwd = environment.pop('cwd', ROOT)
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), **environment})


def test_which_kernels_ran():
    """Says in the report which implementation the tests of this folder saw."""
    print(describe())
    if COMPILED:
        assert BUILD['torch'] == torch.__version__.split('+')[0]
        assert 'cpu kernels:' in describe()
    else:
        assert describe().startswith('compiled ops: none (')


def test_module_says_what_is_compiled():
    result = run('-m', 'mmdet.ops')
    assert result.returncode == 0 and result.stdout.strip() == describe()


def test_cuda_demanded_without_a_toolkit_fails_with_the_reason(tmp_path):
    result = run('setup.py', '--version', MMDET_CUDA='1', CUDA_HOME=str(tmp_path / 'none'))
    assert result.returncode != 0
    reason = 'built without CUDA' if torch.version.cuda is None else f'no bin/nvcc in the CUDA toolkit {tmp_path}'
    assert 'MMDET_CUDA=1, but' in result.stderr and reason in result.stderr
    assert 'Traceback' not in result.stderr
    result = run('setup.py', '--version', MMDET_CUDA='maybe')
    assert result.returncode != 0 and "MMDET_CUDA='maybe'" in result.stderr


def test_version_names_torch():
    result = run('setup.py', '--version', MMDET_CUDA='0')
    assert result.returncode == 0, result.stderr
    assert 'MMDET_CUDA=0' in result.stderr
    release, _, local = result.stdout.strip().splitlines()[-1].partition('+')
    assert local == 'torch' + torch.__version__.replace('+', '.')


@pytest.fixture
def without_extension(tmp_path):
    """A copy of the package's Python files, without the library."""
    for source in (ROOT / 'mmdet').rglob('*.py'):
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    return tmp_path


def test_absent_extension_warns_once_and_torchvision_serves(without_extension):
    code = '''
import torch, mmdet.ops as ops
import mmdet.ops.nms
feature, rois = torch.ones(1, 2, 8, 8), torch.tensor([[0., 0, 0, 20, 20]])
print(ops.COMPILED, ops.roi_align(feature, rois, 2, 0.25).shape, ops.nms(rois[:, 1:], rois[:, 0], 0.5).tolist())
print(len(ops.masks_to_rle(torch.ones(1, 4, 4), rois[:, 1:], (9, 9))))
print(ops.mask_targets([[[0, 0, 9, 0, 9, 9]]], rois[:, 1:], 4).sum() > 0)
'''
    result = run('-c', code, cwd=without_extension, PYTHONPATH=str(without_extension))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count('UserWarning') == 1 and 'they are not compiled' in result.stderr
    assert result.stdout.splitlines()[0] == 'False torch.Size([1, 2, 2, 2]) [0]'
    assert result.stdout.splitlines()[1:] == ['1', 'tensor(True)']


def test_a_library_that_does_not_load_is_no_crash(without_extension):
    (without_extension / 'mmdet' / 'ops' / '_C.so').write_bytes(b'not a library')
    result = run('-m', 'mmdet.ops', cwd=without_extension, PYTHONPATH=str(without_extension))
    assert result.returncode == 0 and '_C.so does not load' in result.stdout


@pytest.mark.slow  # in CI by `make test-fallback`
@pytest.mark.skipif(sys.platform != 'linux', reason='the memory limit is counted from /proc')
def test_the_fallback_passes_the_same_tests_within_a_memory_limit(without_extension):
    """pycocotools would rasterise a polygon with a vertex at 1e30 until the machine has no memory left."""
    code = '''
import resource, sys
import pytest, torch, torchvision
from mmdet.ops import COMPILED
assert not COMPILED
pages = int(open('/proc/self/statm').read().split()[0])
limit = pages * resource.getpagesize() + (3 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(pytest.main(sys.argv[1:]))
'''
    tests = [ROOT / 'tests' / 'ops' / f'test_{name}.py' for name in ('mask_ops', 'nms', 'roi_align')]
    tests += [ROOT / 'tests' / 'structures' / 'test_masks.py', ROOT / 'tests' / 'structures' / 'test_coco_arrays.py']
    result = run('-W', 'ignore', '-c', code, *tests, '-q', '-m', 'not slow and not cuda', '-p', 'no:cacheprovider',
                 cwd=without_extension, PYTHONPATH=str(without_extension), OMP_NUM_THREADS='1')
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    passed = int(result.stdout.split(' passed')[0].split()[-1])
    assert passed > 200, result.stdout[-500:]


@pytest.mark.skipif(not COMPILED, reason='the compiled ops are missing')
@pytest.mark.parametrize('name', ['ops.cpp', 'cpu/batch_norm_kernels.inl', 'cuda/cbn_cuda.cu'])
def test_an_extension_of_other_sources_is_not_used(tmp_path, name):
    shutil.copytree(ROOT / 'mmdet', tmp_path / 'mmdet')
    source = tmp_path / 'mmdet' / 'ops' / 'csrc' / name
    source.write_text(source.read_text() + '// another version\n')
    result = run('-m', 'mmdet.ops', PYTHONPATH=str(tmp_path), cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith('compiled ops: none (they are compiled from other sources')
