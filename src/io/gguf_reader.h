#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tensor/quant_type.h"

namespace witan {

// The value types of GGUF metadata; the numbers are the file's.
enum class GgufType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};
inline constexpr uint32_t kNumGgufTypes = 13;

std::string_view gguf_type_name(GgufType type);  // "uint8", "string"

// One metadata value. Everything points into the file.
struct GgufValue {
  GgufType type = GgufType::kUint8;  // of each element for an array; never kArray
  bool is_array = false;
  uint64_t count = 1;                     // elements of an array; 1 for a scalar
  std::span<const std::byte> bytes;       // count packed little-endian values, unaligned; empty for strings
  std::vector<std::string_view> strings;  // [count] for strings, else empty
};

struct GgufTensor {
  std::string_view name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;       // outermost first (the file has them innermost first)
  std::span<const std::byte> data;  // exactly the tensor's bytes
};

// The header of a GGUF file, pointing into the file's bytes, which must outlive it.
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
struct GgufFile {
  uint32_t version = 0;
  std::unordered_map<std::string_view, GgufValue> metadata;
  std::vector<GgufTensor> tensors;  // as listed in the header

  const GgufValue* find(std::string_view key) const {
    const auto found = metadata.find(key);
    return found == metadata.end() ? nullptr : &found->second;
  }
};

// True when the bytes begin as every GGUF file does.
bool has_gguf_magic(std::span<const std::byte> file);

// Reads a whole little-endian GGUF file of version 2 or 3 and checks all its header claims; memory used is a small
// multiple of the header's actual size whatever its counts say. Gaps between tensors and bytes after the last one are
// accepted. `source` names the file in messages.
// Throws Error(kBadFile) naming the file, the key or tensor, what was expected and what was found; Error(kUnsupported)
// for other versions, big-endian files, arrays of arrays, and tensor types that Witan does not read.
GgufFile parse_gguf(std::span<const std::byte> file, const std::string& source);

}  // namespace witan
