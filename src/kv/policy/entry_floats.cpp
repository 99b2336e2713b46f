#include "kv/policy/entry_floats.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "kernels/attention/attention.h"

namespace witan {

namespace {

int64_t whole_splits(int32_t num_entries) {
  return (int64_t{num_entries} + kAttentionSplit - 1) / kAttentionSplit * kAttentionSplit;
}

}  // namespace

int64_t EntryFloats::bytes(std::span<const KvLayerSpec> layers, int32_t max_entries) {
  int64_t num_heads = 0;
  for (const KvLayerSpec& layer : layers) num_heads += layer.window == 0 ? layer.num_kv_heads : 0;
  return num_heads * whole_splits(max_entries) * static_cast<int64_t>(sizeof(float));
}

EntryFloats::EntryFloats(MemoryPool& pool, std::span<const KvLayerSpec> layers, int32_t max_entries,
                         std::string_view what)
    : row_floats_(whole_splits(max_entries)) {
  for (const KvLayerSpec& layer : layers) {
    first_heads_.push_back(num_heads_);
    num_heads_ += layer.window == 0 ? layer.num_kv_heads : 0;
  }
  const auto bytes = static_cast<size_t>(EntryFloats::bytes(layers, max_entries));
  auto region = pool.allocate(MemoryTag::kActivations, bytes);
  if (!region) {
    fail(ErrorCode::kOutOfMemory, "{}, which a KV policy judges by, needs {} bytes for {} of them; {} are free", what,
         bytes, max_entries, pool.free_bytes());
  }
  region_ = std::move(*region);  // of zeros
}

void EntryFloats::keep(std::span<const KvLayerSpec> layers, std::span<const std::vector<int32_t>> kept) {
  size_t table = 0;
  for (int32_t layer = 0; layer < std::ssize(layers); ++layer) {
    const KvLayerSpec& spec = layers[static_cast<size_t>(layer)];
    for (int32_t head = 0; head < spec.num_kv_heads; ++head, ++table) {
      if (spec.window > 0) continue;
      float* numbers = of(layer, head);
      const std::vector<int32_t>& entries = kept[table];
      for (size_t i = 0; i < entries.size(); ++i) numbers[i] = numbers[entries[i]];  // ascending: read before written
      std::fill(numbers + entries.size(), numbers + row_floats_, 0.0f);
    }
  }
}

}  // namespace witan
