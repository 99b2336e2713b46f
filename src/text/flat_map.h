#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace witan {

// uint64_t keys to uint64_t values in one array with linear probing: merging looks up two neighbours per symbol, and a
// node-based map spends that time on cache misses. Keys are never removed; ~0 is no key.
class FlatMap {
 public:
  // Inserts unless the key is there already; true if it inserted.
  bool insert(uint64_t key, uint64_t value) {
    if ((size_ + 1) * 2 > slots_.size()) grow();
    Slot& slot = slots_[find_slot(key)];
    if (slot.key == key) return false;
    slot = {key, value};
    ++size_;
    return true;
  }

  // nullptr when the key is not there; valid until the next insert.
  const uint64_t* find(uint64_t key) const {
    if (slots_.empty()) return nullptr;
    const Slot& slot = slots_[find_slot(key)];
    return slot.key == key ? &slot.value : nullptr;
  }

  size_t size() const { return size_; }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  struct Slot {
    uint64_t key = kEmpty;
    uint64_t value = 0;
  };

  // The finaliser of MurmurHash3: neighbouring ids must not land in neighbouring slots, or probing turns linear.
  static uint64_t mix(uint64_t key) {
    key = (key ^ (key >> 33)) * 0xFF51AFD7ED558CCDull;
    key = (key ^ (key >> 33)) * 0xC4CEB9FE1A85EC53ull;
    return key ^ (key >> 33);
  }

  size_t find_slot(uint64_t key) const {
    const size_t mask = slots_.size() - 1;
    size_t i = mix(key) & mask;
    while (slots_[i].key != key && slots_[i].key != kEmpty) i = (i + 1) & mask;
    return i;
  }

  void grow() {
    std::vector<Slot> old(slots_.empty() ? 16 : slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != kEmpty) slots_[find_slot(slot.key)] = slot;
    }
  }

  std::vector<Slot> slots_;  // a power of two
  size_t size_ = 0;
};

}  // namespace witan
