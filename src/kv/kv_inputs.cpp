// Encoded inputs: the part of KvCache for models with an encoder.

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "kv/kv_state.h"

namespace witan {
void KvCache::State::add_input_layers() {
  caches_inputs = config.prefix_cache && !config.input_layers.empty();
  if (!config.input_layers.empty()) config.prefix_cache = false;
  for (const KvLayerSpec& spec : config.input_layers) {
    if (spec.num_kv_heads < 1 || spec.key_dim < 1 || spec.value_dim < 1 || spec.window != 0) {
      fail(ErrorCode::kInvalidArgument, "KV input layer {}: {} kv heads with keys of {}, values of {}, a window of {}",
           input_layers.size(), spec.num_kv_heads, spec.key_dim, spec.value_dim, spec.window);
    }
    const KvBlockFormat format{config.codec, spec.key_dim, spec.value_dim, spec.value_in_key};
    const int32_t pool_index = pool_for(format);
    input_layers.push_back({format, pool_index, num_input_tables()});
    pools[pool_index].num_input_tables += spec.num_kv_heads;
    pool_of_input_table.insert(pool_of_input_table.end(), spec.num_kv_heads, pool_index);
    input_set_bytes += spec.num_kv_heads * format.block_bytes();
  }
}

const KvInput& KvCache::State::input_of(SequenceId sequence) const {
  const InputId id = at(sequence).input;
  WITAN_CHECK(id != kNoInput, "sequence {} has no input", sequence);
  return inputs.at(id);
}

InputId KvCache::State::find_input(std::span<const TokenId> tokens) const {
  const auto same = [&](const auto& input) { return std::ranges::equal(input.second.tokens, tokens); };
  const auto found = std::ranges::find_if(inputs, same);
  return found == inputs.end() ? kNoInput : found->first;
}

std::vector<InputId> KvCache::State::cached_inputs() const {
  std::vector<InputId> ids;
  for (const auto& [id, input] : inputs) {
    if (input.num_references == 0) ids.push_back(id);
  }
  std::ranges::sort(ids, {}, [&](InputId id) { return inputs.at(id).released_at; });
  return ids;
}

void KvCache::State::release_input(InputId id) {
  KvInput& input = inputs.at(id);
  WITAN_CHECK(input.num_references > 0, "input {} has no reference to end", id);
  if (--input.num_references > 0) return;
  input.released_at = ++clock;
  cached_input_bytes += input_bytes(input);
  if (!caches_inputs || !input.encoded) drop_input(id);
}

void KvCache::State::drop_input(InputId id) {
  const KvInput& input = inputs.at(id);
  WITAN_CHECK(input.num_references == 0, "input {} dropped with {} references", id, input.num_references);
  for (size_t i = 0; i < input.ids.size(); ++i) {
    const int32_t pool = pool_of_input_table[i / static_cast<size_t>(input.num_blocks)];
    pools[pool].blocks.release(input.ids[i]);
  }
  cached_input_bytes -= input_bytes(input);
  stats.block_bytes_held -= input_bytes(input);
  inputs.erase(id);
}

void KvCache::State::check_inputs(const std::map<InputId, int64_t>& num_references) const {
  int64_t cached_bytes = 0;
  for (const auto& [id, input] : inputs) {
    const auto found = num_references.find(id);
    const int64_t expected = found == num_references.end() ? 0 : found->second;
    WITAN_CHECK(input.num_references == expected, "input {} counts {} references of {}", id, input.num_references,
                expected);
    WITAN_CHECK(expected > 0 || (input.encoded && caches_inputs), "input {} is kept for nothing", id);
    WITAN_CHECK(std::ssize(input.ids) == num_input_tables() * num_blocks_for(std::ssize(input.tokens)),
                "input {} of {} tokens has {} blocks", id, input.tokens.size(), input.ids.size());
    cached_bytes += expected == 0 ? input_bytes(input) : 0;
  }
  WITAN_CHECK(cached_bytes == cached_input_bytes, "{} bytes of inputs wait, {} counted", cached_bytes,
              cached_input_bytes);
}

bool KvCache::attach_input(SequenceId sequence_id, std::span<const TokenId> tokens) {
  State& state = *state_;
  KvSequence& sequence = state.at(sequence_id);
  WITAN_CHECK(sequence.input == kNoInput && !tokens.empty() && !state.input_layers.empty(),
              "sequence {} gets an input of {} tokens", sequence_id, tokens.size());
  state.stats.prefix_lookup_tokens += std::ssize(tokens);
  if (const InputId id = state.find_input(tokens); id != kNoInput) {
    KvInput& input = state.inputs.at(id);
    if (input.num_references++ == 0) state.cached_input_bytes -= state.input_bytes(input);
    state.stats.prefix_hit_tokens += std::ssize(tokens);
    sequence.input = id;
    return true;
  }
  const int64_t num_blocks = num_blocks_for(std::ssize(tokens));
  for (size_t i = 0; i < state.pools.size(); ++i) {
    state.needed_blocks[i] = num_blocks * state.pools[i].num_input_tables;
  }
  if (!state.make_room(state.needed_blocks)) return false;
  KvInput input{.tokens = {tokens.begin(), tokens.end()},
                .num_references = 1,
                .encoded = false,
                .released_at = 0,
                .num_blocks = num_blocks,
                .ids = {},
                .blocks = {}};
  std::vector<BlockId> ids(static_cast<size_t>(num_blocks));
  for (const int32_t pool : state.pool_of_input_table) {
    BlockPool& blocks = state.pools[pool].blocks;
    blocks.allocate(kNoBlock, 0, ids);
    for (const BlockId id : ids) {
      input.ids.push_back(id);
      input.blocks.push_back(blocks.data(id));
    }
  }
  state.stats.block_bytes_held += state.input_bytes(input);
  state.stats.peak_block_bytes_held = std::max(state.stats.peak_block_bytes_held, state.stats.block_bytes_held);
  sequence.input = state.next_input++;
  state.inputs.emplace(sequence.input, std::move(input));
  state.trim();
  return true;
}

InputId KvCache::input_of(SequenceId sequence) const { return state_->at(sequence).input; }

bool KvCache::input_is_encoded(SequenceId sequence) const { return state_->input_of(sequence).encoded; }

void KvCache::commit_input(SequenceId sequence) { state_->inputs.at(state_->at(sequence).input).encoded = true; }

KvCache::Slot KvCache::input_slot(SequenceId sequence, int32_t layer, int32_t head, int32_t entry) {
  const KvInput& input = state_->input_of(sequence);
  WITAN_CHECK(!input.encoded && entry >= 0 && entry < std::ssize(input.tokens), "entry {} of {} of an input to write",
              entry, input.tokens.size());
  const int64_t table = state_->input_layers[layer].first_table + head;
  return {input.blocks[table * input.num_blocks + entry / kKvBlockSize], entry % kKvBlockSize};
}

KvView KvCache::input_view(SequenceId sequence, int32_t layer, int32_t head) const {
  const KvInput& input = state_->input_of(sequence);
  const int64_t table = state_->input_layers[layer].first_table + head;
  return {state_->input_layers[layer].format, input.blocks.data() + table * input.num_blocks,
          static_cast<int32_t>(input.tokens.size()), nullptr};
}

int64_t KvCache::bytes_for_input(std::span<const TokenId> tokens) const {
  if (tokens.empty() || state_->find_input(tokens) != kNoInput) return 0;
  return bytes_of_input(std::ssize(tokens));
}

int64_t KvCache::bytes_of_input(int64_t num_tokens) const {
  return num_blocks_for(num_tokens) * state_->input_set_bytes;
}

}  // namespace witan
