#include "nn/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "memory/memory_pool.h"
#include "support/packed.h"

namespace witan {
namespace {

class LinearTest : public testing::Test {
 protected:
  ComputeContext context(ThreadPool& threads, Precision precision) {
    return {.threads = threads, .scratch = scratch_, .isa = select_isa(), .precision = precision};
  }
  MemoryPool pool_{size_t{64} << 20};
  Scratch scratch_{pool_};
};

TEST_F(LinearTest, SeveralProductsOfOneInputMatchTheirMatrices) {
  constexpr int64_t kRows = 19;
  constexpr int64_t kCols = 256;
  const test::RandomMatrix a(DType::kF32, 70, kCols, 1);
  const test::RandomMatrix b(DType::kQ8_0, 33, kCols, 2);
  const test::RandomMatrix c(DType::kQ4_K, 16, kCols, 3);
  const std::vector<float> x = test::random_floats(kRows * kCols, 4);
  const std::vector<float> bias = test::random_floats(33, 5);
  ThreadPool threads(2);
  ComputeContext ctx = context(threads, Precision::kExact);
  std::vector<float> ya(kRows * 70);
  std::vector<float> yb(kRows * 40);  // rows apart by more than their length
  std::vector<float> yc(kRows * 16);
  const LinearOutput outputs[] = {{.matrix = &a.packed, .y = ya.data(), .stride = 70},
                                  {.matrix = &b.packed, .y = yb.data(), .stride = 40, .bias = bias.data()},
                                  {.matrix = &c.packed, .y = yc.data(), .stride = 16}};
  linear(ctx, x.data(), kRows, kCols, kCols, outputs);
  for (int64_t row = 0; row < kRows; ++row) {
    const std::vector<double> ea = a.times(x.data() + row * kCols);
    const std::vector<double> eb = b.times(x.data() + row * kCols);
    const std::vector<double> ec = c.times(x.data() + row * kCols);
    for (int i = 0; i < 70; ++i) EXPECT_NEAR(ya[row * 70 + i], ea[i], 1e-3);
    for (int i = 0; i < 33; ++i) EXPECT_NEAR(yb[row * 40 + i], eb[i] + double{bias[i]}, 1e-3);
    for (int i = 0; i < 16; ++i) EXPECT_NEAR(yc[row * 16 + i], ec[i], 1e-3);
  }
  EXPECT_EQ(scratch_.bytes_used(), 0u);
}

TEST_F(LinearTest, ThreadsAndRowsDoNotChangeBits) {
  constexpr int64_t kRows = 23;
  constexpr int64_t kCols = 512;
  const test::RandomMatrix w(DType::kQ8_0, 300, kCols, 1);
  const std::vector<float> x = test::random_floats(kRows * kCols, 4);
  for (const Precision precision : {Precision::kExact, Precision::kFast}) {
    std::vector<float> one(kRows * 300);
    std::vector<float> many(kRows * 300);
    ThreadPool single(1);
    ThreadPool triple(3);
    ComputeContext alone = context(single, precision);
    ComputeContext together = context(triple, precision);
    for (int64_t row = 0; row < kRows; ++row) {
      linear(alone, w.packed, x.data() + row * kCols, 1, one.data() + row * 300);
    }
    linear(together, w.packed, x.data(), kRows, many.data());
    EXPECT_EQ(std::memcmp(one.data(), many.data(), one.size() * sizeof(float)), 0);
  }
}

TEST_F(LinearTest, NoRowsAreNoWork) {
  const test::RandomMatrix w(DType::kF32, 16, 16, 1);
  ThreadPool threads(1);
  ComputeContext ctx = context(threads, Precision::kExact);
  linear(ctx, w.packed, nullptr, 0, nullptr);
}

}  // namespace
}  // namespace witan
