// The mixed operation on the CPU.
#include <torch/csrc/stable/library.h>

#include "mixed_op/cpu/device.h"
#include "mixed_op/operator.h"

namespace metadnas::mixed_op {

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) {
  m.impl("mixed_op_forward", TORCH_BOX(&forward<Cpu>));
  m.impl("mixed_op_backward", TORCH_BOX(&backward<Cpu>));
}

}  // namespace metadnas::mixed_op
