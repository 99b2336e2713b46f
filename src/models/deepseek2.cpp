// DeepSeek-V2 (arXiv 2405.04434) and V3 (arXiv 2412.19437): multi-head latent attention; the first layers dense, the
// others with routed experts and shared experts that every token uses. V2 routes by softmax, V3 by sigmoid with a bias
// that only chooses; both may limit a token to the best groups of experts.

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"
#include "models/decoder_config.h"
#include "models/feed_forward.h"
#include "models/mla.h"
#include "models/models.h"

namespace witan {
namespace {

constexpr int32_t kMaxDim = 1 << 17;

ModelInfo read_info(const ConfigReader& read) {
  check_activation(read);
  ModelInfo info;
  info.architecture = "deepseek2";
  info.vocab_size = read.vocab_size();
  info.context_length = read.count({"context_length", "max_position_embeddings"});
  info.model_dim = read.count({"embedding_length", "hidden_size"}, std::nullopt, kMaxDim);
  const LayerCounts layers = read_layer_counts(read);
  info.num_layers = layers.used;
  info.num_unused_layers = layers.unused;
  info.num_heads = read.count({"attention.head_count", "num_attention_heads"}, std::nullopt, 4096);
  info.generated_entries_differ = true;
  return info;
}

// YaRN's mscale for all dimensions: how much it scales the scores, apart from cos and sin.
double read_mscale_all_dim(const ConfigReader& read) {
  // GGUF files store a tenth of it.
  constexpr std::string_view kGguf = "rope.scaling.yarn_log_multiplier";
  if (read.is_gguf()) return read.non_negative({kGguf, ""}, 0.0) / 0.1;
  const std::string_view object = read.has({"", "rope_parameters"}) ? "rope_parameters" : "rope_scaling";
  if (!read.has({"", object})) return 0.0;
  const std::string key = std::string(object) + ".mscale_all_dim";
  const double mscale = read.non_negative({"", key}, 0.0);
  read.note_gguf(kGguf, static_cast<float>(0.1 * mscale));
  return mscale;
}

void read_head_dims(const ConfigReader& read, MlaConfig& mla) {
  if (!read.is_gguf()) {
    mla.nope_dim = read.count({"", "qk_nope_head_dim"}, std::nullopt, kMaxDim);
    mla.value_dim = read.count({"attention.value_length", "v_head_dim"}, std::nullopt, kMaxDim);
    // As in files whose kv_b is one matrix: the heads' own lengths.
    read.note_gguf("attention.key_length", static_cast<uint32_t>(mla.nope_dim + mla.rope_dim));
    read.note_gguf("attention.head_count_kv", static_cast<uint32_t>(mla.num_heads));
    return;
  }
  // Newer files state the latent's lengths in key_length and value_length, and the heads' under *_mla.
  const bool split = read.has({"attention.key_length_mla", ""});
  const int32_t key_dim = read.count({split ? "attention.key_length_mla" : "attention.key_length", ""});
  mla.value_dim =
      read.count({split ? "attention.value_length_mla" : "attention.value_length", ""}, std::nullopt, kMaxDim);
  read.expect(key_dim > mla.rope_dim,
              fmt::format("key length {} leaves no room beside the rotary dimension {}", key_dim, mla.rope_dim));
  mla.nope_dim = key_dim - mla.rope_dim;
}

MlaConfig read_mla(const ConfigReader& read, const ModelInfo& info) {
  MlaConfig mla;
  mla.model_dim = info.model_dim;
  mla.num_heads = info.num_heads;
  mla.latent_dim = read.count({"attention.kv_lora_rank", "kv_lora_rank"}, std::nullopt, kMaxDim);
  mla.q_latent_dim = read.count_or_zero({"attention.q_lora_rank", "q_lora_rank"}, 0, kMaxDim);
  mla.rope_dim = read.count({"rope.dimension_count", "qk_rope_head_dim"}, std::nullopt, 4096);
  read_head_dims(read, mla);
  mla.norm_epsilon = static_cast<float>(read.positive({"attention.layer_norm_rms_epsilon", "rms_norm_eps"}));
  return mla;
}

RopeConfig read_rope(const ConfigReader& read, int32_t rope_dim) {
  // Adjacent pairs in both formats; nothing is permuted.
  RopeConfig rope =
      read_rope_config(read, {.gguf_layout = RopeLayout::kPairs, .huggingface_layout = RopeLayout::kPairs}, rope_dim);
  // GGUF files of this architecture mean mscale = mscale_all_dim, so cos and sin stay as they are.
  if (auto* yarn = std::get_if<YarnScaling>(&rope.scaling); yarn != nullptr && read.is_gguf()) {
    yarn->attention_factor = 1.0;
  }
  return rope;
}

// The score of a group, and whether groups count at all, follow from topk_method; GGUF files have the sigmoid instead,
// which came with V3's method.
RouterSpec read_routing(const ConfigReader& read) {
  RouterSpec router = read_router(read, {"expert_count", "n_routed_experts"},
                                  {.scoring = read_scoring(read, RouterScoring::kSoftmax),
                                   .normalize = read.flag({"expert_weights_norm", "norm_topk_prob"}, false)});
  const bool sigmoid = router.scoring == RouterScoring::kSigmoid;
  constexpr ConfigKey kMethod{"", "topk_method"};
  const std::string method = read.text(kMethod, sigmoid ? "noaux_tc" : "group_limited_greedy");
  read.require(method == "greedy" || method == "group_limited_greedy" || method == "noaux_tc", kMethod,
               fmt::format("\"{}\"; expected greedy, group_limited_greedy or noaux_tc", method));
  read.require(sigmoid == (method == "noaux_tc"), kMethod,
               fmt::format("\"{}\" with {} scores", method, sigmoid ? "sigmoid" : "softmax"));
  if (method != "greedy") read_expert_groups(read, router);
  if (sigmoid) router.group_score = GroupScore::kTopTwoSum;
  // As in the original code: V2's factor applies to weights that are not renormalised, V3's to all.
  const double scale = read.positive({"expert_weights_scale", "routed_scaling_factor"}, 1.0);
  router.scale = router.normalize && !sigmoid ? 1.0f : static_cast<float>(scale);
  return router;
}

FfnConfig read_ffn(const ConfigReader& read, int32_t num_layers) {
  constexpr ConfigKey kFrequency{"", "moe_layer_freq"};
  read.require(read.count(kFrequency, 1) == 1, kFrequency, "dense layers between MoE layers are not supported");
  const int32_t num_dense = read.count_or_zero({"leading_dense_block_count", "first_k_dense_replace"}, 0, num_layers);
  const int32_t expert_dim = read.count({"expert_feed_forward_length", "moe_intermediate_size"}, std::nullopt, 1 << 20);
  const RouterSpec router = read_routing(read);
  const int32_t num_shared = read.count_or_zero({"expert_shared_count", "n_shared_experts"}, 0, kMaxExperts);
  read.expect(int64_t{num_shared} * expert_dim <= 1 << 24,
              fmt::format("{} shared experts of width {} are too many", num_shared, expert_dim));
  return {.dense_dim = num_dense > 0 ? read.count({"feed_forward_length", "intermediate_size"}) : 0,
          .moe_layers = layers_from(num_dense, num_layers),
          .expert_dim = expert_dim,
          .router = router,
          .selection_bias = router.scoring == RouterScoring::kSigmoid,
          .shared_dim = num_shared * expert_dim};
}

class DeepSeek2 final : public Model {
 public:
  explicit DeepSeek2(const ConfigReader& read)
      : info_(read_info(read)),
        mla_(read_mla(read, info_)),
        rope_(read_rope(read, mla_.rope_dim)),
        ffn_(read_ffn(read, info_.num_layers)) {
    const RopeConfig rope = read_rope(read, mla_.rope_dim);
    const auto* yarn = std::get_if<YarnScaling>(&rope.scaling);
    const double mscale = yarn == nullptr ? 1.0 : yarn_mscale(yarn->factor, read_mscale_all_dim(read));
    mla_.scale = static_cast<float>(mscale * mscale / std::sqrt(static_cast<double>(mla_.key_dim())));
    describe_attention();
    ffn_.describe(info_);
  }

  const ModelInfo& info() const override { return info_; }

  void load(WeightLoader& weights) override {
    frame_ = load_frame(weights, info_, mla_.norm_epsilon);
    for (int32_t layer = 0; layer < info_.num_layers; ++layer) {
      attention_.push_back(load_mla(weights, mla_, layer));
      ffn_.load_layer(weights, layer, info_.model_dim);
    }
  }

  void forward(ForwardContext& ctx, const ForwardBatch& batch, float* logits) const override {
    ComputeContext& compute = ctx.compute;
    const ScratchScope scope(compute.scratch);
    const RopeAngles angles = rope_angles(compute, rope_, batch);
    const auto attention = [&](int32_t layer, const float* x, float* out) {
      mla_attention(ctx, batch, layer, mla_, attention_[static_cast<size_t>(layer)], angles, x, out);
    };
    const auto ffn = [&](int32_t layer, const float* x, float* out) {
      ffn_.forward(ctx, layer, x, batch.num_tokens(), out);
    };
    pre_norm_decoder(ctx, frame_, batch, attention, ffn, logits);
  }

  std::optional<KeyRope> key_rope() const override { return shiftable(rope_, static_cast<int32_t>(mla_.latent_dim)); }

  void learn_value_norms(ComputeContext& ctx, const KvCache& kv, SequenceId sequence,
                         ValueNorms& norms) const override {
    for (int32_t layer = 0; layer < info_.num_layers; ++layer) {
      learn_mla_value_norms(ctx, kv, sequence, layer, mla_, attention_[static_cast<size_t>(layer)], norms);
    }
  }

 private:
  void describe_attention() {
    const int64_t heads = mla_.num_heads;
    const auto float_bytes = static_cast<int64_t>(sizeof(float));
    info_.derived_weight_bytes = info_.num_layers * heads * mla_.nope_dim * mla_.latent_dim * float_bytes;
    // Residual stream and projections; queries, also absorbed; attention out, also latent; split states of each thread.
    info_.activation_bytes_per_token = (int64_t{6} * mla_.model_dim + int64_t{2} * mla_.q_latent_dim +
                                        heads * (2 * mla_.key_dim() + 3 * mla_.entry_dim() + 4 * mla_.value_dim)) *
                                       float_bytes;
    info_.thread_bytes_per_token = mla_thread_bytes_per_row(mla_);
    info_.activation_bytes_per_entry = 3 * mla_.entry_dim() * float_bytes;  // latents as read and as stored
    info_.prompt_key_dim = static_cast<int32_t>(mla_.key_dim());
    info_.prompt_value_dim = mla_.value_dim;
    info_.kv_layers.assign(static_cast<size_t>(info_.num_layers), {.num_kv_heads = 1,
                                                                   .key_dim = static_cast<int32_t>(mla_.entry_dim()),
                                                                   .value_dim = mla_.latent_dim,
                                                                   .value_in_key = true});
  }

  ModelInfo info_;
  MlaConfig mla_;
  RopeTable rope_;
  FeedForward ffn_;

  DecoderFrame frame_;
  std::vector<MlaWeights> attention_;  // [num_layers]
};

}  // namespace

std::unique_ptr<Model> make_deepseek2(const Checkpoint& checkpoint) {
  return std::make_unique<DeepSeek2>(ConfigReader(checkpoint));
}

}  // namespace witan
