#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "tensor/quant_type.h"

namespace witan {

// What most of a GGUF file is: llama.cpp's LLAMA_FTYPE, the value of general.file_type.
struct GgufFileType {
  std::string_view name;  // as llama.cpp's quantisation tool spells it, "Q4_K_M"
  uint32_t id;
  DType dtype;         // of most matrices
  bool more_for_some;  // "_M": some matrices get a larger type; see quantize.h
};

std::span<const GgufFileType> gguf_file_types();

// The plain file type of a type that GGUF files can hold.
const GgufFileType& gguf_file_type(DType dtype);
// nullptr when there is none of the name; case-insensitive. A weight type's own name is its plain file type's: "Q4_K".
const GgufFileType* find_gguf_file_type(std::string_view name);

}  // namespace witan
