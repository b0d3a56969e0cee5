// What all bindings check their arrays with.
#pragma once

#include <stdexcept>

inline void need(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}
