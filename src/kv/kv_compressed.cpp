// What KV policies left of the beginnings of texts, kept for later requests.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "kv/kv_state.h"

namespace witan {

void KvCache::State::count_blocks(const KvSequence& sequence, std::span<int64_t> blocks) const {
  for (int64_t table = 0; table < num_tables(); ++table) {
    const BlockTable& entries = sequence.tables[table];
    const int64_t num_demoted = entries.num_demoted_blocks();
    if (num_demoted > 0) blocks[pool_of_place(sequence, table, 0)] += num_demoted;
    blocks[pool_of_table[table]] += entries.num_blocks - num_demoted - first_block(sequence, table);
  }
}

// There is room for them.
void KvCache::State::copy_sequence(const KvSequence& from, KvSequence& to) {
  to.num_tokens = from.num_tokens;
  to.block_bytes = from.block_bytes;
  to.first_window_block = from.first_window_block;
  to.is_detached = true;
  to.demoted_pools = from.demoted_pools;
  to.channels = from.channels;
  for (int64_t table = 0; table < num_tables(); ++table) {
    const BlockTable& entries = from.tables[table];
    to.tables.grow_rows(entries.num_blocks);
    to.tables[table] = entries;
    const int64_t num_demoted = entries.num_demoted_blocks();
    const auto copy = [&](int64_t begin, int64_t end) {
      if (begin >= end) return;
      BlockPool& blocks = pools[pool_of_place(from, table, begin)].blocks;
      new_blocks.resize(end - begin);
      blocks.allocate(kNoBlock, begin, new_blocks);
      for (int64_t place = begin; const BlockId block : new_blocks) {
        std::memcpy(blocks.data(block), from.tables.block(table, place), static_cast<size_t>(blocks.block_bytes()));
        to.tables.set(table, place++, block, blocks.data(block));
      }
    };
    copy(0, num_demoted);
    const int64_t first = first_block(from, table);
    for (int64_t place = 0; place < first; ++place) to.tables.set(table, place, kNoBlock, nullptr);
    copy(std::max(num_demoted, first), entries.num_blocks);
  }
  stats.block_bytes_held += to.block_bytes;
  stats.peak_block_bytes_held = std::max(stats.peak_block_bytes_held, stats.block_bytes_held);
}

std::vector<CompressedId> KvCache::State::droppable_compressed() const {
  std::vector<CompressedId> ids;
  for (const auto& [id, prefix] : compressed) {
    if (id != attached_compressed) ids.push_back(id);
  }
  std::ranges::sort(ids, {}, [&](CompressedId id) { return compressed.at(id).used_at; });
  return ids;
}

void KvCache::State::drop_compressed(CompressedId id) {
  const KvSequence& sequence = compressed.at(id).sequence;
  for (int64_t table = 0; table < num_tables(); ++table) {
    for (int64_t place = first_block(sequence, table); place < sequence.tables[table].num_blocks; ++place) {
      pools[pool_of_place(sequence, table, place)].blocks.release(sequence.tables.id(table, place));
    }
  }
  stats.block_bytes_held -= sequence.block_bytes;
  compressed_bytes -= sequence.block_bytes;
  compressed.erase(id);
}

bool KvCache::save_compressed(SequenceId id, std::string_view policy, std::span<const TokenId> tokens) {
  State& state = *state_;
  const KvSequence& sequence = state.at(id);
  WITAN_CHECK(sequence.num_reserved == 0 && std::ssize(tokens) == sequence.num_tokens,
              "sequence {} has {} tokens and {} reserved, not these {}", id, sequence.num_tokens, sequence.num_reserved,
              tokens.size());
  WITAN_CHECK(sequence.aside == nullptr, "sequence {} has entries aside", id);
  const int64_t most_bytes = state.capacity_bytes / kCompressedShare;
  if (!state.config.prefix_cache || !sequence.is_detached || sequence.block_bytes > most_bytes) return false;
  for (auto& [other, prefix] : state.compressed) {
    if (prefix.policy == policy && std::ranges::equal(prefix.tokens, tokens)) {
      prefix.used_at = ++state.clock;
      return true;
    }
  }
  for (const CompressedId oldest : state.droppable_compressed()) {
    if (state.compressed_bytes + sequence.block_bytes <= most_bytes) break;
    state.drop_compressed(oldest);
  }
  std::ranges::fill(state.needed_blocks, 0);
  state.count_blocks(sequence, state.needed_blocks);
  const bool has_room = state.make_room(state.needed_blocks);
  if (has_room) {
    CompressedPrefix& prefix =
        state.compressed.try_emplace(state.next_compressed++, std::string(policy), tokens, state.num_tables())
            .first->second;
    state.copy_sequence(sequence, prefix.sequence);
    prefix.used_at = ++state.clock;
    state.compressed_bytes += prefix.sequence.block_bytes;
  }
  state.trim();
  return has_room;
}

std::optional<KvCompressedPrefix> KvCache::find_compressed(std::string_view policy,
                                                           std::span<const TokenId> tokens) const {
  std::optional<KvCompressedPrefix> longest;
  for (const auto& [id, prefix] : state_->compressed) {
    const auto length = static_cast<int32_t>(prefix.tokens.size());
    if (length >= std::ssize(tokens) || (longest && length <= longest->num_tokens) || prefix.policy != policy) continue;
    if (!std::ranges::equal(prefix.tokens, tokens.first(prefix.tokens.size()))) continue;
    longest = {.id = id, .num_tokens = length};
  }
  return longest;
}

bool KvCache::attach_compressed(SequenceId id, CompressedId of) {
  State& state = *state_;
  KvSequence& sequence = state.at(id);
  WITAN_CHECK(sequence.num_tokens == 0 && sequence.block_bytes == 0, "sequence {} is not empty", id);
  const auto found = state.compressed.find(of);
  WITAN_CHECK(found != state.compressed.end(), "compressed prefix {} does not exist", of);
  CompressedPrefix& prefix = found->second;
  std::ranges::fill(state.needed_blocks, 0);
  state.count_blocks(prefix.sequence, state.needed_blocks);
  state.attached_compressed = of;
  const bool has_room = state.make_room(state.needed_blocks);
  state.attached_compressed = kNoCompressed;
  if (has_room) {
    state.copy_sequence(prefix.sequence, sequence);
    prefix.used_at = ++state.clock;
    state.stats.prefix_lookup_tokens += sequence.num_tokens;
    state.stats.prefix_hit_tokens += sequence.num_tokens;
  }
  state.trim();
  return has_room;
}

}  // namespace witan
