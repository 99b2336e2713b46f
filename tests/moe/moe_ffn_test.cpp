#include "moe/moe_ffn.h"

#include <gtest/gtest.h>

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

  std::vector<float> run(const std::vector<float>& x, int num_threads, const FfnWeights* shared, Isa isa) {
    const int64_t n = std::ssize(x) / kModelDim;
    ThreadPool threads(num_threads);
    Scratch scratch(pool_);
    ComputeContext ctx{.threads = threads, .scratch = scratch, .isa = isa, .precision = Precision::kExact};
    RouterTelemetry telemetry(1, kExperts, 3);
    telemetry.begin_step();
    std::vector<float> out(x.size());
    moe_ffn(ctx, weights_, shared, x.data(), n, telemetry, out.data());
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
  const FfnWeights shared = shared_.weights();
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    const std::vector<float> out = run(x, 2, &shared, isa);
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
    const std::vector<float> all = run(x, 2, nullptr, isa);
    for (int64_t token : {0, 1, 35, 69}) {
      const std::vector<float> one(x.begin() + token * kModelDim, x.begin() + (token + 1) * kModelDim);
      const std::vector<float> alone = run(one, 1, nullptr, isa);
      EXPECT_EQ(std::memcmp(alone.data(), all.data() + token * kModelDim, kModelDim * sizeof(float)), 0)
          << isa_name(isa) << ", token " << token;
    }
  }
}

}  // namespace
}  // namespace witan
