#include "models/kv_observation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
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
// Where the last tokens repeat a chunk of the others:
constexpr int32_t kPrompt = 620;
constexpr int32_t kSinks = 4;
constexpr KvSpan kChunk{.begin = 70, .end = 590};  // with the repetition more than one split

class KvObservationTest : public testing::TestWithParam<bool> {
 protected:
  // A text whose entries and queries are the fixture's, computed slice by slice.
  class Text {
   public:
    Text(KvObservationTest& test, Isa isa)
        : test_(test),
          scratch_(test.pool_),
          kv_(test.pool_, {.layers = {test.layer_},
                           .codec = KvCodec::kF32,
                           .capacity_bytes = size_t{32} << 20,
                           .prefix_cache = false}),
          sequence_(kv_.create()),
          isa_(isa) {}

    KvEvidence evidence;

    // Returns how many of the slice's queries are observed. What repeats a chunk is not committed.
    int64_t compute(SequenceSlice slice) {
      slice.kv_sequence = sequence_;
      slice.evidence = &evidence;
      const bool repeats = slice.repeated_chunk.end > 0;
      EXPECT_TRUE(kv_.reserve(sequence_, slice.num_uncommitted + slice.num_tokens));
      ForwardBatch batch;
      for (int32_t i = 0; i < slice.num_tokens; ++i) {
        batch.tokens.push_back(i);
        batch.positions.push_back(slice.first_token + i);
        batch.roles.push_back(TokenRole::kPrompt);
      }
      batch.slices.push_back(slice);
      ForwardContext ctx{
          .compute = {.threads = threads_, .scratch = scratch_, .isa = isa_, .precision = Precision::kExact},
          .kv = kv_,
          .telemetry = telemetry_};
      const int64_t first_entry = int64_t{slice.first_token} * kKvHeads * kDim;
      write_kv(ctx, batch, 0, test_.spec(), test_.keys_.data() + first_entry, test_.values_.data() + first_entry);
      observe_queries(ctx, batch, 0, test_.spec(), test_.queries_.data() + int64_t{slice.first_token} * kHeads * kDim);
      if (!repeats) kv_.commit(sequence_, batch.tokens, batch.roles);
      return std::ssize(observed_rows(batch));
    }

   private:
    KvObservationTest& test_;
    ThreadPool threads_{2};
    Scratch scratch_;
    RouterTelemetry telemetry_{0, 0, 0};
    KvCache kv_;
    SequenceId sequence_;
    Isa isa_;
  };

  // The mass that each head's entries have when the text is computed in slices of these lengths: [head][entry].
  std::vector<std::vector<float>> mass_after(const std::vector<int32_t>& slices, Isa isa) {
    Text text(*this, isa);
    text.evidence.mass = std::make_unique<AttentionMass>(pool_, std::span(&layer_, 1), kTokens);
    int32_t first = 0;
    for (const int32_t count : slices) {
      text.compute({.num_tokens = count, .first_token = first});
      first += count;
    }
    std::vector<std::vector<float>> masses;
    for (int32_t head = 0; head < kKvHeads; ++head) {
      AttentionMass& all = *text.evidence.mass;
      const float* mass = all.of(0, head);
      masses.emplace_back(mass, mass + kTokens);
      for (int64_t i = kTokens; i < all.row_floats(); ++i) EXPECT_EQ(mass[i], 0.0f);
    }
    return masses;
  }

  // What each head's entries have of the repetition of a chunk when the first kPrompt tokens are committed and the
  // others are the repetition, computed in slices of these lengths: [head][entry].
  std::vector<std::vector<float>> repetition_after(const std::vector<int32_t>& slices, Isa isa) {
    Text text(*this, isa);
    text.evidence.repetition = std::make_unique<RepetitionAttention>(pool_, std::span(&layer_, 1), kPrompt, kSinks);
    EXPECT_EQ(text.compute({.num_tokens = kPrompt}), 0);
    int32_t first = kPrompt;
    for (const int32_t count : slices) {
      EXPECT_EQ(text.compute({.num_tokens = count,
                              .first_token = first,
                              .repeated_chunk = kChunk,
                              .num_uncommitted = first - kPrompt}),
                count);
      first += count;
    }
    EXPECT_EQ(first, kTokens);
    std::vector<std::vector<float>> largest;
    for (int32_t head = 0; head < kKvHeads; ++head) {
      const float* of_head = text.evidence.repetition->of(0, head);
      largest.emplace_back(of_head, of_head + kPrompt);
    }
    return largest;
  }

  std::vector<std::vector<double>> expected_repetition() const {
    std::vector<std::vector<double>> largest(kKvHeads, std::vector<double>(kPrompt));
    for (int32_t token = kPrompt; token < kTokens; ++token) {
      for (int32_t head = 0; head < kHeads; ++head) {
        std::map<int32_t, double> weights;
        double total = GetParam() ? std::exp(static_cast<double>(sinks_[static_cast<size_t>(head)])) : 0.0;
        for (int32_t i = 0; i <= token; ++i) {
          if (i >= kSinks && !(i >= kChunk.begin && i < kChunk.end) && i < kPrompt) continue;
          total += weights[i] = std::exp(dot(token, head, i) * static_cast<double>(kScale));
        }
        std::vector<double>& of_head = largest[static_cast<size_t>(head / kGroup)];
        for (int32_t i = kChunk.begin; i < kChunk.end; ++i) {
          of_head[static_cast<size_t>(i)] = std::max(of_head[static_cast<size_t>(i)], weights[i] / total);
        }
      }
    }
    return largest;
  }

  double dot(int32_t token, int32_t head, int32_t entry) const {
    const float* query = queries_.data() + (int64_t{token} * kHeads + head) * kDim;
    const float* key = keys_.data() + (int64_t{entry} * kKvHeads + head / kGroup) * kDim;
    double dot = 0.0;
    for (int32_t d = 0; d < kDim; ++d) dot += static_cast<double>(query[d]) * static_cast<double>(key[d]);
    return dot;
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
          weights.push_back(std::exp(dot(token, head, i) * static_cast<double>(kScale)));
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

TEST_P(KvObservationTest, ARepetitionGivesTheLargestAttentionAmongSinksChunkAndItself) {
  const auto expected = expected_repetition();
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    const auto largest = repetition_after({kTokens - kPrompt}, isa);
    for (size_t head = 0; head < kKvHeads; ++head) {
      for (size_t i = 0; i < kPrompt; ++i) {
        EXPECT_NEAR(largest[head][i], expected[head][i], 1e-5 * expected[head][i]) << isa_name(isa) << " " << i;
      }
      EXPECT_EQ(largest[head][static_cast<size_t>(kChunk.begin - 1)], 0.0f);
      EXPECT_EQ(largest[head][static_cast<size_t>(kChunk.end)], 0.0f);
    }
  }
}

TEST_P(KvObservationTest, ARepetitionGivesTheSameBitsHoweverItIsCut) {
  const auto whole = repetition_after({kTokens - kPrompt}, select_isa());
  EXPECT_EQ(repetition_after({1, 1, 5, 17, 31, 25}, select_isa()), whole);
  EXPECT_EQ(repetition_after({40, 40}, select_isa()), whole);
}

INSTANTIATE_TEST_SUITE_P(Sinks, KvObservationTest, testing::Bool());

// Queries of two slices at once, of which the first tokens of the text are left out.
TEST(QueryMoments, AreThoseOfAllTokensButTheFirstHoweverTheTextIsCut) {
  MemoryPool pool(size_t{64} << 20);
  const KvLayerSpec layers[] = {{.num_kv_heads = kKvHeads, .key_dim = kDim, .value_dim = kDim, .window = 64},
                                {.num_kv_heads = kKvHeads, .key_dim = kDim, .value_dim = kDim}};
  const RopeTable rope({.layout = RopeLayout::kPairs, .dim = 8, .theta = 100.0});
  const RopeAngles angles{.table = rope, .layout = rope.layout(), .dim = rope.dim(), .cos = nullptr, .sin = nullptr};
  const AttentionSpec spec{
      .num_heads = kHeads, .num_kv_heads = kKvHeads, .key_dim = kDim, .value_dim = kDim, .scale = kScale};
  constexpr int32_t kFirst = 6;
  const std::vector<float> queries = test::random_floats(int64_t{kTokens} * kHeads * kDim, 9);
  KvCache kv(pool, {.layers = {layers[0], layers[1]}, .codec = KvCodec::kF32, .capacity_bytes = size_t{8} << 20});
  ThreadPool threads(2);
  Scratch scratch(pool);
  RouterTelemetry telemetry(0, 0, 0);
  ForwardContext ctx{
      .compute = {.threads = threads, .scratch = scratch, .isa = select_isa(), .precision = Precision::kExact},
      .kv = kv,
      .telemetry = telemetry};
  struct Moments {
    std::vector<double> means;
    std::vector<double> covariances;
    bool operator==(const Moments&) const = default;
  };
  const auto moments_after = [&](const std::vector<int32_t>& slices) {
    KvEvidence evidence;
    evidence.moments = std::make_unique<QueryMoments>(pool, layers, kHeads, QueryMoments::Order::kCovariance, kFirst);
    int32_t first = 0;
    for (const int32_t count : slices) {
      ForwardBatch batch;
      const SequenceSlice other{.kv_sequence = 1, .first_row = 0, .num_tokens = 3};
      batch.slices = {
          other, {.kv_sequence = 2, .first_row = 3, .num_tokens = count, .first_token = first, .evidence = &evidence}};
      std::vector<float> rows(static_cast<size_t>(3 * kHeads * kDim), 1e9f);
      rows.insert(rows.end(), queries.begin() + first * kHeads * kDim,
                  queries.begin() + (first + count) * kHeads * kDim);
      EXPECT_EQ(std::ssize(observed_unrotated_rows(batch)), count - std::clamp(kFirst - first, 0, count));
      EXPECT_TRUE(observed_rows(batch).empty());
      for (const int32_t layer : {0, 1}) {
        AttentionSpec of_layer = spec;
        of_layer.window = layers[layer].window;
        observe_unrotated_queries(ctx, batch, layer, of_layer, angles, 4, rows.data());
      }
      first += count;
    }
    EXPECT_EQ(evidence.moments->scoring(1).rope, &rope);
    EXPECT_EQ(evidence.moments->scoring(1).rope_offset, 4);
    EXPECT_EQ(evidence.moments->scoring(1).scale, kScale);
    Moments moments{.means = std::vector<double>(kHeads * kDim),
                    .covariances = std::vector<double>(kHeads * kDim * kDim)};
    for (int32_t head = 0; head < kHeads; ++head) {
      double* mean = moments.means.data() + head * kDim;
      evidence.moments->mean(1, head, mean);
      evidence.moments->covariance(1, head, mean, moments.covariances.data() + head * kDim * kDim);
    }
    return moments;
  };
  const Moments whole = moments_after({kTokens});
  EXPECT_TRUE(moments_after({1, 1, 5, 17, 31, 600, 45}) == whole);
  EXPECT_TRUE(moments_after({4, 3, 343, 350}) == whole);
  for (int32_t head = 0; head < kHeads; ++head) {
    const auto component = [&](int32_t token, int32_t i) {
      return static_cast<double>(queries[static_cast<size_t>((token * kHeads + head) * kDim + i)]);
    };
    for (int32_t i = 0; i < kDim; ++i) {
      double mean = 0.0;
      for (int32_t token = kFirst; token < kTokens; ++token) mean += component(token, i) / (kTokens - kFirst);
      EXPECT_NEAR(whole.means[static_cast<size_t>(head * kDim + i)], mean, 1e-12);
      for (int32_t j = 0; j < kDim; ++j) {
        double product = 0.0;
        for (int32_t token = kFirst; token < kTokens; ++token) {
          product += (component(token, i) - mean) *
                     (component(token, j) - whole.means[static_cast<size_t>(head * kDim + j)]) / (kTokens - kFirst);
        }
        EXPECT_NEAR(whole.covariances[static_cast<size_t>((head * kDim + i) * kDim + j)], product, 1e-12);
      }
    }
  }
}

TEST(QueryMoments, NeedTheRoomTheySay) {
  const KvLayerSpec layers[] = {{.num_kv_heads = 1, .key_dim = 10, .value_dim = 4},
                                {.num_kv_heads = 1, .key_dim = 10, .value_dim = 4, .window = 8},
                                {.num_kv_heads = 2, .key_dim = 20, .value_dim = 4}};
  EXPECT_EQ(QueryMoments::bytes(layers, 3, QueryMoments::Order::kMean), 3 * (10 + 20) * 8);
  EXPECT_EQ(QueryMoments::bytes(layers, 3, QueryMoments::Order::kCovariance), 3 * (10 + 55 + 20 + 210) * 8);
  MemoryPool pool(size_t{4} << 20);
  EXPECT_THROW(QueryMoments(pool, layers, 3000, QueryMoments::Order::kCovariance, 0), Error);
}

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
