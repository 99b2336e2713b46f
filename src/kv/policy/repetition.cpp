#include "kv/policy/repetition.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace witan {

std::vector<Repetition> repetitions_of(std::span<const TokenId> prompt, int32_t chunk_tokens,
                                       const RepetitionWords& words) {
  constexpr int32_t kLeadTokens = 8;  // of the chunk before, as the authors have it
  const auto num_tokens = static_cast<int32_t>(prompt.size());
  std::vector<Repetition> repetitions;
  for (int32_t begin = 0, end = 0; begin < num_tokens; begin = end) {
    end = begin + std::min(chunk_tokens, num_tokens - begin);
    Repetition repetition{.chunk = {.begin = begin, .end = end}, .tokens = begin == 0 ? words.first : words.next};
    const int32_t first = begin - std::min({kLeadTokens, chunk_tokens, begin});
    repetition.tokens.insert(repetition.tokens.end(), prompt.begin() + first, prompt.begin() + end);
    repetitions.push_back(std::move(repetition));
  }
  return repetitions;
}

RepetitionView::RepetitionView(const KvView& whole, KvSpan chunk, int32_t num_sinks, int32_t num_prompt_tokens)
    : format_(whole.format), chunk_(chunk) {
  WITAN_CHECK(whole.positions == nullptr && !chunk.empty() && chunk.end <= num_prompt_tokens &&
                  num_prompt_tokens < whole.num_entries,
              "a repetition of tokens {} to {} of {} with {} entries", chunk.begin, chunk.end, num_prompt_tokens,
              whole.num_entries);
  const KvSpan spans[] = {
      {.begin = 0, .end = num_sinks}, chunk, {.begin = num_prompt_tokens, .end = whole.num_entries}};
  const auto has_any = [&](int32_t begin, int32_t end) {
    return std::ranges::any_of(spans, [&](const KvSpan& span) { return span.begin < end && begin < span.end; });
  };
  for (int32_t first = 0; first < whole.num_entries; first += kKvBlockSize) {
    const int32_t end = std::min(first + kKvBlockSize, whole.num_entries);
    if (!has_any(first, end)) continue;
    if (first <= chunk.begin && chunk.begin < end) first_chunk_entry_ = num_entries_ + chunk.begin - first;
    blocks_.push_back(whole.blocks[first / kKvBlockSize]);
    for (int32_t entry = first; entry < end; ++entry) {
      positions_.push_back(has_any(entry, entry + 1) ? entry : std::numeric_limits<int32_t>::max());
    }
    num_entries_ += end - first;
  }
}

KvView RepetitionView::view() const {
  return {.format = format_, .blocks = blocks_.data(), .num_entries = num_entries_, .positions = positions_.data()};
}

void RepetitionView::raise(const float* of_view, float* of_text) const {
  for (int32_t entry = chunk_.begin; entry < chunk_.end; ++entry) {
    of_text[entry] = std::max(of_text[entry], of_view[first_chunk_entry_ + entry - chunk_.begin]);
  }
}

}  // namespace witan
