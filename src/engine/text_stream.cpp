#include "engine/text_stream.h"

#include <algorithm>
#include <utility>

namespace witan {
namespace {

// Length of the longest end of `text` that is a proper beginning of `stop`.
size_t overlap(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.ends_with(stop.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop_strings)
    : detokenizer_(tokenizer, ShowSpecial::kNo, DecodeFrom::kContinuation), stop_strings_(std::move(stop_strings)) {}

std::string TextStream::push(TokenId token) { return release(detokenizer_.push(token)); }

std::string TextStream::finish() {
  std::string text = release(detokenizer_.finish());
  if (!stopped_) text += std::exchange(held_, {});
  return text;
}

std::string TextStream::release(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  size_t first = std::string::npos;
  for (const std::string& stop : stop_strings_) first = std::min(first, held_.find(stop));
  if (first != std::string::npos) {
    stopped_ = true;
    std::string out = held_.substr(0, first);
    held_.clear();
    return out;
  }
  size_t keep = 0;
  for (const std::string& stop : stop_strings_) keep = std::max(keep, overlap(held_, stop));
  // Stop strings may begin inside a character's bytes only if the whole character matched so far: cutting where the
  // overlap begins cuts between characters, since a stop string begins with a whole one.
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

}  // namespace witan
