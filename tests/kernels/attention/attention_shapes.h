#pragma once

// Shapes and rows for the tests of attention, and what is expected of all rows.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_fixture.h"

namespace witan::test {

struct Dims {
  int32_t key_dim;
  int32_t value_dim;
  bool value_in_key;
};

inline constexpr Dims kDims[] = {{16, 16, false},  {20, 20, false},   {64, 64, false},   {80, 80, false},
                                 {96, 64, false},  {128, 128, false}, {192, 128, false}, {33, 7, false},
                                 {24, 136, false}, {576, 512, true},  {20, 16, true},    {45, 37, true},
                                 {192, 160, true}};

inline KvBlockFormat format_of(const Dims& dims, KvCodec codec) {
  return {.codec = codec, .key_dim = dims.key_dim, .value_dim = dims.value_dim, .value_in_key = dims.value_in_key};
}

// One of each way to store and to multiply entries.
inline constexpr KvCodec kSomeCodecs[] = {KvCodec::kF16,       KvCodec::kBF16,
                                          KvCodec::kQ8,        KvCodec::kHadamard8Value4,
                                          KvCodec::kHadamard2, KvCodec::kHadamard2Value8,
                                          KvCodec::kLatent4,   KvCodec::kKivi2};

// The dimensions, or of a latent within its key where the codec is for these.
inline Dims fitting(const Dims& dims, KvCodec codec) {
  if (kv_codec_fits(codec, dims.value_in_key)) return dims;
  return {dims.key_dim, std::min(dims.value_dim, dims.key_dim - 8), true};
}

inline std::string describe(const Variant& variant, const KvBlockFormat& format, int32_t num_entries) {
  return fmt::format("{} {} keys {} values {}{} entries {}", describe(variant), kv_codec_name(format.codec),
                     format.key_dim, format.value_dim, format.value_in_key ? " in key" : "", num_entries);
}

// `count` rows, `heads` per token, of which the last token sees all entries.
inline std::vector<int32_t> last_positions(int32_t count, int32_t heads, int32_t num_entries) {
  std::vector<int32_t> positions;
  const int32_t num_tokens = (count + heads - 1) / heads;
  for (int32_t r = 0; r < count; ++r) positions.push_back(std::max(0, num_entries - num_tokens + r / heads));
  return positions;
}

inline void expect_all_rows_match(const Variant& variant, const KvView& view, const Queries& queries) {
  const AttentionRows rows = queries.tile(0, queries.rows.size());
  const std::vector<State> states = attend(variant, view, rows);
  for (int32_t r = 0; r < rows.num_rows; ++r) {
    expect_matches(finish(variant.isa, states[static_cast<size_t>(r)]),
                   Oracle(view, rows, r, variant.arithmetic(view.format)),
                   describe(variant, view.format, view.num_entries) + fmt::format(" row {}", r));
  }
}

// So many components of a key, ascending, the first and the last among them.
inline std::vector<int32_t> some_channels(int32_t key_dim, int32_t count) {
  std::vector<int32_t> channels;
  for (int32_t i = 0; i < count; ++i) channels.push_back(i * (key_dim - 1) / (count - 1));
  return channels;
}

// All of a view's entries have been demoted: their keys have these components alone.
inline KvView without_channels(const KvEntries& entries, int32_t key_dim, const std::vector<int32_t>& channels) {
  KvView view = entries.view();
  view.num_demoted = view.num_entries;
  view.demoted_format = view.format;
  view.demoted_channels = channels.data();
  view.format.key_dim = key_dim;
  return view;
}

}  // namespace witan::test
