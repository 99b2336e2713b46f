#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/types.h"
#include "kv/block_pool.h"
#include "kv/kv_cache.h"

namespace witan {

// A prefix block in a PrefixIndex.
using PrefixId = int32_t;
inline constexpr PrefixId kNoPrefix = -1;  // as a parent: the beginning of the text

// The prefix blocks of a KV cache: which tokens and roles they stand for, after which parent, and their KV blocks, one
// per table. Found by a hash chained from the parent's; the parent, tokens and roles of what is found are compared, and
// a parent stays as long as its children, so equal entries mean equal text from its beginning.
//
// Whoever references an entry references all its ancestors. Unreferenced entries wait in the order in which their last
// reference ended; as a chain is unreferenced from its tail, every child is before its parent.
//
// Thread safety: none.
class PrefixIndex {
 public:
  using Hash = uint64_t (*)(const void* data, size_t bytes);

  // root_hash stands for everything that changes the blocks' bytes besides tokens and roles.
  PrefixIndex(int64_t num_tables, uint64_t root_hash, Hash hash = default_hash);

  // The entry for these kKvBlockSize tokens and roles after `parent`, or kNoPrefix.
  PrefixId find(PrefixId parent, std::span<const TokenId> tokens, std::span<const TokenRole> roles) const;

  // Adds an entry that find() does not have, referenced once. blocks: one per table.
  PrefixId insert(PrefixId parent, std::span<const TokenId> tokens, std::span<const TokenRole> roles,
                  std::span<const BlockId> blocks);

  void reference(PrefixId entry);
  // Of a chain, call it for the last entry first.
  void unreference(PrefixId entry);

  // The unreferenced entry to drop first, or kNoPrefix. It has no children.
  PrefixId oldest_unreferenced() const { return oldest_; }
  void erase(PrefixId entry);  // unreferenced and without children

  std::span<const BlockId> blocks(PrefixId entry) const {
    return {blocks_.data() + static_cast<int64_t>(entry) * num_tables_, static_cast<size_t>(num_tables_)};
  }
  uint64_t chain_hash(PrefixId entry) const { return entries_[entry].hash; }
  int64_t num_entries() const { return static_cast<int64_t>(by_hash_.size()); }
  int64_t num_unreferenced() const { return num_unreferenced_; }

  // Calls visit(entry) for every entry.
  template <typename Visit>
  void for_each(Visit visit) const {
    for (const auto& [hash, entry] : by_hash_) visit(entry);
  }

  // Aborts unless the index is consistent and entry e is referenced exactly num_references[e] times (0 beyond its end).
  void check_integrity(const std::vector<int64_t>& num_references) const;

  static uint64_t default_hash(const void* data, size_t bytes);

 private:
  struct Entry {
    PrefixId parent = kNoPrefix;
    PrefixId older = kNoPrefix;  // neighbours while unreferenced
    PrefixId newer = kNoPrefix;
    int32_t num_children = 0;
    int32_t num_references = 0;
    uint64_t hash = 0;
    std::array<TokenId, kKvBlockSize> tokens;
    std::array<TokenRole, kKvBlockSize> roles;
  };

  uint64_t chain_hash(PrefixId parent, std::span<const TokenId> tokens, std::span<const TokenRole> roles) const;
  PrefixId find_hashed(uint64_t hash, PrefixId parent, std::span<const TokenId> tokens,
                       std::span<const TokenRole> roles) const;
  void leave_order(Entry& entry);

  int64_t num_tables_;
  uint64_t root_hash_;
  Hash hash_;
  std::vector<Entry> entries_;   // by id; vacant ones are in vacant_
  std::vector<BlockId> blocks_;  // [entry][num_tables]
  std::vector<PrefixId> vacant_;
  std::unordered_multimap<uint64_t, PrefixId> by_hash_;
  PrefixId oldest_ = kNoPrefix;
  PrefixId newest_ = kNoPrefix;
  int64_t num_unreferenced_ = 0;
};

}  // namespace witan
