#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/function_ref.h"

namespace witan {

// What matching needs besides the compiled pattern, and the limit on what hostile patterns may cost. One per encode
// call; not for several threads at once.
class RegexWorkspace {
 public:
  // `input_bytes`: the size of the whole text that will be matched; the time limit grows with it.
  explicit RegexWorkspace(size_t input_bytes);
  ~RegexWorkspace();
  RegexWorkspace(const RegexWorkspace&) = delete;
  RegexWorkspace& operator=(const RegexWorkspace&) = delete;

 private:
  friend class Regex;
  struct State;
  std::unique_ptr<State> state_;
};

// A pattern as tokenizer.json files write them (Oniguruma's Ruby syntax), over Unicode text, compiled once by PCRE2.
// Immutable: any thread may match with its own workspace.
class Regex {
 public:
  // `where` names the pattern's place in messages. Throws Error(kBadFile) for a pattern that does not compile and
  // Error(kUnsupported) for constructs that PCRE2 would silently read differently.
  Regex(std::string_view pattern, std::string where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // Calls on_match(begin, end) for every match from left to right, without overlap; `text` must be valid UTF-8. An
  // empty match is reported unless it touches the end of the one before it. Throws Error(kInvalidArgument) when the
  // pattern takes too long or too much memory on this text.
  void for_each_match(std::string_view text, RegexWorkspace& workspace,
                      FunctionRef<void(size_t begin, size_t end)> on_match) const;

  const std::string& where() const { return where_; }

 private:
  struct Code;
  int match_at(std::string_view text, size_t from, RegexWorkspace::State& state) const;

  std::string where_;
  std::unique_ptr<Code> code_;
};

// The same text as a pattern that matches it literally.
std::string escape_regex(std::string_view literal);

}  // namespace witan
