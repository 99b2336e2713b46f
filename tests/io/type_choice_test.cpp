#include "io/type_choice.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <map>

#include "base/error.h"
#include "support/expect_error.h"

namespace witan {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

struct MadeShapes {
  int num_layers = 16;
  int64_t num_experts = 64;
  int64_t expert_dim = 512;
  int64_t model_dim = 256;
  bool has_output = true;
};

// The tensors of a mixture-of-experts model.
std::vector<TensorShape> shapes_of(const MadeShapes& made) {
  std::vector<TensorShape> tensors;
  const auto add = [&](std::string name, std::vector<int64_t> shape, DType dtype = DType::kBF16) {
    tensors.push_back({.name = std::move(name), .dtype = dtype, .shape = std::move(shape)});
  };
  const int64_t dim = made.model_dim;
  add("token_embd.weight", {1000, dim});
  if (made.has_output) add("output.weight", {1000, dim});
  add("output_norm.weight", {dim});
  for (int i = 0; i < made.num_layers; ++i) {
    const std::string prefix = fmt::format("blk.{}.", i);
    for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output"}) add(prefix + name + ".weight", {dim, dim});
    add(prefix + "attn_norm.weight", {dim}, DType::kF32);
    add(prefix + "ffn_gate_inp.weight", {made.num_experts, dim});
    add(prefix + "ffn_gate_exps.weight", {made.num_experts, made.expert_dim, dim});
    add(prefix + "ffn_up_exps.weight", {made.num_experts, made.expert_dim, dim});
    add(prefix + "ffn_down_exps.weight", {made.num_experts, dim, made.expert_dim});
    add(prefix + "ffn_gate_exps.bias", {made.num_experts, made.expert_dim}, DType::kF32);
  }
  return tensors;
}

std::map<std::string, DType> chosen(const std::vector<TensorShape>& tensors, const TypeChoice& choice) {
  const ChosenTypes types = choose_types(tensors, choice);
  std::map<std::string, DType> named;
  for (size_t i = 0; i < tensors.size(); ++i) named[tensors[i].name] = types.dtypes[i];
  return named;
}

TypeChoice choice_of(std::string_view name) { return {.file_type = find_gguf_file_type(name)}; }

TEST(TypeChoice, PlainTypesAreThoseOfAllMatricesButTheOutput) {
  for (const std::string_view name : {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16", "BF16", "F32"}) {
    SCOPED_TRACE(name);
    const TypeChoice choice = choice_of(name);
    const DType dtype = choice.file_type->dtype;
    auto types = chosen(shapes_of({}), choice);
    for (const char* kind : {"attn_q", "attn_v", "attn_output", "ffn_gate_exps", "ffn_down_exps"}) {
      EXPECT_EQ(types[fmt::format("blk.0.{}.weight", kind)], dtype) << kind;
    }
    EXPECT_EQ(types["token_embd.weight"], dtype);
    const bool raised = dtype == DType::kQ4_0 || dtype == DType::kQ4_K || dtype == DType::kQ5_K;
    EXPECT_EQ(types["output.weight"], raised ? DType::kQ6_K : dtype);
    for (const char* kept :
         {"output_norm.weight", "blk.3.attn_norm.weight", "blk.3.ffn_gate_inp.weight", "blk.3.ffn_gate_exps.bias"}) {
      EXPECT_EQ(types[kept], DType::kF32) << kept;
    }
  }
}

TEST(TypeChoice, TiedEmbeddingsAreTheOutput) {
  auto types = chosen(shapes_of({.has_output = false}), choice_of("Q4_K"));
  EXPECT_EQ(types["token_embd.weight"], DType::kQ6_K);
}

TEST(TypeChoice, MediumMixGivesMoreBitsToTheEndsAndEveryThirdLayer) {
  auto types = chosen(shapes_of({}), choice_of("Q4_K_M"));
  std::vector<int> raised;
  for (int i = 0; i < 16; ++i) {
    const DType down = types[fmt::format("blk.{}.ffn_down_exps.weight", i)];
    EXPECT_EQ(types[fmt::format("blk.{}.attn_v.weight", i)], down);
    EXPECT_EQ(types[fmt::format("blk.{}.attn_q.weight", i)], DType::kQ4_K);
    if (down == DType::kQ6_K) raised.push_back(i);
  }
  EXPECT_THAT(raised, ElementsAre(0, 1, 4, 7, 10, 13, 14, 15));
}

TEST(TypeChoice, SmallMixGivesMoreBitsToTheFirstLayers) {
  auto types = chosen(shapes_of({}), choice_of("Q4_K_S"));
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(types[fmt::format("blk.{}.attn_v.weight", i)], i < 4 ? DType::kQ5_K : DType::kQ4_K) << i;
    EXPECT_EQ(types[fmt::format("blk.{}.ffn_down_exps.weight", i)], i < 2 ? DType::kQ5_K : DType::kQ4_K) << i;
  }
}

TEST(TypeChoice, MixesSpendMoreOnAttentionBesideEightExperts) {
  auto types = chosen(shapes_of({.num_experts = 8}), choice_of("Q4_K_M"));
  EXPECT_EQ(types["blk.5.attn_k.weight"], DType::kQ8_0);
  EXPECT_EQ(types["blk.5.attn_v.weight"], DType::kQ8_0);
  EXPECT_EQ(types["blk.5.attn_output.weight"], DType::kQ5_K);
  EXPECT_EQ(types["blk.5.attn_q.weight"], DType::kQ4_K);
  types = chosen(shapes_of({.num_experts = 8}), choice_of("Q4_K"));
  EXPECT_EQ(types["blk.5.attn_k.weight"], DType::kQ4_K);
}

TEST(TypeChoice, Mxfp4IsForExpertsAlone) {
  auto types = chosen(shapes_of({}), choice_of("MXFP4"));
  EXPECT_EQ(types["blk.0.ffn_up_exps.weight"], DType::kMXFP4);
  for (const char* name : {"blk.0.attn_q.weight", "token_embd.weight", "output.weight"}) {
    EXPECT_EQ(types[name], DType::kQ8_0) << name;
  }
}

TEST(TypeChoice, ExpertsAndOverridesComeBeforeTheMix) {
  TypeChoice choice = choice_of("Q4_K_M");
  choice.experts = DType::kMXFP4;
  choice.overrides = {{.pattern = "blk\\.1\\.ffn_down", .dtype = DType::kQ8_0},
                      {.pattern = "ffn_down|attn_v", .dtype = DType::kQ5_K}};
  auto types = chosen(shapes_of({}), choice);
  EXPECT_EQ(types["blk.1.ffn_down_exps.weight"], DType::kQ8_0);
  EXPECT_EQ(types["blk.2.ffn_down_exps.weight"], DType::kQ5_K);
  EXPECT_EQ(types["blk.0.attn_v.weight"], DType::kQ5_K);
  EXPECT_EQ(types["blk.0.ffn_up_exps.weight"], DType::kMXFP4);
  EXPECT_EQ(types["blk.0.attn_q.weight"], DType::kQ4_K);
}

TEST(TypeChoice, OverridesThatCannotBeMeantAreRefused) {
  TypeChoice choice = choice_of("Q4_K");
  choice.overrides = {{.pattern = "(", .dtype = DType::kF16}};
  test::expect_error(ErrorCode::kInvalidArgument, "\"(\"", [&] { choose_types(shapes_of({}), choice); });
  choice.overrides = {{.pattern = "attn_norm", .dtype = DType::kF16}};  // not a matrix
  test::expect_error(ErrorCode::kInvalidArgument, "attn_norm", [&] { choose_types(shapes_of({}), choice); });
}

TEST(TypeChoice, RowsThatAreNoWholeBlocksFallBackAndAreNamed) {
  const struct {
    const char* type;
    int64_t expert_dim;
    DType expected;
  } cases[] = {{"Q4_K", 96, DType::kQ5_0},  {"Q5_K", 96, DType::kQ5_1}, {"Q6_K", 96, DType::kQ8_0},
               {"Q4_0", 100, DType::kF16},  {"Q4_K", 100, DType::kF16}, {"Q8_0", 24, DType::kF16},
               {"MXFP4", 96, DType::kMXFP4}};
  for (const auto& test : cases) {
    SCOPED_TRACE(fmt::format("{} {}", test.type, test.expert_dim));
    const auto tensors = shapes_of({.num_layers = 3, .expert_dim = test.expert_dim});
    EXPECT_EQ(chosen(tensors, choice_of(test.type))["blk.1.ffn_down_exps.weight"], test.expected);
    const std::vector<std::string> notes = choose_types(tensors, choice_of(test.type)).notes;
    if (test.expected == DType::kMXFP4) {
      EXPECT_THAT(notes, IsEmpty());
    } else {
      EXPECT_THAT(notes,
                  ElementsAre(HasSubstr(fmt::format("ffn_down_exps.weight (3 tensors) is {}, not {}: rows of {}",
                                                    quant_type(test.expected).name, test.type, test.expert_dim))));
    }
  }
}

TEST(TypeChoice, ClassesFollowFromNames) {
  const std::pair<const char*, TensorClass> cases[] = {
      {"token_embd.weight", TensorClass::kEmbedding},
      {"output.weight", TensorClass::kOutput},
      {"output_norm.weight", TensorClass::kOther},
      {"blk.0.attn_q.weight", TensorClass::kAttention},
      {"blk.0.attn_q.bias", TensorClass::kOther},
      {"blk.0.attn_q_norm.weight", TensorClass::kOther},
      {"blk.0.attn_output.weight", TensorClass::kAttention},
      {"blk.0.ffn_gate_inp.weight", TensorClass::kRouter},
      {"blk.0.ffn_gate_inp_shexp.weight", TensorClass::kRouter},
      {"blk.0.ffn_gate_exps.weight", TensorClass::kExperts},
      {"blk.0.ffn_gate.7.weight", TensorClass::kExperts},
      {"blk.0.ffn_gate_shexp.weight", TensorClass::kSharedExperts},
      {"blk.10.ffn_down.weight", TensorClass::kDenseFfn},
      {"enc.blk.1.ffn_gate_inp.weight", TensorClass::kRouter},
      {"dec.blk.1.cross_attn_q.weight", TensorClass::kAttention},
      {"dec.blk.1.ffn_up_exps.weight", TensorClass::kExperts},
  };
  for (const auto& [name, expected] : cases) EXPECT_EQ(tensor_class(name), expected) << name;
}

}  // namespace
}  // namespace witan
