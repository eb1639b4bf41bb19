// The clients' weight matrices in the order the register tiles read them.
#pragma once

#include "relu_conv_bn/cpu/context.h"

namespace metadnas::METADNAS_ISA::relu_conv_bn {

enum class Direction { kForward, kBackward };  // (in, out) or (out, in) matrices

// One matrix per client and grid.
template <class T>
class PackedWeights {
 public:
  PackedWeights(const Shape& shape, Direction direction)
      : shape_(shape), forward_(direction == Direction::kForward) {}

  int64_t size() const { return shape_.clients * shape_.grids() * of(0, 0).size(); }

  void pack(const Context<T>& context, T* memory) {
    data_ = memory;
    parallel_for_each(shape_.clients * shape_.grids(), [&](int64_t i) {
      const int grid = static_cast<int>(i % shape_.grids());
      const PanelMatrix<T> to = of(i / shape_.grids(), grid);
      __builtin_memset(to.data, 0, static_cast<size_t>(to.size()) * sizeof(T));
      const T* from =
          context.params(i / shape_.grids()) + grid * (shape_.weights() / shape_.grids());
      for (int out = 0; out < shape_.grid_channels(); ++out) {
        for (int in = 0; in < shape_.in_channels; ++in) {
          (forward_ ? to.at(in, out) : to.at(out, in)) = *from++;
        }
      }
    });
  }

  PanelMatrix<T> of(int64_t client, int grid) const {
    PanelMatrix<T> matrix{nullptr, shape_.in_channels, shape_.grid_channels()};
    if (!forward_) matrix = {nullptr, matrix.columns, matrix.rows};
    if (data_) matrix.data = data_ + (client * shape_.grids() + grid) * matrix.size();
    return matrix;
  }

 private:
  const Shape& shape_;
  bool forward_;
  T* data_ = nullptr;
};

}  // namespace metadnas::METADNAS_ISA::relu_conv_bn
