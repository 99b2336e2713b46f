#include "models/fused_experts.h"

#include <cstring>
#include <string>

#include "base/error.h"

namespace witan {
namespace {

// One expert's product from the transposed tensor [num_experts, inputs, outputs], turned to rows in `turned`.
MatrixRows turn_expert(const TensorEntry& tensor, int64_t expert, std::vector<std::byte>& turned) {
  const int64_t cols = tensor.shape[1];
  const int64_t rows = tensor.shape[2];
  const int64_t size = quant_type(tensor.dtype).row_bytes(1);
  const std::byte* base = tensor.data.data() + expert * cols * rows * size;
  turned.resize(static_cast<size_t>(rows * cols * size));
  for (int64_t col = 0; col < cols; ++col) {
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(turned.data() + (row * cols + col) * size, base + (col * rows + row) * size,
                  static_cast<size_t>(size));
    }
  }
  return whole_rows(tensor.dtype, rows, cols, turned.data());
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

// All experts' products from X_blocks and X_scales.
MatrixRows mxfp4_rows(WeightLoader& weights, const std::string& name, int64_t num_experts, int64_t rows, int64_t cols) {
  const int64_t block_size = quant_type(DType::kMXFP4).block_size;
  if (cols % block_size != 0) {
    fail(ErrorCode::kBadFile, "{}: tensor {}_blocks: rows of {} are no whole blocks of {}", weights.path(), name, cols,
         block_size);
  }
  const int64_t blocks = cols / block_size;
  const TensorEntry& codes = weights.part(name + "_blocks", DType::kMXFP4, {num_experts, rows, blocks, block_size / 2});
  const TensorEntry& scales = weights.part(name + "_scales", DType::kMXFP4, {num_experts, rows, blocks});
  MatrixRows all = whole_rows(DType::kMXFP4, num_experts * rows, cols, codes.data.data());
  all.form = RowForm::kMxfp4Parts;
  all.stride_bytes = cols / 2;
  all.scales = scales.data.data();
  all.scales_stride_bytes = blocks;
  return all;
}

// Gate and up alternate.
void split_gate_up(const MatrixRows& both, std::vector<MatrixRows>& gate, std::vector<MatrixRows>& up) {
  gate.push_back(both.every(2));
  up.push_back(both.slice(1, both.num_rows - 1).every(2));
}

// Tells a converter that a tensor [num_experts, 2 * ffn_dim] holds the biases of gate and up, alternating.
void note_alternating(WeightLoader& weights, TensorName name, int32_t layer, int64_t num_experts, int64_t ffn_dim) {
  const TensorEntry& tensor = weights.tensor(name, layer, {num_experts, 2 * ffn_dim});
  const MatrixRows all = whole_rows(tensor.dtype, 2 * num_experts * ffn_dim, 1, tensor.data.data());
  weights.note("blk.{}.ffn_gate_exps.bias", layer, {all.every(2)}, {num_experts, ffn_dim});
  weights.note("blk.{}.ffn_up_exps.bias", layer, {all.slice(1, all.num_rows - 1).every(2)}, {num_experts, ffn_dim});
}

}  // namespace

std::vector<FfnWeights> load_fused_experts(WeightLoader& weights, const FusedExpertNames& names, int32_t layer,
                                           int32_t num_experts, int64_t ffn_dim, int64_t model_dim) {
  std::vector<MatrixRows> gate;
  std::vector<MatrixRows> up;
  std::vector<MatrixRows> down;
  const std::string gate_up_name = weights.full_name({"", names.gate_up}, layer);
  const std::string down_name = weights.full_name({"", names.down}, layer);
  if (weights.has_exactly(gate_up_name + "_blocks")) {
    const MatrixRows gate_ups = mxfp4_rows(weights, gate_up_name, num_experts, 2 * ffn_dim, model_dim);
    const MatrixRows downs = mxfp4_rows(weights, down_name, num_experts, model_dim, ffn_dim);
    for (int64_t e = 0; e < num_experts; ++e) {
      split_gate_up(gate_ups.slice(2 * e * ffn_dim, 2 * ffn_dim), gate, up);
      down.push_back(downs.slice(e * model_dim, model_dim));
    }
    weights.note("blk.{}.ffn_gate_exps.weight", layer, gate, {num_experts, ffn_dim, model_dim});
    weights.note("blk.{}.ffn_up_exps.weight", layer, up, {num_experts, ffn_dim, model_dim});
    weights.note("blk.{}.ffn_down_exps.weight", layer, down, {num_experts, model_dim, ffn_dim});
    return weights.pack_experts(gate, up, down);
  }
  const TensorEntry& gate_ups = transposed(weights, names.gate_up, layer, num_experts, model_dim, 2 * ffn_dim);
  const TensorEntry& downs = transposed(weights, names.down, layer, num_experts, ffn_dim, model_dim);
  std::vector<std::vector<std::byte>> turned(2 * static_cast<size_t>(num_experts));
  for (int64_t e = 0; e < num_experts; ++e) {
    split_gate_up(turn_expert(gate_ups, e, turned[static_cast<size_t>(2 * e)]), gate, up);
    down.push_back(turn_expert(downs, e, turned[static_cast<size_t>(2 * e + 1)]));
  }
  return weights.pack_experts(gate, up, down);
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
  const std::string gate_up_name = std::string(names.gate_up) + "_bias";
  const float* alternating = biases("", gate_up_name, 2 * ffn_dim);
  note_alternating(weights, {"", gate_up_name}, layer, num_experts, ffn_dim);
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
