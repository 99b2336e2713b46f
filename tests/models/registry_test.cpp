// What the models make of configurations and tensors that contradict themselves or ask for what Witan lacks.

#include "models/registry.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/memory_pool.h"
#include "models/weight_loader.h"
#include "support/fake_checkpoint.h"

namespace witan {
namespace {

using test::FakeCheckpoint;
using testing::AllOf;
using testing::HasSubstr;

// A Qwen3-MoE GGUF of one layer.
FakeCheckpoint qwen3_moe() {
  FakeCheckpoint checkpoint(CheckpointFormat::kGguf, "qwen3moe");
  for (const auto& [key, value] :
       std::initializer_list<std::pair<const char*, double>>{{"context_length", 512},
                                                             {"embedding_length", 32},
                                                             {"block_count", 1},
                                                             {"attention.head_count", 4},
                                                             {"attention.head_count_kv", 2},
                                                             {"attention.key_length", 16},
                                                             {"attention.value_length", 16},
                                                             {"attention.layer_norm_rms_epsilon", 1e-6},
                                                             {"rope.freq_base", 1e6},
                                                             {"expert_count", 4},
                                                             {"expert_used_count", 2},
                                                             {"expert_feed_forward_length", 24}}) {
    checkpoint.set(std::string("qwen3moe.") + key, value);
  }
  checkpoint.add_tensor("token_embd.weight", {50, 32});
  checkpoint.add_tensor("output_norm.weight", {32});
  checkpoint.add_tensor("output.weight", {50, 32});
  checkpoint.add_tensor("blk.0.attn_norm.weight", {32});
  checkpoint.add_tensor("blk.0.ffn_norm.weight", {32});
  checkpoint.add_tensor("blk.0.attn_q.weight", {64, 32});
  checkpoint.add_tensor("blk.0.attn_k.weight", {32, 32});
  checkpoint.add_tensor("blk.0.attn_v.weight", {32, 32});
  checkpoint.add_tensor("blk.0.attn_output.weight", {32, 64});
  checkpoint.add_tensor("blk.0.attn_q_norm.weight", {16});
  checkpoint.add_tensor("blk.0.attn_k_norm.weight", {16});
  checkpoint.add_tensor("blk.0.ffn_gate_inp.weight", {4, 32});
  checkpoint.add_tensor("blk.0.ffn_gate_exps.weight", {4, 24, 32});
  checkpoint.add_tensor("blk.0.ffn_up_exps.weight", {4, 24, 32});
  checkpoint.add_tensor("blk.0.ffn_down_exps.weight", {4, 32, 24});
  return checkpoint;
}

// Reads the configuration and loads the weights.
void open(const FakeCheckpoint& checkpoint) {
  const std::unique_ptr<Model> model = create_model(checkpoint);
  MemoryPool pool(size_t{64} << 20);
  Arena weights(pool, MemoryTag::kWeights);
  Arena experts(pool, MemoryTag::kExperts);
  ThreadPool threads(1);
  int64_t last_done = 0;
  const auto progress = [&](int64_t done, int64_t total) {
    EXPECT_GT(done, last_done);
    EXPECT_LE(done, total);
    last_done = done;
  };
  WeightLoader loader(checkpoint, weights, experts, threads, Precision::kFast, progress);
  model->load(loader);
  loader.check_all_used();
}

std::string error_of(const FakeCheckpoint& checkpoint) {
  try {
    open(checkpoint);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(RegistryTest, AWellFormedCheckpointLoads) { EXPECT_EQ(error_of(qwen3_moe()), "no error"); }

TEST(RegistryTest, UnknownArchitecturesAreNamedWithThoseThereAre) {
  EXPECT_THAT(error_of(FakeCheckpoint(CheckpointFormat::kGguf, "mamba")),
              AllOf(HasSubstr("fake-model"), HasSubstr("mamba"), HasSubstr("qwen3moe"), HasSubstr("deepseek2")));
  EXPECT_THAT(error_of(FakeCheckpoint(CheckpointFormat::kHuggingFace, "qwen3moe")), HasSubstr("qwen3_moe"));
}

TEST(RegistryTest, GgufFilesCalledLlamaAreMixtralWhenTheyHaveExperts) {
  FakeCheckpoint checkpoint(CheckpointFormat::kGguf, "llama");
  for (const auto& [key, value] :
       std::initializer_list<std::pair<const char*, double>>{{"context_length", 512},
                                                             {"embedding_length", 32},
                                                             {"block_count", 2},
                                                             {"attention.head_count", 4},
                                                             {"attention.layer_norm_rms_epsilon", 1e-6},
                                                             {"feed_forward_length", 24}}) {
    checkpoint.set(std::string("llama.") + key, value);
  }
  checkpoint.add_tensor("token_embd.weight", {50, 32});
  EXPECT_EQ(create_model(checkpoint)->info().architecture, "llama");
  checkpoint.set("llama.expert_count", 4);
  checkpoint.set("llama.expert_used_count", 2);
  const std::unique_ptr<Model> mixtral = create_model(checkpoint);
  EXPECT_EQ(mixtral->info().architecture, "mixtral");
  EXPECT_EQ(mixtral->info().moe_layers, (std::vector<int32_t>{0, 1}));
}

struct BadSetting {
  const char* key;
  double value;
  const char* message;
};

class BadSettingTest : public testing::TestWithParam<BadSetting> {};

TEST_P(BadSettingTest, IsRefusedByName) {
  FakeCheckpoint checkpoint = qwen3_moe();
  checkpoint.set(std::string("qwen3moe.") + GetParam().key, GetParam().value);
  EXPECT_THAT(error_of(checkpoint), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(All, BadSettingTest,
                         testing::Values(BadSetting{"block_count", 0, "qwen3moe.block_count is 0"},
                                         BadSetting{"block_count", -5, "qwen3moe.block_count is -5"},
                                         BadSetting{"block_count", 1e9, "qwen3moe.block_count is 1000000000"},
                                         BadSetting{"embedding_length", 33, "expected [50, 33]"},
                                         BadSetting{"attention.head_count", 3, "cannot share 2 kv heads"},
                                         BadSetting{"attention.head_count_kv", 0, "head_count_kv is 0"},
                                         BadSetting{"attention.key_length", 15, "different lengths"},
                                         BadSetting{"attention.layer_norm_rms_epsilon", -1,
                                                    "layer_norm_rms_epsilon is -1"},
                                         BadSetting{"rope.freq_base", 0, "rope.freq_base is 0"},
                                         BadSetting{"rope.dimension_count", 18, "rotary dimension 18 exceeds"},
                                         BadSetting{"rope.dimension_count", 7, "rotary dimension 7"},
                                         BadSetting{"expert_used_count", 5, "5 experts per token are more than the 4"},
                                         BadSetting{"expert_count", 1e6, "expert_count is 1000000"},
                                         BadSetting{"expert_feed_forward_length", 25, "expected [4, 25, 32]"}));

TEST(RegistryTest, MissingSettingsAreNamed) {
  FakeCheckpoint checkpoint = qwen3_moe();
  checkpoint.unset("qwen3moe.expert_count");
  EXPECT_THAT(error_of(checkpoint), HasSubstr("qwen3moe.expert_count"));
}

TEST(RegistryTest, RopeScalingOfUnknownKindIsRefusedWithTheKnownOnes) {
  FakeCheckpoint checkpoint = qwen3_moe();
  checkpoint.set("qwen3moe.rope.scaling.type", "longrope");
  EXPECT_THAT(error_of(checkpoint), AllOf(HasSubstr("qwen3moe.rope.scaling.type"), HasSubstr("longrope"),
                                          HasSubstr("expected none, linear")));
}

TEST(RegistryTest, RopeScalingWithoutItsFactorIsRefused) {
  FakeCheckpoint checkpoint = qwen3_moe();
  checkpoint.set("qwen3moe.rope.scaling.type", "yarn");
  EXPECT_THAT(error_of(checkpoint), HasSubstr("qwen3moe.rope.scaling.factor"));
}

TEST(RegistryTest, MissingTensorsAreNamedWithTheirShape) {
  FakeCheckpoint checkpoint = qwen3_moe();
  checkpoint.remove_tensor("blk.0.ffn_up_exps.weight");
  EXPECT_THAT(error_of(checkpoint), AllOf(HasSubstr("blk.0.ffn_up_exps.weight is missing"), HasSubstr("[4, 24, 32]")));
}

TEST(RegistryTest, MisshapenTensorsAreNamedWithBothShapes) {
  FakeCheckpoint checkpoint = qwen3_moe();
  checkpoint.remove_tensor("blk.0.attn_v.weight");
  checkpoint.add_tensor("blk.0.attn_v.weight", {32, 33});
  EXPECT_THAT(error_of(checkpoint),
              AllOf(HasSubstr("blk.0.attn_v.weight"), HasSubstr("[32, 33]"), HasSubstr("[32, 32]")));
}

TEST(RegistryTest, TensorsThatNobodyKnowsAreRefused) {
  FakeCheckpoint checkpoint = qwen3_moe();
  checkpoint.add_tensor("blk.0.attn_q.bias", {64});
  EXPECT_THAT(error_of(checkpoint), HasSubstr("blk.0.attn_q.bias"));
}

TEST(RegistryTest, ExpertsMayBeOneTensorEachAsInOlderFiles) {
  FakeCheckpoint checkpoint = qwen3_moe();
  for (const char* stacked : {"gate", "up", "down"}) {
    checkpoint.remove_tensor(fmt::format("blk.0.ffn_{}_exps.weight", stacked));
    const bool down = std::string_view(stacked) == "down";
    for (int e = 0; e < 4; ++e) {
      checkpoint.add_tensor(fmt::format("blk.0.ffn_{}.{}.weight", stacked, e),
                            down ? std::vector<int64_t>{32, 24} : std::vector<int64_t>{24, 32});
    }
  }
  EXPECT_EQ(error_of(checkpoint), "no error");
  checkpoint.remove_tensor("blk.0.ffn_up.3.weight");
  EXPECT_THAT(error_of(checkpoint), HasSubstr("blk.0.ffn_up"));
}

TEST(RegistryTest, FusedGateAndUpTensorsLoad) {
  FakeCheckpoint checkpoint = qwen3_moe();
  checkpoint.remove_tensor("blk.0.ffn_gate_exps.weight");
  checkpoint.remove_tensor("blk.0.ffn_up_exps.weight");
  checkpoint.add_tensor("blk.0.ffn_gate_up_exps.weight", {4, 48, 32});
  EXPECT_EQ(error_of(checkpoint), "no error");
}

}  // namespace
}  // namespace witan
