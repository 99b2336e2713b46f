#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tensor/quant_type.h"

namespace witan {

struct SafetensorsTensor {
  std::string name;
  std::optional<DType> dtype;  // nullopt: I64 or BOOL
  bool is_part = false;        // see TensorEntry
  std::vector<int64_t> shape;
  std::span<const std::byte> data;  // exactly the tensor's bytes, in the file; may be unaligned
};

// The tensors of a whole safetensors file, ordered by their place in it; `data` points into the bytes given.
// Checks all header claims: the header's length and JSON, each tensor's dtype, shape and offsets, and that the tensors
// fill the rest of the file without overlaps or gaps, as the format demands.
// dtypes read are F32, F16 and BF16, and F8_E4M3 and U8 as parts of block-quantised weights. I64 and BOOL hold indices
// and masks (position_ids, attention masks), never weights: they are listed without a DType, for the caller to leave
// out. Any other is an error, as its tensor could be a weight. `source` names the file in messages. Throws
// Error(kBadFile) naming file, tensor, expected and found; Error(kUnsupported) for other dtypes and for more than 4
// dimensions. Format: https://github.com/huggingface/safetensors#format
std::vector<SafetensorsTensor> parse_safetensors(std::span<const std::byte> file, const std::string& source);

}  // namespace witan
