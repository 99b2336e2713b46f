#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace witan {

// The element types a weight tensor can have. The numbers are ours; files use QuantType::ggml_id or safetensors names.
enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF8_E4M3,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
  kMXFP4
};
inline constexpr int kNumDTypes = 17;

// The ggml_id of a type that GGUF files cannot hold.
inline constexpr uint32_t kNoGgmlId = 0xffffffff;

// One row per type: everything the rest of Witan needs to know about a format. A row of a tensor is `num_elements`
// consecutive elements in blocks of block_size; num_elements must be one that holds_rows_of() accepts.
struct QuantType {
  DType dtype;
  std::string_view name;         // as llama.cpp spells it: "F32", "Q4_K"
  std::string_view safetensors;  // "F32", "BF16"; empty where safetensors has no type with these rows
  uint32_t ggml_id;              // in GGUF files; kNoGgmlId where they have no such type
  int32_t block_size;            // elements
  int32_t block_bytes;
  // A row may end in a part of a block, which then has as many bytes fewer as it has elements fewer.
  bool allows_partial_block = false;
  // Exact: the values the bits stand for, in float, bit for bit as ggml computes them.
  void (*decode)(const std::byte* row, float* out, int64_t num_elements);
  // Rounds as ggml's reference quantiser does. nullptr: a type that Witan reads but does not write.
  void (*encode)(const float* row, std::byte* out, int64_t num_elements);
  // sum over i of decode(row)[i] * x[i], in double.
  double (*dot)(const std::byte* row, const float* x, int64_t num_elements);
  // Fills a row with seeded random weights of mean about 0 and standard deviation `stddev`, at memory speed.
  void (*random)(uint64_t seed, float stddev, std::byte* out, int64_t num_elements);

  int64_t row_bytes(int64_t num_elements) const {
    const int64_t rest = num_elements % block_size;
    return num_elements / block_size * block_bytes + (rest == 0 ? 0 : rest + block_bytes - block_size);
  }
  bool holds_rows_of(int64_t num_elements) const { return allows_partial_block || num_elements % block_size == 0; }
  bool can_encode() const { return encode != nullptr; }
};

// All types, ordered by DType.
std::span<const QuantType> quant_types();
const QuantType& quant_type(DType dtype);
std::optional<DType> dtype_from_ggml_id(uint32_t ggml_id);
std::optional<DType> dtype_from_safetensors(std::string_view name);
std::optional<DType> dtype_from_name(std::string_view name);  // case-insensitive, "q4_k"

}  // namespace witan
