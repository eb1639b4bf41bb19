// Runs the suites named on the command line, or all of them.
#include <chrono>
#include <cstdio>
#include <cstring>

#include "harness.h"
#include "suites.h"

int main(int count, char** names) {
  using namespace testing;
  const struct {
    const char* name;
    void (*run)();
  } suites[] = {{"plan", test_plan},
                {"discretize", test_discretize},
                {"row_optimizers", test_row_optimizers},
                {"relu_conv_bn", test_relu_conv_bn},
                {"mixed_op", test_mixed_op}};
  int run = 0;
  for (const auto& suite : suites) {
    bool wanted = count == 1;
    for (int i = 1; i < count; ++i) wanted |= std::strcmp(names[i], suite.name) == 0;
    if (!wanted) continue;
    const auto start = std::chrono::steady_clock::now();
    const int64_t before = comparisons;
    suite.run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%s: %lld comparisons, %.1f s\n", suite.name,
                static_cast<long long>(comparisons - before), seconds.count());
    ++run;
  }
  if (run == 0) std::fprintf(stderr, "no such suite\n");
  if (failures > 0) std::fprintf(stderr, "%d failures\n", failures);
  return run > 0 && failures == 0 ? 0 : 1;
}
