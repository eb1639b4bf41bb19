// The catalogue: every operator's schema, and the Python module `_C` for what is not a tensor.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "discretize/bindings.h"
#include "mixed_op/cpu/isa.h"

STABLE_TORCH_LIBRARY(metadnas_ext, m) {
  // x (G, N, H, W, C), weights (G, O), params (G, P), running (G, S, 2, C) in eval mode, counts (G)
  // -> out (G, N, H', W', C), stats (G, S, 2, C), z (U, G, N, H', W', C)
  m.def(
      "mixed_op_forward(Tensor x, Tensor weights, Tensor params, Tensor? running, Tensor? counts, "
      "int[] candidates, int stride, bool affine, float eps) -> (Tensor, Tensor, Tensor)");
  // -> gradients of x, weights, params
  m.def(
      "mixed_op_backward(Tensor grad_out, Tensor x, Tensor weights, Tensor params, Tensor stats, "
      "Tensor z, Tensor? counts, int[] candidates, int stride, bool affine, float eps, "
      "bool training) -> (Tensor, Tensor, Tensor)");
  // x (G, ...), weights (G) -> (...)
  m.def("weighted_mean(Tensor x, Tensor weights) -> Tensor");
  // x (G, ...), weights (M, G) -> (M, ...): a weighted mean for each row of weights
  m.def("mixtures(Tensor x, Tensor weights) -> Tensor");
  // x (G, ...) -> (...): mean of the values of rank begin to end - 1 over the clients
  m.def("rank_mean(Tensor x, int begin, int end) -> Tensor");
  // x (G, ...), origin (...) -> (G, G) float64: products of the clients about the origin
  m.def("gram(Tensor x, Tensor origin) -> Tensor");
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native code of metadnas_ext that is not a tensor operator.";
  m.def("cpu_isa", &metadnas::cpu_isa, "Instruction set the CPU kernels run on.");
  m.attr("compiler") = __VERSION__;
  metadnas::bind_discretize(m);
}
