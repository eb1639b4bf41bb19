// Blocks one after another, their threads as fibers: a thread that waits hands over to the next
// one. A fiber whose thread ends runs the next thread itself, so a kernel without barriers stays on
// one stack.
//
// METADNAS_SHIM_ORDER=reverse runs blocks and threads from the last to the first, and makes copies
// that go on beside a thread as early as may be instead of as late: a result that depends on the
// order is a race.
#include "cuda_shim.h"

#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#error "the CUDA shim switches stacks in x86-64 assembly"
#endif

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

// Pushes the registers a function keeps, leaves the stack pointer in *from and goes on at `to`.
extern "C" __attribute__((visibility("hidden"))) void cuda_shim_switch(void** from, void* to);
asm(R"(
.text
.type cuda_shim_switch, @function
.globl cuda_shim_switch
.hidden cuda_shim_switch
cuda_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_shim_switch, . - cuda_shim_switch
)");

namespace cuda_shim {
namespace {

constexpr size_t kStack = 128 * 1024;
constexpr size_t kPage = 4096;
constexpr size_t kCanary = 256;
constexpr unsigned char kPoison = 0xff;  // NaN, and no sensible index

// Threads that wait for each other; each time all are there another generation begins.
struct Barrier {
  unsigned generation = 0;
  unsigned arrived = 0;
  Meeting meeting = Meeting::kBlock;
  bool any = false;
};

struct Lane {
  uint64_t value;
  int source;
  uint64_t result;
};

struct Warp {
  Barrier barriers[kWarpSize];  // of a mask: by its lowest lane
  Lane lanes[kWarpSize];
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  void* stack_pointer;
  std::vector<Copy> copies;  // under way
  unsigned thread;
  const Barrier* waits_for;  // null: running, or out of work
  unsigned generation;
};

// Stacks side by side, each above a page that must not be touched.
char* stacks() {
  static char* const memory = [] {
    void* all = mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    for (int i = 0; i < kMostThreads; ++i) {
      mprotect(static_cast<char*>(all) + i * kStack, kPage, PROT_NONE);
    }
    return static_cast<char*>(all);
  }();
  return memory;
}

class Block {
 public:
  void run(const Launch& launch, bool reverse) {
    launch_ = &launch;
    threads_ = launch.block.x * launch.block.y * launch.block.z;
    reverse_ = reverse;
    started_ = finished_ = fibers_ = 0;
    barrier_ = {};
    warps_.assign((threads_ + kWarpSize - 1) / kWarpSize, Warp{});
    forbid(0);
    std::memset(shared_, kPoison, launch.shared_bytes + kCanary);
    forbid(sizeof(shared_) - launch.shared_bytes);
    cuda_shim_switch(&scheduler_, new_fiber());
    forbid(0);
    if (!failure_.empty()) throw_failure();
    for (size_t i = 0; i < kCanary; ++i) {
      if (static_cast<unsigned char>(shared_[launch.shared_bytes + i]) == kPoison) continue;
      failure_ = "wrote behind its " + std::to_string(launch.shared_bytes) + " B of shared memory";
      throw_failure();
    }
  }

  bool meet_block(Meeting meeting, bool flag) {
    if (!arrive(barrier_, meeting, threads_, flag)) wait(barrier_);
    return any_;
  }

  uint64_t meet_warp(Meeting meeting, unsigned mask, uint64_t value, int source) {
    const unsigned own = fiber_->thread / kWarpSize;
    const unsigned first = own * kWarpSize;
    const unsigned count = threads_ - first < kWarpSize ? threads_ - first : kWarpSize;
    if (count < kWarpSize) mask &= (1u << count) - 1;
    Warp& warp = warps_[own];
    Lane& lane = warp.lanes[fiber_->thread - first];
    if ((mask >> (fiber_->thread - first) & 1) == 0) fail("a lane is not in the mask it came with");
    lane.value = value;
    lane.source = source;
    Barrier& barrier = warp.barriers[__builtin_ctz(mask)];
    if (arrive(barrier, meeting, static_cast<unsigned>(__builtin_popcount(mask)), false)) {
      exchange(warp, meeting, mask);
    } else {
      wait(barrier);
    }
    return lane.result;
  }

  int lane() const { return static_cast<int>(fiber_->thread % kWarpSize); }
  void* shared() { return shared_; }

  void copy_later(const Copy& copy) {
    const auto aligned = [&](const void* p) {
      return reinterpret_cast<uintptr_t>(p) % copy.bytes == 0;
    };
    if ((copy.bytes != 4 && copy.bytes != 8 && copy.bytes != 16) || !aligned(copy.to) ||
        !aligned(copy.from)) {
      fail("a copy of " + std::to_string(copy.bytes) + " B, expected 4, 8 or 16, aligned");
    }
    fiber_->copies.push_back(copy);
    if (reverse_) std::memcpy(copy.to, copy.from, copy.bytes);
  }
  void wait_for_copies() {
    if (!reverse_) {
      for (const Copy& copy : fiber_->copies) std::memcpy(copy.to, copy.from, copy.bytes);
    }
    fiber_->copies.clear();
  }

 private:
  // Of shared memory, the last `bytes` to whoever reads or writes them.
  void forbid([[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(shared_, sizeof(shared_) - bytes);
    __asan_poison_memory_region(shared_ + sizeof(shared_) - bytes, bytes);
#endif
  }

  // Whether everyone is there now.
  bool arrive(Barrier& barrier, Meeting meeting, unsigned expected, bool flag) {
    if (barrier.arrived == 0) {
      barrier.meeting = meeting;
      barrier.any = false;
    } else if (barrier.meeting != meeting) {
      fail("threads wait for each other in different functions");
    }
    barrier.any |= flag;
    if (++barrier.arrived < expected) return false;
    barrier.arrived = 0;
    ++barrier.generation;
    if (&barrier == &barrier_) any_ = barrier.any;
    return true;
  }

  // While every lane still waits: results are in place before the first one can come again.
  static void exchange(Warp& warp, Meeting meeting, unsigned mask) {
    if (meeting == Meeting::kWarp) return;
    uint64_t flags = 0;
    for (int i = 0; i < kWarpSize; ++i) {
      if ((mask >> i & 1) != 0 && warp.lanes[i].value != 0) flags |= uint64_t{1} << i;
    }
    for (int i = 0; i < kWarpSize; ++i) {
      if ((mask >> i & 1) == 0) continue;
      Lane& lane = warp.lanes[i];
      lane.result = meeting == Meeting::kBallot      ? flags
                    : (mask >> lane.source & 1) != 0 ? warp.lanes[lane.source].value
                                                     : ~uint64_t{0};  // nobody there
    }
  }

  void wait(const Barrier& barrier) {
    Fiber* const self = fiber_;
    self->waits_for = &barrier;
    self->generation = barrier.generation;
    hand_over(&self->stack_pointer);
    fiber_ = self;
    self->waits_for = nullptr;
    set_index(self->thread);
  }

  // To a new thread if there is one, else to the next that need not wait any more.
  void hand_over(void** from) {
    if (started_ < threads_) return cuda_shim_switch(from, new_fiber());
    const unsigned own = static_cast<unsigned>(fiber_ - all_);
    for (unsigned i = 1; i <= fibers_; ++i) {
      Fiber& other = all_[(own + i) % fibers_];
      if (other.waits_for == nullptr || other.waits_for->generation == other.generation) continue;
      return cuda_shim_switch(from, other.stack_pointer);
    }
    fail(std::to_string(finished_) + " of " + std::to_string(threads_) +
         " threads ended, the others wait for ones that do not come");
  }

  void* new_fiber() {
    Fiber& fiber = all_[fibers_++];
    fiber.waits_for = nullptr;
    fiber.copies.clear();
    fiber_ = &fiber;
    auto** top = reinterpret_cast<void**>(stacks() + fibers_ * kStack);
    top[-2] = reinterpret_cast<void*>(&fiber_main);  // where the first switch returns to
    return top - 8;                                  // six registers below it
  }

  static void fiber_main();

  void run_threads() {
    Fiber& self = *fiber_;
    while (started_ < threads_) {
      const unsigned next = started_++;
      self.thread = reverse_ ? threads_ - 1 - next : next;
      set_index(self.thread);
      launch_->thread(launch_->kernel, launch_->params);
      fiber_ = &self;
      if (!self.copies.empty()) fail("a thread ended without waiting for its copies");
      ++finished_;
    }
    void* nowhere;
    if (finished_ == threads_) {
      cuda_shim_switch(&nowhere, scheduler_);
    } else {
      hand_over(&nowhere);
    }
  }

  void set_index(unsigned thread) const {
    threadIdx.x = thread % launch_->block.x;
    threadIdx.y = thread / launch_->block.x % launch_->block.y;
    threadIdx.z = thread / launch_->block.x / launch_->block.y;
  }

  // The other fibers are never resumed: nothing that a kernel holds needs a destructor.
  [[noreturn]] void fail(std::string what) {
    failure_ = std::move(what);
    void* nowhere;
    cuda_shim_switch(&nowhere, scheduler_);
    __builtin_unreachable();
  }

  [[noreturn]] void throw_failure() {
    const std::string text = failure_ + ", in block (" + std::to_string(blockIdx.x) + ", " +
                             std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) +
                             ") of " + launch_->name;
    failure_.clear();
    throw std::runtime_error("CUDA shim: " + text);
  }

  const Launch* launch_ = nullptr;
  unsigned threads_ = 0;
  unsigned started_ = 0;
  unsigned finished_ = 0;
  unsigned fibers_ = 0;
  bool reverse_ = false;
  bool any_ = false;
  Fiber* fiber_ = nullptr;
  void* scheduler_ = nullptr;
  Fiber all_[kMostThreads];
  Barrier barrier_;
  std::vector<Warp> warps_;
  std::string failure_;
  alignas(128) char shared_[kMostShared + kCanary];
};

Block& block() {
  static Block* const instance = new Block;
  return *instance;
}

void Block::fiber_main() { block().run_threads(); }

void check(const Launch& launch) {
  const dim3 &g = launch.grid, &b = launch.block;
  const uint64_t threads = uint64_t{b.x} * b.y * b.z;
  if (threads == 0 || threads > kMostThreads || b.z > 64 || g.x > 0x7fffffffu || g.y > 65535 ||
      g.z > 65535 || launch.shared_bytes > kMostShared) {
    throw std::runtime_error(
        "CUDA shim: invalid configuration: " + std::to_string(threads) + " threads, grid (" +
        std::to_string(g.x) + ", " + std::to_string(g.y) + ", " + std::to_string(g.z) + "), " +
        std::to_string(launch.shared_bytes) + " B of shared memory, of " + launch.name);
  }
}

}  // namespace

void run(const Launch& launch) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  check(launch);
  const char* order = std::getenv("METADNAS_SHIM_ORDER");
  const bool reverse = order != nullptr && std::string(order) == "reverse";
  blockDim = launch.block;
  gridDim = launch.grid;
  const uint64_t blocks = uint64_t{gridDim.x} * gridDim.y * gridDim.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t at = reverse ? blocks - 1 - i : i;
    blockIdx.x = static_cast<unsigned>(at % gridDim.x);
    blockIdx.y = static_cast<unsigned>(at / gridDim.x % gridDim.y);
    blockIdx.z = static_cast<unsigned>(at / gridDim.x / gridDim.y);
    block().run(launch, reverse);
  }
}

void* shared_memory() { return block().shared(); }
bool meet_block(Meeting meeting, bool flag) { return block().meet_block(meeting, flag); }
uint64_t meet_warp(Meeting meeting, unsigned mask, uint64_t value, int source) {
  return block().meet_warp(meeting, mask, value, source);
}
int lane() { return block().lane(); }
void copy_later(void* to, const void* from, size_t bytes) { block().copy_later({to, from, bytes}); }
void wait_for_copies() { block().wait_for_copies(); }

}  // namespace cuda_shim
