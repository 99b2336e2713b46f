#include <algorithm>
#include <cstring>

#include "models/mla.h"

namespace witan {
namespace {

// Rows [first, first + rows) of a row-major matrix of the file.
struct RowBlock {
  DType type;
  int64_t rows;
  int64_t cols;
  const std::byte* data;

  int64_t row_bytes() const { return quant_type(type).row_bytes(cols); }
};

PackedMatrix pack_rows(WeightLoader& weights, const RowBlock& block) {
  const int64_t row_bytes = block.row_bytes();
  return weights.pack(
      block.type, block.rows, block.cols, [&](int64_t row) { return block.data + row * row_bytes; },
      weights.weights_arena());
}

// The transposed matrix with the same values: in the same type for plain floats, as float32 for quantised ones, whose
// blocks do not transpose.
PackedMatrix pack_transposed(WeightLoader& weights, const RowBlock& block) {
  const QuantType& source = quant_type(block.type);
  const QuantType& target = source.block_size == 1 ? source : quant_type(DType::kF32);
  std::vector<float> values(static_cast<size_t>(block.rows * block.cols));
  for (int64_t row = 0; row < block.rows; ++row) {
    source.decode(block.data + row * block.row_bytes(), values.data() + row * block.cols, block.cols);
  }
  const int64_t row_bytes = target.row_bytes(block.rows);
  std::vector<float> column(static_cast<size_t>(block.rows));
  std::vector<std::byte> transposed(static_cast<size_t>(row_bytes * block.cols));
  for (int64_t col = 0; col < block.cols; ++col) {
    for (int64_t row = 0; row < block.rows; ++row) column[row] = values[row * block.cols + col];
    target.encode(column.data(), transposed.data() + col * row_bytes, block.rows);
  }
  return weights.pack(
      target.dtype, block.cols, block.rows, [&](int64_t row) { return transposed.data() + row * row_bytes; },
      weights.weights_arena());
}

// GGUF files made since the absorbed form exists store Wk_h^T and Wv_h apart.
void load_split_heads(WeightLoader& weights, const MlaConfig& config, int32_t layer, MlaWeights& mla) {
  const TensorEntry& k =
      weights.tensor({"blk.{}.attn_k_b.weight", ""}, layer, {config.num_heads, config.latent_dim, config.nope_dim});
  const TensorEntry& v =
      weights.tensor({"blk.{}.attn_v_b.weight", ""}, layer, {config.num_heads, config.value_dim, config.latent_dim});
  for (int64_t head = 0; head < config.num_heads; ++head) {
    RowBlock k_head{.type = k.dtype, .rows = config.latent_dim, .cols = config.nope_dim, .data = nullptr};
    k_head.data = k.data.data() + head * k_head.rows * k_head.row_bytes();
    mla.k_absorb.push_back(pack_rows(weights, k_head));
    mla.k_expand.push_back(pack_transposed(weights, k_head));
    RowBlock v_head{.type = v.dtype, .rows = config.value_dim, .cols = config.latent_dim, .data = nullptr};
    v_head.data = v.data.data() + head * v_head.rows * v_head.row_bytes();
    mla.v.push_back(pack_rows(weights, v_head));
  }
}

// Hugging Face and older GGUF files: one matrix whose rows are, head by head, Wk_h and then Wv_h.
void load_joined_heads(WeightLoader& weights, const MlaConfig& config, int32_t layer, MlaWeights& mla) {
  const int64_t head_rows = int64_t{config.nope_dim} + config.value_dim;
  const TensorEntry& kv = weights.tensor({"blk.{}.attn_kv_b.weight", "model.layers.{}.self_attn.kv_b_proj.weight"},
                                         layer, {config.num_heads * head_rows, config.latent_dim});
  for (int64_t head = 0; head < config.num_heads; ++head) {
    RowBlock k_head{.type = kv.dtype, .rows = config.nope_dim, .cols = config.latent_dim, .data = nullptr};
    k_head.data = kv.data.data() + head * head_rows * k_head.row_bytes();
    mla.k_expand.push_back(pack_rows(weights, k_head));
    mla.k_absorb.push_back(pack_transposed(weights, k_head));
    const RowBlock v_head{.type = kv.dtype,
                          .rows = config.value_dim,
                          .cols = config.latent_dim,
                          .data = k_head.data + k_head.rows * k_head.row_bytes()};
    mla.v.push_back(pack_rows(weights, v_head));
  }
}

}  // namespace

MlaWeights load_mla(WeightLoader& weights, const MlaConfig& config, int32_t layer) {
  MlaWeights mla;
  const int64_t q_rows = config.num_heads * config.key_dim();
  if (config.q_latent_dim > 0) {
    mla.q_a = weights.matrix({"blk.{}.attn_q_a.weight", "model.layers.{}.self_attn.q_a_proj.weight"}, layer,
                             config.q_latent_dim, config.model_dim);
    mla.q_a_norm = weights.vector({"blk.{}.attn_q_a_norm.weight", "model.layers.{}.self_attn.q_a_layernorm.weight"},
                                  layer, config.q_latent_dim);
    mla.q = weights.matrix({"blk.{}.attn_q_b.weight", "model.layers.{}.self_attn.q_b_proj.weight"}, layer, q_rows,
                           config.q_latent_dim);
  } else {
    mla.q = weights.matrix({"blk.{}.attn_q.weight", "model.layers.{}.self_attn.q_proj.weight"}, layer, q_rows,
                           config.model_dim);
  }
  mla.kv_a = weights.matrix({"blk.{}.attn_kv_a_mqa.weight", "model.layers.{}.self_attn.kv_a_proj_with_mqa.weight"},
                            layer, config.entry_dim(), config.model_dim);
  mla.kv_a_norm = weights.vector({"blk.{}.attn_kv_a_norm.weight", "model.layers.{}.self_attn.kv_a_layernorm.weight"},
                                 layer, config.latent_dim);
  if (weights.is_gguf() && weights.has({"blk.{}.attn_k_b.weight", ""}, layer)) {
    load_split_heads(weights, config, layer, mla);
  } else {
    load_joined_heads(weights, config, layer, mla);
  }
  mla.o = weights.matrix({"blk.{}.attn_output.weight", "model.layers.{}.self_attn.o_proj.weight"}, layer,
                         config.model_dim, int64_t{config.num_heads} * config.value_dim);
  return mla;
}

}  // namespace witan
