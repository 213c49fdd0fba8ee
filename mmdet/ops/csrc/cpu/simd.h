// Runtime dispatch: a kernel file is included once per instruction set, each time in its own namespace, and
// MMDET_DISPATCH calls the best one this processor has. Distributed builds need no -march.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define MMDET_X86_DISPATCH 1
#define MMDET_DISPATCH(...)                                                                        \
  (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? mmdet::avx2::__VA_ARGS__ \
                                                                   : mmdet::base::__VA_ARGS__)
#else
#define MMDET_X86_DISPATCH 0
#define MMDET_DISPATCH(...) mmdet::base::__VA_ARGS__
#endif
