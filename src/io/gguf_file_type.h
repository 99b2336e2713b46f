#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "tensor/quant_type.h"

namespace witan {

// Which matrices get a larger type than the others; see choose_types().
enum class TypeMix : uint8_t {
  kPlain,   // the output projection
  kSmall,   // llama.cpp's "_S"
  kMedium,  // llama.cpp's "_M"
};

// What most of a GGUF file is: llama.cpp's LLAMA_FTYPE, the value of general.file_type.
struct GgufFileType {
  std::string_view name;  // as llama.cpp's quantisation tool spells it, "Q4_K_M"; or as the type is, "Q4_K"
  uint32_t id;
  DType dtype;  // of most matrices
  TypeMix mix;
};

std::span<const GgufFileType> gguf_file_types();

// The plain file type of a type that GGUF files can hold.
const GgufFileType& gguf_file_type(DType dtype);
// nullptr when there is none of the name; case-insensitive.
const GgufFileType* find_gguf_file_type(std::string_view name);

}  // namespace witan
