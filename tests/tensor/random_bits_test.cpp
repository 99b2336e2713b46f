#include "tensor/random_bits.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

namespace witan {
namespace {

TEST(RandomBits, StreamIsFixedByItsSeed) {
  RandomBits first(7);
  RandomBits second(7);
  RandomBits other(8);
  int num_equal = 0;
  for (int i = 0; i < 100; ++i) {
    const uint64_t bits = first.next();
    ASSERT_EQ(bits, second.next());
    num_equal += bits == other.next() ? 1 : 0;
  }
  EXPECT_EQ(num_equal, 0);
}

TEST(RandomBits, FillWritesTheStreamAndNothingPastItsEnd) {
  std::array<std::byte, 16> bytes;
  bytes.fill(std::byte{0xaa});
  RandomBits(3).fill(bytes.data(), 11);
  RandomBits expected(3);
  const uint64_t words[2] = {expected.next(), expected.next()};
  EXPECT_EQ(std::memcmp(bytes.data(), words, 11), 0);
  for (int i = 11; i < 16; ++i) EXPECT_EQ(bytes[i], std::byte{0xaa}) << i;
}

TEST(RandomBits, SignedUnitsAreUniform) {
  constexpr int kCount = 1 << 20;
  RandomBits bits(5);
  double sum = 0;
  double sum_squares = 0;
  for (int i = 0; i < kCount; ++i) {
    const float value = bits.next_signed_unit();
    ASSERT_GE(value, -1.0f);
    ASSERT_LT(value, 1.0f);
    sum += value;
    sum_squares += static_cast<double>(value) * value;
  }
  // Five standard errors of the mean (1 / sqrt(3 n)) and of the mean square (sqrt(4 / 45 / n)).
  EXPECT_NEAR(sum / kCount, 0, 5 / std::sqrt(3.0 * kCount));
  EXPECT_NEAR(sum_squares / kCount, 1.0 / 3, 5 * std::sqrt(4.0 / 45 / kCount));
}

}  // namespace
}  // namespace witan
