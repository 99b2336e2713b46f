#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <time.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "text/unicode.h"

namespace witan {

namespace {

// Limits on hostile patterns. Those of real models need microseconds per kilobyte and no deep stack, so all of these
// are far away from what they use.
constexpr uint32_t kMatchLimit = 10'000'000;       // PCRE2's default; grows with the text, see match_at
constexpr size_t kSearchWindowBytes = 64;          // start positions one call may try before the clock is looked at
constexpr double kBaseSeconds = 2.0;               // CPU time per encode call, plus
constexpr double kSecondsPerByte = 2e-6;           // some ten times what the slowest model pattern takes
constexpr size_t kMaxPatternBytes = 16384;         // the longest in use have about 1 kB
constexpr size_t kJitStackStart = 32 * 1024;       // PCRE2's own default
constexpr size_t kJitStackMax = 64 * 1024 * 1024;  // address space only, until it is touched
constexpr uint32_t kHeapLimitKib = 64 * 1024;      // for the interpreter, where there is no JIT

double thread_cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

std::string pcre2_message(int error) {
  PCRE2_UCHAR8 buffer[256];
  if (pcre2_get_error_message_8(error, buffer, sizeof buffer) < 0) return "unknown error";
  return reinterpret_cast<const char*>(buffer);
}

struct CompileContext {
  pcre2_compile_context_8* context = pcre2_compile_context_create_8(nullptr);
  CompileContext() {
    pcre2_set_newline_8(context, PCRE2_NEWLINE_LF);  // as in Oniguruma, whatever PCRE2 was built with
    pcre2_set_max_pattern_length_8(context, 8 * kMaxPatternBytes);
  }
  ~CompileContext() { pcre2_compile_context_free_8(context); }
};

// MULTILINE: in Ruby syntax ^ and $ always match at line ends.
constexpr uint32_t kCompileOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;

// True for the name of a script: since 10.40 PCRE2 reads \p{Han} as Script_Extensions, everyone else as Script.
bool is_script_name(std::string_view name) {
  const std::string probe = "\\p{sc:" + std::string(name) + "}";
  int error = 0;
  size_t offset = 0;
  CompileContext context;
  pcre2_code_8* code = pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(probe.data()), probe.size(), kCompileOptions,
                                       &error, &offset, context.context);
  pcre2_code_free_8(code);
  return code != nullptr;
}

// Rewrites Oniguruma's syntax for PCRE2 and refuses what both accept but read differently.
class PatternTranslator {
 public:
  PatternTranslator(std::string_view pattern, const std::string& where) : pattern_(pattern), where_(where) {}

  std::string translate() {
    // A step of DeepSeek's: quadratic on a long run of spaces inside a text, unless it is kept from starting in the
    // middle of one. The match is the same, since the leftmost one begins where the run does.
    if (pattern_ == R"(\s+$)") pattern_ = R"((?<!\s)\s+$)";
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_character(c);
      } else {
        if (c == '(') group();
        if (c == '[')
          begin_class();
        else
          copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail(ErrorCode::kUnsupported, "{}: {} in regular expression \"{}\"", where_, what, pattern_);
  }

  void copy(size_t count) {
    count = std::min(count, pattern_.size() - at_);
    out_.append(pattern_.substr(at_, count));
    at_ += count;
  }

  void escape() {
    const char kind = at_ + 1 < pattern_.size() ? pattern_[at_ + 1] : '\0';
    // \h is a hexadecimal digit to Oniguruma; \Q quotes and \E ends quoting in PCRE2 alone.
    if (kind == 'h' || kind == 'H' || kind == 'Q' || kind == 'E') refuse(fmt::format("unsupported escape \\{}", kind));
    if (kind == 's' || kind == 'S') {  // PCRE2's has U+180E, which has not been white space since Unicode 6.3
      out_ += kind == 's' ? R"(\p{White_Space})" : R"(\P{White_Space})";
      at_ += 2;
      return;
    }
    if ((kind == 'p' || kind == 'P') && pattern_.substr(at_ + 2).starts_with('{')) return property();
    copy(2);
  }

  void property() {
    const size_t close = pattern_.find('}', at_);
    if (close == std::string_view::npos) return copy(pattern_.size());
    std::string_view name = pattern_.substr(at_ + 3, close - at_ - 3);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    if (name.size() >= 3 && name.size() < 40 && is_script_name(name)) {
      out_.append(pattern_.substr(at_, 3)).append(negated ? "^sc:" : "sc:").append(name).push_back('}');
      at_ = close + 1;
    } else {
      copy(close + 1 - at_);
    }
  }

  void group() {
    const std::string_view rest = pattern_.substr(at_ + 1);
    if (rest.starts_with('*')) refuse("a verb (*...)");
    if (!rest.starts_with('?')) return;
    // Of the inline options only i and x mean the same on both sides.
    const size_t end = rest.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-", 1);
    if (end == std::string_view::npos || end == 1 || (rest[end] != ':' && rest[end] != ')')) return;
    if (rest.substr(1, end - 1).find_first_not_of("ix-") != std::string_view::npos) refuse("unsupported inline option");
  }

  void begin_class() {
    in_class_ = true;
    copy(1);
    if (pattern_.substr(at_).starts_with('^')) copy(1);
    if (pattern_.substr(at_).starts_with(']')) copy(1);  // a ] in first place is a literal
  }

  void class_character(char c) {
    const std::string_view rest = pattern_.substr(at_);
    if (rest.starts_with("&&")) refuse("a class intersection (&&)");
    if (c == '[') {
      if (!rest.starts_with("[:")) refuse("a class in a class");
      const size_t close = rest.find(":]");
      return copy(close == std::string_view::npos ? rest.size() : close + 2);
    }
    if (c == ']') in_class_ = false;
    copy(1);
  }

  std::string_view pattern_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
  bool in_class_ = false;
};

}  // namespace

struct RegexWorkspace::State {
  pcre2_match_data_8* match = pcre2_match_data_create_8(1, nullptr);
  pcre2_match_context_8* context = pcre2_match_context_create_8(nullptr);
  pcre2_jit_stack_8* jit_stack = nullptr;
  double deadline = 0.0;
  size_t bytes_until_clock = kSearchWindowBytes;

  ~State() {
    if (jit_stack != nullptr) pcre2_jit_stack_free_8(jit_stack);
    pcre2_match_context_free_8(context);
    pcre2_match_data_free_8(match);
  }
};

RegexWorkspace::RegexWorkspace(size_t input_bytes) : state_(std::make_unique<State>()) {
  pcre2_set_heap_limit_8(state_->context, kHeapLimitKib);
  state_->deadline = thread_cpu_seconds() + kBaseSeconds + kSecondsPerByte * static_cast<double>(input_bytes);
}

RegexWorkspace::~RegexWorkspace() = default;

struct Regex::Code {
  pcre2_code_8* code = nullptr;
  ~Code() { pcre2_code_free_8(code); }
};

Regex::Regex(std::string_view pattern, std::string where) : where_(std::move(where)), code_(std::make_unique<Code>()) {
  if (pattern.size() > kMaxPatternBytes) {
    fail(ErrorCode::kUnsupported, "{}: a regular expression of {} bytes, the limit is {}", where_, pattern.size(),
         kMaxPatternBytes);
  }
  const std::string translated = PatternTranslator(pattern, where_).translate();
  int error = 0;
  size_t offset = 0;
  CompileContext context;
  code_->code = pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(translated.data()), translated.size(),
                                kCompileOptions | PCRE2_USE_OFFSET_LIMIT, &error, &offset, context.context);
  if (code_->code == nullptr) {
    fail(ErrorCode::kBadFile, "{}: regular expression \"{}\": {} at offset {}", where_, pattern, pcre2_message(error),
         offset);
  }
  // Without a JIT, or where it cannot compile this pattern, pcre2_match interprets.
  pcre2_jit_compile_8(code_->code, PCRE2_JIT_COMPLETE);
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

// PCRE2's result for the first match that starts in the window from `from` on.
int Regex::match_at(std::string_view text, size_t from, RegexWorkspace::State& state) const {
  const auto limit = static_cast<uint32_t>(std::min<size_t>(kMatchLimit + 8 * text.size(), UINT32_MAX));
  pcre2_set_match_limit_8(state.context, limit);
  pcre2_set_offset_limit_8(state.context, from + kSearchWindowBytes - 1);
  const auto match = [&] {
    return pcre2_match_8(code_->code, reinterpret_cast<PCRE2_SPTR8>(text.data()), text.size(), from, PCRE2_NO_UTF_CHECK,
                         state.match, state.context);
  };
  int result = match();
  if (result == PCRE2_ERROR_JIT_STACKLIMIT && state.jit_stack == nullptr) {
    state.jit_stack = pcre2_jit_stack_create_8(kJitStackStart, kJitStackMax, nullptr);
    if (state.jit_stack != nullptr) {
      pcre2_jit_stack_assign_8(state.context, nullptr, state.jit_stack);
      result = match();
    }
  }
  return result;
}

void Regex::for_each_match(std::string_view text, RegexWorkspace& workspace,
                           FunctionRef<void(size_t begin, size_t end)> on_match) const {
  RegexWorkspace::State& state = *workspace.state_;
  const auto next_character = [&](size_t at) { return at < text.size() ? at + next_utf8(text, at).size : at + 1; };
  const auto spend = [&](size_t bytes) {
    if (bytes < state.bytes_until_clock) {
      state.bytes_until_clock -= bytes;
      return;
    }
    state.bytes_until_clock = kSearchWindowBytes;
    if (thread_cpu_seconds() > state.deadline) {
      fail(ErrorCode::kInvalidArgument, "{}: the regular expression takes too long on this text", where_);
    }
  };
  size_t from = 0;
  size_t last_end = SIZE_MAX;
  while (from <= text.size()) {
    const int result = match_at(text, from, state);
    if (result == PCRE2_ERROR_NOMATCH) {
      const size_t searched = from + kSearchWindowBytes;
      if (searched > text.size()) return;
      spend(kSearchWindowBytes);
      from = searched;
      while (from < text.size() && (static_cast<uint8_t>(text[from]) & 0xC0) == 0x80) ++from;
      continue;
    }
    if (result < 0) {
      fail(ErrorCode::kInvalidArgument, "{}: the regular expression fails on this text: {}", where_,
           pcre2_message(result));
    }
    const size_t* range = pcre2_get_ovector_pointer_8(state.match);
    const auto [begin, end] = std::pair(range[0], range[1]);
    if (begin < from || end < begin) {  // possible with \K alone
      fail(ErrorCode::kInvalidArgument, "{}: the regular expression matches backwards", where_);
    }
    spend(end - from);
    if (begin != end || begin != last_end) on_match(begin, end);
    last_end = end;
    from = begin == end ? next_character(end) : end;
  }
}

std::string escape_regex(std::string_view literal) {
  std::string pattern;
  for (const char c : literal) {
    if (static_cast<uint8_t>(c) < 0x80 && !is_word_character(static_cast<uint8_t>(c))) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return pattern;
}

}  // namespace witan
