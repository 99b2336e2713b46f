#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace witan {

// The element types a weight tensor can have. The numbers are ours; files use QuantType::ggml_id or safetensors names.
enum class DType : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_K, kQ6_K };
inline constexpr int kNumDTypes = 6;

// One row per type: everything the rest of Witan needs to know about a format. A row of a tensor is `num_elements`
// consecutive elements in blocks of block_size; num_elements must be a multiple of block_size.
struct QuantType {
  DType dtype;
  std::string_view name;         // as llama.cpp spells it: "F32", "Q4_K"
  std::string_view safetensors;  // "F32", "BF16"; empty where safetensors has no such type
  uint32_t ggml_id;              // in GGUF files
  int32_t block_size;            // elements
  int32_t block_bytes;
  // Exact: the values the bits stand for, in float, bit for bit as ggml computes them.
  void (*decode)(const std::byte* row, float* out, int64_t num_elements);
  // Rounds as ggml's reference quantiser does.
  void (*encode)(const float* row, std::byte* out, int64_t num_elements);
  // sum over i of decode(row)[i] * x[i], in double.
  double (*dot)(const std::byte* row, const float* x, int64_t num_elements);
  // Fills a row with seeded random weights of mean about 0 and standard deviation `stddev`, at memory speed.
  void (*random)(uint64_t seed, float stddev, std::byte* out, int64_t num_elements);

  int64_t row_bytes(int64_t num_elements) const { return num_elements / block_size * block_bytes; }
};

// All types, ordered by DType.
std::span<const QuantType> quant_types();
const QuantType& quant_type(DType dtype);
std::optional<DType> dtype_from_ggml_id(uint32_t ggml_id);
std::optional<DType> dtype_from_safetensors(std::string_view name);
std::optional<DType> dtype_from_name(std::string_view name);  // case-insensitive, "q4_k"

}  // namespace witan
