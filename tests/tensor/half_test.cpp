#include "tensor/half.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tensor/random_bits.h"
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa.h"
#endif

namespace witan {
namespace {

bool is_half_nan(uint16_t half) { return (half & 0x7fff) > 0x7c00; }

// Every float where rounding to half can go wrong, in both signs: each half, the midpoint to the next one, and their
// neighbouring floats; then a million random bit patterns.
std::vector<float> interesting_floats() {
  std::vector<float> values;
  auto add = [&values](float value) {
    for (const float v : {std::nextafterf(value, -INFINITY), value, std::nextafterf(value, INFINITY)}) {
      values.push_back(v);
      values.push_back(-v);
    }
  };
  for (uint32_t half = 0; half < 0x7c00; ++half) {
    const double low = f16_to_f32(static_cast<uint16_t>(half));
    const double high = half == 0x7bff ? 65536.0 : f16_to_f32(static_cast<uint16_t>(half + 1));
    add(static_cast<float>(low));
    add(static_cast<float>((low + high) / 2));
  }
  for (const float value : {65536.0f, 1e10f, std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::min(), std::numeric_limits<float>::denorm_min()}) {
    add(value);
  }
  RandomBits bits(1);
  for (int i = 0; i < 500'000; ++i) {
    const uint64_t two = bits.next();
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(two)));
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(two >> 32)));
  }
  return values;
}

TEST(Half, EveryHalfThatIsANumberRoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = f16_to_f32(half);
    if (is_half_nan(half)) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      EXPECT_TRUE(is_half_nan(f32_to_f16(value))) << bits;
    } else {
      EXPECT_EQ(f32_to_f16(value), half);
    }
  }
}

TEST(Half, KnownValuesDecode) {
  const struct {
    uint16_t half;
    float value;
  } cases[] = {{0x0000, 0.0f},     {0x8000, -0.0f},    {0x0001, 0x1p-24f}, {0x03ff, 0x1.ff8p-15f},
               {0x0400, 0x1p-14f}, {0x3c00, 1.0f},     {0xc000, -2.0f},    {0x3555, 0.333251953125f},
               {0x7bff, 65504.0f}, {0x7c00, INFINITY}, {0xfc00, -INFINITY}};
  for (const auto& c : cases) {
    EXPECT_EQ(std::bit_cast<uint32_t>(f16_to_f32(c.half)), std::bit_cast<uint32_t>(c.value)) << c.half;
  }
}

#if defined(__x86_64__)
__attribute__((target("f16c"))) uint16_t hardware_f32_to_f16(float value) {
  return static_cast<uint16_t>(
      _mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)));
}
__attribute__((target("f16c"))) float hardware_f16_to_f32(uint16_t half) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

TEST(Half, EncodingEqualsTheHardwares) {
  if (!cpu_supports(Isa::kAvx2)) GTEST_SKIP() << "this CPU has no F16C";
  for (const float value : interesting_floats()) {
    if (std::isnan(value)) {
      EXPECT_TRUE(is_half_nan(f32_to_f16(value)));
    } else {
      ASSERT_EQ(f32_to_f16(value), hardware_f32_to_f16(value)) << value;
    }
  }
}

TEST(Half, DecodingEqualsTheHardwares) {
  if (!cpu_supports(Isa::kAvx2)) GTEST_SKIP() << "this CPU has no F16C";
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if (is_half_nan(half)) continue;
    ASSERT_EQ(std::bit_cast<uint32_t>(f16_to_f32(half)), std::bit_cast<uint32_t>(hardware_f16_to_f32(half))) << bits;
  }
}
#endif

TEST(Half, EncodingRoundsToTheNearestHalfAndTiesToEven) {
  for (const float value : interesting_floats()) {
    if (std::isnan(value)) continue;
    const uint16_t half = f32_to_f16(value);
    ASSERT_EQ(half >> 15, std::signbit(value) ? 1 : 0) << value;
    const double magnitude = std::fabs(value);
    const auto code = static_cast<uint16_t>(half & 0x7fff);
    if (magnitude >= 65520) {  // halfway from the largest half to 2^16
      ASSERT_EQ(code, 0x7c00) << value;
      continue;
    }
    ASSERT_LT(code, 0x7c00) << value;
    const double error = std::fabs(f16_to_f32(code) - magnitude);
    for (const int neighbour : {code - 1, code + 1}) {
      if (neighbour < 0 || neighbour >= 0x7c00) continue;
      const double other = std::fabs(f16_to_f32(static_cast<uint16_t>(neighbour)) - magnitude);
      ASSERT_TRUE(error < other || (error == other && code % 2 == 0)) << value;
    }
  }
}

TEST(Bfloat16, EveryBfloat16RoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto code = static_cast<uint16_t>(bits);
    const float value = bf16_to_f32(code);
    ASSERT_EQ(std::bit_cast<uint32_t>(value), bits << 16);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value))));
    } else {
      ASSERT_EQ(f32_to_bf16(value), code);
    }
  }
}

TEST(Bfloat16, EncodingRoundsToTheNearestAndTiesToEven) {
  const struct {
    uint32_t bits;
    uint16_t code;
  } cases[] = {
      {0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82},
      {0xbf818000, 0xbf82}, {0x00008000, 0x0000}, {0x00018000, 0x0002}, {0x7f7fffff, 0x7f80}, {0xff800000, 0xff80},
  };
  for (const auto& c : cases) EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(c.bits)), c.code) << std::hex << c.bits;
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0xffffffffu)))));
}

}  // namespace
}  // namespace witan
