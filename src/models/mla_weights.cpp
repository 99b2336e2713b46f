#include "models/mla.h"

namespace witan {
namespace {

// The transposed matrix: in the same type for plain floats. Blocks of quantised ones do not transpose; those become
// float32 with the same values, or bf16 where activations are rounded anyway.
PackedMatrix pack_transposed(WeightLoader& weights, const MatrixRows& from) {
  const QuantType& source = quant_type(from.type);
  const QuantType& target = source.block_size == 1
                                ? source
                                : quant_type(weights.precision() == Precision::kExact ? DType::kF32 : DType::kBF16);
  std::vector<float> values(static_cast<size_t>(from.num_rows * from.cols));
  std::vector<std::byte> buffer(static_cast<size_t>(from.row_bytes()));
  for (int64_t row = 0; row < from.num_rows; ++row) {
    source.decode(from.row(row, buffer.data()), values.data() + row * from.cols, from.cols);
  }
  const int64_t row_bytes = target.row_bytes(from.num_rows);
  std::vector<float> column(static_cast<size_t>(from.num_rows));
  std::vector<std::byte> transposed(static_cast<size_t>(row_bytes * from.cols));
  for (int64_t col = 0; col < from.cols; ++col) {
    for (int64_t row = 0; row < from.num_rows; ++row) column[row] = values[row * from.cols + col];
    target.encode(column.data(), transposed.data() + col * row_bytes, from.num_rows);
  }
  return weights.pack(whole_rows(target.dtype, from.cols, from.num_rows, transposed.data()), weights.weights_arena());
}

// GGUF files made since the absorbed form exists store Wk_h^T and Wv_h apart.
void load_split_heads(WeightLoader& weights, const MlaConfig& config, int32_t layer, MlaWeights& mla) {
  const int64_t heads = config.num_heads;
  const TensorEntry& k =
      weights.tensor({"blk.{}.attn_k_b.weight", ""}, layer, {heads, config.latent_dim, config.nope_dim});
  const TensorEntry& v =
      weights.tensor({"blk.{}.attn_v_b.weight", ""}, layer, {heads, config.value_dim, config.latent_dim});
  const MatrixRows k_rows = whole_rows(k.dtype, heads * config.latent_dim, config.nope_dim, k.data.data());
  const MatrixRows v_rows = whole_rows(v.dtype, heads * config.value_dim, config.latent_dim, v.data.data());
  for (int64_t head = 0; head < heads; ++head) {
    const MatrixRows k_head = k_rows.slice(head * config.latent_dim, config.latent_dim);
    mla.k_absorb.push_back(weights.pack(k_head, weights.weights_arena()));
    mla.k_expand.push_back(pack_transposed(weights, k_head));
    mla.v.push_back(weights.pack(v_rows.slice(head * config.value_dim, config.value_dim), weights.weights_arena()));
  }
  weights.ignore(weights.full_name({"blk.{}.attn_kv_b.weight", ""}, layer));  // some files have both layouts
}

// Hugging Face and older GGUF files: one matrix whose rows are, head by head, Wk_h and then Wv_h.
void load_joined_heads(WeightLoader& weights, const MlaConfig& config, int32_t layer, MlaWeights& mla) {
  const int64_t head_rows = int64_t{config.nope_dim} + config.value_dim;
  const MatrixRows kv = weights.rows({"blk.{}.attn_kv_b.weight", "model.layers.{}.self_attn.kv_b_proj.weight"}, layer,
                                     config.num_heads * head_rows, config.latent_dim);
  for (int64_t head = 0; head < config.num_heads; ++head) {
    const MatrixRows k_head = kv.slice(head * head_rows, config.nope_dim);
    mla.k_expand.push_back(weights.pack(k_head, weights.weights_arena()));
    mla.k_absorb.push_back(pack_transposed(weights, k_head));
    mla.v.push_back(
        weights.pack(kv.slice(head * head_rows + config.nope_dim, config.value_dim), weights.weights_arena()));
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
