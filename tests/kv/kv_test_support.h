#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "kv/kv_cache.h"

namespace witan::test {

struct Token {
  TokenId id = 0;
  TokenRole role = TokenRole::kPrompt;
  auto operator<=>(const Token&) const = default;
};
using Tokens = std::vector<Token>;

inline std::vector<TokenId> ids_of(const Tokens& tokens) {
  std::vector<TokenId> ids;
  for (const Token& token : tokens) ids.push_back(token.id);
  return ids;
}

inline std::vector<TokenRole> roles_of(const Tokens& tokens) {
  std::vector<TokenRole> roles;
  for (const Token& token : tokens) roles.push_back(token.role);
  return roles;
}

// `count` tokens that differ from those of another `seed`.
inline Tokens make_tokens(int count, int seed, TokenRole role = TokenRole::kPrompt) {
  Tokens tokens;
  const uint32_t first = static_cast<uint32_t>(seed) * 1000003u;
  for (int i = 0; i < count; ++i) tokens.push_back({static_cast<TokenId>((first + i) & 0x7fffffffu), role});
  return tokens;
}

// Stands for everything that a token's entry may depend on: itself and all tokens before it.
inline uint32_t extend_chain(uint32_t chain, const Token& token) {
  chain = (chain ^ static_cast<uint32_t>(token.id)) * 0x9e3779b1u + static_cast<uint32_t>(token.role) + 1;
  return chain ^ (chain >> 15);
}

inline uint32_t entry_pattern(uint32_t chain, int32_t layer, int32_t head, int32_t entry) {
  return chain + 0x01000193u * static_cast<uint32_t>(layer * 64 + head + 1) + 977u * static_cast<uint32_t>(entry);
}

// Calls visit(offset) for the places of a block that an f32 entry's pattern is written to: the first and last component
// of its key and, if it has one, of its value.
template <typename Visit>
void for_pattern_offsets(const KvBlockFormat& format, int slot, Visit visit) {
  visit(int64_t{slot} * 4);
  visit(((format.key_dim - 1) * int64_t{kKvBlockSize} + slot) * 4);
  if (format.value_in_key) return;
  const int64_t value = format.key_bytes() + int64_t{slot} * format.value_dim * 4;
  visit(value);
  visit(value + (format.value_dim - 1) * 4);
}

inline void write_pattern(const KvBlockFormat& format, KvCache::Slot slot, uint32_t pattern) {
  for_pattern_offsets(format, slot.slot,
                      [&](int64_t offset) { std::memcpy(slot.block + offset, &pattern, sizeof(pattern)); });
}

inline bool has_pattern(const KvView& view, int32_t entry, uint32_t pattern) {
  const std::byte* block = view.blocks[entry / kKvBlockSize];
  bool equal = true;
  for_pattern_offsets(view.format, entry % kKvBlockSize,
                      [&](int64_t offset) { equal &= std::memcmp(block + offset, &pattern, sizeof(pattern)) == 0; });
  return equal;
}

// Writes the entries of `tokens` behind the committed ones, whose chain is `chain`, in every table.
inline void write_entries(KvCache& cache, SequenceId sequence, uint32_t chain, const Tokens& tokens) {
  int32_t entry = cache.num_tokens(sequence);
  for (const Token& token : tokens) {
    chain = extend_chain(chain, token);
    for (int32_t layer = 0; layer < std::ssize(cache.config().layers); ++layer) {
      for (int32_t head = 0; head < cache.config().layers[layer].num_kv_heads; ++head) {
        write_pattern(cache.block_format(layer), cache.slot(sequence, layer, head, entry),
                      entry_pattern(chain, layer, head, entry));
      }
    }
    ++entry;
  }
}

// Whether all tables of a sequence hold exactly the entries of `tokens`, those of layers with a window the ones that
// the next token sees.
inline bool holds_entries(const KvCache& cache, SequenceId sequence, const Tokens& tokens) {
  const auto num_tokens = static_cast<int32_t>(tokens.size());
  if (cache.num_tokens(sequence) != num_tokens) return false;
  for (int32_t layer = 0; layer < std::ssize(cache.config().layers); ++layer) {
    for (int32_t head = 0; head < cache.config().layers[layer].num_kv_heads; ++head) {
      if (cache.num_entries(sequence, layer, head) != num_tokens) return false;
      const KvView view = cache.view(sequence, layer, head, num_tokens);
      uint32_t chain = 0;
      const int32_t window = cache.config().layers[layer].window;
      for (int32_t entry = 0; entry < num_tokens; ++entry) {
        chain = extend_chain(chain, tokens[entry]);
        if (window > 0 && entry < num_tokens + 1 - window) continue;
        if (!has_pattern(view, entry, entry_pattern(chain, layer, head, entry))) return false;
      }
    }
  }
  return true;
}

// Reserves, writes and commits `tokens` behind `before`; false when there is no room.
inline bool append(KvCache& cache, SequenceId sequence, const Tokens& before, const Tokens& tokens) {
  if (!cache.reserve(sequence, static_cast<int32_t>(tokens.size()))) return false;
  uint32_t chain = 0;
  for (const Token& token : before) chain = extend_chain(chain, token);
  write_entries(cache, sequence, chain, tokens);
  cache.commit(sequence, ids_of(tokens), roles_of(tokens));
  return true;
}

}  // namespace witan::test
