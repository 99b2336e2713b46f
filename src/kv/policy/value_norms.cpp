#include "kv/policy/value_norms.h"

namespace witan {

ValueNorms::ValueNorms(MemoryPool& pool, std::span<const KvLayerSpec> layers, int32_t max_entries)
    : norms_(pool, layers, max_entries, "the weight of values"), num_known_(static_cast<size_t>(norms_.num_heads())) {}

void ValueNorms::keep(std::span<const KvLayerSpec> layers, std::span<const std::vector<int32_t>> kept,
                      std::span<const KvMerge> merges) {
  norms_.keep(layers, kept);
  size_t table = 0;
  for (int32_t layer = 0; layer < std::ssize(layers); ++layer) {
    const KvLayerSpec& spec = layers[static_cast<size_t>(layer)];
    for (int32_t head = 0; head < spec.num_kv_heads; ++head, ++table) {
      if (spec.window > 0) continue;
      const bool have_changed = !merges.empty() && !merges[table].empty();
      set_num_known(layer, head, have_changed ? 0 : static_cast<int32_t>(kept[table].size()));
    }
  }
}

}  // namespace witan
