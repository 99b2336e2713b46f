#include "kv/policy/attention_mass.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "kernels/attention/attention.h"

namespace witan {

AttentionMass::AttentionMass(MemoryPool& pool, std::span<const KvLayerSpec> layers, int32_t max_entries)
    : row_floats_((int64_t{max_entries} + kAttentionSplit - 1) / kAttentionSplit * kAttentionSplit) {
  int64_t num_heads = 0;
  for (const KvLayerSpec& layer : layers) {
    first_heads_.push_back(num_heads);
    if (layer.window == 0) num_heads += layer.num_kv_heads;
  }
  const auto bytes = static_cast<size_t>(num_heads * row_floats_) * sizeof(float);
  auto region = pool.allocate(MemoryTag::kActivations, bytes);
  if (!region) {
    fail(ErrorCode::kOutOfMemory,
         "the attention that {} entries have had, which a KV policy judges by, needs {} bytes; {} are free",
         max_entries, bytes, pool.free_bytes());
  }
  region_ = std::move(*region);  // of zeros
}

void AttentionMass::keep(std::span<const KvLayerSpec> layers, std::span<const std::vector<int32_t>> kept) {
  size_t table = 0;
  for (int32_t layer = 0; layer < std::ssize(layers); ++layer) {
    const KvLayerSpec& spec = layers[static_cast<size_t>(layer)];
    for (int32_t head = 0; head < spec.num_kv_heads; ++head, ++table) {
      if (spec.window > 0) continue;
      float* mass = of(layer, head);
      const std::vector<int32_t>& entries = kept[table];
      for (size_t i = 0; i < entries.size(); ++i) mass[i] = mass[entries[i]];  // ascending: read before written
      std::fill(mass + entries.size(), mass + row_floats_, 0.0f);
    }
  }
}

}  // namespace witan
