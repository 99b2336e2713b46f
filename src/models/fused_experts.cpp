#include "models/fused_experts.h"

#include <cstring>
#include <string>

#include "base/error.h"

namespace witan {
namespace {

// Rows first, first + step, ... of one expert's product, from the transposed tensor.
struct ColumnRows {
  const TensorEntry& tensor;  // [num_experts, inputs, outputs]
  int64_t expert;
  int64_t first;
  int64_t step;
};

PackedMatrix pack_columns(WeightLoader& weights, const ColumnRows& from, int64_t rows) {
  const QuantType& type = quant_type(from.tensor.dtype);
  const int64_t cols = from.tensor.shape[1];
  const int64_t outputs = from.tensor.shape[2];
  const int64_t size = type.row_bytes(1);
  const std::byte* base = from.tensor.data.data() + from.expert * cols * outputs * size;
  std::vector<std::byte> turned(static_cast<size_t>(rows * cols * size));
  for (int64_t col = 0; col < cols; ++col) {
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(turned.data() + (row * cols + col) * size,
                  base + (col * outputs + from.first + row * from.step) * size, static_cast<size_t>(size));
    }
  }
  return weights.pack(
      from.tensor.dtype, rows, cols, [&](int64_t row) { return turned.data() + row * cols * size; },
      weights.experts_arena());
}

const TensorEntry& transposed(WeightLoader& weights, std::string_view name, int32_t layer, int64_t num_experts,
                              int64_t inputs, int64_t outputs) {
  const TensorEntry& tensor = weights.tensor({name, name}, layer, {num_experts, inputs, outputs});
  if (quant_type(tensor.dtype).block_size != 1) {
    fail(ErrorCode::kUnsupported, "{}: tensor {} is {}, expected floats: it is stored transposed", tensor.file,
         tensor.name, quant_type(tensor.dtype).name);
  }
  return tensor;
}

}  // namespace

std::vector<FfnWeights> load_fused_experts(WeightLoader& weights, const FusedExpertNames& names, int32_t layer,
                                           int32_t num_experts, int64_t ffn_dim, int64_t model_dim) {
  const TensorEntry& gate_up = transposed(weights, names.gate_up, layer, num_experts, model_dim, 2 * ffn_dim);
  const TensorEntry& down = transposed(weights, names.down, layer, num_experts, ffn_dim, model_dim);
  std::vector<FfnWeights> experts(static_cast<size_t>(num_experts));
  for (int64_t e = 0; e < num_experts; ++e) {
    FfnWeights& expert = experts[static_cast<size_t>(e)];
    expert.gate = pack_columns(weights, {.tensor = gate_up, .expert = e, .first = 0, .step = 2}, ffn_dim);
    expert.up = pack_columns(weights, {.tensor = gate_up, .expert = e, .first = 1, .step = 2}, ffn_dim);
    expert.down = pack_columns(weights, {.tensor = down, .expert = e, .first = 0, .step = 1}, model_dim);
  }
  return experts;
}

void load_expert_biases(WeightLoader& weights, const FusedExpertNames& names, int32_t layer, int64_t ffn_dim,
                        int64_t model_dim, std::vector<FfnWeights>& experts) {
  const auto num_experts = std::ssize(experts);
  const auto biases = [&](std::string_view gguf, const std::string& huggingface, int64_t n) {
    return weights.matrix_of_floats({gguf, huggingface}, layer, num_experts, n);
  };
  const std::string down_name = std::string(names.down) + "_bias";
  const float* down = biases("blk.{}.ffn_down_exps.bias", down_name, model_dim);
  for (int64_t e = 0; e < num_experts; ++e) experts[static_cast<size_t>(e)].down_bias = down + e * model_dim;
  if (weights.is_gguf()) {
    const float* gate = biases("blk.{}.ffn_gate_exps.bias", "", ffn_dim);
    const float* up = biases("blk.{}.ffn_up_exps.bias", "", ffn_dim);
    for (int64_t e = 0; e < num_experts; ++e) {
      experts[static_cast<size_t>(e)].gate_bias = gate + e * ffn_dim;
      experts[static_cast<size_t>(e)].up_bias = up + e * ffn_dim;
    }
    return;
  }
  const float* alternating = biases("", std::string(names.gate_up) + "_bias", 2 * ffn_dim);
  const auto bytes = static_cast<size_t>(2 * num_experts * ffn_dim) * sizeof(float);
  auto* apart = reinterpret_cast<float*>(weights.weights_arena().allocate(bytes));
  for (int64_t e = 0; e < num_experts; ++e) {
    float* gate = apart + 2 * e * ffn_dim;
    float* up = gate + ffn_dim;
    for (int64_t i = 0; i < ffn_dim; ++i) {
      gate[i] = alternating[2 * (e * ffn_dim + i)];
      up[i] = alternating[2 * (e * ffn_dim + i) + 1];
    }
    experts[static_cast<size_t>(e)].gate_bias = gate;
    experts[static_cast<size_t>(e)].up_bias = up;
  }
}

}  // namespace witan
