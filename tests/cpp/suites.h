// One function a suite.
#pragma once

namespace testing {

void test_discretize();
void test_mixed_op();
void test_plan();
void test_relu_conv_bn();
void test_row_optimizers();

}  // namespace testing
