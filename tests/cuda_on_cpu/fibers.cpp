// The scheduler: blocks one after another, a block's threads as fibers.
//
// Each pass resumes every thread that is ready, in the order that CUDA_ON_CPU names (blocks are ordered likewise), until
// it returns or waits: forward, reversed, or shuffled:SEED, which draws an order anew and lets half the warps rest for
// about eight passes, so that others run ahead. Then whole warps and whole blocks that wait at one line are let go. When none can be, the GPU
// would hang: an error.

#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cuda_on_cpu.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {

long launches = 0;

namespace {

constexpr size_t kStack = 256 << 10;
constexpr unsigned kWarp = 32;

enum class State { ready, at_barrier, at_exchange, returned };
const char* const kDoing[] = {"ready", "at __syncthreads() of line ", "at a warp exchange of line ", "returned"};

using Place = void*[5];  // for __builtin_setjmp, which unlike swapcontext asks nothing of the kernel

struct Fiber {
  ucontext_t start;
  bool fresh = true;
  Place place;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state;
  int line;
  unsigned mask;  // of an exchange: who takes part,
  int from;       // whose value is wanted; -1: a bit from each
  uint64_t value, result;
};

std::vector<std::unique_ptr<Fiber>> fibers;  // kept between launches
std::map<const void*, size_t> granted;
std::map<int, std::pair<std::unique_ptr<char[]>, size_t>> shared_variables;  // each its own allocation, for ASan
Place scheduler;
unsigned current;
const char* kernel_name;
const std::function<void()>* body;
std::exception_ptr failure;
size_t dynamic_bytes, shared_limit;

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(std::string("CUDA on CPU: kernel ") + kernel_name + ": " + what);
}

struct Order {
  enum { forward, reversed, shuffled } kind = forward;
  std::mt19937_64 random;

  Order() {
    const char* variable = std::getenv("CUDA_ON_CPU");
    const std::string text = variable ? variable : "forward";
    if (text == "reversed") kind = reversed;
    else if (text.rfind("shuffled:", 0) == 0) kind = shuffled, random.seed(std::stoull(text.substr(9)));
    else if (text != "forward") fail("CUDA_ON_CPU must be forward, reversed or shuffled:SEED, not " + text);
  }
  void operator()(std::vector<unsigned>& numbers) {
    if (kind == reversed) std::sort(numbers.begin(), numbers.end(), std::greater<>());
    if (kind == shuffled) std::shuffle(numbers.begin(), numbers.end(), random);
  }
  uint32_t resting_warps() { return kind == shuffled ? random() : 0; }
};

std::vector<unsigned> count(size_t n) {
  std::vector<unsigned> numbers(n);
  std::iota(numbers.begin(), numbers.end(), 0u);
  return numbers;
}

uint3 place(unsigned i, const dim3& size) { return {i % size.x, i / size.x % size.y, i / size.x / size.y}; }

// Not instrumented: AddressSanitizer would take a jump for one within a stack.
#define SWITCH [[gnu::noinline, gnu::no_sanitize_address]] void

SWITCH jump(void** to) { __builtin_longjmp(to, 1); }

SWITCH enter(Fiber& fiber) {  // until the fiber leaves
  if (__builtin_setjmp(scheduler) != 0) return;
  if (!std::exchange(fiber.fresh, false)) jump(fiber.place);
  setcontext(&fiber.start);
}

SWITCH leave(Fiber& fiber) {  // until the scheduler enters it again
  if (__builtin_setjmp(fiber.place) == 0) jump(scheduler);
}

void fiber_main() {
  while (true) {
    try {
      (*body)();
    } catch (...) {
      failure = std::current_exception();
    }
    fibers[current]->state = State::returned;
    leave(*fibers[current]);
  }
}

void wait(State state, int line) {
  Fiber& fiber = *fibers[current];
  fiber.state = state, fiber.line = line;
  leave(fiber);
}

unsigned threads() { return blockDim.x * blockDim.y * blockDim.z; }
unsigned end_of_warp(unsigned t) { return std::min(t / kWarp * kWarp + kWarp, threads()); }

// Lets go the threads that all wait for one another; false: none does.
bool release() {
  bool any = false;
  const auto same = [&](unsigned t, State state, int line) {
    return fibers[t]->state == state && fibers[t]->line == line;
  };
  for (unsigned t = 0; t < threads(); ++t) {
    const auto [line, mask] = std::pair(fibers[t]->line, fibers[t]->mask);
    if (fibers[t]->state != State::at_exchange) continue;
    const unsigned first = t / kWarp * kWarp, end = end_of_warp(t);
    bool all = mask >> (t - first) & 1;
    for (unsigned u = first; u < end; ++u)
      all &= !(mask >> (u - first) & 1) || (same(u, State::at_exchange, line) && fibers[u]->mask == mask);
    if (!all) continue;
    uint64_t bits = 0;
    for (unsigned u = first; u < end; ++u)
      if (mask >> (u - first) & 1) bits |= uint64_t(fibers[u]->value != 0) << (u - first);
    for (unsigned u = first; u < end; ++u) {
      Fiber& fiber = *fibers[u];
      if (!(mask >> (u - first) & 1)) continue;
      if (fiber.from >= 0 && !(mask >> fiber.from & 1))
        fail("line " + std::to_string(line) + " reads lane " + std::to_string(fiber.from) + ", which takes no part");
      fiber.result = fiber.from < 0 ? bits : fibers[first + fiber.from]->value;
      fiber.state = State::ready;
    }
    any = true;
  }
  bool all = true;
  for (unsigned t = 0; t < threads(); ++t) all &= same(t, State::at_barrier, fibers[0]->line);
  if (all)
    for (unsigned t = 0; t < threads(); ++t) fibers[t]->state = State::ready;
  return any || all;
}

[[noreturn]] void report_hang() {
  std::map<std::string, int> groups;
  for (unsigned t = 0; t < threads(); ++t) {
    const bool waits = fibers[t]->state != State::returned;
    ++groups[kDoing[static_cast<int>(fibers[t]->state)] + (waits ? std::to_string(fibers[t]->line) : "")];
  }
  std::ostringstream text;
  text << "not all threads meet, a GPU may hang; of block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z
       << ")";
  for (const auto& [what, number] : groups) text << "; " << number << " threads " << what;
  fail(text.str());
}

void run_block(Order& order) {
  const unsigned n = threads();
  std::vector<unsigned> turns = count(n);
  shared_variables.clear();
  shared_memory(kDynamic, dynamic_bytes);
  for (unsigned t : turns) fibers[t]->state = State::ready;
  uint32_t resting = order.resting_warps();
  while (true) {
    order(turns);
    unsigned returned = 0, ready = 0, resumed = 0;
    for (unsigned t : turns) {
      ready += fibers[t]->state == State::ready;
      if (fibers[t]->state == State::ready && !(resting >> t / kWarp & 1)) {
        ++resumed;
        current = t;
        threadIdx = place(t, blockDim);
        enter(*fibers[t]);
        if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
      }
      returned += fibers[t]->state == State::returned;
    }
    if (returned == n) return;
    if (!release() && ready == 0) report_hang();
    if (resumed == 0 || order.random() % 8 == 0) resting = order.resting_warps();
  }
}

}  // namespace

void grant(const void* kernel, size_t bytes) {
  kernel_name = "of cudaFuncSetAttribute";
  if (bytes > kSharedOnRequest) fail(std::to_string(bytes) + " bytes of shared memory are more than a block can have");
  granted[kernel] = bytes;
}

unsigned lane() { return current % kWarp; }

void barrier(int line) { wait(State::at_barrier, line); }

uint64_t exchange(int line, unsigned mask, uint64_t value, int from) {
  Fiber& fiber = *fibers[current];
  const unsigned first = current / kWarp * kWarp, lanes = end_of_warp(current) - first;
  fiber.mask = lanes < kWarp ? mask & ((1u << lanes) - 1) : mask;  // a warp that the block does not fill
  fiber.value = value, fiber.from = from;
  wait(State::at_exchange, line);
  return fiber.result;
}

void* shared_memory(int variable, size_t bytes) {
  auto& [memory, size] = shared_variables[variable];
  if (!memory) {
    memory.reset(new char[bytes]);
    size = bytes;
    std::memset(memory.get(), 0xff, bytes);  // NaN, -1: what was there before is nobody's to read
    size_t total = 0;
    for (const auto& [number, other] : shared_variables) total += other.second;
    if (total > shared_limit)
      fail(std::to_string(total) + " bytes of shared memory, allowed are " + std::to_string(shared_limit) +
           " (cudaFuncSetAttribute grants up to " + std::to_string(kSharedOnRequest) + ")");
  }
  return memory.get();
}

void run(const char* name, const void* kernel, dim3 grid, dim3 block, size_t bytes, const std::function<void()>& function) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  kernel_name = name;
  const uint64_t size = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (size == 0 || size > 1024 || block.z > 64) fail("a block of " + std::to_string(size) + " threads");
  if (blocks == 0 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535)
    fail("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z));
  dynamic_bytes = bytes;
  const auto found = granted.find(kernel);
  shared_limit = std::max(kSharedByDefault, found == granted.end() ? 0 : found->second);
  while (fibers.size() < size) {
    auto& fiber = *fibers.emplace_back(std::make_unique<Fiber>());
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
  }
  Order order;
  std::vector<unsigned> numbers = count(blocks);
  order(numbers);
  blockDim = block, gridDim = grid, body = &function;
  ++launches;
  try {
    for (unsigned b : numbers) {
      blockIdx = place(b, grid);
      run_block(order);
    }
  } catch (...) {
    fibers.clear();  // some stand in the middle of the kernel
    shared_variables.clear();
    throw;
  }
  shared_variables.clear();
}

}  // namespace cuda_on_cpu
