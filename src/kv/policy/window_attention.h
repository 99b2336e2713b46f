#pragma once

#include <memory>

#include "kv/policy/policy_builder.h"

namespace witan {

enum class Pooling : uint8_t { kMean, kMax };

// What a token of the window counts: as much as any other, or as many times as it sees entries, so that what the
// first ones attend to, over fewer entries, is not worth more (FINCH, arXiv 2408.00167).
enum class TokenWeight : uint8_t { kEqual, kEntriesSeen };

// What the last `window` tokens attend to (SnapKV, arXiv 2404.14469): softmax weights over all entries, their mean
// over the tokens, weighted, pooled over `kernel` neighbours per query head (zeros beyond the ends count in a mean),
// and the mean over the query heads that share the kv head. The window's own entries are not judged: they are to be
// protected.
std::shared_ptr<const KvScorer> window_attention(int32_t window, int32_t kernel, Pooling pooling,
                                                 TokenWeight token_weight = TokenWeight::kEqual);

// window_attention with the arguments window=32, kernel, pool=avg|max of a part; protects the window.
std::shared_ptr<const KvScorer> window_attention(PolicyBuilder& builder, PartArguments& arguments, int32_t kernel = 5);

}  // namespace witan
