// Reverse-mode differentiation one number at a time: the truth's plain loops give every gradient.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace testing {

struct TapeNode {
  int32_t of[2];
  double slope[2];
};
inline std::vector<TapeNode> tape;

struct Var {
  double v = 0;
  int32_t id = -1;  // -1: a constant

  Var() = default;
  Var(double value) : v(value) {}  // NOLINT: constants in formulas
  Var(double value, int32_t id) : v(value), id(id) {}

  static Var leaf(double value) {
    tape.push_back({{-1, -1}, {0, 0}});
    return {value, static_cast<int32_t>(tape.size()) - 1};
  }
  static Var made(double value, Var a, double da, Var b, double db) {
    if (a.id < 0 && b.id < 0) return value;
    tape.push_back({{a.id, b.id}, {da, db}});
    return {value, static_cast<int32_t>(tape.size()) - 1};
  }
};

inline Var operator+(Var a, Var b) { return Var::made(a.v + b.v, a, 1, b, 1); }
inline Var operator-(Var a, Var b) { return Var::made(a.v - b.v, a, 1, b, -1); }
inline Var operator*(Var a, Var b) { return Var::made(a.v * b.v, a, b.v, b, a.v); }
inline Var operator/(Var a, Var b) {
  return Var::made(a.v / b.v, a, 1 / b.v, b, -a.v / (b.v * b.v));
}
inline Var& operator+=(Var& a, Var b) { return a = a + b; }
inline Var sqrt(Var a) {
  const double root = std::sqrt(a.v);
  return Var::made(root, a, 0.5 / root, {}, 0);
}

inline double value(double x) { return x; }
inline double value(Var x) { return x.v; }

// Of `of` with respect to every number on the tape.
inline std::vector<double> gradients(Var of) {
  std::vector<double> grad(tape.size());
  if (of.id >= 0) grad[static_cast<size_t>(of.id)] = 1;
  for (size_t i = tape.size(); i-- > 0;) {
    for (int k = 0; k < 2; ++k) {
      if (tape[i].of[k] >= 0) {
        grad[static_cast<size_t>(tape[i].of[k])] += grad[i] * tape[i].slope[k];
      }
    }
  }
  return grad;
}

}  // namespace testing
