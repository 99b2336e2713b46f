#include "models/kv_observation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "memory/memory_pool.h"
#include "support/packed.h"

namespace witan {
namespace {

constexpr int32_t kKvHeads = 2;
constexpr int32_t kGroup = 3;
constexpr int32_t kHeads = kKvHeads * kGroup;
constexpr int32_t kDim = 16;
constexpr int32_t kTokens = 700;  // more than one split
constexpr float kScale = 0.25f;

class KvObservationTest : public testing::TestWithParam<bool> {
 protected:
  // The mass that each head's entries have when the text is computed in slices of these lengths: [head][entry].
  std::vector<std::vector<float>> mass_after(const std::vector<int32_t>& slices, Isa isa) {
    KvCache kv(pool_,
               {.layers = {layer_}, .codec = KvCodec::kF32, .capacity_bytes = size_t{32} << 20, .prefix_cache = false});
    const SequenceId sequence = kv.create();
    KvEvidence evidence;
    evidence.mass = std::make_unique<AttentionMass>(pool_, std::span(&layer_, 1), kTokens);
    ThreadPool threads(2);
    Scratch scratch(pool_);
    RouterTelemetry telemetry(0, 0, 0);
    ForwardContext ctx{.compute = {.threads = threads, .scratch = scratch, .isa = isa, .precision = Precision::kExact},
                       .kv = kv,
                       .telemetry = telemetry};
    int32_t first = 0;
    for (const int32_t count : slices) {
      EXPECT_TRUE(kv.reserve(sequence, count));
      ForwardBatch batch;
      batch.slices.push_back(
          {.kv_sequence = sequence, .first_row = 0, .num_tokens = count, .first_token = first, .evidence = &evidence});
      for (int32_t i = 0; i < count; ++i) {
        batch.tokens.push_back(i);
        batch.positions.push_back(first + i);
        batch.roles.push_back(TokenRole::kPrompt);
      }
      write_kv(ctx, batch, 0, spec(), keys_.data() + first * kKvHeads * kDim, values_.data() + first * kKvHeads * kDim);
      observe_queries(ctx, batch, 0, spec(), queries_.data() + first * kHeads * kDim);
      kv.commit(sequence, batch.tokens, batch.roles);
      first += count;
    }
    std::vector<std::vector<float>> masses;
    for (int32_t head = 0; head < kKvHeads; ++head) {
      const float* mass = evidence.mass->of(0, head);
      masses.emplace_back(mass, mass + kTokens);
      for (int64_t i = kTokens; i < evidence.mass->row_floats(); ++i) EXPECT_EQ(mass[i], 0.0f);
    }
    return masses;
  }

  AttentionSpec spec() const {
    return {.num_heads = kHeads,
            .num_kv_heads = kKvHeads,
            .key_dim = kDim,
            .value_dim = kDim,
            .scale = kScale,
            .sinks = GetParam() ? sinks_.data() : nullptr};
  }

  std::vector<std::vector<double>> expected_mass() const {
    std::vector<std::vector<double>> masses(kKvHeads, std::vector<double>(kTokens));
    for (int32_t token = 0; token < kTokens; ++token) {
      for (int32_t head = 0; head < kHeads; ++head) {
        std::vector<double> weights;
        double total = GetParam() ? std::exp(static_cast<double>(sinks_[static_cast<size_t>(head)])) : 0.0;
        for (int32_t i = 0; i <= token; ++i) {
          double dot = 0.0;
          for (int32_t d = 0; d < kDim; ++d) {
            dot += static_cast<double>(queries_[static_cast<size_t>((token * kHeads + head) * kDim + d)]) *
                   static_cast<double>(keys_[static_cast<size_t>((i * kKvHeads + head / kGroup) * kDim + d)]);
          }
          weights.push_back(std::exp(dot * static_cast<double>(kScale)));
          total += weights.back();
        }
        for (size_t i = 0; i < weights.size(); ++i) masses[static_cast<size_t>(head / kGroup)][i] += weights[i] / total;
      }
    }
    return masses;
  }

  MemoryPool pool_{size_t{128} << 20};
  KvLayerSpec layer_{.num_kv_heads = kKvHeads, .key_dim = kDim, .value_dim = kDim};
  std::vector<float> queries_ = test::random_floats(int64_t{kTokens} * kHeads * kDim, 1);
  std::vector<float> keys_ = test::random_floats(int64_t{kTokens} * kKvHeads * kDim, 2);
  std::vector<float> values_ = test::random_floats(int64_t{kTokens} * kKvHeads * kDim, 3);
  std::vector<float> sinks_ = test::random_floats(kHeads, 4);
};

TEST_P(KvObservationTest, AttentionMassIsTheSumOfTheSoftmaxWeights) {
  const auto expected = expected_mass();
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    const auto masses = mass_after({kTokens}, isa);
    for (size_t head = 0; head < kKvHeads; ++head) {
      for (size_t i = 0; i < kTokens; ++i) {
        EXPECT_NEAR(masses[head][i], expected[head][i], 1e-4 * (1.0 + expected[head][i])) << isa_name(isa) << " " << i;
      }
    }
  }
}

TEST_P(KvObservationTest, AttentionMassHasTheSameBitsHoweverTheTextIsCut) {
  const auto whole = mass_after({kTokens}, select_isa());
  EXPECT_EQ(mass_after({1, 1, 5, 17, 31, 600, 45}, select_isa()), whole);
  EXPECT_EQ(mass_after({350, 350}, select_isa()), whole);
}

INSTANTIATE_TEST_SUITE_P(Sinks, KvObservationTest, testing::Bool());

TEST(AttentionMass, KeepsWhatIsLeft) {
  MemoryPool pool(size_t{8} << 20);
  const KvLayerSpec layers[] = {{.num_kv_heads = 1, .key_dim = 4, .value_dim = 4},
                                {.num_kv_heads = 1, .key_dim = 4, .value_dim = 4, .window = 8},
                                {.num_kv_heads = 2, .key_dim = 4, .value_dim = 4}};
  AttentionMass mass(pool, layers, 100);
  for (int32_t i = 0; i < 100; ++i) {
    mass.of(0, 0)[i] = static_cast<float>(i);
    mass.of(2, 1)[i] = static_cast<float>(1000 + i);
  }
  mass.keep(layers, std::vector<std::vector<int32_t>>{{3, 50}, {}, {}, {0, 99}});
  EXPECT_EQ(mass.of(0, 0)[0], 3.0f);
  EXPECT_EQ(mass.of(0, 0)[1], 50.0f);
  EXPECT_EQ(mass.of(0, 0)[2], 0.0f);
  EXPECT_EQ(mass.of(2, 1)[0], 1000.0f);
  EXPECT_EQ(mass.of(2, 1)[1], 1099.0f);
  EXPECT_EQ(mass.of(2, 1)[99], 0.0f);
}

}  // namespace
}  // namespace witan
