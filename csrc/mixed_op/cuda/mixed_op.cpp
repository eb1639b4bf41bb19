// The mixed operation on CUDA.
#include <torch/csrc/stable/library.h>

#include "mixed_op/cuda/device.h"
#include "mixed_op/operator.h"

namespace metadnas::mixed_op {

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, METADNAS_CUDA_KEY, m) {
  m.impl("mixed_op_forward", TORCH_BOX(&forward<Cuda>));
  m.impl("mixed_op_backward", TORCH_BOX(&backward<Cuda>));
}

}  // namespace metadnas::mixed_op
