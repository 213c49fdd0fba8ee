// Large results in fresh memory.
#pragma once

#include <ATen/core/Tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace mmdet {

// A page fault per 4 kB of fresh memory takes as long as filling it. Ask for large pages, where the system has them, before
// the first write.
inline void prefer_large_pages(const at::Tensor& fresh) {
#ifdef __linux__
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(fresh.data_ptr()) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(fresh.data_ptr()) + fresh.nbytes()) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace mmdet
