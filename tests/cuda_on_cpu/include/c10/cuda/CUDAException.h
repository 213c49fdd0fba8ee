#pragma once
#include "cuda_on_cpu.h"

#define C10_CUDA_CHECK(expression) static_cast<void>(expression)  // what can fail here throws
#define C10_CUDA_KERNEL_LAUNCH_CHECK() static_cast<void>(0)
