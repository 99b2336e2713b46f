#include "kv/prefix_index.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

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

void PrefixIndex::reference(PrefixId id) {
  if (entries_[id].num_references++ == 0) leave_order(entries_[id]);
}

void PrefixIndex::leave_order(Entry& entry) {
  (entry.older == kNoPrefix ? oldest_ : entries_[entry.older].newer) = entry.newer;
  (entry.newer == kNoPrefix ? newest_ : entries_[entry.newer].older) = entry.older;
  entry.older = entry.newer = kNoPrefix;
  --num_unreferenced_;
}

void PrefixIndex::unreference(PrefixId id) {
  Entry& entry = entries_[id];
  WITAN_CHECK(entry.num_references > 0, "entry {} has no reference to end", id);
  if (--entry.num_references > 0) return;
  entry.older = newest_;
  (newest_ == kNoPrefix ? oldest_ : entries_[newest_].newer) = id;
  newest_ = id;
  ++num_unreferenced_;
}

void PrefixIndex::erase(PrefixId id) {
  Entry& entry = entries_[id];
  WITAN_CHECK(entry.num_references == 0 && entry.num_children == 0, "entry {} dropped with {} references, {} children",
              id, entry.num_references, entry.num_children);
  leave_order(entry);
  if (entry.parent != kNoPrefix) --entries_[entry.parent].num_children;
  const auto [begin, end] = by_hash_.equal_range(entry.hash);
  by_hash_.erase(std::find_if(begin, end, [&](const auto& found) { return found.second == id; }));
  vacant_.push_back(id);
}

void PrefixIndex::check_integrity(const std::vector<int64_t>& num_references) const {
  WITAN_CHECK(by_hash_.size() + vacant_.size() == entries_.size(), "{} entries found, {} vacant, of {}",
              by_hash_.size(), vacant_.size(), entries_.size());
  std::vector<int32_t> num_children(entries_.size());
  std::vector<bool> present(entries_.size());
  int64_t num_unreferenced = 0;
  for_each([&](PrefixId id) { present[id] = true; });
  for_each([&](PrefixId id) {
    const Entry& entry = entries_[id];
    const int64_t expected = id < std::ssize(num_references) ? num_references[id] : 0;
    WITAN_CHECK(entry.num_references == expected, "entry {} counts {} references of {}", id, entry.num_references,
                expected);
    num_unreferenced += expected == 0 ? 1 : 0;
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

  std::vector<bool> passed(entries_.size());
  int64_t num_passed = 0;
  for (PrefixId id = oldest_, older = kNoPrefix; id != kNoPrefix; older = id, id = entries_[id].newer, ++num_passed) {
    const Entry& entry = entries_[id];
    WITAN_CHECK(present[id] && entry.num_references == 0 && entry.older == older, "entry {} waits wrongly", id);
    WITAN_CHECK(entry.parent == kNoPrefix || !passed[entry.parent], "entry {} waits behind its parent", id);
    passed[id] = true;
  }
  WITAN_CHECK(num_passed == num_unreferenced && num_passed == num_unreferenced_,
              "{} entries wait, {} are unreferenced, {} counted", num_passed, num_unreferenced, num_unreferenced_);
}

}  // namespace witan
