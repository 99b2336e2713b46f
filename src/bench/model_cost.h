#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/isa.h"
#include "engine/loaded_model.h"
#include "kv/policy/page_bounds.h"

namespace witan {

// The arithmetic that a product runs in: which peak of the machine bounds it.
enum class Arithmetic : uint8_t { kInt8, kBf16, kF32 };
inline constexpr int kNumArithmetics = 3;

// Operations (a multiply and an add are two) by arithmetic.
using Operations = std::array<double, kNumArithmetics>;

// What a decoder model reads and computes, counted from its tensors. What is left out is small: norms, routing's top-k,
// activations. Models with an encoder are not described.
class ModelCost {
 public:
  ModelCost(const Checkpoint& checkpoint, const ModelInfo& info, Precision precision, KvCodec kv_codec);

  // Bytes of weights that every step reads, whatever it computes: all but routed experts and the embedding table.
  int64_t dense_bytes() const { return dense_bytes_; }
  // Of a routed expert, the mean over the layers.
  double expert_bytes() const { return expert_bytes_; }
  // Of the KV entries that the next token of a sequence with so many sees, over all layers; at kv_codec, without the
  // unused room of last blocks. With a page reader: of the pages that it reads, and of the bounds of all. With a
  // demotion: of what is demoted at that length, and of the others.
  double kv_bytes(int64_t num_entries, const std::optional<KvPageReader>& reader = std::nullopt) const;
  double kv_bytes(int64_t num_entries, const KvDemotion& demotion,
                  std::optional<int64_t> num_demoted = std::nullopt) const;

  // Of the products of one token with weights, but for the output layer; and of the output layer, per row of logits.
  const Operations& token_operations() const { return token_; }
  const Operations& logit_operations() const { return logit_; }
  // Of the attention of a prompt's tokens [first, end), over all layers; of one generated token that sees num_entries.
  double prompt_attention_operations(int64_t first, int64_t end) const;
  double decode_attention_operations(int64_t num_entries,
                                     const std::optional<KvPageReader>& reader = std::nullopt) const;
  // What the attention of prompts runs in on `isa`; the layers of a model are all of one kind.
  Arithmetic prompt_attention_arithmetic(Isa isa) const;

 private:
  static double entry_bytes(const KvLayerSpec& layer, KvCodec codec, int32_t key_dim);
  void add_tensor(const TensorEntry& tensor, Precision precision, bool is_output);

  ModelInfo info_;
  Precision precision_;
  KvCodec kv_codec_;
  int64_t dense_bytes_ = 0;
  double expert_bytes_ = 0;
  Operations token_ = {};
  Operations logit_ = {};
};

}  // namespace witan
