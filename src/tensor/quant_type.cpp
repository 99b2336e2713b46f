#include "tensor/quant_type.h"

#include <algorithm>
#include <array>

#include "tensor/types/types.h"

namespace witan {
namespace {

const std::array<QuantType, kNumDTypes>& table() {
  static const std::array<QuantType, kNumDTypes> kTypes = {
      f32_type(),  f16_type(),  bf16_type(),   f8_e4m3_type(), q8_0_type(), q4_0_type(),
      q4_1_type(), q5_0_type(), q5_1_type(),   q2_k_type(),    q3_k_type(), q4_k_type(),
      q5_k_type(), q6_k_type(), iq4_nl_type(), iq4_xs_type(),  mxfp4_type()};
  return kTypes;
}

template <typename Predicate>
std::optional<DType> find_type(Predicate matches) {
  const auto found = std::find_if(table().begin(), table().end(), matches);
  if (found == table().end()) return std::nullopt;
  return found->dtype;
}

char to_upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }

}  // namespace

std::span<const QuantType> quant_types() { return table(); }

const QuantType& quant_type(DType dtype) { return table()[static_cast<size_t>(dtype)]; }

std::optional<DType> dtype_from_ggml_id(uint32_t ggml_id) {
  return find_type([ggml_id](const QuantType& type) { return ggml_id != kNoGgmlId && type.ggml_id == ggml_id; });
}

std::optional<DType> dtype_from_safetensors(std::string_view name) {
  return find_type([name](const QuantType& type) { return !name.empty() && type.safetensors == name; });
}

std::optional<DType> dtype_from_name(std::string_view name) {
  return find_type([name](const QuantType& type) {
    return std::equal(name.begin(), name.end(), type.name.begin(), type.name.end(),
                      [](char a, char b) { return to_upper(a) == b; });
  });
}

}  // namespace witan
