#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace witan {

// Columns of help texts.
inline constexpr int kHelpWidth = 80;

// `text` broken at spaces into lines of up to kHelpWidth columns. Line breaks of its own stay. The first line is taken
// to begin in column `indent`; every other one gets that many spaces before it.
std::string wrapped(std::string_view text, int indent);

// The layout of --help: usage with the required flags, then flags by group, with the default of each that takes a
// value.
std::shared_ptr<CLI::FormatterBase> make_help_formatter();

// CLI11's check for a range, without its addition to the help text.
inline CLI::Validator in_range(int64_t low, int64_t high) { return CLI::Range(low, high).description(""); }

// An option for strings that may be repeated; each value is taken as it is, where CLI11 would give "{}" and "[a,b]" a
// meaning.
CLI::Option* add_texts(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                       const std::string& description);

}  // namespace witan
