// Sums over a client's chunks, channel by channel, by one block, in an order that depends on the
// chunks that count alone.
#pragma once

#include "common/cuda/runtime.h"

namespace metadnas::relu_conv_bn {

// Threads are [lane][channel]: lanes take every kLanes-th chunk.
struct ChannelSums {
  static constexpr int kChannels = 32;
  static constexpr int kLanes = 16;
  static constexpr int kThreads = kChannels * kLanes;

  double (*scratch)[kChannels];  // kLanes rows of shared memory

  static __device__ __forceinline__ int channel() { return threadIdx.x % kChannels; }
  static __device__ __forceinline__ int lane() { return threadIdx.x / kChannels; }

  // Sum of value(chunk) over the chunks for this thread's channel; every lane gets it.
  template <class Value>
  __device__ __forceinline__ double of(int64_t chunks, Value&& value) const {
    double own = 0;
    for (int64_t chunk = lane(); chunk < chunks; chunk += kLanes) own += value(chunk);
    __syncthreads();
    scratch[lane()][channel()] = own;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += scratch[i][channel()];
    return sum;
  }
};

}  // namespace metadnas::relu_conv_bn
