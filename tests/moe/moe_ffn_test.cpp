#include "moe/moe_ffn.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "memory/memory_pool.h"
#include "support/packed.h"

namespace witan {
namespace {

constexpr int32_t kModelDim = 48;
constexpr int32_t kFfnDim = 40;
constexpr int32_t kExperts = 10;

struct Ffn {
  test::RandomMatrix gate;
  test::RandomMatrix up;
  test::RandomMatrix down;
  explicit Ffn(uint32_t seed)
      : gate(DType::kF32, kFfnDim, kModelDim, seed),
        up(DType::kF32, kFfnDim, kModelDim, seed + 1),
        down(DType::kF32, kModelDim, kFfnDim, seed + 2) {}
  FfnWeights weights() const { return {.gate = gate.packed, .up = up.packed, .down = down.packed}; }

  std::vector<double> apply(const float* x) const {
    const std::vector<double> g = gate.times(x);
    const std::vector<double> u = up.times(x);
    std::vector<float> hidden(kFfnDim);
    for (int i = 0; i < kFfnDim; ++i) hidden[i] = static_cast<float>(g[i] / (1.0 + std::exp(-g[i])) * u[i]);
    return down.times(hidden.data());
  }
};

class MoeFfnTest : public testing::Test {
 protected:
  MoeFfnTest() : router_(DType::kF32, kExperts, kModelDim, 77), shared_(900) {
    for (uint32_t e = 0; e < kExperts; ++e) experts_.emplace_back(100 + 10 * e);
    weights_.spec = {.num_experts = kExperts, .top_k = 3, .normalize = true};
    weights_.router = router_.packed;
    for (const Ffn& expert : experts_) weights_.experts.push_back(expert.weights());
  }

  std::vector<float> run(const std::vector<float>& x, int num_threads, Isa isa, const ExpertCapacity& capacity = {}) {
    const int64_t n = std::ssize(x) / kModelDim;
    ThreadPool threads(num_threads);
    Scratch scratch(pool_);
    ComputeContext ctx{.threads = threads, .scratch = scratch, .isa = isa, .precision = Precision::kExact};
    RouterTelemetry telemetry(1, kExperts, weights_.spec.top_k);
    telemetry.begin_step();
    std::vector<float> out(x.size());
    moe_ffn(ctx, weights_, x.data(), n, telemetry, out.data(), capacity);
    routes_.assign(telemetry.last_experts(0).begin(), telemetry.last_experts(0).end());
    EXPECT_EQ(scratch.bytes_used(), 0u);
    return out;
  }

  MemoryPool pool_{size_t{64} << 20};
  test::RandomMatrix router_;
  Ffn shared_;
  std::vector<Ffn> experts_;
  MoeWeights weights_;
  std::vector<int32_t> routes_;
};

TEST_F(MoeFfnTest, IsTheWeightedSumOfTheChosenExpertsAndTheSharedOne) {
  const std::vector<float> x = test::random_floats(33 * kModelDim, 5);
  weights_.shared = shared_.weights();
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    const std::vector<float> out = run(x, 2, isa);
    for (int64_t token = 0; token < 33; ++token) {
      const float* row = x.data() + token * kModelDim;
      const std::vector<double> logits = router_.times(row);
      double sum = 0.0;
      for (int i = 0; i < 3; ++i) sum += std::exp(logits[routes_[token * 3 + i]]);
      std::vector<double> expected = shared_.apply(row);
      for (int i = 0; i < 3; ++i) {
        const int32_t expert = routes_[token * 3 + i];
        const std::vector<double> y = experts_[expert].apply(row);
        for (int d = 0; d < kModelDim; ++d) expected[d] += std::exp(logits[expert]) / sum * y[d];
      }
      for (int d = 0; d < kModelDim; ++d) EXPECT_NEAR(out[token * kModelDim + d], expected[d], 1e-3) << isa_name(isa);
    }
  }
}

TEST_F(MoeFfnTest, ATokensResultDoesNotDependOnTheOthersOrTheThreads) {
  const std::vector<float> x = test::random_floats(70 * kModelDim, 6);
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    const std::vector<float> all = run(x, 2, isa);
    for (int64_t token : {0, 1, 35, 69}) {
      const std::vector<float> one(x.begin() + token * kModelDim, x.begin() + (token + 1) * kModelDim);
      const std::vector<float> alone = run(one, 1, isa);
      EXPECT_EQ(std::memcmp(alone.data(), all.data() + token * kModelDim, kModelDim * sizeof(float)), 0)
          << isa_name(isa) << ", token " << token;
    }
  }
}

TEST_F(MoeFfnTest, TheSharedExpertIsWeighedByItsGate) {
  const std::vector<float> x = test::random_floats(9 * kModelDim, 7);
  const test::RandomMatrix gate(DType::kF32, 1, kModelDim, 31);
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    weights_.shared = {};
    weights_.shared_gate = {};
    const std::vector<float> routed = run(x, 2, isa);
    weights_.shared = shared_.weights();
    weights_.shared_gate = gate.packed;
    const std::vector<float> both = run(x, 2, isa);
    for (int64_t token = 0; token < 9; ++token) {
      const float* row = x.data() + token * kModelDim;
      const double weight = 1.0 / (1.0 + std::exp(-gate.times(row)[0]));
      const std::vector<double> shared = shared_.apply(row);
      for (int d = 0; d < kModelDim; ++d) {
        const int64_t i = token * kModelDim + d;
        EXPECT_NEAR(both[i], routed[i] + weight * shared[d], 1e-3) << isa_name(isa);
      }
    }
  }
}

// Biases of the router and of all products of an expert, and the clamped activation: gpt-oss.
TEST_F(MoeFfnTest, BiasesAndTheClampedActivationAreApplied) {
  const std::vector<float> x = test::random_floats(21 * kModelDim, 8);
  const std::vector<float> router_bias = test::random_floats(kExperts, 40);
  const std::vector<float> gate_bias = test::random_floats(kFfnDim, 41);
  const std::vector<float> up_bias = test::random_floats(kFfnDim, 42);
  const std::vector<float> down_bias = test::random_floats(kModelDim, 43);
  weights_.spec = {.num_experts = kExperts, .top_k = 3, .scoring = RouterScoring::kSoftmaxOfChosen};
  weights_.router_bias = router_bias.data();
  constexpr float kLimit = 0.5f;
  for (FfnWeights& expert : weights_.experts) {
    expert.gate_bias = gate_bias.data();
    expert.up_bias = up_bias.data();
    expert.down_bias = down_bias.data();
    expert.activation = FfnActivation::kClampedSwiglu;
    expert.limit = kLimit;
  }
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    const std::vector<float> out = run(x, 2, isa);
    for (int64_t token = 0; token < 21; ++token) {
      const float* row = x.data() + token * kModelDim;
      const std::vector<double> logits = router_.times(row);
      const auto logit = [&](int32_t expert) { return logits[expert] + static_cast<double>(router_bias[expert]); };
      double sum = 0.0;
      for (int i = 0; i < 3; ++i) sum += std::exp(logit(routes_[token * 3 + i]));
      std::vector<double> expected(kModelDim, 0.0);
      for (int i = 0; i < 3; ++i) {
        const int32_t e = routes_[token * 3 + i];
        const std::vector<double> gate = experts_[e].gate.times(row);
        const std::vector<double> up = experts_[e].up.times(row);
        std::vector<float> hidden(kFfnDim);
        for (int c = 0; c < kFfnDim; ++c) {
          const double g = std::min(gate[c] + static_cast<double>(gate_bias[c]), static_cast<double>(kLimit));
          const double u = std::clamp(up[c] + static_cast<double>(up_bias[c]), -static_cast<double>(kLimit),
                                      static_cast<double>(kLimit));
          hidden[c] = static_cast<float>((u + 1.0) * g / (1.0 + std::exp(-1.702 * g)));
        }
        const std::vector<double> y = experts_[e].down.times(hidden.data());
        for (int d = 0; d < kModelDim; ++d) {
          expected[d] += std::exp(logit(e)) / sum * (y[d] + static_cast<double>(down_bias[d]));
        }
      }
      for (int d = 0; d < kModelDim; ++d) EXPECT_NEAR(out[token * kModelDim + d], expected[d], 1e-3) << isa_name(isa);
    }
  }
}

// Of each range an expert takes the first tokens that choose it; the others get nothing of it.
TEST_F(MoeFfnTest, TokensBeyondAnExpertsCapacityAreDropped) {
  weights_.spec = {.num_experts = kExperts, .top_k = 1};
  for (FfnWeights& expert : weights_.experts) {
    expert.activation = FfnActivation::kRelu;
    expert.gate = {};
  }
  constexpr int64_t kTokens = 40;
  const std::vector<float> x = test::random_floats(kTokens * kModelDim, 9);
  const std::vector<float> free = run(x, 2, select_isa());
  const std::vector<int32_t> chosen = routes_;
  const ExpertCapacity::Range ranges[] = {{.begin = 0, .end = 25}, {.begin = 25, .end = 38}};
  const std::vector<float> limited = run(x, 2, select_isa(), {.ranges = ranges, .tokens_per_expert = 2});
  int num_dropped = 0;
  for (int64_t token = 0; token < kTokens; ++token) {
    const int64_t begin = token < 25 ? 0 : token < 38 ? 25 : token;
    const auto before = std::count(chosen.begin() + begin, chosen.begin() + token, chosen[token]);
    const bool dropped = before >= 2;
    num_dropped += dropped ? 1 : 0;
    EXPECT_EQ(routes_[token], dropped ? kNoExpert : chosen[token]) << token;
    for (int64_t i = token * kModelDim; i < (token + 1) * kModelDim; ++i)
      EXPECT_EQ(limited[i], dropped ? 0.0f : free[i]);
  }
  EXPECT_GT(num_dropped, 3);
}

}  // namespace
}  // namespace witan
