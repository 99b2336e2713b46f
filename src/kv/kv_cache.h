#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/isa.h"
#include "base/thread_pool.h"
#include "base/types.h"
#include "kernels/attention/attention.h"
#include "kv/kv_aside.h"
#include "kv/kv_merge.h"
#include "memory/memory_pool.h"

namespace witan {

// What one layer keeps per token.
struct KvLayerSpec {
  int32_t num_kv_heads = 0;
  int32_t key_dim = 0;
  int32_t value_dim = 0;
  bool value_in_key = false;  // MLA: one latent head whose key begins with its value
  int32_t window = 0;         // > 0: a token sees only this many last entries, its own included
};

// An encoded input in a KvCache.
using InputId = int64_t;
inline constexpr InputId kNoInput = 0;

// The beginning of a text as a KV policy left it, in a KvCache.
using CompressedId = int64_t;
inline constexpr CompressedId kNoCompressed = 0;
struct KvCompressedPrefix {
  CompressedId id = kNoCompressed;
  int32_t num_tokens = 0;  // of the text
};

// Bytes of blocks that a text of num_tokens takes at most while it is computed in chunks of chunk_tokens: every
// entry in layers without a window; in the others the window and the chunk, in whole blocks. Throws
// Error(kInvalidArgument) for a codec that layers cannot have.
int64_t kv_bytes_for_tokens(std::span<const KvLayerSpec> layers, KvCodec codec, int64_t num_tokens,
                            int64_t chunk_tokens);

struct KvCacheConfig {
  std::vector<KvLayerSpec> layers;
  KvCodec codec = KvCodec::kF16;
  size_t capacity_bytes = 0;  // most that blocks may hold; the frames they lie in are bounded by the pool's budget
  bool prefix_cache = true;
  uint64_t content_salt = 0;  // of everything else that changes a block's bytes: model, weights, lossy options
  std::vector<KvLayerSpec> input_layers = {};  // cross-attention of encoder-decoder models; no windows
  std::string aside_directory = "/var/tmp";    // of the files of KvAside::kFile
};

// How a sequence's entries are made smaller, demoted: those that are no longer among the most recent, or those that a
// policy does not keep as they are. They are rounded to fewer bits, or their keys lose components, or both.
struct KvDemotion {
  std::vector<KvCodec> codecs = {};  // [layers]; one with a window keeps its entries as they are
  int32_t num_recent = 128;          // of each kv head, that stay as they were written; up to 31 more do
  // [layers] components that keys then have, those of KvCache::choose_channels; empty: all of them everywhere.
  std::vector<int32_t> key_dims = {};

  bool operator==(const KvDemotion&) const = default;
};

// How a token's entries were computed, where that changes their bits. Part of the prefix key.
enum class TokenRole : uint8_t {
  kPrompt,
  kGenerated,
  kPrivate,  // in a way of the sequence's own: neither its block nor any after it becomes a prefix block
};

struct KvCacheStats {
  int64_t block_bytes_held = 0;    // bytes of all blocks that are not free, shared ones counted once
  int64_t block_bytes_cached = 0;  // of these, held for later requests alone (evictable)
  int64_t compressed_bytes = 0;    // of these, compressed prefixes
  int64_t peak_block_bytes_held = 0;
  int64_t prefix_lookup_tokens = 0;   // tokens asked for in attach_prefix, by every call
  int64_t prefix_hit_tokens = 0;      // of these, found; SchedulerStats counts each request once
  int64_t prefix_evicted_blocks = 0;  // prefix blocks dropped for room
};

// The paged KV cache of one model.
//
// A block is kKvBlockSize entries of one kv head of one layer; each sequence has a block table per (layer, kv head).
// A prefix block is the set of blocks of all (layer, head) tables for the same 32 tokens: immutable once full,
// shared by reference count, found by a chained hash of tokens, roles and content_salt (tokens are compared too, so
// a hash collision cannot give wrong text). Unreferenced prefix blocks stay until their room is needed, least
// recently used first, a chain's tail before its head.
//
// Layers with a sliding window keep the entries that the next token sees and no more: at commit the blocks that lie
// before them are given up. Private ones are free at once; those of prefix blocks stay as long as nobody needs their
// room, and are dropped before any prefix block is. A prefix is found only as far as the blocks of the last window
// before its end are there (docs/adr/0006).
//
// Models with an encoder: a sequence's input is encoded once, as a whole, into entries of the input layers, which
// all sequences of exactly that input share. An input that no sequence has stays, encoded, until its room is needed,
// least recently used first. What a text computes depends on its input too, so such a cache keeps no prefix blocks
// (docs/adr/0007).
//
// Life of a sequence:
//   create (attach_prefix | attach_compressed)? (attach_input (write input entries)* commit_input)?
//     (reserve (write entries)* commit | keep | choose_channels? (demote | demote_others) | save_compressed |
//      gather_aside set_aside | drop_aside)* release
// Thread safety: none, except that writes to distinct blocks and views may be used by many threads between reserve
// and commit.
class KvCache {
 public:
  // Throws Error(kOutOfMemory) when capacity_bytes is less than one block per table.
  KvCache(MemoryPool& pool, KvCacheConfig config);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // The place of an entry: block and slot.
  struct Slot {
    std::byte* block;
    int32_t slot;
  };

  const KvCacheConfig& config() const;
  KvBlockFormat block_format(int32_t layer) const;
  // Over all layers without a window and their heads, of a full block, rounded up: what a text grows by.
  int64_t bytes_per_token() const;
  // As kv_bytes_for_tokens.
  int64_t bytes_for_tokens(int64_t num_tokens, int64_t chunk_tokens = int64_t{1} << 40) const;

  // The same of a text whose heads have `num_entries` entries each, but for layers with a window, which hold theirs.
  int64_t bytes_for_entries(int64_t num_entries, int64_t num_tokens, int64_t chunk_tokens) const;

  SequenceId create();

  // Attaches the longest usable cached chain of whole prefix blocks that matches the beginning of `tokens` and
  // returns its length in tokens: a multiple of the block size, less than tokens.size(), so that at least one token
  // is left to compute. The sequence must be empty. roles has one entry per token.
  int32_t attach_prefix(SequenceId sequence, std::span<const TokenId> tokens, std::span<const TokenRole> roles);

  // Gives the sequence the input of exactly these tokens, one that is there or a new one whose entries the caller is
  // to write. False, and no sequence changed, when there is no room for a new one.
  [[nodiscard]] bool attach_input(SequenceId sequence, std::span<const TokenId> tokens);
  bool input_is_encoded(SequenceId sequence) const;
  // The entries of the sequence's input are written.
  void commit_input(SequenceId sequence);
  // The same for sequences with the same input; kNoInput without.
  InputId input_of(SequenceId sequence) const;
  Slot input_slot(SequenceId sequence, int32_t layer, int32_t head, int32_t entry);
  KvView input_view(SequenceId sequence, int32_t layer, int32_t head) const;
  // Bytes that attach_input would need room for: none for an input that is there.
  int64_t bytes_for_input(std::span<const TokenId> tokens) const;
  int64_t bytes_of_input(int64_t num_tokens) const;

  // Makes room for `num_tokens` more entries in every table, evicting unreferenced prefix blocks if it must. False,
  // and no sequence changed, when there is no room, be it of the capacity or of the memory pool. Reserving again before
  // a commit replaces the reservation's size: entries that were written and are within it stay, the others are gone.
  [[nodiscard]] bool reserve(SequenceId sequence, int32_t num_tokens);

  // The entries written since the last commit are those of `tokens` (their number was reserved). Full blocks become
  // prefix blocks, found by later sequences; where an equal one exists already, the sequence takes that one. What
  // was reserved beyond them is freed.
  void commit(SequenceId sequence, std::span<const TokenId> tokens, std::span<const TokenRole> roles);

  // Drops the committed entries that are not in `kept`: ascending indices of committed entries, by table (layer,
  // then head). What stays moves together into as few blocks as it takes, with its bits and its positions; all other
  // blocks are free at once. Layers with a window keep what they have, whatever `kept` says of them. The sequence
  // shares no blocks afterwards, and none of its later ones become prefix blocks; what it shared stays for others as
  // it was. Only where there is no room for the copies of what it keeps of prefix blocks, the prefix cache loses all
  // that nobody has, and those that no other sequence has become its own. Where everything is kept nothing changes.
  // Entries that are reserved must be committed first. False, and no sequence changed, when there is no room for the
  // copies of what it keeps of blocks that other sequences have.
  //
  // merges: by table, what values of dropped entries do to those that stay, for this sequence alone; none: nothing.
  [[nodiscard]] bool keep(SequenceId sequence, std::span<const std::vector<int32_t>> kept,
                          std::span<const KvMerge> merges = {});

  // As keep(), but entries that are not in `kept` may come back: all entries of the tables without a window lie aside
  // from now on, and those in `kept` are read, as copies. There is room aside for the entries of num_tokens tokens in
  // all, until it is called again: `kept` are indices of all entries then, which gather_aside() has brought together.
  // The first time the sequence has all its entries, as they were written, and shares blocks perhaps; those that lie
  // aside in blocks stay shared. Where everything is kept the first time, nothing changes. False, and no sequence
  // changed, when there is no room; throws Error(kIo), and nothing is changed, where a file cannot have it.
  [[nodiscard]] bool set_aside(SequenceId sequence, std::span<const std::vector<int32_t>> kept, KvAside where,
                               int32_t num_tokens);
  // Entries written since join those aside, in the room that there is. Nothing for a sequence without.
  void gather_aside(SequenceId sequence);
  // Nothing comes back any more: what is not read is lost, and its room free.
  void drop_aside(SequenceId sequence);
  bool has_aside(SequenceId sequence) const;
  // The entries of a table that may be read next: all that lie aside, gathered, entry i at position i; of a sequence
  // without, those that it has.
  KvView all_entries(SequenceId sequence, int32_t layer, int32_t head) const;
  int64_t aside_block_bytes(SequenceId sequence) const;  // of held_bytes
  int64_t aside_file_bytes(SequenceId sequence) const;

  // Bytes of blocks that would be free if each head kept num_kept of its entries: of layers without a window, and
  // but for what other sequences have. Negative where the copies of that take more. The sequence has no demoted
  // entries.
  int64_t bytes_freed_by_keeping(SequenceId sequence, int64_t num_kept) const;

  // The components that keys of demoted entries have, by table: ascending, as many as KvDemotion::key_dims says;
  // none where they keep all. Once for a sequence, before it is demoted with key_dims first.
  void choose_channels(SequenceId sequence, std::vector<std::vector<int32_t>> channels);
  bool has_channels(SequenceId sequence) const;

  // Rounds all but the most recent entries of each table to the codec of `demotion` that are not yet, in whole
  // blocks, and frees the blocks that they were in. As by keep(), the sequence shares no blocks afterwards, and
  // where there is nothing to round, nothing changes. A sequence is always demoted to the same formats, each of
  // fewer bytes than the cache's own (check_demotion). Codecs that are written by blocks are for sequences that drop
  // nothing after.
  [[nodiscard]] bool demote(SequenceId sequence, const KvDemotion& demotion, Isa isa, ThreadPool& threads);
  // As keep(), but the committed entries that are not in `kept` are demoted instead of dropped, however recent
  // (num_recent does not matter): they come before the others then, in blocks of their own. Layers whose entries
  // have the codec already keep them as they are. Once for a sequence that has all its entries, as they were written,
  // and which is neither demoted nor keeps fewer later.
  [[nodiscard]] bool demote_others(SequenceId sequence, std::span<const std::vector<int32_t>> kept,
                                   const KvDemotion& demotion, Isa isa, ThreadPool& threads);
  // Throws Error(kInvalidArgument) where layers cannot have the codecs that entries are to be demoted to, and
  // Error(kUnsupported) where their keys cannot lose components.
  void check_demotion(const KvDemotion& demotion) const;
  // Over all layers without a window and their heads, of num_entries demoted entries each, in whole blocks.
  int64_t demoted_bytes(const KvDemotion& demotion, int64_t num_entries) const;

  // Keeps a copy of what keep() and demote() left of a sequence for later ones: `tokens` is its text, `policy`
  // stands for everything else that its entries depend on. Such compressed prefixes are apart from the prefix
  // cache's blocks, which only hold entries as they were computed; they take at most a quarter of the capacity, and
  // are dropped for room, least recently used first, when no such block is left. Returns whether it is there: not
  // where nothing was dropped or demoted, there is no room, it is too large, or the prefix cache is off.
  bool save_compressed(SequenceId sequence, std::string_view policy, std::span<const TokenId> tokens);

  // The longest one of that policy which `tokens` begins with, and goes on behind; valid until the next non-const
  // call.
  std::optional<KvCompressedPrefix> find_compressed(std::string_view policy, std::span<const TokenId> tokens) const;
  // Makes an empty sequence a copy of it. False, and no sequence changed, when there is no room.
  [[nodiscard]] bool attach_compressed(SequenceId sequence, CompressedId prefix);

  // Frees the sequence: its private blocks at once, its share of prefix blocks to the prefix cache.
  void release(SequenceId sequence);

  int32_t num_tokens(SequenceId sequence) const;                                // committed
  int32_t num_entries(SequenceId sequence, int32_t layer, int32_t head) const;  // committed
  int32_t num_demoted(SequenceId sequence, int32_t layer, int32_t head) const;  // of them
  // Bytes of the sequence's blocks, shared ones and those aside included.
  int64_t held_bytes(SequenceId sequence) const;

  // Where entry `entry` (num_entries <= entry < num_entries + reserved) of a table is written.
  Slot slot(SequenceId sequence, int32_t layer, int32_t head, int32_t entry);

  // The first num_entries entries of a table, committed or written since. Valid until the next non-const call.
  // Blocks that a window has passed are null.
  KvView view(SequenceId sequence, int32_t layer, int32_t head, int32_t num_entries) const;

  // Blocks' bytes that reserve could still hand out, counting evictable prefix blocks as free: of whole sets of one
  // block per table, within both the capacity and what the memory pool has at this moment.
  int64_t available_bytes() const;
  // Bytes of the memory pool that are free, or would be without what nobody refers to, for blocks and anything else.
  int64_t available_memory_bytes() const;
  KvCacheStats stats() const;

  // Drops every unreferenced prefix block, encoded input and compressed prefix.
  void clear_prefix_cache();

  // Aborts unless every block is free, held by sequences or cached exactly as counted, and reference counts add up.
  void check_integrity() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace witan
