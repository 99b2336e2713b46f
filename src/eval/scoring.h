#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace witan {

enum class Mark : uint8_t {
  kMissing,  // the reply gives nothing in that place
  kWrong,
  kRight,
};

// What replies are scored against.
struct ExpectedAnswers {
  std::vector<std::string> values;  // in order
  int32_t first_label = 1;          // of `numbered`: the number of the first value
};

// How values are found in a reply, each of them compared with the expected one in the same place: exactly, but for
// ASCII upper case and the spelling of numbers (1,000 is 1000.0). What is not there, or in another place, does not
// count.
struct ScoringRule {
  std::string_view name;
  // The reply's values, as views into it; an empty one is missing, and so are those after the last.
  std::vector<std::string_view> (*find)(std::string_view reply, const ExpectedAnswers& expected);
};

// The rule of that name; nullptr for an unknown one.
//   last      one value: the last number of the reply where a number is expected, its last word otherwise
//   each      the last value of each sentence or line
//   items     the items of a comma-separated list, after a colon where there is one
//   numbered  the last value of each block "Answer_N: ...", by its number; the first block of a number counts
//   text      one value: everything after the first colon, white space as one space
//   contains  the values that appear anywhere, whatever else the reply says: as RULER (arXiv:2404.06654) scores
const ScoringRule* find_scoring_rule(std::string_view name);
std::string scoring_rule_names();  // for messages: "last, each, ..."

// A mark per expected value.
std::vector<Mark> score(const ScoringRule& rule, std::string_view reply, const ExpectedAnswers& expected);

}  // namespace witan
