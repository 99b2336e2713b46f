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
// An entry's blocks of layers with a sliding window, its window part, may be gone before the entry: nobody needs them
// but who continues the text within the window behind them. Sequences reference the window part apart from the entry.
//   there, referenced    some sequence's window reaches back to it
//   there, passed        sequences moved on beyond it: waits, in order, to be dropped first of all
//   there, kept          where a sequence ended, and the next of the same text would begin: goes with the entry
//   dropped              until a sequence that computed the same text gives its own
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

  // The unreferenced entry to drop first, or kNoPrefix. It has no children once those before it are dropped.
  PrefixId oldest_unreferenced() const { return order_.oldest; }
  PrefixId newer_unreferenced(PrefixId entry) const { return entries_[entry].order.newer; }
  void erase(PrefixId entry);  // unreferenced and without children

  int32_t num_references(PrefixId entry) const { return entries_[entry].num_references; }
  // The blocks of an entry without children are the caller's, who alone references it, and its window part if that
  // is there; the entry is gone.
  void take(PrefixId entry);

  // Of the window part of an entry that the caller references; it must be there.
  void reference_window(PrefixId entry);
  enum class WindowEnd : uint8_t { kPassed, kKept };
  void unreference_window(PrefixId entry, WindowEnd end);
  bool has_window(PrefixId entry) const { return entries_[entry].has_window; }
  bool is_passed(PrefixId entry) const { return entries_[entry].passed; }
  // The passed window part to drop first, or kNoPrefix.
  PrefixId oldest_passed() const { return passed_order_.oldest; }
  PrefixId newer_passed(PrefixId entry) const { return entries_[entry].passed_order.newer; }
  void drop_window(PrefixId entry);  // one that is passed
  // Gives an entry without a window part one. blocks: one per table, of which `is_window` picks its own.
  void restore_window(PrefixId entry, std::span<const BlockId> blocks, const std::vector<bool>& is_window);

  std::span<const BlockId> blocks(PrefixId entry) const {
    return {blocks_.data() + static_cast<int64_t>(entry) * num_tables_, static_cast<size_t>(num_tables_)};
  }
  uint64_t chain_hash(PrefixId entry) const { return entries_[entry].hash; }
  int64_t num_entries() const { return static_cast<int64_t>(by_hash_.size()); }
  int64_t num_unreferenced() const { return num_unreferenced_; }
  int64_t num_passed() const { return num_passed_; }
  // Kept window parts of unreferenced entries.
  int64_t num_kept() const { return num_kept_; }

  // Calls visit(entry) for every entry.
  template <typename Visit>
  void for_each(Visit visit) const {
    for (const auto& [hash, entry] : by_hash_) visit(entry);
  }

  // Aborts unless the index is consistent and entry e is referenced exactly num_references[e] times, and its window
  // part num_window_references[e] times (0 beyond their ends).
  void check_integrity(const std::vector<int64_t>& num_references,
                       const std::vector<int64_t>& num_window_references = {}) const;

  static uint64_t default_hash(const void* data, size_t bytes);

 private:
  struct Neighbours {
    PrefixId older = kNoPrefix;
    PrefixId newer = kNoPrefix;
  };
  struct Order {
    PrefixId oldest = kNoPrefix;
    PrefixId newest = kNoPrefix;
  };
  struct Entry {
    PrefixId parent = kNoPrefix;
    Neighbours order;         // while unreferenced
    Neighbours passed_order;  // while its window part is passed
    int32_t num_children = 0;
    int32_t num_references = 0;
    int32_t num_window_references = 0;
    bool has_window = true;
    bool passed = false;
    uint64_t hash = 0;
    std::array<TokenId, kKvBlockSize> tokens;
    std::array<TokenRole, kKvBlockSize> roles;
  };

  uint64_t chain_hash(PrefixId parent, std::span<const TokenId> tokens, std::span<const TokenRole> roles) const;
  PrefixId find_hashed(uint64_t hash, PrefixId parent, std::span<const TokenId> tokens,
                       std::span<const TokenRole> roles) const;
  void append(Order& order, Neighbours Entry::*neighbours, PrefixId id);
  void leave(Order& order, Neighbours Entry::*neighbours, PrefixId id);
  void leave_passed(PrefixId id);
  void remove(PrefixId id);  // one that is in no order
  static bool is_kept(const Entry& entry) { return entry.num_references == 0 && entry.has_window && !entry.passed; }
  void check_orders(const std::vector<bool>& present) const;

  int64_t num_tables_;
  uint64_t root_hash_;
  Hash hash_;
  std::vector<Entry> entries_;   // by id; vacant ones are in vacant_
  std::vector<BlockId> blocks_;  // [entry][num_tables]
  std::vector<PrefixId> vacant_;
  std::unordered_multimap<uint64_t, PrefixId> by_hash_;
  Order order_;         // of unreferenced entries
  Order passed_order_;  // of passed window parts
  int64_t num_unreferenced_ = 0;
  int64_t num_passed_ = 0;
  int64_t num_kept_ = 0;
};

}  // namespace witan
