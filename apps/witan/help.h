#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <string_view>

namespace witan {

// Columns of help texts.
inline constexpr int kHelpWidth = 80;

// `text` broken at spaces into lines of up to kHelpWidth columns. Line breaks of its own stay. The first line is taken
// to begin in column `indent`; every other one gets that many spaces before it.
std::string wrapped(std::string_view text, int indent);

// The layout of --help: usage with the required flags, then flags by group, with the default of each that takes a
// value.
std::shared_ptr<CLI::FormatterBase> make_help_formatter();

// CLI11's check for a range, without its addition to the help text. It refuses NaN.
template <typename T>
CLI::Validator in_range(T low, T high) {
  return CLI::Range(low, high).description("");
}

}  // namespace witan
