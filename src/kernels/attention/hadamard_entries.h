#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/kv_block.h"

// Entries of the kHadamard and kLatent codecs: what kv_store, kv_load and kv_copy do for these.
namespace witan {

int64_t hadamard_key_bytes(const KvBlockFormat& format);    // of the quants of one block, of latents for kLatent
int64_t hadamard_value_bytes(const KvBlockFormat& format);  // of the quants of one block

void store_hadamard(const KvBlockFormat& format, std::byte* block, int slot, const float* key, const float* value);
void store_hadamard_value(const KvBlockFormat& format, std::byte* block, int slot, const float* value);
void store_latent(const KvBlockFormat& format, std::byte* block, int slot, const float* key);
// As it is stored: turned. key or value may be nullptr, but of kLatent not the key.
void load_turned(const KvBlockFormat& format, const std::byte* block, int slot, float* key, float* value);
void copy_turned(const KvBlockFormat& format, const std::byte* from, int from_slot, std::byte* to, int to_slot);

}  // namespace witan
