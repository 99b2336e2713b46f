#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "kv/policy/kv_policy.h"
#include "text/tokenizer.h"

namespace witan {

// The bytes that the tokens of a prompt stand for, one after another: control tokens by their names, those that only
// pad an embedding with none. Finds the tokens of places in the text.
class PromptText {
 public:
  PromptText(const Tokenizer& tokenizer, std::span<const TokenId> prompt);

  // Where the parts of the text begin that each end with `separator`, ascending from 0: the first token that begins
  // behind it.
  std::vector<int32_t> part_starts(std::string_view separator) const;

  // The tokens that overlap with each place where `text`, which is not empty, occurs; none where it does not.
  std::vector<KvSpan> find(std::string_view text) const;

 private:
  int32_t first_token_from(size_t byte) const;  // that begins at this byte or behind it

  std::string text_;
  std::vector<size_t> begins_;  // of the tokens, in `text_`
};

}  // namespace witan
