// Switch Transformer (arXiv 2101.03961): T5, an encoder and a decoder, in which every n-th feed-forward network is
// replaced by experts, of which a token uses the one that its router likes best, weighed by its probability. An expert
// of the encoder takes only so many tokens of an input; the others pass it by.

#include <fmt/format.h>

#include <cmath>

#include "models/config_reader.h"
#include "models/decoder.h"
#include "models/models.h"
#include "models/t5_attention.h"
#include "moe/moe_ffn.h"
#include "nn/rows.h"

namespace witan {
namespace {

constexpr int32_t kMaxDim = 1 << 17;

// One of the two stacks, as config.json states it. Names of tensors begin with `prefix`.
struct StackConfig {
  std::string_view name;  // "encoder"
  int32_t num_layers = 0;
  int32_t sparse_step = 0;  // layers i with i % sparse_step == 1 % sparse_step have experts; 0: none

  bool is_sparse(int32_t layer) const { return sparse_step > 0 && layer % sparse_step == 1 % sparse_step; }
};

struct FfnLayer {
  const float* norm = nullptr;
  FfnWeights dense;  // of layers without experts
  MoeWeights moe;    // of layers with; no experts: a dense one
};

struct Layer {
  const float* self_norm = nullptr;
  T5AttentionWeights self;
  const float* cross_norm = nullptr;  // of the decoder
  T5AttentionWeights cross;
  FfnLayer ffn;
};

struct Stack {
  std::vector<Layer> layers;
  const float* bias_table = nullptr;  // [num_buckets, num_heads], in the first layer's tensors
  const float* final_norm = nullptr;
};

class Switch final : public Model {
 public:
  explicit Switch(const ConfigReader& read) {
    read_config(read);
    describe();
  }

  const ModelInfo& info() const override { return info_; }
  void load(WeightLoader& weights) override;
  void forward(ForwardContext& ctx, const ForwardBatch& batch, float* logits) const override;

 private:
  void read_config(const ConfigReader& read);
  StackConfig read_stack(const ConfigReader& read, std::string_view name, std::string_view num_layers_key,
                         std::string_view num_sparse_key) const;
  void describe();
  Stack load_stack(WeightLoader& weights, const StackConfig& config, bool is_decoder);
  T5AttentionWeights load_attention(WeightLoader& weights, const std::string& prefix) const;
  FfnLayer load_ffn(WeightLoader& weights, const std::string& prefix, bool sparse);

  void encode(ForwardContext& ctx, const EncoderInput& input) const;
  // x += ffn(norm(x))
  void add_ffn(ForwardContext& ctx, const FfnLayer& layer, int64_t num_tokens, const ExpertCapacity& capacity,
               float* normed, float* delta, float* x) const;

  T5AttentionConfig attention_;
  int32_t ffn_dim_ = 0;
  int32_t expert_capacity_ = 0;  // tokens; 0: no limit
  bool tied_ = false;
  float norm_epsilon_ = 0.0f;
  RouterSpec router_;
  StackConfig encoder_config_;
  StackConfig decoder_config_;
  ModelInfo info_;

  EmbeddingTable embedding_;
  PackedMatrix output_;  // [vocab_size, model_dim]
  Stack encoder_;
  Stack decoder_;
  int32_t num_moe_loaded_ = 0;
};

StackConfig Switch::read_stack(const ConfigReader& read, std::string_view name, std::string_view num_layers_key,
                               std::string_view num_sparse_key) const {
  StackConfig stack{.name = name, .num_layers = read.count({"", num_layers_key}, std::nullopt, 4096)};
  const int32_t num_sparse = read.count_or_zero({"", num_sparse_key}, 0, stack.num_layers);
  stack.sparse_step = num_sparse == 0 ? 0 : stack.num_layers / num_sparse;
  return stack;
}

void Switch::read_config(const ConfigReader& read) {
  attention_ = {.num_heads = read.count({"", "num_heads"}, std::nullopt, 4096),
                .head_dim = read.count({"", "d_kv"}, std::nullopt, 4096),
                .model_dim = read.count({"", "d_model"}, std::nullopt, kMaxDim),
                .num_buckets = read.count({"", "relative_attention_num_buckets"}, 32, 4096),
                .max_distance = read.count({"", "relative_attention_max_distance"}, 128)};
  read.expect(attention_.num_buckets % 4 == 0 && attention_.max_distance > attention_.num_buckets / 2,
              fmt::format("{} relative attention buckets for distances up to {}", attention_.num_buckets,
                          attention_.max_distance));
  ffn_dim_ = read.count({"", "d_ff"}, std::nullopt, 1 << 20);
  encoder_config_ = read_stack(read, "encoder", "num_layers", "num_sparse_encoder_layers");
  decoder_config_ = read_stack(read, "decoder", "num_decoder_layers", "num_sparse_decoder_layers");
  router_ = {.num_experts = read.count({"", "num_experts"}, std::nullopt, kMaxExperts), .top_k = 1};
  expert_capacity_ = read.count_or_zero({"", "expert_capacity"}, 0);
  tied_ = read.flag({"", "tie_word_embeddings"}, true);
  norm_epsilon_ = static_cast<float>(read.positive({"", "layer_norm_epsilon"}, 1e-6));
  constexpr ConfigKey kActivation{"", "dense_act_fn"};
  read.require(read.text(kActivation, "relu") == "relu", kActivation, "expected relu");
  constexpr ConfigKey kGated{"", "is_gated_act"};
  read.require(!read.flag(kGated, false), kGated, "gated feed-forward networks are not supported");
  constexpr ConfigKey kRouterBias{"", "router_bias"};
  read.require(!read.flag(kRouterBias, false), kRouterBias, "routers with a bias are not supported");
  info_.vocab_size = read.vocab_size();
  info_.context_length = read.count({"", "n_positions"}, 512);
  info_.decoder_start_token =
      read.count_or_zero({"", "decoder_start_token_id"}, read.count_or_zero({"", "pad_token_id"}, 0));
  read.expect(info_.decoder_start_token < info_.vocab_size,
              fmt::format("decoder_start_token_id {} of {} tokens", info_.decoder_start_token, info_.vocab_size));
}

void Switch::describe() {
  const auto float_bytes = static_cast<int64_t>(sizeof(float));
  info_.architecture = "switch";
  info_.model_dim = attention_.model_dim;
  info_.num_heads = attention_.num_heads;
  info_.prompt_key_dim = attention_.head_dim;
  info_.prompt_value_dim = attention_.head_dim;
  info_.num_layers = encoder_config_.num_layers + decoder_config_.num_layers;
  info_.has_encoder = true;
  const KvLayerSpec layer{
      .num_kv_heads = attention_.num_heads, .key_dim = attention_.head_dim, .value_dim = attention_.head_dim};
  info_.kv_layers.assign(static_cast<size_t>(decoder_config_.num_layers), layer);
  info_.input_layers = info_.kv_layers;
  for (int32_t i = 0; i < encoder_config_.num_layers; ++i) {
    if (encoder_config_.is_sparse(i)) info_.moe_layers.push_back(i);
  }
  for (int32_t i = 0; i < decoder_config_.num_layers; ++i) {
    if (decoder_config_.is_sparse(i)) info_.moe_layers.push_back(encoder_config_.num_layers + i);
  }
  info_.num_experts = info_.moe_layers.empty() ? 0 : router_.num_experts;
  info_.top_k = info_.moe_layers.empty() ? 0 : router_.top_k;
  // The tied output is a packed copy of the embedding.
  info_.derived_weight_bytes = tied_ ? int64_t{info_.vocab_size} * info_.model_dim * float_bytes : 0;
  const int64_t inner = int64_t{attention_.num_heads} * attention_.head_dim;
  const int64_t floats = int64_t{8} * info_.model_dim + 8 * inner + int64_t{4} * ffn_dim_ + 2 * router_.num_experts;
  info_.activation_bytes_per_token = floats * float_bytes;
  // An input is encoded as a whole; and the biases of every distance.
  info_.activation_bytes_per_entry = (floats + int64_t{4} * attention_.num_heads) * float_bytes;
}

T5AttentionWeights Switch::load_attention(WeightLoader& weights, const std::string& prefix) const {
  const int64_t inner = int64_t{attention_.num_heads} * attention_.head_dim;
  const int64_t dim = attention_.model_dim;
  const auto matrix = [&](const char* name, int64_t rows, int64_t cols) {
    const std::string full = prefix + name + ".weight";
    return weights.matrix({"", full}, 0, rows, cols);
  };
  return {.q = matrix("q", inner, dim),
          .k = matrix("k", inner, dim),
          .v = matrix("v", inner, dim),
          .o = matrix("o", dim, inner)};
}

FfnLayer Switch::load_ffn(WeightLoader& weights, const std::string& prefix, bool sparse) {
  FfnLayer layer;
  const std::string norm = prefix + "layer_norm.weight";
  layer.norm = weights.vector({"", norm}, 0, attention_.model_dim);
  if (!sparse) {
    const std::string wi = prefix + "mlp.wi.weight";
    const std::string wo = prefix + "mlp.wo.weight";
    layer.dense.up = weights.matrix({"", wi}, 0, ffn_dim_, attention_.model_dim);
    layer.dense.down = weights.matrix({"", wo}, 0, attention_.model_dim, ffn_dim_);
    layer.dense.activation = FfnActivation::kRelu;
    return layer;
  }
  const std::string router = prefix + "mlp.router.classifier.weight";
  // The layer's number is in the prefix: what is left for the loader is an expert's.
  const std::string wi = prefix + "mlp.experts.expert_{1}.wi.weight";
  const std::string wo = prefix + "mlp.experts.expert_{1}.wo.weight";
  layer.moe.moe_layer = num_moe_loaded_++;
  layer.moe.spec = router_;
  layer.moe.router = weights.matrix({"", router}, 0, router_.num_experts, attention_.model_dim);
  layer.moe.experts = weights.experts({.gate = {}, .up = {"", "", wi}, .down = {"", "", wo}}, 0, router_.num_experts,
                                      ffn_dim_, attention_.model_dim);
  for (FfnWeights& expert : layer.moe.experts) expert.activation = FfnActivation::kRelu;
  return layer;
}

Stack Switch::load_stack(WeightLoader& weights, const StackConfig& config, bool is_decoder) {
  Stack stack;
  const std::string name(config.name);
  const std::string table = name + ".block.0.layer.0.SelfAttention.relative_attention_bias.weight";
  stack.bias_table = weights.matrix_of_floats({"", table}, 0, attention_.num_buckets, attention_.num_heads);
  for (int32_t i = 0; i < config.num_layers; ++i) {
    const std::string block = fmt::format("{}.block.{}.layer.", name, i);
    Layer layer;
    const std::string self_norm = block + "0.layer_norm.weight";
    layer.self_norm = weights.vector({"", self_norm}, 0, attention_.model_dim);
    layer.self = load_attention(weights, block + "0.SelfAttention.");
    if (is_decoder) {
      const std::string cross_norm = block + "1.layer_norm.weight";
      layer.cross_norm = weights.vector({"", cross_norm}, 0, attention_.model_dim);
      layer.cross = load_attention(weights, block + "1.EncDecAttention.");
    }
    layer.ffn = load_ffn(weights, block + (is_decoder ? "2." : "1."), config.is_sparse(i));
    stack.layers.push_back(std::move(layer));
  }
  const std::string final_norm = name + ".final_layer_norm.weight";
  stack.final_norm = weights.vector({"", final_norm}, 0, attention_.model_dim);
  return stack;
}

void Switch::load(WeightLoader& weights) {
  constexpr TensorName kEmbedding{"", "shared.weight"};
  embedding_ = weights.embedding(kEmbedding, info_.vocab_size, info_.model_dim);
  output_ = weights.matrix(tied_ ? kEmbedding : TensorName{"", "lm_head.weight"}, 0, info_.vocab_size, info_.model_dim);
  for (const char* copy : {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}) weights.ignore(copy);
  if (tied_) weights.ignore("lm_head.weight");
  encoder_ = load_stack(weights, encoder_config_, false);
  decoder_ = load_stack(weights, decoder_config_, true);
  if (!tied_) return;
  // Tied embeddings are scaled: by the last norm's weights, which are right before them.
  const auto dim = static_cast<size_t>(info_.model_dim);
  auto* scaled = reinterpret_cast<float*>(weights.weights_arena().allocate(dim * sizeof(float)));
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (size_t i = 0; i < dim; ++i) scaled[i] = decoder_.final_norm[i] * scale;
  decoder_.final_norm = scaled;
}

void Switch::add_ffn(ForwardContext& ctx, const FfnLayer& layer, int64_t num_tokens, const ExpertCapacity& capacity,
                     float* normed, float* delta, float* x) const {
  rms_norm_rows(ctx.compute, x, layer.norm, norm_epsilon_, num_tokens, info_.model_dim, normed);
  if (layer.moe.experts.empty()) {
    dense_ffn(ctx.compute, layer.dense, normed, num_tokens, delta);
  } else {
    moe_ffn(ctx.compute, layer.moe, normed, num_tokens, ctx.telemetry, delta, capacity);
  }
  add_rows(ctx.compute, delta, num_tokens, info_.model_dim, x);
}

void Switch::encode(ForwardContext& ctx, const EncoderInput& input) const {
  ComputeContext& compute = ctx.compute;
  const ScratchScope scope(compute.scratch);
  const auto n = std::ssize(input.tokens);
  const int64_t dim = info_.model_dim;
  auto* x = compute.scratch.allocate<float>(n * dim);
  auto* normed = compute.scratch.allocate<float>(n * dim);
  auto* delta = compute.scratch.allocate<float>(n * dim);
  embed_tokens(compute, embedding_, input.tokens, x);
  const T5Biases biases(compute, attention_, T5Direction::kBoth, encoder_.bias_table, static_cast<int32_t>(n));
  const ExpertCapacity::Range whole{.begin = 0, .end = n};
  const ExpertCapacity capacity = expert_capacity_ == 0
                                      ? ExpertCapacity{}
                                      : ExpertCapacity{.ranges = {&whole, 1}, .tokens_per_expert = expert_capacity_};
  for (const Layer& layer : encoder_.layers) {
    rms_norm_rows(compute, x, layer.self_norm, norm_epsilon_, n, dim, normed);
    t5_encoder_attention(compute, attention_, layer.self, biases, normed, n, delta);
    add_rows(compute, delta, n, dim, x);
    add_ffn(ctx, layer.ffn, n, capacity, normed, delta, x);
  }
  rms_norm_rows(compute, x, encoder_.final_norm, norm_epsilon_, n, dim, normed);
  for (int32_t layer = 0; layer < decoder_config_.num_layers; ++layer) {
    write_t5_input(ctx, input.kv_sequence, layer, attention_, decoder_.layers[static_cast<size_t>(layer)].cross, normed,
                   n);
  }
}

void Switch::forward(ForwardContext& ctx, const ForwardBatch& batch, float* logits) const {
  for (const EncoderInput& input : batch.inputs) encode(ctx, input);
  ComputeContext& compute = ctx.compute;
  const ScratchScope scope(compute.scratch);
  const int64_t n = batch.num_tokens();
  const int64_t dim = info_.model_dim;
  auto* x = compute.scratch.allocate<float>(n * dim);
  auto* normed = compute.scratch.allocate<float>(n * dim);
  auto* delta = compute.scratch.allocate<float>(n * dim);
  embed_tokens(compute, embedding_, batch.tokens, x);
  int32_t length = 0;
  std::vector<ExpertCapacity::Range> ranges;
  for (const SequenceSlice& slice : batch.slices) {
    length = std::max(length, slice.first_token + slice.num_tokens);
    ranges.push_back({.begin = slice.first_row, .end = slice.first_row + slice.num_tokens});
  }
  const T5Biases biases(compute, attention_, T5Direction::kBack, decoder_.bias_table, length);
  const ExpertCapacity capacity = batch.expert_capacity && expert_capacity_ > 0
                                      ? ExpertCapacity{.ranges = ranges, .tokens_per_expert = expert_capacity_}
                                      : ExpertCapacity{};
  for (int32_t i = 0; i < decoder_config_.num_layers; ++i) {
    const Layer& layer = decoder_.layers[static_cast<size_t>(i)];
    rms_norm_rows(compute, x, layer.self_norm, norm_epsilon_, n, dim, normed);
    t5_self_attention(ctx, batch, i, attention_, layer.self, biases, normed, delta);
    add_rows(compute, delta, n, dim, x);
    rms_norm_rows(compute, x, layer.cross_norm, norm_epsilon_, n, dim, normed);
    t5_cross_attention(ctx, batch, i, attention_, layer.cross, normed, delta);
    add_rows(compute, delta, n, dim, x);
    add_ffn(ctx, layer.ffn, n, capacity, normed, delta, x);
  }
  output_logits(compute, {.norm = decoder_.final_norm, .norm_epsilon = norm_epsilon_, .output = output_},
                batch.logit_rows, x, logits);
}

}  // namespace

std::unique_ptr<Model> make_switch(const Checkpoint& checkpoint) {
  return std::make_unique<Switch>(ConfigReader(checkpoint));
}

}  // namespace witan
