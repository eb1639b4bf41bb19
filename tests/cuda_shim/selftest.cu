// The shim's own tests: kernels whose results are known, and kernels that are wrong.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "common/cuda/copy.cuh"
#include "common/cuda/divisor.h"
#include "common/cuda/runtime.h"

namespace {

using metadnas::cuda::kAllLanes;
using metadnas::cuda::launch;
using metadnas::cuda::shared_memory;

int failures = 0;

void expect(bool holds, const char* what) {
  if (!holds) std::printf("FAILED: %s\n", what), ++failures;
}

void expect_error(const char* part, const std::function<void()>& run) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    if (std::string(error.what()).find(part) != std::string::npos) return;
    std::printf("%s\n", error.what());
  }
  expect(false, part);
}

struct Params {
  int* out;
  int count;
};

// Reads what another thread wrote before a barrier, several times.
__global__ void rotate(Params p) {
  int* values = shared_memory<int>();
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  values[t] = t;
  for (int i = 0; i < p.count; ++i) {
    __syncthreads();
    const int next = values[(t + 1) % n];
    __syncthreads();
    values[t] = next;
  }
  p.out[blockIdx.x * n + t] = values[t];
}

void test_barriers() {
  for (const int n : {1, 31, 32, 33, 256, 1024}) {
    std::vector<int> out(static_cast<size_t>(3 * n));
    launch(rotate, 3, n, n * sizeof(int), nullptr, Params{out.data(), 5});
    bool same = true;
    for (int i = 0; i < 3 * n; ++i) same &= out[i] == (i % n + 5) % n;
    expect(same, "barriers");
  }
}

__global__ void warp_sums(Params p) {
  const int t = static_cast<int>(threadIdx.x);
  int sum = t;
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kAllLanes, sum, bits);
  const int after = __shfl_down_sync(kAllLanes, t, 1);
  const int third = __shfl_sync(kAllLanes, t, 3);
  const unsigned odd = __ballot_sync(kAllLanes, t % 2);
  const int half = __shfl_xor_sync(t % 32 < 16 ? 0xffffu : 0xffff0000u, t, 1);
  const bool held = after == (t % 32 == 31 ? t : t + 1) && third == t / 32 * 32 + 3 &&
                    odd == 0xaaaaaaaau && half == (t ^ 1);
  p.out[t] = held ? sum : -1;
}

void test_shuffles() {
  std::vector<int> out(128);
  launch(warp_sums, 1, 128, 0, nullptr, {out.data(), 0});
  for (int t = 0; t < 128; ++t) expect(out[t] == t / 32 * 1024 + 496, "shuffles");
}

__global__ void count_places(Params p) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  atomicAdd(p.out + block * p.count + thread, 1);
}

void test_grids() {
  std::vector<int> out(2 * 3 * 4 * 30);
  launch(count_places, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, {out.data(), 30});
  for (const int n : out) expect(n == 1, "grids");
  launch(count_places, dim3(0, 3), 32, 0, nullptr, {nullptr, 0});  // nothing to do
}

__global__ void any_flag(Params p) {
  const int t = static_cast<int>(threadIdx.x);
  p.out[t] = 2 * __syncthreads_or(t == p.count) + __syncthreads_or(false);
}

void test_flags() {
  for (const int flag : {3, 99}) {
    std::vector<int> out(64);
    launch(any_flag, 1, 64, 0, nullptr, {out.data(), flag});
    for (const int n : out) expect(n == (flag < 64 ? 2 : 0), "flags");
  }
}

// The barrier between writing and reading is missing.
__global__ void racing(Params p) {
  int* values = shared_memory<int>();
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  values[t] = t;
  p.out[t] = values[(t + 1) % n];
}

void test_a_race_shows() {
  std::vector<int> out(64);
  launch(racing, 1, 64, 64 * sizeof(int), nullptr, {out.data(), 0});
  expect(out[0] == -1 || out[63] == -1, "shared memory that nobody has written yet is poison");
}

// Everyone reads what a neighbour has copied; count: whether it has waited for it before.
__global__ void copies(Params p) {
  int* values = shared_memory<int>();
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  metadnas::cuda::copy_async(values + t, p.out + t);
  if (p.count > 0) metadnas::cuda::wait_for_copies();
  __syncthreads();
  const int next = values[(t + 1) % n];
  __syncthreads();
  metadnas::cuda::wait_for_copies();
  p.out[t] = next;
}

void test_copies() {
  bool seen = false;
  for (const int waits : {0, 1}) {
    std::vector<int> out(64);
    for (int i = 0; i < 64; ++i) out[i] = i;
    launch(copies, 1, 64, 64 * sizeof(int), nullptr, {out.data(), waits});
    for (int i = 0; i < 64; ++i) {
      expect(out[i] == (i + 1) % 64 || (!waits && out[i] == -1), "copies");
    }
    seen |= out[0] == -1;
  }
  const char* order = std::getenv("METADNAS_SHIM_ORDER");
  expect(seen == (order == nullptr || std::string(order) != "reverse"), "a copy made early");
}

__global__ void leaves_copies(Params p) { metadnas::cuda::copy_async(shared_memory<int>(), p.out); }

void test_divisors() {
  for (const int d : {1, 2, 3, 5, 7, 8, 16, 20, 24, 31, 100, 1000, 46341}) {
    const auto divisor = metadnas::cuda::make_divisor(d);
    const auto same = [&](int n) { return n / divisor == n / d && n % divisor == n % d; };
    bool all = true;
    for (int n = 0; n < 4 * d; ++n) all &= same(n);
    const int most = 0x7fffffff / d;  // n * d < 2^31
    for (int n = most; n > most - 4 * d && n >= 0; --n) all &= same(n);
    expect(all, "divisors");
  }
}

__global__ void leaves_early(Params) {
  if (threadIdx.x > 3) return;
  __syncthreads();
}

__global__ void parts_ways(Params) {
  if (threadIdx.x % 2) {
    __syncwarp();
  } else {
    __shfl_sync(kAllLanes, 1, 0);
  }
}

__global__ void writes_behind(Params p) { shared_memory<int>()[p.count] = 1; }

void test_wrong_kernels_are_named() {
  expect_error("4 of 8 threads ended", [] { launch(leaves_early, 1, 8, 0, nullptr, {}); });
  expect_error("in different functions", [] { launch(parts_ways, 1, 8, 0, nullptr, {}); });
  expect_error("wrote behind its 16 B", [] { launch(writes_behind, 1, 1, 16, nullptr, {{}, 4}); });
  int value = 0;
  expect_error("without waiting for its copies",
               [&] { launch(leaves_copies, 1, 1, 4, nullptr, {&value, 0}); });
  expect_error("1025 threads", [] { launch(leaves_early, 1, 1025, 0, nullptr, {}); });
  test_barriers();  // and the next launch is none the worse for it
}

}  // namespace

int main() {
  test_barriers();
  test_shuffles();
  test_grids();
  test_flags();
  test_a_race_shows();
  test_copies();
  test_divisors();
  test_wrong_kernels_are_named();
  std::printf(failures ? "%d failures\n" : "all passed\n", failures);
  return failures != 0;
}
