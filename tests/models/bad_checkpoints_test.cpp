// Files of each architecture with one thing wrong: one clear error that names the file and what is wrong in it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "memory/memory_pool.h"
#include "models/registry.h"
#include "models/weight_loader.h"
#include "support/changed_checkpoint.h"
#include "support/goldens.h"
#include "support/made_model.h"

namespace witan {
namespace {

using testing::AllOf;
using testing::HasSubstr;

enum class Change { kNumber, kText, kUnset, kRemove, kReshape };

struct BadFile {
  const char* model;  // "arch/preset" of a made GGUF file, or the folder of a golden
  Change change;
  const char* what;  // key or tensor
  double number;
  const char* text;
  const char* message;
};

constexpr auto kNumber = Change::kNumber;
constexpr auto kText = Change::kText;
constexpr auto kUnset = Change::kUnset;
constexpr auto kRemove = Change::kRemove;
constexpr auto kReshape = Change::kReshape;

constexpr BadFile kBadFiles[] = {
    {"qwen2moe/tiny", kUnset, "qwen2moe.expert_count", 0, "", "qwen2moe.expert_count"},
    {"qwen2moe/tiny", kUnset, "qwen2moe.expert_shared_feed_forward_length", 0, "", "expert_shared_feed_forward_length"},
    {"qwen2moe/tiny", kNumber, "qwen2moe.expert_used_count", 9, "", "9 experts per token are more than the 8"},
    {"qwen2moe/tiny", kNumber, "qwen2moe.expert_count", 12, "",
     "blk.0.ffn_gate_inp.weight has shape [8, 256], expected [12, 256]"},
    {"qwen2moe/tiny", kRemove, "blk.1.attn_k.bias", 0, "", "blk.1.attn_k.bias is missing"},
    {"qwen2moe/tiny", kRemove, "blk.0.ffn_gate_inp_shexp.weight", 0, "", "ffn_gate_inp_shexp.weight is missing"},
    {"qwen2moe/tiny", kReshape, "blk.0.ffn_up_shexp.weight", 0, "",
     "ffn_up_shexp.weight has shape [512, 257], expected [512, 256]"},
    {"qwen2moe-mixed/hf", kNumber, "mlp_only_layers", 5, "", "mlp_only_layers names layer 5, expected 0 to 4"},
    {"qwen2moe-mixed/hf", kNumber, "decoder_sparse_step", 0, "", "decoder_sparse_step is 0"},
    {"qwen2moe-mixed/hf", kNumber, "decoder_sparse_step", 6, "", "leave no layer with experts"},
    {"olmoe/tiny", kReshape, "blk.0.attn_q_norm.weight", 0, "", "attn_q_norm.weight has shape [257], expected [256]"},
    {"olmoe/tiny", kNumber, "olmoe.attention.clamp_kqv", -1, "", "clamp_kqv is -1"},
    {"olmoe/tiny", kText, "olmoe.rope.scaling.type", 0, "longrope",
     "olmoe.rope.scaling.type: rotary scaling \"longrope\""},
    {"glm4moe/tiny", kRemove, "blk.1.exp_probs_b.bias", 0, "", "blk.1.exp_probs_b.bias is missing, expected shape [8]"},
    {"glm4moe/tiny", kNumber, "glm4moe.expert_gating_func", 4, "",
     "glm4moe.expert_gating_func: 4; expected 1 (softmax)"},
    {"glm4moe/tiny", kNumber, "glm4moe.rope.dimension_count", 65, "", "rotary dimension 65"},
    {"glm4moe/tiny", kNumber, "glm4moe.nextn_predict_layers", 3, "", "nextn_predict_layers 3 leaves none of 3 layers"},
    {"gpt-oss/tiny", kRemove, "blk.0.attn_sinks.weight", 0, "",
     "blk.0.attn_sinks.weight is missing, expected shape [4]"},
    {"gpt-oss/tiny", kRemove, "blk.2.ffn_up_exps.bias", 0, "",
     "blk.2.ffn_up_exps.bias is missing, expected shape [8, 256]"},
    {"gpt-oss/tiny", kRemove, "blk.0.ffn_gate_inp.bias", 0, "", "blk.0.ffn_gate_inp.bias is missing"},
    {"gpt-oss/tiny", kReshape, "blk.0.ffn_gate_exps.bias", 0, "",
     "ffn_gate_exps.bias has shape [8, 257], expected [8, 256]"},
    {"gpt-oss/tiny", kNumber, "gpt-oss.attention.sliding_window", 0, "", "gpt-oss.attention.sliding_window is 0"},
    {"gpt-oss/tiny", kUnset, "gpt-oss.attention.sliding_window", 0, "", "gpt-oss.attention.sliding_window"},
    {"gpt-oss/tiny", kNumber, "gpt-oss.rope.scaling.factor", -2, "", "gpt-oss.rope.scaling.factor is -2"},
    {"gpt-oss/hf", kText, "layer_types", 0, "sliding_attention", "layer_types has 1 entries, expected 3"},
    {"gpt-oss/hf", kNumber, "sliding_window", 0, "", "sliding_window is 0"},
    {"gpt-oss/hf", kText, "rope_scaling.rope_type", 0, "spiral", "rope_scaling.rope_type: rotary scaling \"spiral\""},
    {"gpt-oss/hf", kNumber, "swiglu_limit", 0, "", "swiglu_limit is 0"},
    {"gpt-oss-mxfp4/hf", kRemove, "model.layers.0.mlp.experts.gate_up_proj_scales", 0, "",
     "gate_up_proj_scales is missing, expected shape [8, 64, 2]"},
    {"gpt-oss-mxfp4/hf", kReshape, "model.layers.1.mlp.experts.down_proj_scales", 0, "",
     "down_proj_scales has shape [8, 64, 2], expected [8, 64, 1]"},
    {"gpt-oss-mxfp4/hf", kRemove, "model.layers.0.mlp.experts.gate_up_proj_bias", 0, "",
     "gate_up_proj_bias is missing"},
    {"gpt-oss-mxfp4/hf", kNumber, "intermediate_size", 40, "",
     "gate_up_proj_blocks has shape [8, 64, 2, 16], expected [8, 80, 2, 16]"},
    {"deepseek2/tiny-v3", kNumber, "deepseek2.expert_group_count", 3, "", "3 expert groups do not divide 8 experts"},
    {"deepseek2/tiny-v3", kNumber, "deepseek2.expert_group_used_count", 5, "", "5 expert groups used, more than the 4"},
    {"deepseek2/tiny-v3", kNumber, "deepseek2.expert_group_count", 8, "",
     "3 experts per token are more than the 2 of 2 groups"},
    {"deepseek2/tiny-v3", kNumber, "deepseek2.expert_group_count", 100, "",
     "expert_group_count is 100, expected 1 to 64"},
    {"deepseek2/tiny-v3", kRemove, "blk.1.exp_probs_b.bias", 0, "", "blk.1.exp_probs_b.bias is missing"},
    {"deepseek2/tiny-v3", kRemove, "blk.0.attn_q_a_norm.weight", 0, "", "blk.0.attn_q_a_norm.weight is missing"},
    {"deepseek2/tiny-v3", kNumber, "deepseek2.attention.q_lora_rank", 128, "",
     "attn_q_a.weight has shape [256, 256], expected [128, 256]"},
    {"deepseek2-v3/hf", kText, "scoring_func", 0, "tanh", "scoring_func: \"tanh\"; expected softmax or sigmoid"},
    {"deepseek2-v3/hf", kText, "topk_method", 0, "best", "topk_method: \"best\"; expected greedy"},
    {"deepseek2-v3/hf", kText, "topk_method", 0, "greedy", "topk_method: \"greedy\" with sigmoid scores"},
    {"deepseek2-v3/hf", kNumber, "n_group", 5, "", "5 expert groups do not divide 16 experts"},
    {"deepseek2-v3-fp8/hf", kRemove, "model.layers.0.self_attn.o_proj.weight_scale_inv", 0, "",
     "o_proj.weight_scale_inv is missing, expected shape [2, 1]"},
    {"deepseek2-v3-fp8/hf", kReshape, "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv", 0, "",
     "up_proj.weight_scale_inv has shape [1, 3], expected [1, 2]"},
    {"switch-capacity/hf", kUnset, "d_kv", 0, "", "d_kv"},
    {"switch-capacity/hf", kNumber, "num_experts", 9, "",
     "router.classifier.weight has shape [8, 64], expected [9, 64]"},
    {"switch-capacity/hf", kNumber, "num_sparse_encoder_layers", 5, "",
     "num_sparse_encoder_layers is 5, expected 1 to 4"},
    {"switch-capacity/hf", kNumber, "relative_attention_num_buckets", 30, "", "30 relative attention buckets"},
    {"switch-capacity/hf", kNumber, "decoder_start_token_id", 320, "", "decoder_start_token_id 320 of 320 tokens"},
    {"switch-capacity/hf", kText, "dense_act_fn", 0, "gelu_new", "dense_act_fn: expected relu"},
    {"switch-capacity/hf", kRemove, "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 0, "",
     "relative_attention_bias.weight is missing, expected shape [32, 4]"},
    {"switch-capacity/hf", kRemove, "encoder.block.1.layer.1.mlp.experts.expert_3.wo.weight", 0, "",
     "expert_3.wo.weight is missing, expected shape [64, 22]"},
    {"switch-capacity/hf", kReshape, "decoder.block.2.layer.1.EncDecAttention.k.weight", 0, "",
     "EncDecAttention.k.weight has shape [64, 65], expected [64, 64]"},
};

std::string path_of(const std::string& model) {
  const size_t slash = model.find('/');
  const std::string preset = model.substr(slash + 1);
  if (preset != "hf") return test::made_model(model.substr(0, slash).c_str(), preset.c_str(), DType::kF32);
  return test::find_golden(model).value_or("");
}

std::string error_of(const Checkpoint& checkpoint) {
  try {
    const std::unique_ptr<Model> model = create_model(checkpoint);
    MemoryPool pool(size_t{256} << 20);
    Arena weights(pool, MemoryTag::kWeights);
    Arena experts(pool, MemoryTag::kExperts);
    ThreadPool threads(1);
    const auto progress = [](int64_t, int64_t) {};
    WeightLoader loader(checkpoint, weights, experts, threads, Precision::kFast, progress);
    model->load(loader);
    loader.check_all_used();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class BadFileTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadFileTest, IsRefusedNamingFileAndFault) {
  const BadFile& bad = GetParam();
  const std::string path = path_of(bad.model);
  if (path.empty()) GTEST_SKIP() << "golden data not present: " << bad.model;
  test::ChangedCheckpoint checkpoint(path);
  switch (bad.change) {
    case Change::kNumber:
      checkpoint.set(bad.what, bad.number);
      break;
    case Change::kText:
      checkpoint.set(bad.what, std::string(bad.text));
      break;
    case Change::kUnset:
      checkpoint.unset(bad.what);
      break;
    case Change::kRemove:
      ASSERT_TRUE(checkpoint.remove(bad.what));
      break;
    case Change::kReshape:
      ASSERT_TRUE(checkpoint.reshape(bad.what));
      break;
  }
  EXPECT_THAT(error_of(checkpoint), AllOf(HasSubstr(path), HasSubstr(bad.message)));
}

INSTANTIATE_TEST_SUITE_P(All, BadFileTest, testing::ValuesIn(kBadFiles));

TEST(UnchangedFilesTest, AreLoaded) {
  for (const char* model : {"qwen2moe/tiny", "olmoe/tiny", "glm4moe/tiny", "gpt-oss/tiny", "deepseek2/tiny-v3",
                            "gpt-oss/hf", "gpt-oss-mxfp4/hf", "deepseek2-v3/hf", "deepseek2-v3-fp8/hf"}) {
    const std::string path = path_of(model);
    if (path.empty()) continue;
    EXPECT_EQ(error_of(test::ChangedCheckpoint(path)), "no error") << model;
  }
}

}  // namespace
}  // namespace witan
