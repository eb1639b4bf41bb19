// The catalogue: every operator's schema, and the Python module `_C` for what is not a tensor.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "common/isa.h"
#include "common/pool.h"
#include "discretize/bindings.h"

STABLE_TORCH_LIBRARY(metadnas_ext, m) {
  // x (G, N, H, W, C), weights (G, O), params (G, P), running (G, S, 2, C) in eval mode, counts (G)
  // -> out (G, N, H', W', C), stats (G, S, 2, C), z (U, G, N, H', W', C): the pointwise results
  // that keep (0: all, 1: those between two convolutions, 2: none) leaves to the backward pass
  m.def(
      "mixed_op_forward(Tensor x, Tensor weights, Tensor params, Tensor? running, Tensor? counts, "
      "int[] candidates, int stride, bool affine, float eps, int keep) -> (Tensor, Tensor, "
      "Tensor)");
  // -> gradients of x, weights, params; (0) where not needed
  m.def(
      "mixed_op_backward(Tensor grad_out, Tensor x, Tensor weights, Tensor params, Tensor stats, "
      "Tensor z, Tensor? counts, int[] candidates, int stride, bool affine, float eps, int keep, "
      "bool training, bool need_x, bool need_params) -> (Tensor, Tensor, Tensor)");
  // A cell of mixed operations: s0, s1 (G, N, H, W, C), weights (G, E, O), params (G, P), edges
  // from state sources[e] to node targets[e] with candidates[e * O] on
  // -> out (G, N, H', W', nodes * C), stats (G, S, 2, C), z (U, G, N, H', W', C)
  m.def(
      "cell_forward(Tensor s0, Tensor s1, Tensor weights, Tensor params, Tensor? running, "
      "Tensor? counts, int[] sources, int[] targets, int[] candidates, bool reduction, "
      "bool affine, float eps, int keep) -> (Tensor, Tensor, Tensor)");
  // -> gradients of s0, s1, weights, params; (0) where not needed
  m.def(
      "cell_backward(Tensor grad_out, Tensor s0, Tensor s1, Tensor weights, Tensor params, "
      "Tensor out, Tensor stats, Tensor z, Tensor? counts, int[] sources, int[] targets, "
      "int[] candidates, bool reduction, bool affine, float eps, int keep, bool training, "
      "bool need_s0, bool need_s1, bool need_params) -> (Tensor, Tensor, Tensor, Tensor)");

  // x (G, N, H, W, Cin), params (G, P), running (G, 1, 2, C) in eval mode, counts (G)
  // -> out (G, N, H', W', C), stats (G, 1, 2, C), normal: out before gamma and beta (affine only)
  m.def(
      "relu_conv_bn_forward(Tensor x, Tensor params, Tensor? running, Tensor? counts, "
      "int channels, int stride, bool relu, bool affine, float eps) -> (Tensor, Tensor, Tensor)");
  // -> gradients of x and params; empty (0) where not needed
  m.def(
      "relu_conv_bn_backward(Tensor grad_out, Tensor x, Tensor params, Tensor stats, "
      "Tensor normal, Tensor? counts, int channels, int stride, bool relu, bool affine, "
      "float eps, bool training, bool need_x, bool need_params) -> (Tensor, Tensor)");

  // In place on the first k rows: rows, moments (G, ...), grad (k, ...), steps (G), rates of length
  // k; clip: largest norm of a row of grad, 0 for none
  m.def(
      "adam_rows_(Tensor(a!) rows, Tensor grad, Tensor(b!) mean, Tensor(c!) square, "
      "Tensor(d!) steps, float lr, float beta1, float beta2, float weight_decay, float eps, "
      "float clip) -> ()");
  m.def(
      "sgd_rows_(Tensor(a!) rows, Tensor grad, Tensor(b!) velocity, float[] rates, "
      "float momentum, float weight_decay, float clip) -> ()");

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
  m.def("pool_idle_bytes", &metadnas::pool_idle_bytes,
        "Bytes of results' memory that are kept for the next ones and not in use.");
  m.def("pool_release", &metadnas::pool_release,
        "Gives the idle bytes back to the system; returns their number.",
        pybind11::call_guard<pybind11::gil_scoped_release>());
  metadnas::bind_discretize(m);
}
