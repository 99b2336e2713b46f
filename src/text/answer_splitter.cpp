#include "text/answer_splitter.h"

#include <algorithm>
#include <span>
#include <utility>

namespace witan {
namespace {

constexpr std::string_view kThinkMarks[] = {"<think>", "</think>"};
constexpr std::string_view kHarmonyMarks[] = {"<|channel|>", "<|message|>", "<|start|>",
                                              "<|end|>",     "<|return|>",  "<|call|>"};
constexpr std::string_view kSpace = " \t\r\n";

std::span<const std::string_view> marks_of(ReasoningFormat format) {
  if (format == ReasoningFormat::kThinkTags) return kThinkMarks;
  if (format == ReasoningFormat::kHarmony) return kHarmonyMarks;
  return {};
}

std::string_view without_trailing_space(std::string_view text) {
  const size_t last = text.find_last_not_of(kSpace);
  return last == std::string_view::npos ? std::string_view() : text.substr(0, last + 1);
}

}  // namespace

ReasoningFormat AnswerSplitter::format_of(std::string_view template_source) {
  const auto has = [&](std::string_view mark) { return template_source.find(mark) != std::string_view::npos; };
  if (has("<|channel|>")) return ReasoningFormat::kHarmony;
  return has("</think>") || has("<think>") ? ReasoningFormat::kThinkTags : ReasoningFormat::kNone;
}

bool AnswerSplitter::is_mark(ReasoningFormat format, std::string_view piece) {
  return std::ranges::find(marks_of(format), piece) != marks_of(format).end();
}

AnswerSplitter::AnswerSplitter(ReasoningFormat format, std::string_view prompt) : format_(format) {
  if (format == ReasoningFormat::kNone) trims_ = false;
  if (format == ReasoningFormat::kThinkTags && without_trailing_space(prompt).ends_with("<think>")) {
    part_ = AnswerPart::kReasoning;
  }
}

std::vector<AnswerPiece> AnswerSplitter::push(std::string_view text) {
  std::vector<AnswerPiece> pieces;
  held_ += text;
  for (;;) {
    size_t first = std::string::npos;
    std::string_view found;
    for (const std::string_view mark : marks_of(format_)) {
      const size_t place = held_.find(mark);
      if (place < first) {
        first = place;
        found = mark;
      }
    }
    if (first == std::string::npos) break;
    const std::string before = held_.substr(0, first);
    held_.erase(0, first + found.size());
    emit(before, pieces);
    take_mark(found);
  }
  size_t keep = 0;
  for (const std::string_view mark : marks_of(format_)) {
    for (size_t size = std::min(mark.size() - 1, held_.size()); size > keep; --size) {
      if (held_.ends_with(mark.substr(0, size))) keep = size;
    }
  }
  const std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, certain.size());
  emit(certain, pieces);
  return pieces;
}

std::vector<AnswerPiece> AnswerSplitter::finish() {
  std::vector<AnswerPiece> pieces;
  emit(std::exchange(held_, {}), pieces);
  return pieces;
}

void AnswerSplitter::take_mark(std::string_view mark) {
  space_.clear();
  trims_ = true;
  if (format_ == ReasoningFormat::kThinkTags) {
    part_ = mark == "<think>" ? AnswerPart::kReasoning : AnswerPart::kAnswer;
    return;
  }
  if (mark == "<|message|>") {
    part_ = header_.find("analysis") != std::string::npos ? AnswerPart::kReasoning : AnswerPart::kAnswer;
    state_ = State::kText;
  } else {
    header_.clear();
    state_ = mark == "<|channel|>" || mark == "<|start|>" ? State::kHeader : State::kText;
  }
}

void AnswerSplitter::emit(std::string_view text, std::vector<AnswerPiece>& pieces) {
  if (text.empty()) return;
  if (state_ == State::kHeader) {
    header_ += text;
    return;
  }
  if (trims_) {
    text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
    if (text.empty()) return;
    trims_ = false;
  }
  std::string whole = std::exchange(space_, {}).append(text);
  if (part_ == AnswerPart::kReasoning) {  // its end is not known yet
    space_ = whole.substr(without_trailing_space(whole).size());
    whole.resize(whole.size() - space_.size());
  }
  if (!whole.empty()) pieces.push_back({part_, std::move(whole)});
}

}  // namespace witan
