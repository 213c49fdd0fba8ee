// What of CUDA's language and runtime mmdet's kernels use, for g++ (see build.py). A launch runs one block after
// another; the threads of a block are fibers that switch at barriers and warp exchanges and nowhere else.
#pragma once

#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

using std::isfinite, std::isinf, std::isnan;

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

constexpr size_t kSharedByDefault = 48 << 10, kSharedOnRequest = 227 << 10;  // bytes a block, compute capability 9.0
constexpr size_t kParameters = 4 << 10;
constexpr int kDynamic = -1;

void run(const char* name, const void* kernel, dim3 grid, dim3 block, size_t bytes, const std::function<void()>& body);
void grant(const void* kernel, size_t bytes);
void* shared_memory(int variable, size_t bytes);
void barrier(int line);
uint64_t exchange(int line, unsigned mask, uint64_t value, int lane);  // what `lane` of the warp brought
unsigned lane();

// kernel<<<grid, block, bytes, stream>>>(...) becomes launch("kernel", kernel, grid, block, bytes, stream)(...)
template <typename... P>
auto launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes = 0, cudaStream_t = nullptr) {
  static_assert((sizeof(P) + ... + 0) <= kParameters, "kernel parameters beyond 4 KiB");
  return [=](P... arguments) {
    run(name, reinterpret_cast<const void*>(kernel), grid, block, bytes, [&] { kernel(arguments...); });
  };
}

template <typename V>
V& shared(int variable) { return *static_cast<V*>(shared_memory(variable, sizeof(V))); }
template <typename T>
T* dynamic_shared() { return static_cast<T*>(shared_memory(kDynamic, 0)); }

template <typename T>
T read(int line, unsigned mask, T value, int from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(line, mask, bits, from);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <typename T>
T shfl(int line, unsigned mask, T value, int source, int width = 32) {
  return read(line, mask, value, lane() / width * width + source % width);
}
template <typename T>
T shfl_down(int line, unsigned mask, T value, unsigned delta, int width = 32) {
  return read(line, mask, value, lane() % width + delta < unsigned(width) ? lane() + delta : lane());
}
template <typename T>
T shfl_up(int line, unsigned mask, T value, unsigned delta, int width = 32) {
  return read(line, mask, value, lane() % width >= delta ? lane() - delta : lane());
}
template <typename T>
T shfl_xor(int line, unsigned mask, T value, int bits, int width = 32) {
  const unsigned from = lane() ^ bits;
  return read(line, mask, value, from / width <= lane() / width ? from : lane());
}
inline void sync_warp(int line, unsigned mask = ~0u) { exchange(line, mask, 0, -1); }
inline unsigned ballot(int line, unsigned mask, bool predicate) {
  return static_cast<unsigned>(exchange(line, mask, predicate, -1));
}

}  // namespace cuda_on_cpu

#define __syncthreads() cuda_on_cpu::barrier(__LINE__)
#define __syncwarp(...) cuda_on_cpu::sync_warp(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) cuda_on_cpu::shfl(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) cuda_on_cpu::shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) cuda_on_cpu::shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) cuda_on_cpu::shfl_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, ...) cuda_on_cpu::ballot(__LINE__, mask, __VA_ARGS__)
#define __any_sync(mask, ...) (__ballot_sync(mask, __VA_ARGS__) != 0)
#define __all_sync(mask, ...) (__ballot_sync(mask, !(__VA_ARGS__)) == 0)

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) { return std::common_type_t<A, B>(b) < a ? b : a; }
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) { return a < std::common_type_t<A, B>(b) ? b : a; }
template <typename T>
T rsqrt(T x) { return T(1) / std::sqrt(x); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(bits) : 32; }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __ldg(const T* at) { return *at; }
template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = old + value;
  return old;
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = old < value ? value : old;
  return old;
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = old | value;
  return old;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  cuda_on_cpu::grant(reinterpret_cast<const void*>(kernel), bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = cuda_on_cpu::kSharedOnRequest;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}
