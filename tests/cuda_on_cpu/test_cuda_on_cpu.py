"""The CUDA kernels pass the tests of the ops on the CPU, and the emulator that runs them notices what it should."""

import ctypes
import math
import os
import re
import subprocess
import sys

import pytest
from cuda_on_cpu.build import ROOT, build, translate

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
  __shared__ float values[64];
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
    else if (message == "beyond") beyond<<<1, 64>>>(out, 1);
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


def run_tests(*arguments, order='forward', **environment):
    """The ops' own tests over the CUDA kernels, in another process."""
    names = 'ops/test_roi_align', 'ops/test_nms', 'ops/test_mask_ops', 'layers/test_cbn_compiled'
    tests = [f'tests/{name}.py' for name in names]
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', 'not slow', *tests, *arguments],
        cwd=ROOT, env={**os.environ, 'CUDA_ON_CPU': order, **environment}, capture_output=True, text=True)
    launches = re.search(r'CUDA kernels on the CPU: (\d+) launches', result.stdout)
    assert launches and int(launches[1]) > 100, result.stdout + result.stderr
    return result


@pytest.mark.skipif(not COMPILED, reason='the compiled ops are missing')
@pytest.mark.parametrize('order', ['forward', 'shuffled:1'])
def test_the_ops_tests_pass_over_the_cuda_kernels(order):
    result = run_tests(order=order)
    assert result.returncode == 0, result.stdout + result.stderr
