#include "bench/model_cost.h"

#include <algorithm>

#include "kernels/attention/attention.h"
#include "kernels/matmul/matmul.h"

namespace witan {
namespace {

Arithmetic arithmetic_of(DType type, Precision precision) {
  switch (activation_format(type, precision)) {
    case ActivationFormat::kF32:
      return Arithmetic::kF32;
    case ActivationFormat::kBF16:
      return Arithmetic::kBf16;
    case ActivationFormat::kInt8Per32:
    case ActivationFormat::kInt8Per256:
      return Arithmetic::kInt8;
  }
  return Arithmetic::kF32;
}

// Elements of the matrices in a tensor; none for vectors, and for the scales that go with a tensor of codes.
int64_t matrix_elements(const TensorEntry& tensor) {
  if (tensor.shape.size() < 2) return 0;
  if (!tensor.is_part) return tensor.num_elements();
  // Packed codes [experts, rows, cols / 32, 16], two to a byte.
  if (tensor.dtype == DType::kMXFP4) return tensor.shape.size() == 4 ? 2 * tensor.num_elements() : 0;
  return tensor.name.ends_with("_scale_inv") ? 0 : tensor.num_elements();
}

int64_t visible_entries(const KvLayerSpec& layer, int64_t num_entries) {
  return layer.window > 0 ? std::min<int64_t>(layer.window, num_entries) : num_entries;
}

// The sum of visible_entries over num_entries = first + 1 ... end.
double visible_entries_of_prompt(const KvLayerSpec& layer, int64_t first, int64_t end) {
  const auto sum_up_to = [&](int64_t last) {
    const auto whole = static_cast<double>(visible_entries(layer, last));  // 1 + 2 + ... until the window is full
    return whole * (whole + 1) / 2 + whole * (static_cast<double>(last) - whole);
  };
  return sum_up_to(end) - sum_up_to(first);
}

// Of those that a generated token sees in a layer, those that it reads: of pages of half a block the most that it may
// be, since blocks are read whole.
int64_t entries_read(const ModelInfo& info, int32_t layer, int64_t num_entries,
                     const std::optional<KvPageReader>& reader) {
  const KvLayerSpec& spec = info.kv_layers[static_cast<size_t>(layer)];
  const int64_t visible = visible_entries(spec, num_entries);
  const bool by_pages = reader && layer >= reader->num_dense_layers && spec.window == 0;
  return by_pages ? std::min<int64_t>(visible, int64_t{reader->num_pages(visible)} * kKvBlockSize) : visible;
}

}  // namespace

ModelCost::ModelCost(const Checkpoint& checkpoint, const ModelInfo& info, Precision precision, KvCodec kv_codec)
    : info_(info), precision_(precision), kv_codec_(kv_codec) {
  const auto tensors = checkpoint.tensors();
  const bool has_output =
      std::ranges::any_of(tensors, [](const TensorEntry& tensor) { return is_output_tensor(tensor.name); });
  for (const TensorEntry& tensor : tensors) {
    const bool is_embedding = is_embedding_tensor(tensor.name);
    if (is_embedding && has_output) continue;  // a row per token
    add_tensor(tensor, precision, is_embedding || is_output_tensor(tensor.name));
  }
}

void ModelCost::add_tensor(const TensorEntry& tensor, Precision precision, bool is_output) {
  const auto bytes = packed_bytes(tensor);
  const auto arithmetic = static_cast<size_t>(arithmetic_of(tensor.dtype, precision));
  const double operations = 2.0 * static_cast<double>(matrix_elements(tensor));
  if (is_output) {
    dense_bytes_ += bytes;
    logit_[arithmetic] += operations;
  } else if (is_expert_tensor(tensor.name)) {
    const double num_experts = static_cast<double>(info_.moe_layers.size()) * info_.num_experts;
    expert_bytes_ += static_cast<double>(bytes) / num_experts;
    token_[arithmetic] += operations * info_.top_k / info_.num_experts;
  } else {
    dense_bytes_ += bytes;
    token_[arithmetic] += operations;
  }
}

// Of all kv heads of a layer.
double ModelCost::entry_bytes(const KvLayerSpec& layer, KvCodec codec, int32_t key_dim) {
  const KvBlockFormat format{codec, key_dim, layer.value_dim, layer.value_in_key};
  return static_cast<double>(layer.num_kv_heads * format.block_bytes()) / kKvBlockSize;
}

double ModelCost::kv_bytes(int64_t num_entries, const KvDemotion& demotion,
                           std::optional<int64_t> num_demoted_entries) const {
  const int64_t num_older = std::max<int64_t>(0, num_entries - demotion.num_recent) / kKvBlockSize * kKvBlockSize;
  double bytes = 0;
  for (size_t i = 0; i < info_.kv_layers.size(); ++i) {
    const KvLayerSpec& layer = info_.kv_layers[i];
    const int64_t num_demoted = layer.window > 0 ? 0 : num_demoted_entries.value_or(num_older);
    const int32_t key_dim = demotion.key_dims.empty() ? layer.key_dim : demotion.key_dims[i];
    bytes += static_cast<double>(num_demoted) * entry_bytes(layer, demotion.codecs[i], key_dim);
    bytes += static_cast<double>(visible_entries(layer, num_entries) - num_demoted) *
             entry_bytes(layer, kv_codec_, layer.key_dim);
  }
  return bytes;
}

double ModelCost::kv_bytes(int64_t num_entries, const std::optional<KvPageReader>& reader) const {
  double bytes = 0;
  for (int32_t i = 0; i < std::ssize(info_.kv_layers); ++i) {
    const KvLayerSpec& layer = info_.kv_layers[static_cast<size_t>(i)];
    const int64_t num_read = entries_read(info_, i, num_entries, reader);
    bytes += static_cast<double>(num_read) * entry_bytes(layer, kv_codec_, layer.key_dim);
    if (num_read < visible_entries(layer, num_entries)) {
      bytes += static_cast<double>(num_entries) * layer.num_kv_heads *
               PageBounds::bytes_per_entry(layer.key_dim, reader->page_entries);
    }
  }
  return bytes;
}

double ModelCost::prompt_attention_operations(int64_t first, int64_t end) const {
  double operations = 0;
  for (const KvLayerSpec& layer : info_.kv_layers) {
    operations += visible_entries_of_prompt(layer, first, end) * 2.0 * info_.num_heads *
                  (info_.prompt_key_dim + info_.prompt_value_dim);
  }
  return operations;
}

Arithmetic ModelCost::prompt_attention_arithmetic(Isa isa) const {
  const KvLayerSpec& layer = info_.kv_layers.front();
  const KvBlockFormat format{kv_codec_, layer.key_dim, layer.value_dim, layer.value_in_key};
  switch (attention_arithmetic(isa, format, precision_)) {
    case AttentionArithmetic::kBF16:
      return Arithmetic::kBf16;
    case AttentionArithmetic::kInt8:
      return Arithmetic::kInt8;
    case AttentionArithmetic::kF32:
      break;
  }
  return Arithmetic::kF32;
}

double ModelCost::decode_attention_operations(int64_t num_entries, const std::optional<KvPageReader>& reader) const {
  double operations = 0;
  for (int32_t i = 0; i < std::ssize(info_.kv_layers); ++i) {
    const KvLayerSpec& layer = info_.kv_layers[static_cast<size_t>(i)];
    const int64_t num_read = entries_read(info_, i, num_entries, reader);
    operations += static_cast<double>(num_read) * 2.0 * info_.num_heads * (layer.key_dim + layer.value_dim);
    if (num_read < visible_entries(layer, num_entries)) {
      operations +=
          static_cast<double>(num_entries) / reader->page_entries * 2.0 * info_.num_heads * 2.0 * layer.key_dim;
    }
  }
  return operations;
}

}  // namespace witan
