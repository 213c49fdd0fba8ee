"""The CUDA kernels pass the tests of the ops on the CPU, and the emulator that runs them notices what it should."""

import ctypes
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
from cuda_on_cpu.build import CUDA, ROOT, build, translate

from mmdet.ops import COMPILED

# Kernels for one block of 64 threads; each writes out[0..63].
KERNELS = r'''
#include <string>

__global__ void tree(float* out, bool barriers) {
  __shared__ float part[64];
  const int t = threadIdx.x;
  part[t] = float(t);
  if (barriers) __syncthreads();
  for (int step = 32; step > 0; step /= 2) {
    if (t < step) part[t] += part[t + step];
    if (barriers) __syncthreads();
  }
  if (t == 0) out[0] = part[0];
}

__global__ void half_waits(float*) {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void two_barriers(float*) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void warps(float* out) {
  const int t = threadIdx.x, lane = t % 32;
  int sum = t;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  const int below = __shfl_up_sync(~0u, t, 1), first = __shfl_sync(~0u, t, 0), far = __shfl_down_sync(~0u, t, 20);
  const bool right = sum == (t < 32 ? 496 : 1520) && below == (lane ? t - 1 : t) && first == t - lane &&
                     far == (lane < 12 ? t + 20 : t) && __popc(__ballot_sync(~0u, lane < 5)) == 5 &&
                     __any_sync(~0u, lane == 3) && !__all_sync(~0u, lane == 3) &&
                     __ffs(__ballot_sync(~0u, lane > 6)) == 8;
  __syncwarp();
  out[t] = right;
}

__global__ void lane_outside(float* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xffu, 1.f, 8);
}

__global__ void not_written(float* out) {
  extern __shared__ float values[];
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void beyond(float* out, int by) {
  extern __shared__ float values[];
  values[threadIdx.x] = 0;
  out[threadIdx.x] = values[threadIdx.x + by];
}

__global__ void counted(float* out) { atomicAdd(out, blockIdx.y * 100.f + blockIdx.x); }

extern "C" const char* launch(const char* name, float* out) {
  static std::string message;
  message = name;
  try {
    if (message == "tree") tree<<<1, 64>>>(out, true);
    else if (message == "tree without barriers") tree<<<1, 64>>>(out, false);
    else if (message == "half waits") half_waits<<<1, 64>>>(out);
    else if (message == "two barriers") two_barriers<<<1, 64>>>(out);
    else if (message == "warps") warps<<<1, 64>>>(out);
    else if (message == "lane outside") lane_outside<<<1, 64>>>(out);
    else if (message == "not written") not_written<<<1, 64, 64 * sizeof(float)>>>(out);
    else if (message == "beyond") beyond<<<1, 64, 64 * sizeof(float)>>>(out, 1);
    else if (message == "counted") counted<<<dim3(3, 2), 1>>>(out);
    else if (message == "large block") counted<<<1, 1025>>>(out);
    else if (message == "no block") counted<<<0, 1>>>(out);
    else if (message == "much shared") not_written<<<1, 64, 60 << 10>>>(out);
    else if (message == "granted") {
      cudaFuncSetAttribute(not_written, cudaFuncAttributeMaxDynamicSharedMemorySize, 60 << 10);
      not_written<<<1, 64, 60 << 10>>>(out);
    } else if (message == "too much") {
      cudaFuncSetAttribute(not_written, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10);
    } else return "unknown";
    message.clear();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
'''
pytestmark = pytest.mark.skipif(shutil.which('g++') is None, reason='needs g++')
needs_ops = pytest.mark.skipif(not COMPILED, reason='the compiled ops are missing')
ORDERS = ['forward', 'reversed', 'shuffled:1', 'shuffled:2']


@pytest.fixture(scope='module')
def library():
    found = ctypes.CDLL(str(build({'kernels.cu': KERNELS}, torch=False)))
    found.launch.restype = ctypes.c_char_p

    def launch(name):
        out = (ctypes.c_float * 64)()
        return found.launch(name.encode(), out).decode(), list(out)

    return launch


@pytest.mark.parametrize('order', ORDERS)
def test_kernels_run(library, monkeypatch, order):
    monkeypatch.setenv('CUDA_ON_CPU', order)
    assert library('tree') == ('', [2016.0] + [0.0] * 63)
    assert library('warps') == ('', [1.0] * 64)
    assert library('counted')[1][0] == 306


def test_a_missing_barrier_changes_the_result(library, monkeypatch):
    sums = set()
    for order in ORDERS:
        monkeypatch.setenv('CUDA_ON_CPU', order)
        sums.add(library('tree without barriers')[1][0])
    assert len(sums) > 1


def test_unwritten_shared_memory_is_nan(library):
    assert all(map(math.isnan, library('not written')[1]))


@pytest.mark.parametrize('name, message', [
    ('half waits', r'kernel half_waits: not all threads meet.*; 32 threads at __syncthreads.*; 32 threads returned'),
    ('two barriers', r'32 threads at .* of line \d+; 32 threads at .* of line \d+'),
    ('lane outside', 'reads lane 8, which takes no part'),
    ('large block', 'a block of 1025 threads'),
    ('no block', 'a grid of 0 x 1 x 1'),
    ('much shared', '61440 bytes of shared memory, allowed are 49152'),
    ('granted', '^$'),
    ('too much', 'more than a block can have'),
])
def test_what_a_gpu_would_not_run_is_an_error(library, name, message):
    assert re.search(message, library(name)[0])


def test_what_is_not_understood_is_named():
    with pytest.raises(ValueError, match='x.cu, line 2: not understood: __shared__ float a, b;'):
        translate('\n__shared__ float a, b;', 'x.cu')
    assert translate('k\n  <<<1,\n 2>>>(3);\n__shared__ T a[1];', '').count('\n') == 5


TESTS = {
    'roi_align_cuda.cu': 'ops/test_roi_align.py',
    'nms_cuda.cu': 'ops/test_nms.py',
    'masks_cuda.cu': 'ops/test_mask_ops.py',
    'cbn_cuda.cu': 'layers/test_cbn_compiled.py',
}
RUN = """
import pathlib, sys, pytest
sys.path.insert(0, 'tests')
from cuda_on_cpu import build
build.CUDA = pathlib.Path(sys.argv[1])
sys.exit(pytest.main(sys.argv[2:]))
"""


def run_tests(*arguments, kernels=CUDA, order='shuffled:1', **environment):
    """Tests over the CUDA kernels of a folder, in another process."""
    result = subprocess.run(
        [sys.executable, '-c', RUN, str(kernels), '-q', '-p', 'no:cacheprovider', '-m', 'not slow', '-k', 'cpu',
         *arguments],
        cwd=ROOT, env={**os.environ, 'CUDA_ON_CPU': order, **environment}, capture_output=True, text=True)
    result.text = result.stdout + result.stderr
    return result


@needs_ops
@pytest.mark.parametrize('order', [
    'shuffled:1', pytest.param('forward', marks=pytest.mark.slow), pytest.param('reversed', marks=pytest.mark.slow)])
def test_the_ops_tests_pass_over_the_cuda_kernels(order):
    result = run_tests(*(f'tests/{name}' for name in TESTS.values()), order=order)
    assert result.returncode == 0, result.text
    assert int(re.search(r'CUDA kernels on the CPU: (\d+) launches', result.text)[1]) > 1000


@needs_ops
@pytest.mark.parametrize('chosen', [
    'mask_rcnn and channels_last and not cascade', pytest.param('detectors', marks=pytest.mark.slow)])
def test_detectors_train_over_the_cuda_kernels(chosen):
    """Whole training steps and inference; the slow one: all kinds, bfloat16 too."""
    result = run_tests('tests/models/test_like_cuda.py', '-k', chosen)
    assert result.returncode == 0, result.text
    assert int(re.search(r'CUDA kernels on the CPU: (\d+) launches', result.text)[1]) > 50


@pytest.fixture
def sanitized() -> dict[str, str]:
    """The environment of a sanitized run: the sanitizers' libraries must come before Python's own."""
    paths = [subprocess.run(['g++', f'-print-file-name={name}'], capture_output=True, text=True).stdout.strip()
             for name in ('libasan.so', 'libubsan.so')]
    if not all(map(os.path.isabs, paths)):
        pytest.skip('g++ has no sanitizer libraries here')
    return dict(MMDET_SANITIZE='1', LD_PRELOAD=' '.join(paths), ASAN_OPTIONS='detect_leaks=0')


def test_shared_memory_read_out_of_bounds_is_found(sanitized):
    library = build({'kernels.cu': KERNELS}, torch=False, sanitize=True)
    code = 'import ctypes, sys; ctypes.CDLL(sys.argv[1]).launch(sys.argv[2].encode(), (ctypes.c_float * 64)())'
    for name, found in (('tree', False), ('beyond', True)):
        result = subprocess.run([sys.executable, '-c', code, str(library), name], env={**os.environ, **sanitized},
                                capture_output=True, text=True)
        assert ('heap-buffer-overflow' in result.stderr) == found == bool(result.stderr), result.stderr


@pytest.mark.slow
@needs_ops
def test_no_access_out_of_bounds(sanitized):
    """Global and shared memory under AddressSanitizer, arithmetic under UBSan."""
    result = run_tests(*(f'tests/{name}' for name in TESTS.values()), '-s', '-k',
                       'cpu and not compile and not opcheck and not gradcheck', **sanitized)
    assert result.returncode == 0 and 'runtime error' not in result.text, result.text


def barriers():
    for name in TESTS:
        for found in re.finditer(r'__syncthreads\(\);', (CUDA / name).read_text()):
            yield pytest.param(name, slice(*found.span()), '', id=f'{name}:{found.start()}')


def spot(name, text, replacement):
    start = (CUDA / name).read_text().index(text)
    return pytest.param(name, slice(start, start + len(text)), replacement, id=text)


@pytest.mark.slow
@needs_ops
@pytest.mark.parametrize('name, place, replacement', [
    *barriers(),
    spot('nms_cuda.cu', 'removed[v - first_word] = 0;', ';'),
    spot('nms_cuda.cu', 'parity ^= 1;', ''),
    spot('nms_cuda.cu', 'column_tile == row_tile ? t + 1 : 0', '0'),
    spot('roi_align_cuda.cu', 'j < i);', 'j <= i);'),
    spot('roi_align_cuda.cu', '3 * int64_t(bins)', 'int64_t(bins)'),
    spot('masks_cuda.cu', 'y += gridDim.y', 'y += gridDim.y + 1'),
])
def test_the_tests_notice(tmp_path, name, place, replacement):
    """Each barrier left out, and some other mistakes, turn the ops' tests red."""
    shutil.copytree(CUDA.parent, tmp_path / 'csrc')
    source = (CUDA / name).read_text()
    (tmp_path / 'csrc' / 'cuda' / name).write_text(source[:place.start] + replacement + source[place.stop:])
    result = run_tests(f'tests/{TESTS[name]}', '-x', kernels=tmp_path / 'csrc' / 'cuda')
    crashed = result.returncode < 0  # garbage taken for an index
    assert crashed or (result.returncode == 1 and '1 failed' in result.text), result.text
