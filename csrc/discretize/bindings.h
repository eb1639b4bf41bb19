#pragma once

#include <pybind11/pybind11.h>

namespace metadnas {

// Adds `discretize_solve` to the extension module.
void bind_discretize(pybind11::module_& m);

}  // namespace metadnas
