#include "io/type_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <regex>

#include "base/error.h"

namespace witan {
namespace {

constexpr std::string_view kLayerPrefix = "blk.";

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

// "blk.3.ffn_down.weight" of the same, and of "enc.blk.3.ffn_down.weight" in a model with an encoder.
std::string_view within_stack(std::string_view name) {
  for (const std::string_view stack : {"enc.", "dec."}) {
    if (name.starts_with(stack)) name.remove_prefix(stack.size());
  }
  return name;
}

// "ffn_down.weight" of "blk.3.ffn_down.weight".
std::string_view kind_of(std::string_view name) {
  name = within_stack(name);
  if (name.starts_with(kLayerPrefix)) name.remove_prefix(name.find('.', kLayerPrefix.size()) + 1);
  return name;
}

// 3 of "blk.3.ffn_down.weight"; -1 where there is no layer.
int32_t layer_of(std::string_view name) {
  name = within_stack(name);
  int32_t layer = -1;
  if (name.starts_with(kLayerPrefix)) {
    std::from_chars(name.data() + kLayerPrefix.size(), name.data() + name.size(), layer);
  }
  return layer;
}

bool is_quantised(const TensorShape& tensor) {
  return tensor.shape.size() >= 2 && tensor.name.ends_with(".weight") && !tensor.name.ends_with("_norm.weight") &&
         tensor_class(tensor.name) != TensorClass::kRouter;
}

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF8_E4M3;
}

// What the rules depend on besides the tensor itself.
struct FileFacts {
  int32_t num_layers = 0;
  int64_t num_experts = 0;
  bool has_output = false;
};

FileFacts facts_of(std::span<const TensorShape> tensors) {
  FileFacts facts;
  for (const TensorShape& tensor : tensors) {
    facts.num_layers = std::max(facts.num_layers, layer_of(tensor.name) + 1);
    if (tensor_class(tensor.name) == TensorClass::kOutput) facts.has_output = true;
    if (tensor_class(tensor.name) == TensorClass::kExperts && tensor.shape.size() == 3) {
      facts.num_experts = tensor.shape[0];
    }
  }
  return facts;
}

// The layers that get more bits in a medium mix.
bool gets_more_bits(int32_t layer, int32_t num_layers) {
  const int32_t eighth = num_layers / 8;
  return layer < eighth || layer >= 7 * num_layers / 8 || (layer - eighth) % 3 == 2;
}

DType mixed_type(const TensorShape& tensor, const GgufFileType& type, const FileFacts& facts) {
  const std::string_view kind = kind_of(tensor.name);
  const int32_t layer = layer_of(tensor.name);
  const bool more_bits = type.mix == TypeMix::kMedium && gets_more_bits(layer, facts.num_layers);
  const bool small_q4 = type.mix == TypeMix::kSmall && type.dtype == DType::kQ4_K;
  const bool few_large_experts = facts.num_experts == 8 && type.mix != TypeMix::kPlain;
  if (kind == "attn_v.weight") {
    if (few_large_experts) return DType::kQ8_0;
    if (more_bits) return DType::kQ6_K;
    if (small_q4 && layer < 4) return DType::kQ5_K;
  }
  if (kind == "attn_k.weight" && few_large_experts) return DType::kQ8_0;
  if (kind == "attn_output.weight" && few_large_experts && type.dtype == DType::kQ4_K) return DType::kQ5_K;
  if (kind.starts_with("ffn_down")) {
    if (more_bits) return DType::kQ6_K;
    if (small_q4 && layer < facts.num_layers / 8) return DType::kQ5_K;
  }
  return type.dtype;
}

DType wanted_type(const TensorShape& tensor, const TypeChoice& choice, const FileFacts& facts) {
  const GgufFileType& type = *choice.file_type;
  const TensorClass what = tensor_class(tensor.name);
  if (what == TensorClass::kExperts && choice.experts) return *choice.experts;
  if (is_float(type.dtype)) return type.dtype;
  if (type.dtype == DType::kMXFP4) return what == TensorClass::kExperts ? DType::kMXFP4 : DType::kQ8_0;
  const bool is_output = what == TensorClass::kOutput || (what == TensorClass::kEmbedding && !facts.has_output);
  if (is_output) {
    const bool fits = quant_type(DType::kQ6_K).holds_rows_of(tensor.shape.back());
    return type.dtype == DType::kQ8_0 || !fits ? DType::kQ8_0 : DType::kQ6_K;
  }
  return mixed_type(tensor, type, facts);
}

DType fitting_type(DType wanted, int64_t row_length) {
  if (quant_type(wanted).holds_rows_of(row_length)) return wanted;
  DType next = DType::kF16;
  if (wanted == DType::kQ4_K) next = DType::kQ5_0;
  if (wanted == DType::kQ5_K) next = DType::kQ5_1;
  if (wanted == DType::kQ6_K) next = DType::kQ8_0;
  return quant_type(next).holds_rows_of(row_length) ? next : DType::kF16;
}

// Collects a sentence for each kind of tensor that did not get its type.
class FallbackNotes {
 public:
  void add(const TensorShape& tensor, DType wanted, DType got) {
    const std::string_view kind = kind_of(tensor.name);
    for (Kind& known : kinds_) {
      if (known.kind == kind && known.wanted == wanted) {
        ++known.count;
        return;
      }
    }
    kinds_.push_back({.kind = kind, .wanted = wanted, .got = got, .row_length = tensor.shape.back(), .count = 1});
  }

  std::vector<std::string> sentences() const {
    std::vector<std::string> notes;
    for (const Kind& kind : kinds_) {
      notes.push_back(fmt::format("{} ({} {}) is {}, not {}: rows of {} are no whole blocks of {}.", kind.kind,
                                  kind.count, kind.count == 1 ? "tensor" : "tensors", quant_type(kind.got).name,
                                  quant_type(kind.wanted).name, kind.row_length, quant_type(kind.wanted).block_size));
    }
    return notes;
  }

 private:
  struct Kind {
    std::string_view kind;
    DType wanted;
    DType got;
    int64_t row_length;
    int count;
  };
  std::vector<Kind> kinds_;
};

// Overrides ready to be matched.
class Overrides {
 public:
  explicit Overrides(std::span<const TypeOverride> overrides) {
    for (const TypeOverride& given : overrides) {
      try {
        compiled_.push_back({.given = &given, .regex = std::regex(given.pattern)});
      } catch (const std::regex_error&) {
        fail(ErrorCode::kInvalidArgument, "\"{}\" is no regular expression", given.pattern);
      }
    }
  }

  std::optional<DType> find(const std::string& name) {
    for (Compiled& compiled : compiled_) {
      if (!std::regex_search(name, compiled.regex)) continue;
      compiled.used = true;
      return compiled.given->dtype;
    }
    return std::nullopt;
  }

  void check_all_used() const {
    for (const Compiled& compiled : compiled_) {
      if (!compiled.used) {
        fail(ErrorCode::kInvalidArgument, "\"{}\" matches no matrix that is not overridden already",
             compiled.given->pattern);
      }
    }
  }

 private:
  struct Compiled {
    const TypeOverride* given;
    std::regex regex;
    bool used = false;
  };
  std::vector<Compiled> compiled_;
};

}  // namespace

TensorClass tensor_class(std::string_view name) {
  const std::string_view kind = kind_of(name);
  if (!kind.ends_with("weight") || contains(kind, "_norm")) return TensorClass::kOther;
  if (kind.starts_with("token_embd")) return TensorClass::kEmbedding;
  if (kind == "output.weight") return TensorClass::kOutput;
  if (kind.starts_with("attn_") || kind.starts_with("cross_attn_")) return TensorClass::kAttention;
  if (kind.starts_with("ffn_gate_inp")) return TensorClass::kRouter;
  if (contains(kind, "_shexp")) return TensorClass::kSharedExperts;
  // "ffn_up_exps.weight", and in older files "ffn_up.7.weight".
  if (contains(kind, "_exps") || (kind.starts_with("ffn_") && std::count(kind.begin(), kind.end(), '.') == 2)) {
    return TensorClass::kExperts;
  }
  if (kind.starts_with("ffn_")) return TensorClass::kDenseFfn;
  return TensorClass::kOther;
}

std::string_view tensor_class_name(TensorClass tensor_class) {
  switch (tensor_class) {
    case TensorClass::kEmbedding:
      return "embeddings";
    case TensorClass::kOutput:
      return "output";
    case TensorClass::kAttention:
      return "attention";
    case TensorClass::kExperts:
      return "experts";
    case TensorClass::kSharedExperts:
      return "shared experts";
    case TensorClass::kDenseFfn:
      return "dense FFN";
    case TensorClass::kRouter:
      return "routers";
    case TensorClass::kOther:
      return "other";
  }
  return "";
}

ChosenTypes choose_types(std::span<const TensorShape> tensors, const TypeChoice& choice) {
  const FileFacts facts = facts_of(tensors);
  Overrides overrides(choice.overrides);
  FallbackNotes notes;
  ChosenTypes chosen;
  for (const TensorShape& tensor : tensors) {
    if (!is_quantised(tensor)) {
      chosen.dtypes.push_back(is_float(tensor.dtype) ? DType::kF32 : tensor.dtype);
      continue;
    }
    const DType wanted = overrides.find(tensor.name).value_or(wanted_type(tensor, choice, facts));
    chosen.dtypes.push_back(fitting_type(wanted, tensor.shape.back()));
    if (chosen.dtypes.back() != wanted) notes.add(tensor, wanted, chosen.dtypes.back());
  }
  overrides.check_all_used();
  chosen.notes = notes.sentences();
  return chosen;
}

}  // namespace witan
