#include "models/value_projection.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "models/gqa.h"
#include "models/mla.h"
#include "support/packed.h"

namespace witan {
namespace {

constexpr int32_t kModelDim = 40;  // panels of 16 rows, the last not whole
constexpr int32_t kKvHeads = 2;
constexpr int32_t kGroup = 2;
constexpr int32_t kDim = 64;
constexpr int32_t kEntries = 150;  // tiles of 64, the last not whole

class ValueProjectionTest : public testing::TestWithParam<DType> {
 protected:
  ValueProjectionTest() {
    EXPECT_TRUE(kv_.reserve(sequence_, kEntries));
    for (int32_t head = 0; head < kKvHeads; ++head) {
      for (int32_t i = 0; i < kEntries; ++i) {
        const KvCache::Slot slot = kv_.slot(sequence_, 0, head, i);
        kv_store(kv_.block_format(0), slot.block, slot.slot, value(head, i), value(head, i));
      }
    }
    kv_.commit(sequence_, std::vector<TokenId>(kEntries, 1), std::vector<TokenRole>(kEntries, TokenRole::kPrompt));
  }

  const float* value(int32_t head, int32_t entry) const {
    return values_.data() + (int64_t{head} * kEntries + entry) * kDim;
  }

  void learn(ValueNorms& norms, int num_threads, Isa isa) {
    ThreadPool threads(num_threads);
    Scratch scratch(pool_);
    ComputeContext ctx{.threads = threads, .scratch = scratch, .isa = isa, .precision = Precision::kFast};
    DecoderConfig config;
    config.num_heads = kKvHeads * kGroup;
    config.num_kv_heads = kKvHeads;
    config.head_dim = kDim;
    config.windows = {0};
    GqaWeights weights;
    weights.o = output_.packed;
    learn_gqa_value_norms(ctx, kv_, sequence_, 0, config, weights, norms);
  }

  // The mean over the query heads of the L1 norm of Wo_h v.
  double expected(int32_t head, int32_t entry) const {
    double sum = 0.0;
    for (int32_t g = 0; g < kGroup; ++g) {
      for (int64_t row = 0; row < kModelDim; ++row) {
        const float* weights = output_.values.data() + row * output_.packed.cols + int64_t{head * kGroup + g} * kDim;
        double product = 0.0;
        for (int32_t i = 0; i < kDim; ++i) {
          product += static_cast<double>(weights[i]) * static_cast<double>(value(head, entry)[i]);
        }
        sum += std::fabs(product);
      }
    }
    return sum / kGroup;
  }

  MemoryPool pool_{size_t{128} << 20};
  std::vector<KvLayerSpec> layers_{{.num_kv_heads = kKvHeads, .key_dim = kDim, .value_dim = kDim}};
  KvCache kv_{pool_, {.layers = layers_, .codec = KvCodec::kF32, .capacity_bytes = size_t{32} << 20}};
  SequenceId sequence_ = kv_.create();
  std::vector<float> values_ = test::random_floats(int64_t{kKvHeads} * kEntries * kDim, 1);
  test::RandomMatrix output_{GetParam(), kModelDim, int64_t{kKvHeads} * kGroup* kDim, 2};
};

TEST_P(ValueProjectionTest, NormsAreTheMagnitudesOfWhatEachHeadsColumnsMakeOfTheValues) {
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    ValueNorms norms(pool_, layers_, kEntries);
    learn(norms, 2, isa);
    for (int32_t head = 0; head < kKvHeads; ++head) {
      ASSERT_EQ(norms.num_known(0, head), kEntries);
      for (int32_t i = 0; i < kEntries; ++i) {
        EXPECT_NEAR(norms.of(0, head)[i], expected(head, i), 1e-5 * expected(head, i)) << isa_name(isa) << " " << i;
      }
    }
  }
}

TEST_P(ValueProjectionTest, WhatIsKnownIsNotLearnedAgainAndTheRestHasTheSameBits) {
  ValueNorms whole(pool_, layers_, kEntries);
  learn(whole, 2, select_isa());
  ValueNorms some(pool_, layers_, kEntries);
  learn(some, 1, select_isa());
  for (int32_t head = 0; head < kKvHeads; ++head) {
    EXPECT_EQ(std::memcmp(some.of(0, head), whole.of(0, head), kEntries * sizeof(float)), 0) << "threads";
  }
  some.keep(layers_, std::vector<std::vector<int32_t>>{{3, 50, 149}, {0}});
  EXPECT_EQ(some.num_known(0, 0), 3);
  EXPECT_EQ(some.num_known(0, 1), 1);
  EXPECT_EQ(some.of(0, 0)[1], whole.of(0, 0)[50]);
  EXPECT_EQ(some.of(0, 1)[1], 0.0f);
  some.of(0, 0)[1] = -1.0f;
  learn(some, 1, select_isa());
  EXPECT_EQ(some.of(0, 0)[1], -1.0f) << "known";
  for (int32_t i = 3; i < kEntries; ++i) EXPECT_EQ(some.of(0, 0)[i], whole.of(0, 0)[i]) << i;
}

INSTANTIATE_TEST_SUITE_P(Types, ValueProjectionTest,
                         testing::Values(DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_K, DType::kQ6_K,
                                         DType::kQ4_0),
                         [](const auto& type) { return std::string(quant_type(type.param).name); });

// Heads have values of their own, of one latent.
TEST(MlaValueNorms, AreOfTheHeadsOwnValues) {
  constexpr int32_t kHeads = 3;
  constexpr int32_t kLatent = 32;
  constexpr int32_t kRope = 8;
  constexpr int32_t kValue = 24;
  MemoryPool pool(size_t{64} << 20);
  const std::vector<KvLayerSpec> layers{
      {.num_kv_heads = 1, .key_dim = kLatent + kRope, .value_dim = kLatent, .value_in_key = true}};
  KvCache kv(pool, {.layers = layers, .codec = KvCodec::kF32, .capacity_bytes = size_t{16} << 20});
  const SequenceId sequence = kv.create();
  ASSERT_TRUE(kv.reserve(sequence, kEntries));
  const std::vector<float> entries = test::random_floats(int64_t{kEntries} * (kLatent + kRope), 1);
  for (int32_t i = 0; i < kEntries; ++i) {
    const KvCache::Slot slot = kv.slot(sequence, 0, 0, i);
    kv_store(kv.block_format(0), slot.block, slot.slot, entries.data() + i * (kLatent + kRope), nullptr);
  }
  kv.commit(sequence, std::vector<TokenId>(kEntries, 1), std::vector<TokenRole>(kEntries, TokenRole::kPrompt));
  const test::RandomMatrix output(DType::kF32, kModelDim, kHeads * kValue, 2);
  std::vector<test::RandomMatrix> expand;
  MlaWeights weights;
  weights.o = output.packed;
  for (int32_t head = 0; head < kHeads; ++head) {
    expand.emplace_back(DType::kF32, kValue, kLatent, 10 + static_cast<uint32_t>(head));
  }
  for (const test::RandomMatrix& matrix : expand) weights.v.push_back(matrix.packed);
  MlaConfig config;
  config.num_heads = kHeads;
  config.latent_dim = kLatent;
  config.rope_dim = kRope;
  config.value_dim = kValue;
  config.model_dim = kModelDim;
  ThreadPool threads(2);
  Scratch scratch(pool);
  ComputeContext ctx{.threads = threads, .scratch = scratch, .isa = select_isa(), .precision = Precision::kFast};
  ValueNorms norms(pool, layers, kEntries);
  learn_mla_value_norms(ctx, kv, sequence, 0, config, weights, norms);
  for (int32_t i = 0; i < kEntries; ++i) {
    double expected = 0.0;
    for (size_t head = 0; head < kHeads; ++head) {
      const std::vector<double> value = expand[head].times(entries.data() + i * (kLatent + kRope));
      for (size_t row = 0; row < kModelDim; ++row) {
        double product = 0.0;
        for (size_t d = 0; d < kValue; ++d) {
          product += static_cast<double>(output.values[(row * kHeads + head) * kValue + d]) * value[d];
        }
        expected += std::fabs(product) / kHeads;
      }
    }
    EXPECT_NEAR(norms.of(0, 0)[i], expected, 1e-5 * expected) << i;
  }
}

}  // namespace
}  // namespace witan
