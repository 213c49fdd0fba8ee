#pragma once
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace at::cuda {

using c10::cuda::getCurrentCUDAStream;
struct cudaDeviceProp { int multiProcessorCount = 132, maxThreadsPerMultiProcessor = 2048, warpSize = 32; };  // H200
inline const cudaDeviceProp* getCurrentDeviceProperties() {
  static const cudaDeviceProp properties;
  return &properties;
}

}  // namespace at::cuda
