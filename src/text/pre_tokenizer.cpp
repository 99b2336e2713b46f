#include "text/pre_tokenizer.h"

#include <deque>

namespace witan {

namespace {

// A stretch of text that the pattern matched (a divider), or that lies between matches.
struct Stretch {
  size_t begin;
  size_t end;
  bool divider;
};

std::vector<Stretch> find_stretches(const PreTokenizer::Split& step, std::string_view text, RegexWorkspace& workspace) {
  const bool invert = step.invert == SplitInvert::kYes;
  std::vector<Stretch> stretches;
  size_t at = 0;
  step.pattern.for_each_match(text, workspace, [&](size_t begin, size_t end) {
    if (begin != at) stretches.push_back({at, begin, invert});
    stretches.push_back({begin, end, !invert});
    at = end;
  });
  if (at != text.size()) stretches.push_back({at, text.size(), invert});
  return stretches;
}

// Joins neighbours as the behaviour asks; what stays a divider under kRemoved is dropped.
std::vector<Stretch> apply_behavior(std::vector<Stretch> stretches, SplitBehavior behavior) {
  std::vector<Stretch> result;
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return stretches;
    case SplitBehavior::kRemoved:
      std::erase_if(stretches, [](const Stretch& s) { return s.divider; });
      return stretches;
    case SplitBehavior::kContiguous:
      for (const Stretch& s : stretches) {
        if (!result.empty() && result.back().divider == s.divider)
          result.back().end = s.end;
        else
          result.push_back(s);
      }
      return result;
    case SplitBehavior::kMergedWithPrevious:
      for (size_t i = 0; i < stretches.size(); ++i) {
        const bool joins = stretches[i].divider && i > 0 && !stretches[i - 1].divider;
        if (joins)
          result.back().end = stretches[i].end;
        else
          result.push_back(stretches[i]);
      }
      return result;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = 0; i < stretches.size(); ++i) {
        const bool joins = i > 0 && stretches[i - 1].divider && !stretches[i].divider;
        if (joins)
          result.back().end = stretches[i].end;
        else
          result.push_back(stretches[i]);
      }
      return result;
  }
  return result;
}

class Splitter {
 public:
  Splitter(TextPlace place, RegexWorkspace& workspace) : place_(place), workspace_(workspace) {}

  std::vector<std::string_view> pieces;

  void operator()(const PreTokenizer::Split& step) {
    std::vector<std::string_view> result;
    result.reserve(pieces.size());
    for (const std::string_view piece : pieces) {
      for (const Stretch& s : apply_behavior(find_stretches(step, piece, workspace_), step.behavior)) {
        if (s.begin != s.end) result.push_back(piece.substr(s.begin, s.end - s.begin));
      }
    }
    pieces = std::move(result);
  }

  void operator()(const PreTokenizer::PrefixSpace&) {
    for (std::string_view& piece : pieces) {
      if (!piece.starts_with(' ')) piece = keep(std::string(" ").append(piece));
    }
  }

  void operator()(const PreTokenizer::Metaspace& step) {
    std::vector<std::string_view> result;
    for (const std::string_view piece : pieces) {
      const bool at_start = place_ == TextPlace::kStart && piece.data() == pieces.front().data();
      const bool prepends =
          step.prepend == PrependScheme::kAlways || (step.prepend == PrependScheme::kFirst && at_start);
      std::string marked;
      for (const char c : piece) {
        if (c == ' ')
          marked += step.replacement;
        else
          marked.push_back(c);
      }
      if (prepends && !marked.starts_with(step.replacement)) marked.insert(0, step.replacement);
      const std::string_view text = keep(std::move(marked));
      size_t begin = 0;
      while (step.split && begin < text.size()) {
        const size_t next = text.find(step.replacement, begin + 1);
        if (next == std::string_view::npos) break;
        result.push_back(text.substr(begin, next - begin));
        begin = next;
      }
      if (begin < text.size()) result.push_back(text.substr(begin));
    }
    pieces = std::move(result);
  }

 private:
  std::string_view keep(std::string text) { return kept_.emplace_back(std::move(text)); }

  TextPlace place_;
  RegexWorkspace& workspace_;
  std::deque<std::string> kept_;  // rewritten pieces; a deque, because `pieces` points into it
};

}  // namespace

void PreTokenizer::split(std::string_view text, TextPlace place, RegexWorkspace& workspace,
                         FunctionRef<void(std::string_view piece)> on_piece) const {
  if (text.empty()) return;
  Splitter splitter(place, workspace);
  splitter.pieces.push_back(text);
  for (const Step& step : steps_) std::visit(splitter, step);
  for (const std::string_view piece : splitter.pieces) on_piece(piece);
}

}  // namespace witan
