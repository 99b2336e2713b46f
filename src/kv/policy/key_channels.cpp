// ThinK: older keys keep the channels that matter most.
#include "kv/policy/key_channels.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

void add_squares(const float* x, std::vector<double>& sums) {
  for (size_t d = 0; d < sums.size(); ++d) sums[d] += static_cast<double>(x[d]) * static_cast<double>(x[d]);
}

// By channel, over all entries.
std::vector<double> squares_of_keys(Isa isa, const KvView& view) {
  const int32_t key_dim = view.format.key_dim;
  std::vector<float> keys(static_cast<size_t>(kKvBlockSize) * static_cast<size_t>(key_dim));
  std::vector<double> squares(static_cast<size_t>(key_dim));
  for (int32_t block = 0; block < view.num_blocks(); ++block) {
    const int32_t count = view.block_begin(block + 1) - view.block_begin(block);
    kv_load_keys(isa, view.format, view.blocks[block], count, keys.data(), key_dim);
    for (int32_t i = 0; i < count; ++i) add_squares(keys.data() + int64_t{i} * key_dim, squares);
  }
  return squares;
}

// By channel, over all tokens and the query heads of a kv head.
std::vector<double> squares_of_queries(const QueryWindow& queries, int32_t layer, int32_t head, int32_t num_kv_heads) {
  const int32_t group = queries.num_heads() / num_kv_heads;
  std::vector<double> squares(static_cast<size_t>(queries.key_dim()));
  for (int32_t i = 0; i < queries.num_tokens(); ++i) {
    const float* of_token = queries.queries(layer, queries.first_token() + i);
    for (int32_t g = 0; g < group; ++g) add_squares(of_token + int64_t{head * group + g} * queries.key_dim(), squares);
  }
  return squares;
}

// Ascending; NaNs are worth least.
std::vector<int32_t> largest(const std::vector<double>& worth, int32_t count) {
  std::vector<int32_t> channels(worth.size());
  std::iota(channels.begin(), channels.end(), 0);
  const auto worth_of = [&](int32_t channel) {
    const double x = worth[static_cast<size_t>(channel)];
    return std::isnan(x) ? -1.0 : x;
  };
  std::ranges::stable_sort(channels, std::greater<>(), worth_of);
  channels.resize(static_cast<size_t>(count));
  std::ranges::sort(channels);
  return channels;
}

}  // namespace

std::vector<std::vector<int32_t>> choose_key_channels(Isa isa, ThreadPool& threads, const KvCache& kv,
                                                      SequenceId sequence, const KvDemotion& demotion,
                                                      const QueryWindow& queries) {
  struct Head {
    int32_t layer;
    int32_t head;
  };
  const std::vector<KvLayerSpec>& layers = kv.config().layers;
  std::vector<Head> heads;
  for (int32_t layer = 0; layer < std::ssize(layers); ++layer) {
    for (int32_t head = 0; head < layers[static_cast<size_t>(layer)].num_kv_heads; ++head) {
      heads.push_back({.layer = layer, .head = head});
    }
  }
  std::vector<std::vector<int32_t>> channels(heads.size());
  threads.parallel_for(std::ssize(heads), [&](int64_t i, int) {
    const auto [layer, head] = heads[static_cast<size_t>(i)];
    const KvLayerSpec& spec = layers[static_cast<size_t>(layer)];
    const int32_t num_kept = demotion.key_dims[static_cast<size_t>(layer)];
    if (num_kept == spec.key_dim) return;
    WITAN_CHECK(queries.key_dim() == spec.key_dim, "queries of {}, keys of {}", queries.key_dim(), spec.key_dim);
    std::vector<double> worth = squares_of_queries(queries, layer, head, spec.num_kv_heads);
    const KvView view = kv.view(sequence, layer, head, kv.num_entries(sequence, layer, head));
    std::ranges::transform(worth, squares_of_keys(isa, view), worth.begin(), std::multiplies<>());
    channels[static_cast<size_t>(i)] = largest(worth, num_kept);
  });
  return channels;
}

// ThinK (Xu et al., arXiv 2407.21018).
void think(PolicyBuilder& builder, PartArguments& arguments) {
  const double share = arguments.number("keep", 0.5, 0.01, 1.0);
  builder.choose_channels(arguments, share, arguments.integer("window", 32, 1, 4096));
  builder.choose_residual(arguments);
}

}  // namespace witan
