#pragma once

#include <fmt/format.h>

#include <string>

namespace witan {

// Prints the message with its place and aborts.
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

}  // namespace witan

// A condition that only a bug in Witan can break; never reachable from input. Extra arguments: a fmt format string
// and values to print. Stays on in release builds, so keep it out of inner loops.
#define WITAN_CHECK(condition, ...)                                                         \
  do {                                                                                      \
    if (!(condition)) [[unlikely]]                                                          \
      ::witan::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (false)
