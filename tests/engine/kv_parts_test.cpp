// The contract of KV policies for the parts that are no methods: those that refine a method, and those that need no
// budget. KvPolicyTest has the methods.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "kv_policy_test_support.h"

namespace witan {
namespace {

using test::ask;
using test::expect_the_same_answer_everywhere;
using test::expect_the_same_answers_in_little_room;
using test::kModels;
using test::kPrompt;
using test::ModelCase;
using test::options_for;
using test::prompt_tokens;
using test::request_for;

// A part that is no method, in policies: {own} is the type of the model's cache, {less} one of fewer bits, [a|b] a
// table by layer without a window, of a for the first and b for the others; of heads, as many as the model has.
struct PartCase {
  std::string_view part;
  std::vector<std::string> identities = {};  // change no bit
  std::vector<std::string> lossy = {};
  std::string crowded = {};  // is preempted in `percent` of the room that four requests take
  int64_t percent = 45;
  bool has_latents = true;          // whether a model with latents (MLA) can have it
  std::string_view elsewhere = {};  // why another suite drives it
};

const std::vector<PartCase>& part_cases() {
  static const std::vector<PartCase> cases = {
      {.part = "global",
       .identities = {"keydiff,global,keep=1", "snapkv(window=8),global(floor=0.5),tokens=150"},
       .lossy = {"keydiff,global,tokens=40,every=4",
                 "snapkv(window=8),global(floor=0.2),keep=0.3,generated_tokens=4,every=3"},
       .crowded = "keydiff,global,keep=0.8,generated_keep=0.9,every=12"},
      {.part = "layershares",
       .identities = {"layershares(shares=[3|1],window=8),keep=1", "keydiff,layershares(shares=[1|2]),tokens=150"},
       .lossy = {"layershares(shares=[3|1],window=8),tokens=40,every=4"},
       .crowded = "layershares(shares=[3|2],window=8),keep=0.8,generated_keep=0.9,every=12"},
      {.part = "duoattention",
       .identities = {"duoattention(heads=[11|11],sinks=4,recent=16)",
                      "duoattention(heads=[00|00],sinks=4,recent=1000)"},
       .lossy = {"duoattention(heads=[10|01],sinks=4,recent=16),every=4"},
       .crowded = "duoattention(heads=[10|01],sinks=4,recent=80),every=12"},
      {.part = "simlayerkv",
       .identities = {"simlayerkv(threshold=1,sinks=4,recent=16)", "simlayerkv(threshold=0)"},
       .lossy = {"simlayerkv(threshold=0,sinks=4,recent=16),every=4"},
       .crowded = "simlayerkv(threshold=0,sinks=4,recent=150),every=12",
       .percent = 60},
      {.part = "merge",
       .identities = {"keydiff,merge,keep=1"},
       .lossy = {"keydiff,merge(threshold=0.2),tokens=40,every=4"},
       .crowded = "snapkv(window=8),merge,keep=0.8,generated_keep=0.9,every=12",
       .has_latents = false},
      {.part = "cam",
       .identities = {"snapkv(window=8),cam,keep=1"},
       .lossy = {"snapkv(window=8),cam(next=4),tokens=40,every=4"},
       .crowded = "h2o,cam,keep=0.8,generated_keep=0.9,every=12",
       .has_latents = false},
      {.part = "quest",
       .identities = {"quest(tokens=192,dense=0)", "quest(keep=1,dense=0,page=16)", "quest(tokens=1,dense=1000)"},
       .lossy = {"quest(tokens=64,dense=0,page=16)"},
       .crowded = "quest(tokens=96,dense=0)"},
      // Rounding has no form that changes nothing, but where nothing is old enough.
      {.part = "kivi",
       .identities = {"kivi(residual=200)", "kivi(bits=2,residual=200),keydiff,keep=1"},
       .lossy = {"kivi(residual=8)", "kivi(residual=8),keydiff,tokens=100"},
       .crowded = "kivi(residual=8)",
       .percent = 90,
       .has_latents = false},
      {.part = "kvtuner",
       .identities = {"kvtuner(layers=[{own}|{own}],residual=0)", "kvtuner(layers=[{less}|{own}],residual=200)"},
       .lossy = {"kvtuner(layers=[{less}|{own}],residual=8)",
                 "kvtuner(layers=[{less}|{less}],residual=8),keydiff,tokens=60,every=4"},
       .crowded = "kvtuner(layers=[{less}|{less}],residual=8)",
       .percent = 90},
      {.part = "think",
       .identities = {"think(keep=1,residual=0)", "think(window=8,residual=200),k={less}"},
       .lossy = {"think(window=8,residual=8),k={less}"},
       .crowded = "think(window=8,residual=8),k={less}",
       .percent = 90,
       .has_latents = false},
      {.part = "epic", .elsewhere = "KvReuseTest: it does nothing without documents"},
      {.part = "cacheblend", .elsewhere = "KvReuseTest: it does nothing without documents"},
      {.part = "routeblend", .elsewhere = "KvReuseTest: it does nothing without documents"},
      {.part = "randomblend", .elsewhere = "KvReuseTest: it does nothing without documents"}};
  return cases;
}

const PartCase* find_case(std::string_view part) {
  const auto found = std::ranges::find(part_cases(), part, &PartCase::part);
  return found == part_cases().end() ? nullptr : &*found;
}

// A part that is added without a case fails here; a method is a case of KvPolicyTest by itself.
TEST(KvParts, EachIsAMethodOrHasACase) {
  for (const KvPolicyPart& part : kv_policy_parts()) {
    EXPECT_EQ(find_case(part.name) == nullptr, part.is_method)
        << part.name << " needs a case in one suite, and no more";
  }
  for (const PartCase& c : part_cases()) {
    EXPECT_EQ(std::ranges::count(kv_policy_parts(), c.part, &KvPolicyPart::name), 1) << c.part << " is no part";
    EXPECT_EQ(std::ranges::count(part_cases(), c.part, &PartCase::part), 1) << c.part;
    if (!c.elsewhere.empty()) continue;
    EXPECT_FALSE(c.identities.empty() || c.lossy.empty() || c.crowded.empty()) << c.part;
    for (const std::string& policy : c.lossy) EXPECT_NE(policy.find(c.part), std::string::npos) << policy;
  }
}

class KvPartTest : public testing::TestWithParam<std::tuple<ModelCase, std::string_view>> {
 protected:
  static const ModelCase& model() { return std::get<0>(GetParam()); }
  static const PartCase& part() { return *find_case(std::get<1>(GetParam())); }

  // What a case says, for this model.
  static std::string policy(std::string text) {
    Engine& engine = shared_engine();
    const auto replace = [&](std::string_view from, std::string_view to) {
      for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
        text.replace(at, from.size(), to);
      }
    };
    replace("{own}", kv_codec_name(model().codec));
    replace("{less}", less());
    const size_t begin = text.find('[');
    if (begin == std::string::npos) return text;
    const size_t bar = text.find('|', begin);
    const size_t end = text.find(']', bar);
    const std::vector<KvLayerSpec>& layers = engine.model_info().kv_layers;
    const bool of_heads = text.substr(0, begin).ends_with("heads=");
    const auto num_heads = static_cast<size_t>(layers.front().num_kv_heads);
    std::vector<std::string> table(static_cast<size_t>(std::ranges::count(layers, 0, &KvLayerSpec::window)),
                                   text.substr(bar + 1, of_heads ? num_heads : end - bar - 1));
    table[0] = text.substr(begin + 1, of_heads ? num_heads : bar - begin - 1);
    return text.substr(0, begin) + fmt::format("{}", fmt::join(table, "/")) + text.substr(end + 1);
  }

  static std::string_view less() {
    switch (model().codec) {
      case KvCodec::kF16:
        return "int4-hadamard";
      case KvCodec::kHadamard4:
        return "int2-hadamard";
      default:
        return "int4-latent";
    }
  }

  // One for all tests of a model, which only ask it one request after the other.
  static Engine& shared_engine() {
    static std::map<std::string, std::unique_ptr<Engine>> engines;
    std::unique_ptr<Engine>& engine = engines[model().arch];
    if (engine == nullptr) engine = std::make_unique<Engine>(options_for(model()));
    return *engine;
  }
};

TEST_P(KvPartTest, WhatDropsNothingChangesNoBit) {
  Engine& engine = shared_engine();
  const auto dense = ask(engine, request_for(prompt_tokens(kPrompt, 5), "")).steps;
  const test::Reading reading =
      test::read(engine, test::reading_request(prompt_tokens(kPrompt, 5), prompt_tokens(40, 31), ""));
  for (const std::string& text : part().identities) {
    const std::string chosen = policy(text);
    SCOPED_TRACE(chosen);
    EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), chosen)).steps, dense);
    const test::Reading same =
        test::read(engine, test::reading_request(prompt_tokens(kPrompt, 5), prompt_tokens(40, 31), chosen));
    EXPECT_EQ(same.bits, reading.bits);
    EXPECT_EQ(same.routes, reading.routes);
  }
}

TEST_P(KvPartTest, TheAnswerDoesNotDependOnChunksThreadsBatchOrCache) {
  for (const std::string& text : part().lossy) expect_the_same_answer_everywhere(options_for(model()), policy(text));
}

TEST_P(KvPartTest, PreemptionDoesNotChangeAnything) {
  EXPECT_GT(expect_the_same_answers_in_little_room(options_for(model()), policy(part().crowded), part().percent), 0);
}

std::vector<std::string_view> parts_driven_here(bool latents) {
  std::vector<std::string_view> parts;
  for (const PartCase& c : part_cases()) {
    if (c.elsewhere.empty() && (c.has_latents || !latents)) parts.push_back(c.part);
  }
  return parts;
}

std::string part_name(const testing::TestParamInfo<std::tuple<ModelCase, std::string_view>>& info) {
  std::string name = fmt::format("{}_{}", std::get<0>(info.param).arch, std::get<1>(info.param));
  std::ranges::replace(name, '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, KvPartTest,
                         testing::Combine(testing::Values(kModels[0], kModels[2]),
                                          testing::ValuesIn(parts_driven_here(false))),
                         part_name);
// Latents have no values to merge, and no channels to lose or to be rounded by.
INSTANTIATE_TEST_SUITE_P(Latents, KvPartTest,
                         testing::Combine(testing::Values(kModels[1]), testing::ValuesIn(parts_driven_here(true))),
                         part_name);

}  // namespace
}  // namespace witan
