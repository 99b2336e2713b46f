#pragma once

#include <cstdint>

#include "io/gguf_writer.h"

namespace witan {

// Ids below this are <unk>, <s>, </s>, the 256 byte tokens and "▁" (a space); the others are plain pieces.
inline constexpr int32_t kNumReservedTokens = 260;

// Sets the `tokenizer.ggml.*` keys of a vocabulary for generated models: SentencePiece with byte tokens, in which any
// text becomes its bytes (and "▁" for spaces), filled up to vocab_size with distinct invented words ("▁bomaki"). No
// text is encoded to a word, since no pair of characters is a piece that could begin to merge; but every one decodes
// to printable text, and a model with random weights rarely samples anything else.
// vocab_size must be in [kNumReservedTokens, kNumReservedTokens + 512,000].
void set_byte_vocabulary(GgufMetadata& metadata, int32_t vocab_size);

}  // namespace witan
