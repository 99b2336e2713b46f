#include "bench/model_cost.h"

#include <gtest/gtest.h>

#include "models/registry.h"
#include "support/made_model.h"

namespace witan {
namespace {

ModelCost cost_of(const std::string& path, Precision precision, KvCodec codec) {
  const std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(path);
  return {*checkpoint, create_model(*checkpoint)->info(), precision, codec};
}

// Two layers: attention of 4 heads over 2, of 128, on a stream of 256; 8 experts of 256, 2 a token; 512 tokens.
constexpr int64_t kAttention = 2 * 512 * 256 + 2 * 256 * 256;
constexpr int64_t kRouter = 8 * 256;
constexpr int64_t kExpert = 3 * 256 * 256;

TEST(ModelCost, CountsWhatAStepReads) {
  const ModelCost cost = cost_of(test::made_model("qwen3moe", "tiny", DType::kF32), Precision::kFast, KvCodec::kF16);
  constexpr int64_t kNorms = 256 + 256 + 128 + 128;
  constexpr int64_t kPaddedRouter = 16 * 256;  // panels have 16 rows
  EXPECT_EQ(cost.dense_bytes(), 4 * (512 * 256 + 256 + 2 * (kAttention + kPaddedRouter + kNorms)));
  EXPECT_EQ(cost.expert_bytes(), 4.0 * kExpert);
  EXPECT_EQ(cost.kv_bytes(10), 10.0 * 2 * 2 * (128 + 128) * 2);
}

TEST(ModelCost, CountsOperationsByTheirArithmetic) {
  const double per_token = 2.0 * 2 * (kAttention + kRouter + 2 * kExpert);
  const double per_logits = 2.0 * 512 * 256;
  const ModelCost exact = cost_of(test::made_model("qwen3moe", "tiny", DType::kF32), Precision::kFast, KvCodec::kF16);
  EXPECT_EQ(exact.token_operations(), (Operations{0, 0, per_token}));
  EXPECT_EQ(exact.logit_operations(), (Operations{0, 0, per_logits}));

  const std::string quantised = test::made_model("qwen3moe", "tiny", DType::kQ8_0);
  const ModelCost fast = cost_of(quantised, Precision::kFast, KvCodec::kF16);
  // Routers stay F32.
  EXPECT_EQ(fast.token_operations(), (Operations{per_token - 2.0 * 2 * kRouter, 0, 2.0 * 2 * kRouter}));
  EXPECT_EQ(cost_of(quantised, Precision::kExact, KvCodec::kF16).token_operations(), (Operations{0, 0, per_token}));
  const ModelCost bf16 = cost_of(test::made_model("qwen3moe", "tiny", DType::kBF16), Precision::kFast, KvCodec::kF16);
  EXPECT_EQ(bf16.logit_operations(), (Operations{0, per_logits, 0}));
}

TEST(ModelCost, AttentionGrowsWithWhatIsSeen) {
  const ModelCost cost = cost_of(test::made_model("qwen3moe", "tiny", DType::kF32), Precision::kFast, KvCodec::kF16);
  const double per_entry = 2.0 * 2 * 4 * (128 + 128);
  EXPECT_EQ(cost.decode_attention_operations(7), 7 * per_entry);
  EXPECT_EQ(cost.prompt_attention_operations(0, 3), (1 + 2 + 3) * per_entry);
  EXPECT_EQ(cost.prompt_attention_operations(3, 5), (4 + 5) * per_entry);
}

TEST(ModelCost, AttentionRunsInTheArithmeticOfItsEntries) {
  const auto arithmetic = [](const char* arch, Precision precision, KvCodec codec) {
    return cost_of(test::made_model(arch, "tiny", DType::kF32), precision, codec)
        .prompt_attention_arithmetic(Isa::kAvx512Bf16);
  };
  EXPECT_EQ(arithmetic("qwen3moe", Precision::kFast, KvCodec::kBF16), Arithmetic::kBf16);
  EXPECT_EQ(arithmetic("qwen3moe", Precision::kExact, KvCodec::kBF16), Arithmetic::kF32);
  EXPECT_EQ(arithmetic("qwen3moe", Precision::kFast, KvCodec::kF16), Arithmetic::kF32);
  EXPECT_EQ(arithmetic("qwen3moe", Precision::kFast, KvCodec::kQ8), Arithmetic::kInt8);
  // Keys and values that are made from latents.
  EXPECT_EQ(arithmetic("deepseek2", Precision::kFast, KvCodec::kBF16), Arithmetic::kBf16);
  EXPECT_EQ(arithmetic("deepseek2", Precision::kFast, KvCodec::kQ8), Arithmetic::kBf16);
  EXPECT_EQ(arithmetic("deepseek2", Precision::kFast, KvCodec::kLatent4), Arithmetic::kBf16);
  EXPECT_EQ(arithmetic("deepseek2", Precision::kExact, KvCodec::kQ8), Arithmetic::kF32);
}

TEST(ModelCost, WindowsBoundIt) {
  const std::string path = test::made_model("gpt-oss", "tiny", DType::kF32);
  const ModelInfo info = create_model(*Checkpoint::open(path))->info();
  const ModelCost cost = cost_of(path, Precision::kFast, KvCodec::kF16);
  double entries = 0;
  double of_prompt = 0;
  constexpr int64_t kEntries = 5000;
  for (const KvLayerSpec& layer : info.kv_layers) {
    ASSERT_LT(layer.window, kEntries);
    for (int64_t n = 1; n <= kEntries; ++n) {
      of_prompt += static_cast<double>(layer.window > 0 ? std::min<int64_t>(n, layer.window) : n);
    }
    entries += layer.window > 0 ? layer.window : kEntries;
  }
  const KvLayerSpec& layer = info.kv_layers.front();
  EXPECT_LT(entries, kEntries * static_cast<double>(info.kv_layers.size()));
  EXPECT_EQ(cost.kv_bytes(kEntries), entries * layer.num_kv_heads * (layer.key_dim + layer.value_dim) * 2);
  EXPECT_EQ(cost.decode_attention_operations(kEntries),
            entries * 2 * info.num_heads * (layer.key_dim + layer.value_dim));
  EXPECT_EQ(cost.prompt_attention_operations(0, kEntries),
            of_prompt * 2 * info.num_heads * (layer.key_dim + layer.value_dim));
}

// 100 entries of which 64 are demoted, but none in layers with a window.
TEST(ModelCost, CountsDemotedEntriesAtTheirType) {
  const ModelCost full = cost_of(test::made_model("qwen3moe", "tiny", DType::kF32), Precision::kFast, KvCodec::kF16);
  const KvDemotion demotion{.codecs = {KvCodec::kHadamard4, KvCodec::kHadamard8}, .num_recent = 20};
  EXPECT_EQ(full.kv_bytes(100, demotion), 2 * (64 * (136 + 264) + 2 * 36 * 512));
  const KvDemotion half{.codecs = {KvCodec::kF16, KvCodec::kF16}, .num_recent = 20, .key_dims = {64, 64}};
  EXPECT_EQ(full.kv_bytes(100, half), 2 * 2 * (64 * 384 + 36 * 512)) << "keys of half their components";
  EXPECT_EQ(full.kv_bytes(100, demotion, 10), 2 * (10 * (136 + 264) + 2 * 90 * 512)) << "others than the older ones";
  EXPECT_EQ(full.kv_bytes(51, demotion), full.kv_bytes(51)) << "no block is old enough";

  const std::string path = test::made_model("gpt-oss", "tiny", DType::kF32);
  const ModelInfo info = create_model(*Checkpoint::open(path))->info();
  const ModelCost cost = cost_of(path, Precision::kFast, KvCodec::kF16);
  const KvDemotion all{.codecs = std::vector<KvCodec>(info.kv_layers.size(), KvCodec::kQ8), .num_recent = 20};
  double saved = 0;
  for (const KvLayerSpec& layer : info.kv_layers) {
    if (layer.window == 0) saved += 64.0 * layer.num_kv_heads * (layer.key_dim + layer.value_dim) * (2 - 1.125);
  }
  EXPECT_GT(saved, 0);
  EXPECT_EQ(cost.kv_bytes(100) - cost.kv_bytes(100, all), saved);
}

TEST(ModelCost, MlaKeepsOneLatentAndAttendsPromptsInFullHeads) {
  const std::string path = test::made_model("deepseek2", "tiny", DType::kF32);
  const ModelInfo info = create_model(*Checkpoint::open(path))->info();
  const ModelCost cost = cost_of(path, Precision::kFast, KvCodec::kF32);
  const KvLayerSpec& layer = info.kv_layers.front();
  const auto layers = static_cast<double>(info.num_layers);
  EXPECT_EQ(cost.kv_bytes(3), 3 * layers * layer.key_dim * 4);  // the value is in the key
  EXPECT_EQ(cost.decode_attention_operations(3), 3 * layers * 2 * info.num_heads * (layer.key_dim + layer.value_dim));
  EXPECT_EQ(cost.prompt_attention_operations(0, 2),
            3 * layers * 2 * info.num_heads * (info.prompt_key_dim + info.prompt_value_dim));
  EXPECT_LT(info.prompt_key_dim, layer.key_dim);
}

}  // namespace
}  // namespace witan
