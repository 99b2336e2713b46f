#include "kv/shifted_copy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/rope/rope.h"
#include "memory/memory_pool.h"

namespace witan {
namespace {

constexpr int32_t kDocument = 64;
constexpr KvSpan kPlace = {.begin = 45, .end = 45 + kDocument};  // across blocks
constexpr int32_t kKeyDim = 24;
constexpr int32_t kRopeDim = 16;
constexpr int32_t kOffset = 8;

struct CodecCase {
  KvCodec codec;
  bool value_in_key;
  float key_tolerance;
  float value_tolerance;
};

class ShiftedCopyTest : public testing::TestWithParam<CodecCase> {
 protected:
  static std::vector<float> key_before_rope(int32_t layer, int32_t head, int32_t token) {
    std::vector<float> key(kKeyDim);
    for (int32_t i = 0; i < kKeyDim; ++i) {
      key[static_cast<size_t>(i)] =
          std::sin(static_cast<float>(1 + layer + 3 * head + 7 * token) * (0.3f + 0.1f * static_cast<float>(i)));
    }
    return key;
  }
  static std::vector<float> value_of(int32_t layer, int32_t head, int32_t token) {
    std::vector<float> value(kKeyDim);
    for (int32_t i = 0; i < kKeyDim; ++i) {
      value[static_cast<size_t>(i)] = std::cos(static_cast<float>(2 + layer + head + token) + static_cast<float>(i));
    }
    return value;
  }
  static std::vector<float> key_at(const RopeTable& rope_table, int32_t layer, int32_t head, int32_t token,
                                   int32_t position) {
    std::vector<float> key = key_before_rope(layer, head, token);
    float cos[kRopeDim / 2];
    float sin[kRopeDim / 2];
    rope_table.angles(position, cos, sin);
    rope(Isa::kReference, rope_table.layout(), cos, sin, kRopeDim, key.data() + kOffset);
    return key;
  }
};

// Each entry is the one that its token would have where the document stands now (shared oracle: a re-rotated key is
// RoPE at the new index).
TEST_P(ShiftedCopyTest, EntriesAreThoseOfTheTokensAtTheirNewPlace) {
  const auto [codec, value_in_key, key_tolerance, value_tolerance] = GetParam();
  MemoryPool pool(size_t{64} << 20);
  const KvLayerSpec layer{.num_kv_heads = value_in_key ? 1 : 2,
                          .key_dim = kKeyDim,
                          .value_dim = value_in_key ? kOffset : kKeyDim,
                          .value_in_key = value_in_key};
  KvCache kv(pool, {.layers = {layer, layer, layer}, .codec = codec, .capacity_bytes = size_t{8} << 20});
  const RopeTable rope_table({.layout = RopeLayout::kPairs,
                              .dim = kRopeDim,
                              .theta = 100.0,
                              .scaling = YarnScaling{.factor = 4.0, .original_context = 64, .attention_factor = 1.2}});
  const SequenceId document = kv.create();
  ASSERT_TRUE(kv.reserve(document, kDocument));
  std::vector<TokenId> tokens(kDocument);
  for (int32_t token = 0; token < kDocument; ++token) {
    tokens[static_cast<size_t>(token)] = token;
    for (int32_t l = 0; l < 3; ++l) {
      for (int32_t head = 0; head < layer.num_kv_heads; ++head) {
        const KvCache::Slot slot = kv.slot(document, l, head, token);
        kv_store(kv.block_format(l), slot.block, slot.slot, key_at(rope_table, l, head, token, token).data(),
                 value_of(l, head, token).data());
      }
    }
  }
  kv.commit(document, tokens, std::vector<TokenRole>(tokens.size(), TokenRole::kPrompt));
  const SequenceId text = kv.create();
  ASSERT_TRUE(kv.reserve(text, kPlace.end + 5));
  ThreadPool threads(2);
  copy_shifted(kv, {.rope = &rope_table, .offset = kOffset}, document, text, kPlace, select_isa(), threads);
  for (int32_t l = 0; l < 3; ++l) {
    for (int32_t head = 0; head < layer.num_kv_heads; ++head) {
      const KvView view = kv.view(text, l, head, kPlace.end);
      for (int32_t token = 0; token < kDocument; ++token) {
        std::vector<float> key(kKeyDim);
        std::vector<float> value(static_cast<size_t>(layer.value_dim));
        view.load(kPlace.begin + token, key.data(), value.data());
        const std::vector<float> expected = key_at(rope_table, l, head, token, kPlace.begin + token);
        for (size_t i = 0; i < key.size(); ++i) ASSERT_NEAR(key[i], expected[i], key_tolerance) << token << " " << i;
        if (value_in_key) continue;
        for (size_t i = 0; i < value.size(); ++i) {
          ASSERT_NEAR(value[i], value_of(l, head, token)[i], value_tolerance) << token << " " << i;
        }
      }
    }
  }
  kv.release(text);
  kv.release(document);
  kv.check_integrity();
}

// Keys, of up to 1.7, are rounded twice, values but once where their type is a float.
INSTANTIATE_TEST_SUITE_P(
    Codecs, ShiftedCopyTest,
    testing::Values(CodecCase{KvCodec::kF32, false, 1e-6f, 0.0f}, CodecCase{KvCodec::kF16, false, 2.5e-3f, 5e-4f},
                    CodecCase{KvCodec::kBF16, false, 2e-2f, 4e-3f}, CodecCase{KvCodec::kQ8, false, 2e-2f, 1e-2f},
                    CodecCase{KvCodec::kHadamard8, false, 5e-2f, 4e-2f}, CodecCase{KvCodec::kF32, true, 1e-6f, 0.0f}),
    [](const auto& codec_case) {
      std::string name(kv_codec_name(codec_case.param.codec));
      std::erase(name, '-');
      return name + (codec_case.param.value_in_key ? "_mla" : "");
    });

}  // namespace
}  // namespace witan
