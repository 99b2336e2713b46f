#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/kv_block.h"

// Blocks of the kKivi codecs: what kv_store_block and kv_load do for these.
namespace witan {

int64_t kivi_key_bytes(const KvBlockFormat& format);    // of the quants of one block
int64_t kivi_value_bytes(const KvBlockFormat& format);  // of the quants of one block

void store_kivi_block(const KvBlockFormat& format, std::byte* block, const KvRows& rows);
// key or value may be nullptr.
void load_kivi(const KvBlockFormat& format, const std::byte* block, int slot, float* key, float* value);

}  // namespace witan
