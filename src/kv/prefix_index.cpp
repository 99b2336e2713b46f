#include "kv/prefix_index.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace witan {

PrefixIndex::PrefixIndex(int64_t num_tables, uint64_t root_hash, Hash hash)
    : num_tables_(num_tables), root_hash_(root_hash), hash_(hash) {}

uint64_t PrefixIndex::default_hash(const void* data, size_t bytes) { return XXH3_64bits(data, bytes); }

uint64_t PrefixIndex::chain_hash(PrefixId parent, std::span<const TokenId> tokens,
                                 std::span<const TokenRole> roles) const {
  WITAN_CHECK(tokens.size() == kKvBlockSize && roles.size() == kKvBlockSize, "{} tokens and {} roles in a prefix block",
              tokens.size(), roles.size());
  const uint64_t previous = parent == kNoPrefix ? root_hash_ : entries_[parent].hash;
  std::array<std::byte, sizeof(uint64_t) + kKvBlockSize*(sizeof(TokenId) + sizeof(TokenRole))> text;
  std::byte* to = text.data();
  std::memcpy(to, &previous, sizeof(previous));
  std::memcpy(to += sizeof(previous), tokens.data(), tokens.size_bytes());
  std::memcpy(to += tokens.size_bytes(), roles.data(), roles.size_bytes());
  return hash_(text.data(), text.size());
}

PrefixId PrefixIndex::find_hashed(uint64_t hash, PrefixId parent, std::span<const TokenId> tokens,
                                  std::span<const TokenRole> roles) const {
  const auto [begin, end] = by_hash_.equal_range(hash);
  for (auto found = begin; found != end; ++found) {
    const Entry& entry = entries_[found->second];
    if (entry.parent == parent && std::ranges::equal(entry.tokens, tokens) && std::ranges::equal(entry.roles, roles)) {
      return found->second;
    }
  }
  return kNoPrefix;
}

PrefixId PrefixIndex::find(PrefixId parent, std::span<const TokenId> tokens, std::span<const TokenRole> roles) const {
  return find_hashed(chain_hash(parent, tokens, roles), parent, tokens, roles);
}

PrefixId PrefixIndex::insert(PrefixId parent, std::span<const TokenId> tokens, std::span<const TokenRole> roles,
                             std::span<const BlockId> blocks) {
  const uint64_t hash = chain_hash(parent, tokens, roles);
  WITAN_CHECK(find_hashed(hash, parent, tokens, roles) == kNoPrefix, "a prefix block was added twice");
  WITAN_CHECK(parent == kNoPrefix || entries_[parent].num_references > 0, "child of the unreferenced entry {}", parent);
  WITAN_CHECK(std::ssize(blocks) == num_tables_, "{} blocks for {} tables", blocks.size(), num_tables_);
  PrefixId id;
  if (vacant_.empty()) {
    id = static_cast<PrefixId>(entries_.size());
    entries_.emplace_back();
    blocks_.resize(blocks_.size() + blocks.size());
  } else {
    id = vacant_.back();
    vacant_.pop_back();
  }
  Entry& entry = entries_[id];
  entry = Entry();
  entry.parent = parent;
  entry.num_references = 1;
  entry.hash = hash;
  std::ranges::copy(tokens, entry.tokens.begin());
  std::ranges::copy(roles, entry.roles.begin());
  std::ranges::copy(blocks, blocks_.begin() + id * num_tables_);
  if (parent != kNoPrefix) ++entries_[parent].num_children;
  by_hash_.emplace(hash, id);
  return id;
}

void PrefixIndex::append(Order& order, Neighbours Entry::*neighbours, PrefixId id) {
  (entries_[id].*neighbours).older = order.newest;
  (order.newest == kNoPrefix ? order.oldest : (entries_[order.newest].*neighbours).newer) = id;
  order.newest = id;
}

void PrefixIndex::leave(Order& order, Neighbours Entry::*neighbours, PrefixId id) {
  const Neighbours place = std::exchange(entries_[id].*neighbours, {});
  (place.older == kNoPrefix ? order.oldest : (entries_[place.older].*neighbours).newer) = place.newer;
  (place.newer == kNoPrefix ? order.newest : (entries_[place.newer].*neighbours).older) = place.older;
}

void PrefixIndex::reference(PrefixId id) {
  Entry& entry = entries_[id];
  num_kept_ -= is_kept(entry) ? 1 : 0;
  if (entry.num_references++ > 0) return;
  leave(order_, &Entry::order, id);
  --num_unreferenced_;
}

void PrefixIndex::unreference(PrefixId id) {
  Entry& entry = entries_[id];
  WITAN_CHECK(entry.num_references > 0, "entry {} has no reference to end", id);
  if (--entry.num_references > 0) return;
  append(order_, &Entry::order, id);
  ++num_unreferenced_;
  num_kept_ += is_kept(entry) ? 1 : 0;
}

void PrefixIndex::erase(PrefixId id) {
  Entry& entry = entries_[id];
  WITAN_CHECK(entry.num_references == 0 && entry.num_children == 0, "entry {} dropped with {} references, {} children",
              id, entry.num_references, entry.num_children);
  num_kept_ -= is_kept(entry) ? 1 : 0;
  leave(order_, &Entry::order, id);
  --num_unreferenced_;
  if (entry.passed) leave_passed(id);
  remove(id);
}

void PrefixIndex::take(PrefixId id) {
  Entry& entry = entries_[id];
  WITAN_CHECK(entry.num_references == 1 && entry.num_window_references <= 1 && entry.num_children == 0,
              "entry {} taken with {} references, {} children", id, entry.num_references, entry.num_children);
  if (entry.passed) leave_passed(id);
  remove(id);
}

void PrefixIndex::remove(PrefixId id) {
  const Entry& entry = entries_[id];
  if (entry.parent != kNoPrefix) --entries_[entry.parent].num_children;
  const auto [begin, end] = by_hash_.equal_range(entry.hash);
  by_hash_.erase(std::find_if(begin, end, [&](const auto& found) { return found.second == id; }));
  vacant_.push_back(id);
}

void PrefixIndex::leave_passed(PrefixId id) {
  leave(passed_order_, &Entry::passed_order, id);
  entries_[id].passed = false;
  --num_passed_;
}

void PrefixIndex::reference_window(PrefixId id) {
  Entry& entry = entries_[id];
  WITAN_CHECK(entry.has_window && entry.num_references > 0, "window part of entry {} referenced, with {} references",
              id, entry.num_references);
  ++entry.num_window_references;
  if (entry.passed) leave_passed(id);
}

void PrefixIndex::unreference_window(PrefixId id, WindowEnd end) {
  Entry& entry = entries_[id];
  WITAN_CHECK(entry.num_window_references > 0 && entry.num_references > 0, "entry {} has {} window references of {}",
              id, entry.num_window_references, entry.num_references);
  if (--entry.num_window_references > 0 || end == WindowEnd::kKept) return;
  entry.passed = true;
  append(passed_order_, &Entry::passed_order, id);
  ++num_passed_;
}

void PrefixIndex::drop_window(PrefixId id) {
  WITAN_CHECK(entries_[id].passed, "window part of entry {} dropped, but not passed", id);
  leave_passed(id);
  entries_[id].has_window = false;
}

void PrefixIndex::restore_window(PrefixId id, std::span<const BlockId> blocks, const std::vector<bool>& is_window) {
  Entry& entry = entries_[id];
  WITAN_CHECK(!entry.has_window && entry.num_references > 0, "window part of entry {} given twice", id);
  for (int64_t table = 0; table < num_tables_; ++table) {
    if (is_window[table]) blocks_[id * num_tables_ + table] = blocks[table];
  }
  entry.has_window = true;
}

void PrefixIndex::check_integrity(const std::vector<int64_t>& num_references,
                                  const std::vector<int64_t>& num_window_references) const {
  WITAN_CHECK(by_hash_.size() + vacant_.size() == entries_.size(), "{} entries found, {} vacant, of {}",
              by_hash_.size(), vacant_.size(), entries_.size());
  const auto count_of = [](const std::vector<int64_t>& counts, PrefixId id) {
    return id < std::ssize(counts) ? counts[id] : 0;
  };
  std::vector<int32_t> num_children(entries_.size());
  std::vector<bool> present(entries_.size());
  for_each([&](PrefixId id) { present[id] = true; });
  for_each([&](PrefixId id) {
    const Entry& entry = entries_[id];
    WITAN_CHECK(entry.num_references == count_of(num_references, id), "entry {} counts {} references of {}", id,
                entry.num_references, count_of(num_references, id));
    WITAN_CHECK(entry.num_window_references == count_of(num_window_references, id),
                "entry {} counts {} window references of {}", id, entry.num_window_references,
                count_of(num_window_references, id));
    WITAN_CHECK(entry.num_window_references == 0 || (entry.has_window && !entry.passed),
                "entry {} has {} window references and no window part in use", id, entry.num_window_references);
    WITAN_CHECK(
        find_hashed(chain_hash(entry.parent, entry.tokens, entry.roles), entry.parent, entry.tokens, entry.roles) == id,
        "entry {} is not found by its own content", id);
    if (entry.parent == kNoPrefix) return;
    WITAN_CHECK(present[entry.parent], "entry {} has lost its parent {}", id, entry.parent);
    ++num_children[entry.parent];
  });
  for_each([&](PrefixId id) {
    WITAN_CHECK(entries_[id].num_children == num_children[id], "entry {} counts {} children of {}", id,
                entries_[id].num_children, num_children[id]);
  });
  check_orders(present);
}

void PrefixIndex::check_orders(const std::vector<bool>& present) const {
  int64_t num_unreferenced = 0;
  int64_t num_passed = 0;
  int64_t num_kept = 0;
  for_each([&](PrefixId id) {
    num_unreferenced += entries_[id].num_references == 0 ? 1 : 0;
    num_passed += entries_[id].passed ? 1 : 0;
    num_kept += is_kept(entries_[id]) ? 1 : 0;
  });
  std::vector<bool> gone(entries_.size());
  int64_t num_waiting = 0;
  for (PrefixId id = order_.oldest, older = kNoPrefix; id != kNoPrefix; older = id, id = entries_[id].order.newer) {
    const Entry& entry = entries_[id];
    WITAN_CHECK(present[id] && entry.num_references == 0 && entry.order.older == older, "entry {} waits wrongly", id);
    WITAN_CHECK(entry.parent == kNoPrefix || !gone[entry.parent], "entry {} waits behind its parent", id);
    gone[id] = true;
    ++num_waiting;
  }
  WITAN_CHECK(num_waiting == num_unreferenced && num_waiting == num_unreferenced_,
              "{} entries wait, {} are unreferenced, {} counted", num_waiting, num_unreferenced, num_unreferenced_);
  int64_t num_waiting_windows = 0;
  for (PrefixId id = passed_order_.oldest, older = kNoPrefix; id != kNoPrefix;
       older = id, id = entries_[id].passed_order.newer) {
    const Entry& entry = entries_[id];
    WITAN_CHECK(present[id] && entry.passed && entry.has_window && entry.passed_order.older == older,
                "window part of entry {} waits wrongly", id);
    ++num_waiting_windows;
  }
  WITAN_CHECK(num_waiting_windows == num_passed && num_passed == num_passed_ && num_kept == num_kept_,
              "{} window parts wait, {} are passed, {} kept, counted {} and {}", num_waiting_windows, num_passed,
              num_kept, num_passed_, num_kept_);
}

}  // namespace witan
