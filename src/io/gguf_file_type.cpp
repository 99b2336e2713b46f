#include "io/gguf_file_type.h"

#include <algorithm>
#include <cctype>

#include "base/check.h"

namespace witan {
namespace {

constexpr GgufFileType kFileTypes[] = {
    {"F32", 0, DType::kF32, TypeMix::kPlain},        {"F16", 1, DType::kF16, TypeMix::kPlain},
    {"BF16", 32, DType::kBF16, TypeMix::kPlain},     {"Q8_0", 7, DType::kQ8_0, TypeMix::kPlain},
    {"Q4_0", 2, DType::kQ4_0, TypeMix::kPlain},      {"Q4_1", 3, DType::kQ4_1, TypeMix::kPlain},
    {"Q5_0", 8, DType::kQ5_0, TypeMix::kPlain},      {"Q5_1", 9, DType::kQ5_1, TypeMix::kPlain},
    {"Q2_K", 10, DType::kQ2_K, TypeMix::kPlain},     {"Q3_K", 11, DType::kQ3_K, TypeMix::kPlain},
    {"Q4_K", 14, DType::kQ4_K, TypeMix::kPlain},     {"Q4_K_S", 14, DType::kQ4_K, TypeMix::kSmall},
    {"Q4_K_M", 15, DType::kQ4_K, TypeMix::kMedium},  {"Q5_K", 16, DType::kQ5_K, TypeMix::kPlain},
    {"Q5_K_S", 16, DType::kQ5_K, TypeMix::kSmall},   {"Q5_K_M", 17, DType::kQ5_K, TypeMix::kMedium},
    {"Q6_K", 18, DType::kQ6_K, TypeMix::kPlain},     {"IQ4_NL", 25, DType::kIQ4_NL, TypeMix::kPlain},
    {"IQ4_XS", 30, DType::kIQ4_XS, TypeMix::kPlain}, {"MXFP4", 38, DType::kMXFP4, TypeMix::kPlain},
};

bool equal_but_for_case(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](unsigned char x, unsigned char y) { return std::toupper(x) == std::toupper(y); });
}

}  // namespace

std::span<const GgufFileType> gguf_file_types() { return kFileTypes; }

const GgufFileType& gguf_file_type(DType dtype) {
  for (const GgufFileType& type : kFileTypes) {
    if (type.dtype == dtype && type.mix == TypeMix::kPlain) return type;
  }
  WITAN_CHECK(false, "no GGUF file holds {}", quant_type(dtype).name);
}

const GgufFileType* find_gguf_file_type(std::string_view name) {
  for (const GgufFileType& type : kFileTypes) {
    if (equal_but_for_case(type.name, name)) return &type;
  }
  return nullptr;
}

}  // namespace witan
