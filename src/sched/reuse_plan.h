#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "base/types.h"
#include "kv/policy/kv_span.h"

namespace witan {

// Documents in a prompt whose KV entries are made from those of the same tokens at the beginning of a text, which the
// prefix cache may have, instead of being computed where they are (CacheBlend, Yao et al., arXiv 2405.16444; EPIC, Hu
// et al., arXiv 2410.15332). When the tokens before them are computed, the sequence goes through these passes; those of
// documents and the last may be of no tokens:
//
//   for each document, its tokens by themselves, as far as the prefix cache has not got them; then, with
//     probes_alone, its first layers once more; then its entries are copied to where they belong
//   with probes, the first layers of all tokens from the first document to the end of the last, in place
//   num_recomputed of these tokens, of its owner's choice, in place
//
// and then goes on behind the last document. In place: their entries are there, and replaced.
struct ReusePlan {
  // Ascending, apart; of whole blocks; behind token 0, and before the last of the prompt.
  std::vector<KvSpan> documents;
  bool probes_alone = false;
  bool probes = false;
  int32_t num_recomputed = 0;  // at least those between the documents
  // Copies the committed entries of `document` to their places in `text`, where they are reserved.
  std::function<void(SequenceId document, SequenceId text, const KvSpan& place)> copy;

  int32_t begin() const { return documents.front().begin; }
  int32_t end() const { return documents.back().end; }
  int32_t num_tokens() const { return end() - begin(); }
  int32_t longest_document() const {
    int32_t longest = 0;
    for (const KvSpan& span : documents) longest = std::max(longest, span.end - span.begin);
    return longest;
  }
};

// What a slice computes of a ReusePlan: tokens [first, first + its num_tokens) of a pass.
struct ReuseSlice {
  enum class Pass : uint8_t { kDocument, kProbeAlone, kProbe, kRecompute };
  Pass pass = Pass::kDocument;
  int32_t document = 0;  // of the first two
  int32_t first = 0;

  bool is_probe() const { return pass == Pass::kProbeAlone || pass == Pass::kProbe; }
  bool operator==(const ReuseSlice&) const = default;
};

// How far a sequence is in its plan.
struct ReuseProgress {
  bool has_begun = false;
  int32_t num_documents = 0;           // copied
  std::optional<SequenceId> document;  // the KV sequence of the next one
  int32_t num_document_tokens = 0;     // of that, computed or found
  int32_t num_probed_alone = 0;
  int32_t num_probed = 0;
  int32_t num_recomputed = 0;
  bool is_over = false;
};

}  // namespace witan
