// Argument checks of the operators: every message names the argument, what it is and what it should
// be.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace metadnas {

using torch::stable::Tensor;

// Throws the parts, one after the other, as a message. They are put together only then, and the
// message starts with the operator: STD_TORCH_CHECK would put a C++ function and file before it.
template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) [[likely]]
    return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// A shape as a part of a message: a view, like (2, 3).
struct ShapeText {
  const int64_t* sizes;
  size_t dims;
};

inline ShapeText shape_text(const Tensor& t) { return {t.sizes().data(), t.sizes().size()}; }

inline ShapeText shape_text(const std::vector<int64_t>& sizes) {
  return {sizes.data(), sizes.size()};
}

inline std::ostream& operator<<(std::ostream& out, const ShapeText& shape) {
  out << "(";
  for (size_t d = 0; d < shape.dims; ++d) out << (d ? ", " : "") << shape.sizes[d];
  return out << ")";
}

inline void check_shape(const char* op, const char* name, const Tensor& t,
                        const std::vector<int64_t>& wanted) {
  bool same = t.dim() == static_cast<int64_t>(wanted.size());
  for (size_t d = 0; same && d < wanted.size(); ++d) same = t.size(d) == wanted[d];
  check(same, op, ": ", name, " has shape ", shape_text(t), ", expected ", shape_text(wanted));
}

inline const char* dtype_text(torch::headeronly::ScalarType type) {
  return torch::headeronly::toString(type);
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() &&
         a.get_device_index() == b.get_device_index();
}

inline void check_device(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  check(same_device(t, x), op, ": ", name, " is not on the device of x");
}

// `why` ends the message: where the wanted dtype comes from.
inline void check_type(const char* op, const char* name, const Tensor& t,
                       torch::headeronly::ScalarType wanted, const char* why) {
  check(t.scalar_type() == wanted, op, ": ", name, " is ", dtype_text(t.scalar_type()),
        ", expected ", dtype_text(wanted), why);
}

// The same dtype and device as x.
inline void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  check_type(op, name, t, x.scalar_type(), " as x");
  check_device(op, name, t, x);
}

inline void check_floating(const char* op, const char* name, const Tensor& t) {
  const auto type = t.scalar_type();
  check(
      type == torch::headeronly::ScalarType::Float || type == torch::headeronly::ScalarType::Double,
      op, ": ", name, " is ", dtype_text(type), ", expected Float or Double");
}

inline bool is_half(const Tensor& t) {
  return t.scalar_type() == torch::headeronly::ScalarType::Half ||
         t.scalar_type() == torch::headeronly::ScalarType::BFloat16;
}

// What sums, statistics and parameters are beside activations x: Float where x is of half
// precision.
inline torch::headeronly::ScalarType wide_type(const Tensor& x) {
  return is_half(x) ? torch::headeronly::ScalarType::Float : x.scalar_type();
}

// Calls run.operator()<T>() for the element type of x, Float or Double.
template <class F>
void with_element_type(const Tensor& x, F&& run) {
  x.scalar_type() == torch::headeronly::ScalarType::Float ? run.template operator()<float>()
                                                          : run.template operator()<double>();
}

}  // namespace metadnas
