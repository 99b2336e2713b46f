#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/types.h"
#include "kernels/attention/attention.h"
#include "kv/policy/entry_floats.h"
#include "kv/policy/kv_span.h"

namespace witan {

// A prompt that is read a second time, to see what of it a model needs to give it back (KVzip, Kim et al., arXiv
// 2505.23416): behind the prompt, chunk by chunk, the words that ask for a chunk and the chunk's own tokens are
// computed, and forgotten again.
struct Repetition {
  KvSpan chunk;                 // of the prompt
  std::vector<TokenId> tokens;  // the words, the last tokens of the chunk before, and those of the chunk
};

// What asks for the first chunk, and for each of the others, by the last tokens of the chunk before. Both may be empty.
struct RepetitionWords {
  std::vector<TokenId> first;
  std::vector<TokenId> next;
};

// Of all chunks of a prompt, in its order.
std::vector<Repetition> repetitions_of(std::span<const TokenId> prompt, int32_t chunk_tokens,
                                       const RepetitionWords& words);

// The largest attention that each KV entry of a prompt has had from the tokens that repeat its chunk, of all query
// heads of its kv head. Layers raise theirs as they compute these tokens.
class RepetitionAttention : public EntryFloats {
 public:
  // num_sinks: see RepetitionView.
  RepetitionAttention(MemoryPool& pool, std::span<const KvLayerSpec> layers, int32_t max_entries, int32_t num_sinks)
      : EntryFloats(pool, layers, max_entries, "the attention of a repetition"), num_sinks_(num_sinks) {}

  int32_t num_sinks() const { return num_sinks_; }

 private:
  int32_t num_sinks_;
};

// The entries of one kv head that the attention of a repetition is shared among, as a view of their own:
//
//   the text's entries   [0 .. num_sinks) ... [chunk.begin .. chunk.end) ... [num_prompt .. the repetition's last)
//
// Whole blocks are viewed; those of their entries that are none of these lie behind all that a row sees.
class RepetitionView {
 public:
  // `whole` ends with the last entry of the repetition so far, and has lost none; its blocks are borrowed.
  RepetitionView(const KvView& whole, KvSpan chunk, int32_t num_sinks, int32_t num_prompt_tokens);

  // Valid until this is moved or gone.
  KvView view() const;

  // of_text[e] = max(of_text[e], of_view[..]) for the entries of the chunk.
  void raise(const float* of_view, float* of_text) const;

 private:
  KvBlockFormat format_;
  KvSpan chunk_;
  int32_t num_entries_ = 0;
  std::vector<const std::byte*> blocks_;
  std::vector<int32_t> positions_;  // [num_entries]
  int32_t first_chunk_entry_ = 0;   // of the view
};

}  // namespace witan
