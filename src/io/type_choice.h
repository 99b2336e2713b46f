#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf_file_type.h"
#include "tensor/quant_type.h"

namespace witan {

// What a tensor of a GGUF file is for, by its name.
enum class TensorClass : uint8_t {
  kEmbedding,
  kOutput,
  kAttention,
  kExperts,
  kSharedExperts,
  kDenseFfn,
  kRouter,
  kOther,  // norms, biases
};
inline constexpr int kNumTensorClasses = 8;

TensorClass tensor_class(std::string_view name);
std::string_view tensor_class_name(TensorClass tensor_class);  // "shared experts"

// A tensor to choose a type for.
struct TensorShape {
  std::string name;  // in GGUF files
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first
};

// Tensors whose names have a match of `pattern`, a regular expression (ECMAScript), get `dtype`.
struct TypeOverride {
  std::string pattern;
  DType dtype = DType::kF32;
};

struct TypeChoice {
  const GgufFileType* file_type = nullptr;
  std::optional<DType> experts = std::nullopt;  // of the matrices of routed experts
  std::vector<TypeOverride> overrides = {};     // the first that matches wins over all else
};

struct ChosenTypes {
  std::vector<DType> dtypes;       // [tensors]
  std::vector<std::string> notes;  // one sentence for each kind of tensor whose rows did not fit; to be shown
};

// The types of a quantised file's tensors, by llama.cpp's rules:
// - Only matrices called "weight" are quantised; routers and what has one row are kept as they are, F16 and BF16 among
// them
//   becoming F32, which is exact.
// - The output projection (the embeddings where there is none) gets Q6_K, or Q8_0 where its rows are no whole blocks of
//   that, unless the file type is Q8_0 or not quantised. MXFP4 is for experts alone: all else gets Q8_0.
// - Mix kMedium: Q6_K for the values' projections and ffn_down of the first and last eighth of the layers and of every
//   third between them. Mix kSmall: Q5_K for those of the first 4 layers, or the first eighth, if the type is Q4_K.
//   Either, with 8 experts: Q8_0 for keys and values, Q5_K for attention's output if the type is Q4_K.
// - Rows that are no whole blocks of their type: Q5_0 for Q4_K, Q5_1 for Q5_K, Q8_0 for Q6_K, F16 where that or any
// other
//   type does not fit either.
// Throws Error(kInvalidArgument) for a pattern that is no regular expression or matches no matrix.
ChosenTypes choose_types(std::span<const TensorShape> tensors, const TypeChoice& choice);

}  // namespace witan
