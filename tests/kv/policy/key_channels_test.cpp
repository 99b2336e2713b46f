#include "kv/policy/key_channels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace witan {
namespace {

constexpr int32_t kHeads = 2;
constexpr int32_t kGroup = 3;
constexpr int32_t kDim = 24;
constexpr int32_t kEntries = 77;
constexpr int32_t kWindow = 5;

// Three layers, of which the second has a window.
class KeyChannelsTest : public testing::TestWithParam<KvCodec> {
 protected:
  KeyChannelsTest() {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    EXPECT_TRUE(kv_.reserve(sequence_, kEntries));
    for (int32_t layer = 0; layer < 3; ++layer) {
      for (int32_t head = 0; head < kHeads; ++head) {
        for (int32_t i = 0; i < kEntries; ++i) {
          std::vector<float> key(kDim);
          for (int32_t d = 0; d < kDim; ++d) key[static_cast<size_t>(d)] = magnitude(d, head) * normal(random);
          const KvCache::Slot slot = kv_.slot(sequence_, layer, head, i);
          kv_store(kv_.block_format(layer), slot.block, slot.slot, key.data(), key.data());
        }
      }
      for (int32_t token = kEntries - kWindow; token < kEntries; ++token) {
        std::generate_n(window_.queries(layer, token), kHeads * kGroup * kDim, [&] { return normal(random); });
      }
    }
    kv_.commit(sequence_, std::vector<TokenId>(kEntries, 1), std::vector<TokenRole>(kEntries, TokenRole::kPrompt));
  }

  // Channels differ, as those of real keys do, and in each head others.
  static float magnitude(int32_t channel, int32_t head) {
    return 1.0f + static_cast<float>((channel * 7 + head * 5) % kDim) / 4.0f;
  }

  std::vector<std::vector<int32_t>> choose(int num_threads = 2) {
    ThreadPool threads(num_threads);
    return choose_key_channels(select_isa(), threads, kv_, sequence_,
                               {.codecs = std::vector<KvCodec>(3, GetParam()), .key_dims = {10, kDim, kDim - 2}},
                               window_);
  }

  // || Q_i K_i^T ||_F, of all pairs.
  double worth(int32_t layer, int32_t head, int32_t channel) {
    const KvView view = kv_.view(sequence_, layer, head, kEntries);
    double sum = 0.0;
    for (int32_t entry = 0; entry < kEntries; ++entry) {
      std::vector<float> key(kDim);
      view.load(entry, key.data(), nullptr);
      for (int32_t token = kEntries - kWindow; token < kEntries; ++token) {
        for (int32_t g = 0; g < kGroup; ++g) {
          const float* query = window_.queries(layer, token) + (head * kGroup + g) * kDim;
          sum += std::pow(static_cast<double>(query[channel]) * static_cast<double>(key[static_cast<size_t>(channel)]),
                          2.0);
        }
      }
    }
    return std::sqrt(sum);
  }

  MemoryPool pool_{size_t{64} << 20};
  KvCache kv_{pool_,
              {.layers = {{kHeads, kDim, kDim}, {kHeads, kDim, kDim, false, 64}, {kHeads, kDim, kDim}},
               .codec = GetParam(),
               .capacity_bytes = size_t{16} << 20}};
  SequenceId sequence_ = kv_.create();
  QueryWindow window_{pool_, 3, kHeads* kGroup, kDim, kEntries - kWindow, kWindow};
};

TEST_P(KeyChannelsTest, ThoseThatScoresDependOnMostStay) {
  const std::vector<std::vector<int32_t>> channels = choose();
  ASSERT_EQ(channels.size(), 3u * kHeads);
  for (int32_t table = 0; table < 3 * kHeads; ++table) {
    const int32_t layer = table / kHeads;
    std::vector<int32_t> expected;
    if (layer != 1) {
      expected.resize(kDim);
      std::iota(expected.begin(), expected.end(), 0);
      std::ranges::sort(expected, std::greater<>(), [&](int32_t i) { return worth(layer, table % kHeads, i); });
      expected.resize(layer == 0 ? 10 : kDim - 2);
      std::ranges::sort(expected);
    }
    EXPECT_EQ(channels[static_cast<size_t>(table)], expected) << "table " << table;
  }
  EXPECT_NE(channels[0], channels[1]) << "each head has its own";
  EXPECT_EQ(choose(1), channels);
}

TEST_P(KeyChannelsTest, OfEqualOnesTheFirstStayAndNaNsAreWorthLeast) {
  for (int32_t token = kEntries - kWindow; token < kEntries; ++token) {
    std::fill_n(window_.queries(0, token), kHeads * kGroup * kDim, 0.0f);
    window_.queries(0, token)[3] = std::numeric_limits<float>::quiet_NaN();
  }
  EXPECT_EQ(choose()[0], (std::vector<int32_t>{0, 1, 2, 4, 5, 6, 7, 8, 9, 10}));
}

INSTANTIATE_TEST_SUITE_P(All, KeyChannelsTest, testing::Values(KvCodec::kF32, KvCodec::kBF16, KvCodec::kQ8),
                         [](const auto& codec) { return std::string(kv_codec_name(codec.param)); });

}  // namespace
}  // namespace witan
