#include "kv/shifted_copy.h"

#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/rope/rope.h"

namespace witan {

void copy_shifted(KvCache& kv, const KeyRope& keys, SequenceId from, SequenceId to, const KvSpan& place, Isa isa,
                  ThreadPool& threads) {
  const int32_t num_entries = place.end - place.begin;
  const auto half = static_cast<size_t>(keys.rope->dim() / 2);
  std::vector<float> cos(half);
  std::vector<float> sin(half);
  keys.rope->shift_angles(place.begin, cos.data(), sin.data());
  std::vector<std::pair<int32_t, int32_t>> heads;  // layer, head
  for (int32_t layer = 0; layer < std::ssize(kv.config().layers); ++layer) {
    const KvLayerSpec& spec = kv.config().layers[static_cast<size_t>(layer)];
    WITAN_CHECK(spec.window == 0, "layer {} has a window of {}", layer, spec.window);
    for (int32_t head = 0; head < spec.num_kv_heads; ++head) heads.emplace_back(layer, head);
  }
  threads.parallel_for(std::ssize(heads), [&](int64_t i, int) {
    const auto [layer, head] = heads[static_cast<size_t>(i)];
    const KvBlockFormat format = kv.block_format(layer);
    const KvView entries = kv.view(from, layer, head, num_entries);
    WITAN_CHECK(entries.positions == nullptr && entries.num_demoted == 0, "sequence {} has lost entries", from);
    std::vector<float> key(static_cast<size_t>(format.key_dim));
    std::vector<float> value(static_cast<size_t>(format.value_dim));
    for (int32_t entry = 0; entry < num_entries; ++entry) {
      entries.load(entry, key.data(), value.data());
      rope(isa, keys.rope->layout(), cos.data(), sin.data(), keys.rope->dim(), key.data() + keys.offset);
      const KvCache::Slot slot = kv.slot(to, layer, head, place.begin + entry);
      kv_store(format, slot.block, slot.slot, key.data(), value.data());
    }
  });
}

}  // namespace witan
