// Torch's side: fresh CPU tensors hold garbage, so that a kernel which leaves its output unwritten is seen.

#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <cstring>

namespace cuda_on_cpu {

extern long launches;

namespace {

class GarbageAllocator final : public c10::Allocator {
 public:
  GarbageAllocator() : inner_(c10::GetCPUAllocator()) { c10::SetCPUAllocator(this, /*priority=*/1); }
  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr memory = inner_->allocate(bytes);
    if (bytes) std::memset(memory.get(), 0xff, bytes);  // NaN, -1
    return memory;
  }
  c10::DeleterFnPtr raw_deleter() const override { return inner_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  c10::Allocator* inner_;
};

GarbageAllocator garbage;

}  // namespace
}  // namespace cuda_on_cpu

TORCH_LIBRARY(cuda_on_cpu, m) { m.def("launches() -> int", [] { return int64_t(cuda_on_cpu::launches); }); }
