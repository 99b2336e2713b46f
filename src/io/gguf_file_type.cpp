#include "io/gguf_file_type.h"

#include <algorithm>
#include <cctype>

#include "base/check.h"

namespace witan {
namespace {

constexpr GgufFileType kFileTypes[] = {
    {"F32", 0, DType::kF32, false},        {"F16", 1, DType::kF16, false},        {"BF16", 32, DType::kBF16, false},
    {"Q8_0", 7, DType::kQ8_0, false},      {"Q4_0", 2, DType::kQ4_0, false},      {"Q4_1", 3, DType::kQ4_1, false},
    {"Q5_0", 8, DType::kQ5_0, false},      {"Q5_1", 9, DType::kQ5_1, false},      {"Q2_K", 10, DType::kQ2_K, false},
    {"Q3_K_S", 11, DType::kQ3_K, false},   {"Q4_K_S", 14, DType::kQ4_K, false},   {"Q4_K_M", 15, DType::kQ4_K, true},
    {"Q5_K_S", 16, DType::kQ5_K, false},   {"Q5_K_M", 17, DType::kQ5_K, true},    {"Q6_K", 18, DType::kQ6_K, false},
    {"IQ4_NL", 25, DType::kIQ4_NL, false}, {"IQ4_XS", 30, DType::kIQ4_XS, false}, {"MXFP4", 38, DType::kMXFP4, false},
};

bool equal_but_for_case(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](unsigned char x, unsigned char y) { return std::toupper(x) == std::toupper(y); });
}

}  // namespace

std::span<const GgufFileType> gguf_file_types() { return kFileTypes; }

const GgufFileType& gguf_file_type(DType dtype) {
  for (const GgufFileType& type : kFileTypes) {
    if (type.dtype == dtype && !type.more_for_some) return type;
  }
  WITAN_CHECK(false, "no GGUF file holds {}", quant_type(dtype).name);
}

const GgufFileType* find_gguf_file_type(std::string_view name) {
  for (const GgufFileType& type : kFileTypes) {
    if (equal_but_for_case(type.name, name)) return &type;
  }
  const std::optional<DType> dtype = dtype_from_name(name);
  return dtype && quant_type(*dtype).ggml_id != kNoGgmlId ? &gguf_file_type(*dtype) : nullptr;
}

}  // namespace witan
