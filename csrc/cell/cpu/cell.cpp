// Cells on the CPU.
#include <torch/csrc/stable/library.h>

#include "cell/operator.h"
#include "mixed_op/cpu/device.h"

namespace metadnas::cell {

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) {
  m.impl("cell_forward", TORCH_BOX(&forward<mixed_op::Cpu>));
  m.impl("cell_backward", TORCH_BOX(&backward<mixed_op::Cpu>));
}

}  // namespace metadnas::cell
