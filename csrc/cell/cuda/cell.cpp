// Cells on CUDA.
#include <torch/csrc/stable/library.h>

#include "cell/operator.h"
#include "mixed_op/cuda/device.h"

namespace metadnas::cell {

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, METADNAS_CUDA_KEY, m) {
  m.impl("cell_forward", TORCH_BOX(&forward<mixed_op::Cuda>));
  m.impl("cell_backward", TORCH_BOX(&backward<mixed_op::Cuda>));
}

}  // namespace metadnas::cell
