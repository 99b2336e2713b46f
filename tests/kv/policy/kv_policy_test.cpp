#include "kv/policy/kv_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "base/error.h"

namespace witan {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

std::string error_of(const std::string& text) {
  try {
    (void)parse_kv_policy(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "none";
}

using Points = std::vector<KvCompressionPoint>;

TEST(KvPolicy, EveryMethodStandsAlone) {
  for (const KvPolicyPart& part : kv_policy_parts()) {
    const std::string text = std::string(part.name) + ",keep=0.25";
    if (part.is_method) {
      EXPECT_NE(parse_kv_policy(text).scorer, nullptr) << text;
    } else {
      EXPECT_THAT(error_of(text),
                  AnyOf(HasSubstr("add a method"), HasSubstr("decides by itself"), HasSubstr("heads is missing"),
                        HasSubstr("layers is missing"), HasSubstr("shares is missing")))
          << text;
    }
  }
}

TEST(KvPolicy, TypesOfOlderEntriesAreChosenForKeysAndValues) {
  using Codecs = std::vector<KvCodec>;
  const auto codecs_of = [](const std::string& text) { return parse_kv_policy(text).demotion.value().codecs; };
  EXPECT_EQ(codecs_of("k=int4-hadamard"), Codecs{KvCodec::kHadamard4});
  EXPECT_EQ(codecs_of("k=int8-hadamard,v=int4-hadamard"), Codecs{KvCodec::kHadamard8Value4});
  EXPECT_EQ(codecs_of("k=int4-hadamard,v=int2"), Codecs{KvCodec::kHadamard4Value2});
  EXPECT_EQ(codecs_of("k=int2-hadamard,v=int8"), Codecs{KvCodec::kHadamard2Value8});
  EXPECT_EQ(codecs_of("k=int4-hadamard,v=int8-hadamard"), Codecs{KvCodec::kHadamard4Value8});
  EXPECT_EQ(codecs_of("k=q8_0,v=q8_0"), Codecs{KvCodec::kQ8});
  EXPECT_EQ(codecs_of("kvtuner(layers=k8v4-hadamard/int4-hadamard*2)"),
            (Codecs{KvCodec::kHadamard8Value4, KvCodec::kHadamard4, KvCodec::kHadamard4}));
  const KvPolicy both = parse_kv_policy(R"({"parts": ["snapkv"], "keep": 0.5, "k": "int4-hadamard", "residual": 16})");
  EXPECT_EQ(both.demotion->num_recent, 16);
  EXPECT_EQ(both.num_kept(100), 50);
  const KvPolicy alone = parse_kv_policy("k=int8-hadamard");
  EXPECT_EQ(alone.demotion->num_recent, 128);
  EXPECT_EQ(alone.scorer, nullptr);
  EXPECT_EQ(alone.num_kept(100), 100);

  EXPECT_THAT(error_of("k=int8-hadamard,v=bf16"), HasSubstr("keys of type int8-hadamard and values of type bf16"));
  EXPECT_THAT(error_of("k=int3"), HasSubstr("int3"));
  EXPECT_THAT(error_of("v=int4-hadamard"), HasSubstr("k is missing"));
  EXPECT_THAT(error_of("snapkv,keep=0.5,residual=16"), HasSubstr("nothing makes older entries smaller"));
  EXPECT_THAT(error_of("snapkv,keep=0.5,keeep=1"), HasSubstr("it has generated_keep"));
  EXPECT_THAT(error_of("snapkv,keep=0.5,keeep=1"), HasSubstr("k, v, residual"));
  EXPECT_THAT(error_of("k=int4-hadamard,residual=-1"), HasSubstr("residual must be a whole number from 0"));
  EXPECT_THAT(error_of("kvtuner(layers=int3/bf16)"), HasSubstr("'int3' is no type of KV entries"));
  EXPECT_THAT(error_of("kvtuner(layers=bf16*0)"), HasSubstr("'bf16*0': behind the * comes a number of layers"));
  EXPECT_EQ(codecs_of("kivi"), Codecs{KvCodec::kKivi2});
  EXPECT_EQ(codecs_of("kivi(bits=4,residual=32)"), Codecs{KvCodec::kKivi4});
  EXPECT_EQ(codecs_of("k=int4-latent"), Codecs{KvCodec::kLatent4});
  EXPECT_THAT(error_of("kivi(bits=3)"), HasSubstr("bits is one of 2, 4"));
  EXPECT_THAT(error_of("snapkv,keep=0.5,every=8,kivi"), HasSubstr("int2-kivi share what they are rounded by"));
  EXPECT_THAT(error_of("rkv,keep=0.5,kivi"), HasSubstr("which rkv sets"));
  EXPECT_TRUE(parse_kv_policy("kivi,prefill_every=64").demotion) << "nothing is dropped";
  EXPECT_THAT(error_of("kvtuner(layers=bf16),k=q8_0"), HasSubstr("each decides the types of older entries"));
  EXPECT_THAT(error_of("k=int4-hadamard,keep=0.5"), HasSubstr("add a method"));
  EXPECT_THAT(error_of("keydiff,merge,keep=0.5,every=8,k=q8_0"), HasSubstr("cannot be merged"));
  EXPECT_THAT(error_of("rocketkv,keep=0.5,every=8,k=q8_0"), HasSubstr("would not be whole pages"));

  const std::vector<KvLayerSpec> layers = {{2, 64, 64}, {2, 64, 64, false, 128}, {2, 64, 64}};
  EXPECT_EQ(alone.demotion->of(layers, KvCodec::kF16).codecs,
            (Codecs{KvCodec::kHadamard8, KvCodec::kF16, KvCodec::kHadamard8}));
  EXPECT_EQ(parse_kv_policy("kvtuner(layers=q8_0/int4-hadamard)").demotion->of(layers, KvCodec::kF16).codecs,
            (Codecs{KvCodec::kQ8, KvCodec::kF16, KvCodec::kHadamard4}));
  for (const char* layers_of_others : {"kvtuner(layers=q8_0*3)", "kvtuner(layers=q8_0)"}) {
    EXPECT_THROW((void)parse_kv_policy(layers_of_others).demotion->of(layers, KvCodec::kF16), Error);
  }
}

TEST(KvPolicy, OlderKeysMayKeepTheChannelsThatMatterMost) {
  const std::vector<KvLayerSpec> layers = {{2, 128, 128}, {2, 128, 128, false, 128}, {2, 64, 64}};
  const auto demotion_of = [&](const std::string& text, KvCodec own) {
    return parse_kv_policy(text).demotion.value().of(layers, own);
  };
  const KvPolicy policy = parse_kv_policy("think(keep=0.6,window=16)");
  EXPECT_EQ(policy.wants().num_query_tokens, 16);
  EXPECT_EQ(policy.demotion->num_recent, 128);
  EXPECT_EQ(policy.num_kept(100), 100) << "nothing is dropped";
  EXPECT_EQ(parse_kv_policy("snapkv(window=24),keep=0.5,think").wants().num_query_tokens, 32);
  const KvDemotion demotion = demotion_of("think(keep=0.6)", KvCodec::kBF16);
  EXPECT_EQ(demotion.codecs, std::vector<KvCodec>(3, KvCodec::kBF16));
  EXPECT_EQ(demotion.key_dims, (std::vector<int32_t>{76, 128, 38})) << "pairs of components";
  EXPECT_EQ(demotion_of("think(keep=0.6)", KvCodec::kQ8).key_dims, (std::vector<int32_t>{64, 128, 32}))
      << "components that share a scale";
  EXPECT_EQ(demotion_of("think(keep=0.6),kivi", KvCodec::kBF16).key_dims, (std::vector<int32_t>{80, 128, 32}))
      << "words of 16";
  EXPECT_EQ(demotion_of("think(keep=0.7),kvtuner(layers=int8-hadamard/bf16)", KvCodec::kF16).key_dims,
            (std::vector<int32_t>{96, 128, 44}));
  EXPECT_EQ(demotion_of("think(keep=0.01)", KvCodec::kBF16).key_dims, (std::vector<int32_t>{2, 128, 2}));
  EXPECT_EQ(demotion_of("think(keep=0.01)", KvCodec::kQ8).key_dims, (std::vector<int32_t>{32, 128, 32}));
  EXPECT_TRUE(demotion_of("think(keep=0.999)", KvCodec::kBF16).key_dims.empty()) << "all stay";
  EXPECT_TRUE(demotion_of("think(keep=1)", KvCodec::kBF16).key_dims.empty());
  EXPECT_EQ(parse_kv_policy("think(keep=1)").wants().num_query_tokens, 0);

  const auto residual_of = [](const std::string& text) { return parse_kv_policy(text).demotion.value().num_recent; };
  EXPECT_EQ(residual_of("think(residual=32)"), 32);
  EXPECT_EQ(residual_of("think,residual=16"), 16);
  EXPECT_EQ(residual_of("think,k=q8_0,residual=16"), 16);
  EXPECT_EQ(residual_of("think(residual=64),kivi"), 64);
  EXPECT_EQ(residual_of("think,kivi(residual=8)"), 8);
  EXPECT_THAT(error_of("think(residual=64),kivi(residual=8)"), HasSubstr("think and kivi cannot be combined"));
  EXPECT_THAT(error_of("think(residual=64),k=q8_0,residual=8"), HasSubstr("how many recent entries stay"));
  EXPECT_THAT(error_of("think,think(keep=0.4)"), HasSubstr("each decides the channels of older keys"));
  EXPECT_THAT(error_of("think(keep=0)"), HasSubstr("keep must be a number from 0.01"));
  EXPECT_THAT(error_of("think,keep=0.5"), HasSubstr("add a method"));
  EXPECT_THAT(error_of("auto,think"), HasSubstr("auto and think cannot be combined"));
  EXPECT_EQ(error_of("keydiff,keep=0.5,every=8,think"), "none");
}

TEST(KvPolicy, OlderEntriesAreDemotedByTheBlockFromTheEndOfThePromptOn) {
  const auto point = [](int32_t num_tokens, int32_t num_kept, bool judges) {
    return KvCompressionPoint{.num_tokens = num_tokens, .num_kept = num_kept, .judges = judges};
  };
  EXPECT_EQ(parse_kv_policy("k=q8_0").compression_points(200, 270),
            (Points{point(200, 200, false), point(232, 232, false), point(264, 264, false)}));
  EXPECT_EQ(parse_kv_policy("k=q8_0").compression_points(100, 200),
            (Points{point(164, 164, false), point(196, 196, false)}))
      << "nothing is old before";
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.5,k=q8_0,residual=8").compression_points(100, 150),
            (Points{point(100, 50, true), point(132, 82, false)}));
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=50,every=20,k=q8_0,residual=8").compression_points(100, 150),
            (Points{point(100, 50, true), point(120, 50, true), point(132, 62, false), point(140, 50, true)}));
  // Heads that differ may have older entries where they have few on average.
  EXPECT_EQ(parse_kv_policy("adakv,keep=0.1,k=q8_0").compression_points(100, 140),
            (Points{point(100, 10, true), point(132, 42, false)}));
  // So do all where everything may stay after all.
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.1,k=q8_0").compression_points(100, 140), (Points{point(100, 10, true)}));
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.1,guard=0.5,k=q8_0").compression_points(100, 140),
            (Points{point(100, 10, true), point(132, 42, false)}));
}

TEST(KvPolicy, EntriesOfAPromptMayBeJudgedWhileItIsComputed) {
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=40,prefill_every=50").compression_points(120, 200),
            (Points{{50, 40}, {100, 40}, {120, 40}}));
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.5,prefill_every=50,every=20").compression_points(120, 145),
            (Points{{50, 25}, {100, 50}, {120, 60}, {140, 70}}));
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=60,prefill_every=50").compression_points(100, 110), (Points{{100, 60}}));
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=40,prefill_every=50").compression_points(120, 80), (Points{{50, 40}}));
  EXPECT_EQ(parse_kv_policy("k=q8_0,residual=8,prefill_every=50").compression_points(120, 125),
            (Points{{50, 50, false}, {100, 100, false}, {120, 120, false}}));
  EXPECT_THAT(error_of("shotkv,keep=0.5,prefill_every=64"), HasSubstr("prefill_every is not for this policy"));
  EXPECT_THAT(error_of("finch(chunk=64),keep=0.5,prefill_every=64"), HasSubstr("prefill_every is not for this policy"));
  EXPECT_THAT(error_of("quest,prefill_every=64"), HasSubstr("add a method"));
  EXPECT_THAT(error_of("snapkv,keep=0.5,prefill_every=0"), HasSubstr("prefill_every must be a whole number from 1"));
  EXPECT_THAT(error_of("keydiff,merge,keep=0.5,prefill_every=64,k=q8_0"), HasSubstr("cannot be merged"));
}

TEST(KvPolicy, EntriesMayBeJudgedOnlyUnderPressure) {
  const KvPolicy policy = parse_kv_policy("snapkv,keep=0.3,when=pressure");
  EXPECT_TRUE(policy.under_pressure);
  EXPECT_EQ(policy.every, 64);
  EXPECT_EQ(policy.num_kept(100, 50), 45);
  EXPECT_EQ(policy.compression_points(100, 1000), Points()) << "none that the text determines";
  EXPECT_TRUE(policy.judges_again());
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.3,when=pressure,every=10").every, 10);
  EXPECT_EQ(parse_kv_policy("rkv,keep=0.3,when=pressure").every, 128) << "its own";
  EXPECT_TRUE(parse_kv_policy(R"({"parts": ["snapkv"], "keep": 0.3, "when": "pressure"})").under_pressure);
  const KvPolicy prompt = parse_kv_policy("snapkv,keep=0.3,when=prompt");
  EXPECT_FALSE(prompt.under_pressure);
  EXPECT_EQ(prompt.compression_points(100, 1000), (Points{{100, 30}}));
  EXPECT_THAT(error_of("snapkv,keep=0.3,when=ever"), HasSubstr("when is one of prompt, pressure, not 'ever'"));
  for (const auto& [with, named] :
       std::map<std::string, std::string>{{"auto,keep=0.3", "auto"},
                                          {"auto", "auto"},
                                          {"snapkv,keep=0.3,k=q8_0", "(k, v, kivi"},
                                          {"snapkv,keep=0.3,kivi", "(k, v, kivi"},
                                          {"snapkv,generated_keep=0.3", "generated_keep"},
                                          {"snapkv,keep=0.3,prefill_every=9", "prefill_every"},
                                          {"kvzip,keep=0.3", "kvzip"},
                                          {"shotkv,keep=0.3", "shotkv"}}) {
    EXPECT_THAT(error_of(with + ",when=pressure"),
                AllOf(HasSubstr(named), HasSubstr("cannot be combined with when=pressure")))
        << with;
  }
  EXPECT_THAT(error_of("simlayerkv,when=pressure"), HasSubstr("when is given, but the policy decides by itself"));
  EXPECT_THAT(error_of("quest,when=pressure"), HasSubstr("when is given, but no part says which entries stay"));
  EXPECT_THAT(error_of("chunkkv(reuse=2),pyramidkv,keep=0.5,when=pressure"), HasSubstr("reuse=2 cannot be combined"));
}

TEST(KvPolicy, PartsAndKeysSetWhatTheyName) {
  const KvPolicy policy = parse_kv_policy(" snapkv( window = 16 , pool=max), pyramidkv(slope=7), floor=64, keep=0.5 ");
  EXPECT_EQ(policy.scorer->wants().num_query_tokens, 16);
  EXPECT_EQ(policy.num_recent, 32) << "pyramidkv's own window is protected too";
  EXPECT_EQ(policy.layers, KvLayerBudget::kPyramid);
  EXPECT_EQ(policy.pyramid_slope, 7.0);
  EXPECT_EQ(policy.budget.floor, 64);
  const KvPolicy chunks =
      parse_kv_policy("keydiff,chunkkv(chunk=5,reuse=3,score=mean,heads=apart),tokens=100,sinks=2,recent=9");
  EXPECT_EQ(chunks.scorer->wants().num_query_tokens, 0)
      << "a method that is named goes before one that a refinement brings";
  EXPECT_EQ(chunks.chunk, 5);
  EXPECT_EQ(chunks.reused_layers, 3);
  EXPECT_FALSE(chunks.chunk_by_sum);
  EXPECT_FALSE(chunks.heads_agree);
  EXPECT_EQ(chunks.num_sinks, 2);
  EXPECT_EQ(chunks.num_recent, 9);
  EXPECT_EQ(parse_kv_policy("streamingllm(sinks=7),keep=1").num_sinks, 7);
  EXPECT_EQ(parse_kv_policy("adakv(floor=0.5),keep=0.1").head_floor, 0.5);
  EXPECT_EQ(parse_kv_policy("snapkv,global,keep=0.1").scope, KvScope::kModel);
  EXPECT_EQ(parse_kv_policy("keynorm,merge(threshold=0.5),keep=0.1").merging->threshold, 0.5f);
  EXPECT_EQ(parse_kv_policy("keynorm,cam(next=4),keep=0.1").merging->num_next, 4);
  EXPECT_EQ(parse_kv_policy("keynorm,cam,keep=0.1").wants().num_query_tokens, 32) << "whose attention it goes by";
  EXPECT_EQ(parse_kv_policy("h2o,cam,keep=0.1").wants().num_query_tokens, 0) << "it goes by that of all tokens";
  EXPECT_FALSE(parse_kv_policy("keynorm,keep=0.1").merging);
}

TEST(KvPolicy, BudgetsAreRatiosOrNumbersWithAFloor) {
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.25").num_kept(101), 25);
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.25,floor=60").num_kept(101), 60);
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.25,floor=600").num_kept(101), 101);
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=30").num_kept(101), 30);
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=30").num_kept(10), 10);
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.01").num_kept(5), 1) << "something stays";
  EXPECT_EQ(parse_kv_policy("snapkv,keep=1").num_kept(5), 5);
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.29").num_kept(100), 29) << "0.29 has no double of its own";
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.57").num_kept(100), 57);
}

TEST(KvPolicy, EntriesAreJudgedWhereThereIsSomethingToDrop) {
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.5").compression_points(100, 1000), (Points{{100, 50}}));
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=200").compression_points(100, 1000), Points());
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=40,every=16").compression_points(100, 140),
            (Points{{100, 40}, {116, 40}, {132, 40}}));
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=120,every=16").compression_points(100, 150),
            (Points{{132, 120}, {148, 120}}))
      << "not before there is more than the budget";
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.5,every=10").compression_points(100, 125),
            (Points{{100, 50}, {110, 55}, {120, 60}}));
}

TEST(KvPolicy, EntriesGrowBetweenJudgements) {
  const KvPolicy policy = parse_kv_policy("snapkv,tokens=40,every=16");
  EXPECT_EQ(policy.num_entries(100, 99), 99);
  EXPECT_EQ(policy.num_entries(100, 100), 40);
  EXPECT_EQ(policy.num_entries(100, 115), 55);
  EXPECT_EQ(policy.num_entries(100, 116), 40);
}

TEST(KvPolicy, PromptAndGeneratedTokensMayHavePoolsOfTheirOwn) {
  const KvPolicy policy = parse_kv_policy("snapkv,keep=0.5,generated_tokens=20,every=16");
  EXPECT_EQ(policy.compression_points(100, 135), (Points{{100, 50}, {132, 70}}));
  EXPECT_EQ(policy.num_kept(100, 16), 66);
  EXPECT_EQ(parse_kv_policy("snapkv,generated_keep=0.25").compression_points(100, 200), (Points{{164, 116}}))
      << "the prompt stays whole, and 64 is the default of `every`";
}

// Against the strategy as the paper tells it, step by step.
TEST(KvPolicy, ThePoolOfGeneratedTokensMayGrow) {
  for (const auto& [text, recent, most] :
       {std::tuple("h2o,generated_tokens=40,generated_growth=adaptive", 20, 40),
        std::tuple("h2o(recent=0.25),generated_tokens=41,generated_growth=adaptive", 10, 41),
        std::tuple("snapkv(window=16),generated_tokens=30,generated_growth=adaptive", 16, 30),
        std::tuple("keynorm,recent=7,generated_keep=0.1,generated_growth=adaptive", 7, 30),
        std::tuple("snapkv(window=32),generated_tokens=20,generated_growth=adaptive", 20, 20)}) {
    KvPolicy policy = parse_kv_policy(text);
    policy.max_generated = 300;
    EXPECT_EQ(policy.num_recent_of_pool(), recent) << text;
    int32_t size = recent;
    for (int32_t t = 0; t <= 300; ++t) {
      // The next entry comes when that many intervals are over, counted from a pool that is full of recent tokens.
      const double interval = static_cast<double>(300 - recent) / (most - recent);
      if (size < most && t - recent >= (size + 1 - recent) * interval - 1e-9) ++size;
      EXPECT_EQ(policy.num_kept(100, t), 100 + std::min(t, size)) << text << " at " << t;
    }
    EXPECT_EQ(size, most) << text;
  }
  KvPolicy policy = parse_kv_policy("h2o,keep=0.5,generated_tokens=20,every=10,generated_growth=adaptive");
  EXPECT_EQ(policy.every, 10);
  policy.max_generated = 60;
  EXPECT_EQ(policy.compression_points(100, 158), (Points{{100, 50}, {120, 62}, {130, 64}, {140, 66}, {150, 68}}))
      << "one more every 5 tokens";
  policy.max_generated = 20;
  EXPECT_EQ(policy.compression_points(100, 118), (Points{{100, 50}})) << "there is room for all";
  EXPECT_FALSE(parse_kv_policy("h2o,generated_tokens=20,generated_growth=none").generated_grows);
  EXPECT_THAT(error_of("h2o,keep=0.5,generated_growth=adaptive"), HasSubstr("give one by generated_tokens"));
  EXPECT_THAT(error_of("keynorm,generated_tokens=9,generated_growth=adaptive"), HasSubstr("give recent=N"));
  EXPECT_THAT(error_of("h2o,generated_tokens=9,generated_growth=fast"), HasSubstr("is one of none, adaptive"));
}

TEST(KvPolicy, PagesMayBeReadOfAllEntriesOrOfWhatStays) {
  const KvPolicy quest = parse_kv_policy("quest(tokens=512,dense=1)");
  EXPECT_EQ(quest.scorer, nullptr);
  EXPECT_EQ(quest.pages->num_tokens, 512);
  EXPECT_EQ(quest.pages->num_dense_layers, 1);
  EXPECT_EQ(quest.compression_points(1000, 2000), Points());
  EXPECT_EQ(parse_kv_policy("quest").pages->num_tokens, 2048);
  EXPECT_EQ(parse_kv_policy("quest").pages->num_pages(100000), 64);
  EXPECT_EQ(parse_kv_policy("quest(page=16)").pages->num_pages(100000), 128);
  EXPECT_EQ(parse_kv_policy("quest(keep=0.1)").pages->num_pages(32000), 100);
  EXPECT_EQ(parse_kv_policy("quest(keep=0.1,page=16)").pages->num_pages(32000), 200);
  EXPECT_EQ(parse_kv_policy("quest(keep=0.1)").pages->num_pages(100), 3) << "which are always read";
  EXPECT_EQ(parse_kv_policy("rocketkv,keep=0.5").pages->num_pages(32000), 16);
  EXPECT_EQ(parse_kv_policy("rocketkv(read=64),keep=0.5").pages->num_pages(32000), 3);
  EXPECT_EQ(parse_kv_policy("rocketkv(read=0.2),keep=0.5").pages->num_pages(32000), 200);
  EXPECT_EQ(parse_kv_policy(R"({"parts": [{"part": "quest", "keep": 0.1}]})").pages->num_pages(32000), 100);
  EXPECT_THAT(error_of("quest(keep=0.1,tokens=9)"), HasSubstr("quest: both keep and tokens are given"));
  EXPECT_THAT(error_of("quest(keep=2)"), HasSubstr("keep must be a number from"));
  EXPECT_THAT(error_of("quest(page=8)"), HasSubstr("page is one of 32, 16, not '8'"));
  EXPECT_THAT(error_of("rocketkv(read=2.5),keep=0.5"), HasSubstr("a share below 1; not 2.5"));
  const KvPolicy both = parse_kv_policy("snapkv,quest(tokens=256),tokens=500");
  EXPECT_NE(both.scorer, nullptr);
  EXPECT_EQ(both.compression_points(1000, 2000), (Points{{1000, 500}}));
  EXPECT_THAT(error_of("quest,keep=0.5"), HasSubstr("keep is given, but no part says which entries stay"));
  EXPECT_THAT(error_of("quest,rocketkv,keep=0.5"), HasSubstr("quest and rocketkv cannot be combined"));
  EXPECT_THAT(error_of("quest,global"), HasSubstr("add a method"));
}

TEST(KvPolicy, JsonSaysTheSameAsText) {
  const KvPolicy policy = parse_kv_policy(
      R"( {"parts": [{"part": "snapkv", "window": 16, "pool": "max"}, "adakv"], "keep": 0.25, "every": 64})");
  EXPECT_EQ(policy.scorer->wants().num_query_tokens, 16);
  EXPECT_EQ(policy.scope, KvScope::kLayer);
  EXPECT_EQ(policy.budget.ratio, 0.25);
  EXPECT_EQ(policy.every, 64);
  EXPECT_EQ(policy.text, "snapkv(pool=max,window=16),adakv,every=64,keep=0.25");
  EXPECT_EQ(parse_kv_policy(policy.text).text, policy.text);
  EXPECT_THAT(error_of("{"), HasSubstr("no JSON object"));
  EXPECT_THAT(error_of(R"({"keep": 0.5})"), HasSubstr("no list \"parts\""));
  EXPECT_THAT(error_of(R"({"parts": [7], "keep": 0.5})"), HasSubstr("7 is no part"));
  EXPECT_THAT(error_of(R"({"parts": ["snapkv,adakv"], "keep": 0.5})"), HasSubstr("a part is \"snapkv,adakv\""));
  EXPECT_THAT(error_of(R"({"parts": ["snapkv"], "keep": [1]})"), HasSubstr("keep is [1]"));
  EXPECT_THAT(error_of(R"({"parts": ["snipkv"], "keep": 0.5})"), HasSubstr("'snipkv' is no part"));
}

TEST(KvPolicy, JsonHidesNothing) {
  EXPECT_THAT(error_of(R"({"parts": ["snapkv"], "keep": 0.9, "keep": 0.1})"), HasSubstr("\"keep\" is given twice"));
  EXPECT_THAT(error_of(R"({"parts": ["snapkv"], "parts": ["h2o"], "keep": 0.1})"),
              HasSubstr("\"parts\" is given twice"));
  EXPECT_THAT(error_of(R"({"parts": [{"part": "snapkv", "window": 16, "window": 4}], "keep": 0.5})"),
              HasSubstr("\"window\" is given twice"));
  EXPECT_THAT(error_of(R"({"parts": ["snapkv"], "recent": 3, "k=int4-hadamard,keep": 0.5})"),
              HasSubstr("\"k=int4-hadamard,keep\" is no name"));
  EXPECT_THAT(error_of(R"({"parts": ["snapkv"], "": 3})"), HasSubstr("\"\" is no name"));
  for (const size_t depth : {size_t{3}, size_t{60'000}}) {
    const std::string deep =
        fmt::format(R"({{"parts": [{}{}], "keep": 0.5}})", std::string(depth, '['), std::string(depth, ']'));
    EXPECT_THAT(error_of(deep), HasSubstr("lie more than 3 deep"));
  }
  // The same key in two parts is another key.
  EXPECT_EQ(parse_kv_policy(R"({"parts": [{"part": "snapkv"}, {"part": "adakv"}], "keep": 0.5})").scope,
            KvScope::kLayer);
}

TEST(KvPolicy, LazyLayersAndKindsOfHeadsNeedNoBudget) {
  const KvPolicy lazy = parse_kv_policy("simlayerkv(threshold=0.8,sinks=2,recent=50)");
  EXPECT_EQ(lazy.layers, KvLayerBudget::kLazy);
  EXPECT_EQ(lazy.lazy_threshold, 0.8);
  EXPECT_EQ(lazy.compression_points(100, 300), (Points{{100, 99}})) << "at least one entry goes where a layer is lazy";
  EXPECT_EQ(lazy.compression_points(52, 300), Points());
  EXPECT_EQ(parse_kv_policy("simlayerkv(sinks=2,recent=50),every=20").compression_points(100, 145),
            (Points{{100, 99}, {120, 118}, {140, 137}}))
      << "judged each time";
  const KvPolicy duo = parse_kv_policy("duoattention(heads=10/00/11,sinks=4,recent=16)");
  EXPECT_EQ(duo.head_kinds, (std::vector<std::string>{"10", "00", "11"}));
  EXPECT_EQ(duo.num_kept(100), 60) << "three of six heads keep 100, three keep 20";
  EXPECT_FALSE(duo.heads_keep_alike());
  EXPECT_EQ(parse_kv_policy("keydiff,layershares(shares=2/0.5*2),keep=0.5").layer_shares,
            (std::vector<double>{2.0, 0.5, 0.5}));
  EXPECT_THAT(error_of("layershares(shares=1/x),keep=0.5"), HasSubstr("shares must be a number from 0"));
  EXPECT_THAT(error_of("layershares(shares=1/-1),keep=0.5"), HasSubstr("not '-1'"));
  EXPECT_THAT(error_of("layershares(shares=0*3),keep=0.5"), HasSubstr("all layers have 0"));
  EXPECT_THAT(error_of("layershares(shares=1*x),keep=0.5"), HasSubstr("behind the * comes a number of layers"));
  EXPECT_THAT(error_of("layershares(shares=1),pyramidkv,keep=0.5"), HasSubstr("each decides how layers share"));
  EXPECT_THAT(error_of("layershares(shares=1),global,keep=0.5"), HasSubstr("have none of their own"));
  EXPECT_THAT(error_of("layershares(shares=1/2)"), HasSubstr("keep"));
  EXPECT_THAT(error_of("duoattention"), HasSubstr("heads is missing"));
  EXPECT_THAT(error_of("duoattention(heads=10/2)"), HasSubstr("'2' is no layer"));
  EXPECT_THAT(error_of("duoattention(heads=10//11)"), HasSubstr("'' is no layer"));
  EXPECT_THAT(error_of("duoattention(heads=10),keep=0.5"), HasSubstr("keep is given, but the policy decides"));
  EXPECT_THAT(error_of("duoattention(heads=10),adakv"), HasSubstr("duoattention and adakv cannot be combined"));
  EXPECT_THAT(error_of("simlayerkv,adakv"), HasSubstr("simlayerkv cannot be combined"));
  EXPECT_THAT(error_of("simlayerkv,shotkv"), HasSubstr("simlayerkv cannot be combined"));
  EXPECT_THAT(error_of("simlayerkv,chunkkv(chunk=1)"), HasSubstr("simlayerkv cannot be combined"));
  EXPECT_THAT(error_of("simlayerkv,snapkv"), HasSubstr("simlayerkv and snapkv cannot be combined"));
}

TEST(KvPolicy, AGuardWantsQueries) {
  EXPECT_EQ(parse_kv_policy("keynorm,keep=0.5").wants().num_query_tokens, 0);
  EXPECT_EQ(parse_kv_policy("keynorm,keep=0.5,guard=0.9").wants().num_query_tokens, 32);
  EXPECT_EQ(parse_kv_policy("snapkv(window=64),keep=0.5,guard=0.9").wants().num_query_tokens, 64);
}

TEST(KvPolicy, AQuestionMayBeJudgedChunkByChunk) {
  const KvPolicy policy = parse_kv_policy("finch(window=48,chunk=512),keep=0.25");
  EXPECT_EQ(policy.wants().num_query_tokens, 48);
  EXPECT_EQ(policy.num_recent, 48);
  EXPECT_EQ(policy.share_chunk, 512);
  EXPECT_EQ(parse_kv_policy("finch,keep=0.25").share_chunk, 0);
  EXPECT_EQ(error_of("finch,adakv,keep=0.5"), "none");
  EXPECT_EQ(error_of("finch,chunkkv,keep=0.5"), "none");
  EXPECT_EQ(error_of("finch(chunk=64),pyramidkv,keep=0.5"), "none");
  EXPECT_THAT(error_of("finch(window=5000),keep=0.5"), HasSubstr("window must be a whole number from 1 to 4096"));
  EXPECT_THAT(error_of("finch(chunk=64),adakv,keep=0.5"), HasSubstr("finch and adakv cannot be combined"));
  EXPECT_THAT(error_of("finch(chunk=64),global,keep=0.5"), HasSubstr("finch and global cannot be combined"));
  EXPECT_THAT(error_of("finch(chunk=64),chunkkv,keep=0.5"), HasSubstr("finch and chunkkv cannot be combined"));
}

TEST(KvPolicy, ExpectedAttentionWantsTheMomentsOfAllQueries) {
  const KvPolicy policy = parse_kv_policy("expectedattention(sinks=7),keep=0.25");
  EXPECT_TRUE(policy.wants().sees_all_tokens());
  EXPECT_EQ(policy.wants().num_query_tokens, 0);
  EXPECT_EQ(policy.wants().moments->order, QueryMoments::Order::kCovariance);
  EXPECT_EQ(policy.wants().moments->first_token, 7);
  EXPECT_EQ(policy.num_sinks, 7);
  EXPECT_EQ(parse_kv_policy("expectedattention(covariance=off),keep=0.25").wants().moments->order,
            QueryMoments::Order::kMean);
  EXPECT_THAT(error_of("expectedattention(future=0),keep=0.5"), HasSubstr("future must be a whole number from 1"));
  EXPECT_THAT(error_of("expectedattention(covariance=1),keep=0.5"), HasSubstr("covariance is one of on, off"));
  EXPECT_THAT(error_of("expectedattention(epsilon=-1),keep=0.5"), HasSubstr("epsilon must be a number from 0"));
  EXPECT_THAT(error_of("expectedattention,snapkv,keep=0.5"), HasSubstr("expectedattention and snapkv cannot be"));
}

TEST(KvPolicy, AttentionMayBeWeighedByWhatTheOutputProjectionMakesOfValues) {
  const KvPolicy policy = parse_kv_policy("criticalkv(first=0.25,epsilon=0.5,window=16),keep=0.25");
  EXPECT_TRUE(policy.wants().value_norms);
  EXPECT_EQ(policy.wants().num_query_tokens, 16);
  EXPECT_EQ(policy.second_stage->first_share, 0.25);
  EXPECT_EQ(policy.second_stage->epsilon, 0.5);
  EXPECT_FALSE(parse_kv_policy("snapkv,keep=0.25").wants().value_norms);
  for (const char* base : {"snapkv", "h2o", "finch", "expectedattention(values=off)", "adakv", "pyramidkv", "kvcompose",
                           "snapkv,global", "rocketkv"}) {
    EXPECT_EQ(error_of(std::string(base) + ",criticalkv,keep=0.5"), "none") << base;
  }
  for (const char* base : {"keydiff", "keynorm", "lagkv", "rkv", "streamingllm", "expectedattention"}) {
    EXPECT_THAT(error_of(std::string(base) + ",criticalkv,keep=0.5"),
                HasSubstr(std::string(base) + " and criticalkv cannot be combined: the score to be weighed"));
  }
  for (const char* base : {"tova", "chunkkv", "shotkv", "finch(chunk=50)"}) {
    EXPECT_THAT(error_of(std::string(base) + ",criticalkv,keep=0.5"),
                HasSubstr("criticalkv cannot be combined: entries that are judged twice"))
        << base;
  }
  EXPECT_THAT(error_of("simlayerkv,criticalkv"), HasSubstr("simlayerkv and criticalkv cannot be combined"));
  EXPECT_THAT(error_of("duoattention(heads=10),criticalkv"), HasSubstr("duoattention and criticalkv cannot be"));
  EXPECT_THAT(error_of("criticalkv,criticalkv,keep=0.5"), HasSubstr("criticalkv and criticalkv cannot be combined"));
  EXPECT_THAT(error_of("criticalkv(first=1.5),keep=0.5"), HasSubstr("first must be a number from 0 to 1"));
}

TEST(KvPolicy, APromptMayBeReadASecondTime) {
  const KvPolicy policy = parse_kv_policy("kvzip,keep=0.25");
  EXPECT_EQ(policy.wants().repetitions->chunk_tokens, 2048);
  EXPECT_EQ(policy.wants().repetitions->num_sinks, 4);
  EXPECT_FALSE(policy.wants().sees_all_tokens()) << "the prompt may come from the prefix cache";
  EXPECT_EQ(policy.num_sinks, 4);
  EXPECT_EQ(policy.scope, KvScope::kModel);
  EXPECT_EQ(policy.head_floor, 0.0);
  EXPECT_EQ(parse_kv_policy("kvzip(chunk=100,sinks=2),keep=0.25").wants().repetitions->chunk_tokens, 100);
  EXPECT_EQ(parse_kv_policy("kvzip(chunk=100,sinks=2),keep=0.25").wants().repetitions->num_sinks, 2);
  EXPECT_FALSE(parse_kv_policy("snapkv,keep=0.25").wants().repetitions);
  // Who decides how the budget is shared.
  EXPECT_EQ(parse_kv_policy("kvzip(heads=alike),keep=0.25").scope, KvScope::kHead);
  EXPECT_EQ(parse_kv_policy("kvzip,adakv,keep=0.25").scope, KvScope::kLayer);
  EXPECT_EQ(parse_kv_policy("adakv,kvzip,keep=0.25").scope, KvScope::kLayer);
  EXPECT_EQ(parse_kv_policy("kvzip,global(floor=0.1),keep=0.25").head_floor, 0.1);
  EXPECT_EQ(parse_kv_policy("kvzip,pyramidkv,keep=0.25").scope, KvScope::kHead);
  EXPECT_EQ(parse_kv_policy("kvzip,chunkkv,keep=0.25").scope, KvScope::kHead);
  EXPECT_EQ(parse_kv_policy("kvzip,criticalkv,keep=0.25").scope, KvScope::kModel);
  EXPECT_THAT(error_of("kvzip,keep=0.5,every=8"), HasSubstr("only the whole prompt is read a second time"));
  EXPECT_THAT(error_of("kvzip,keep=0.5,prefill_every=64"), HasSubstr("only the whole prompt is read a second time"));
  EXPECT_THAT(error_of("kvzip,generated_keep=0.5"), HasSubstr("only the whole prompt is read a second time"));
  EXPECT_THAT(error_of("kvzip,snapkv,keep=0.5"), HasSubstr("kvzip and snapkv cannot be combined"));
  EXPECT_THAT(error_of("kvzip(chunk=0),keep=0.5"), HasSubstr("chunk must be a whole number from 1"));
  EXPECT_THAT(error_of("kvzip(heads=all),keep=0.5"), HasSubstr("heads is one of compete, alike"));
}

TEST(KvPolicy, WhatIsWrongIsNamed) {
  EXPECT_THAT(error_of("snapkv,keep=0.5,guard=1.5"), HasSubstr("guard must be a number from 0 to 1"));
  EXPECT_THAT(error_of("shotkv,keep=0.5,every=8"), HasSubstr("generated_keep"));
  EXPECT_THAT(error_of("rkv,shotkv,keep=0.5"), HasSubstr("judged every 128 tokens"));
  EXPECT_THAT(error_of("chunkkv(reuse=2),pyramidkv,keep=0.5,every=8"), HasSubstr("reuse=2 cannot be combined"));
  EXPECT_THAT(error_of("chunkkv(heads=apart,reuse=2),global,keep=0.5,generated_keep=0.5"), HasSubstr("reuse=2 cannot"));
  EXPECT_EQ(error_of("chunkkv(reuse=2),pyramidkv,keep=0.5"), "none");
  EXPECT_EQ(error_of("chunkkv(heads=apart,reuse=2),adakv,keep=0.5,every=8"), "none");
  EXPECT_EQ(error_of("shotkv,keep=0.5,generated_keep=0.5"), "none");
  EXPECT_THAT(error_of("snapkv,generated_keep=0.5,generated_tokens=9"), HasSubstr("both generated_keep and generated"));
  EXPECT_THAT(error_of("snapkv,keep=0.5,every=0"), HasSubstr("every must be a whole number from 1"));
  EXPECT_THAT(error_of("snapkv"), HasSubstr("keep=0.2"));
  EXPECT_THAT(error_of("snapkv,keep=0.5,tokens=9"), HasSubstr("both keep and tokens"));
  EXPECT_THAT(error_of("snapkv,keep=0"), HasSubstr("keep must be a number from"));
  EXPECT_THAT(error_of("snapkv,keep=1.5"), HasSubstr("'1.5'"));
  EXPECT_THAT(error_of("snapkv,keep=half"), HasSubstr("'half'"));
  EXPECT_THAT(error_of("snapkv,keep=0.5,keep=0.5"), HasSubstr("keep is given twice"));
  EXPECT_THAT(error_of("snapkv,tokens=-4"), HasSubstr("'-4'"));
  EXPECT_THAT(error_of("snapkv,size=4,keep=0.5"), HasSubstr("size"));
  EXPECT_THAT(error_of("snipkv,keep=0.5"), HasSubstr("'snipkv' is no part"));
  EXPECT_THAT(error_of("snipkv,keep=0.5"), HasSubstr("snapkv"));
  EXPECT_THAT(error_of("snapkv(windows=4),keep=0.5"), HasSubstr("no argument windows; it has window, kernel, pool"));
  EXPECT_THAT(error_of("keynorm(a=4),keep=0.5"), HasSubstr("keynorm has no arguments"));
  EXPECT_THAT(error_of("snapkv(window=0),keep=0.5"), HasSubstr("window must be a whole number from 1"));
  EXPECT_THAT(error_of("snapkv(window=4x),keep=0.5"), HasSubstr("'4x'"));
  EXPECT_THAT(error_of("snapkv(kernel=4),keep=0.5"), HasSubstr("kernel must be odd"));
  EXPECT_THAT(error_of("snapkv(pool=min),keep=0.5"), HasSubstr("avg, max"));
  EXPECT_THAT(error_of("snapkv(window=4,window=5),keep=0.5"), HasSubstr("window is given twice"));
  EXPECT_THAT(error_of("snapkv(window),keep=0.5"), HasSubstr("name=value"));
  EXPECT_THAT(error_of("snapkv(window=4,keep=0.5"), HasSubstr("parentheses"));
  EXPECT_THAT(error_of("snapkv)window=4(,keep=0.5"), HasSubstr("parentheses"));
  EXPECT_THAT(error_of("snapkv(window=4)x,keep=0.5"), HasSubstr("follows the arguments"));
  EXPECT_THAT(error_of("snapkv,,keep=0.5"), HasSubstr("a part is empty"));
  EXPECT_THAT(error_of(""), HasSubstr("empty"));
  EXPECT_THAT(error_of("snapkv,keydiff,keep=0.5"), HasSubstr("snapkv and keydiff cannot be combined"));
  EXPECT_THAT(error_of("adakv,global,keep=0.5"), HasSubstr("adakv and global cannot be combined"));
  EXPECT_THAT(error_of("snapkv,global,pyramidkv,keep=0.5"), HasSubstr("global and pyramidkv cannot be combined"));
  EXPECT_THAT(error_of("chunkkv,adakv,keep=0.5"), HasSubstr("chunkkv and adakv cannot be combined"));
  EXPECT_THAT(error_of("kvcompose,adakv,keep=0.5"), HasSubstr("kvcompose and adakv cannot be combined"));
  EXPECT_THAT(error_of("kvcompose,pyramidkv,keep=0.5"), HasSubstr("kvcompose and pyramidkv cannot be combined"));
  EXPECT_EQ(error_of("chunkkv(heads=apart),adakv,keep=0.5"), "none");
}

TEST(KvPolicy, EntriesThatAreSetAsideComeBackWhereTheyAreJudgedAgain) {
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.5,every=64").aside, std::nullopt);
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.5,every=64,action=evict").aside, std::nullopt);
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.5,every=64,action=hide").aside, KvAside::kBlocks);
  EXPECT_EQ(parse_kv_policy("snapkv,keep=0.5,prefill_every=64,action=offload").aside, KvAside::kFile);
  EXPECT_EQ(parse_kv_policy("rkv,keep=0.5,action=offload").aside, KvAside::kFile) << "it says itself when it judges";
  EXPECT_EQ(parse_kv_policy("simlayerkv,every=8,action=hide").aside, KvAside::kBlocks);
  for (const auto& [policy, part] : std::initializer_list<std::pair<const char*, const char*>>{
           {"auto,keep=0.5", "auto"},
           {"snapkv,keep=0.5,when=pressure", "when=pressure"},
           {"snapkv,generated_tokens=64", "a budget for generated tokens alone"},
           {"snapkv,merge,keep=0.5,every=8", "merging"},
           {"snapkv,cam,keep=0.5,every=8", "merging"},
           {"snapkv,keep=0.5,every=8,k=int8-hadamard", "making older entries smaller"},
           {"snapkv,think,keep=0.5,every=8", "making older entries smaller"},
           {"snapkv,keep=0.5,every=8,guard=0.9", "guard"},
           {"h2o,keep=0.5,every=8", "h2o"},
           {"kvzip,keep=0.5", "kvzip"},
           {"shotkv,keep=0.5", "shotkv"}}) {
    for (const char* action : {"action=hide", "action=offload"}) {
      EXPECT_THAT(error_of(fmt::format("{},{}", policy, action)),
                  AllOf(testing::StartsWith(part), HasSubstr(fmt::format("cannot be combined with {}", action))));
    }
  }
  EXPECT_THAT(error_of("snapkv,keep=0.5,action=hide"),
              HasSubstr("action=hide: what is set aside comes back where entries are judged again; say when"));
  EXPECT_THAT(error_of("snapkv,keep=0.5,every=8,action=sell"),
              HasSubstr("one of evict, demote, hide, offload, not 'sell'"));
  EXPECT_THAT(error_of("k=int8-hadamard,action=hide"), HasSubstr("no part says which entries stay"));
}

TEST(KvPolicy, WhatDoesNotStayMayBeRoundedInsteadOfLost) {
  const KvPolicy policy = parse_kv_policy("adakv,keep=0.4,action=demote,k=int8-hadamard,v=int4");
  EXPECT_TRUE(policy.demotes_others);
  EXPECT_EQ(policy.demotion->codecs, std::vector{KvCodec::kHadamard8Value4});
  EXPECT_EQ(policy.compression_points(100, 300), (Points{{.num_tokens = 100, .num_kept = 40}})) << "and none for age";
  EXPECT_EQ(policy.num_entries(100, 300), 300);
  EXPECT_TRUE(parse_kv_policy("simlayerkv,think,action=demote").demotes_others);
  EXPECT_TRUE(parse_kv_policy("kvzip,tokens=9,guard=0.5,kivi,action=demote").demotes_others);
  for (const auto& [policy_text, part] : std::initializer_list<std::pair<const char*, const char*>>{
           {"auto,keep=0.5", "auto"},
           {"snapkv,keep=0.5,kivi,when=pressure", "making older entries smaller"},
           {"snapkv,generated_tokens=64,kivi", "judging entries again and again"},
           {"snapkv,keep=0.5,every=8,kivi", "judging entries again and again"},
           {"snapkv,keep=0.5,prefill_every=64,kivi", "judging entries again and again"},
           {"rkv,keep=0.5,kivi", "judging entries again and again"},
           {"snapkv,merge,keep=0.5,kivi", "merging"},
           {"snapkv,cam,keep=0.5,kivi", "merging"},
           {"rocketkv,keep=0.5,kivi", "reading by pages"},
           {"snapkv,quest,keep=0.5,kivi", "reading by pages"}}) {
    EXPECT_THAT(error_of(fmt::format("{},action=demote", policy_text)),
                AllOf(testing::StartsWith(part), HasSubstr("cannot be combined with")));
  }
  EXPECT_THAT(error_of("snapkv,keep=0.5,action=demote"), HasSubstr("say what becomes of them, by k=int4-hadamard"));
  EXPECT_THAT(error_of("kivi,action=demote"), HasSubstr("no part says which entries stay"));
  for (const char* residual : {"kivi(residual=8)", "k=int8-hadamard,residual=8", "think(residual=8)"}) {
    EXPECT_THAT(error_of(fmt::format("snapkv,keep=0.5,action=demote,{}", residual)),
                HasSubstr("action=demote cannot be combined: each decides how many recent entries stay as they are"));
  }
}

// All entries are there again each time, so that a text within its budget of tokens so far may lose some later.
TEST(KvPolicy, WhatLiesAsideHasRoomUntilEntriesAreJudgedNext) {
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=40,every=8,action=hide").compression_points(100, 120),
            (Points{{.num_tokens = 100, .num_kept = 40, .num_aside = 108},
                    {.num_tokens = 108, .num_kept = 40, .num_aside = 116},
                    {.num_tokens = 116, .num_kept = 40}}));
  EXPECT_EQ(parse_kv_policy("snapkv,tokens=40,every=8").compression_points(100, 120),
            (Points{{.num_tokens = 100, .num_kept = 40},
                    {.num_tokens = 108, .num_kept = 40},
                    {.num_tokens = 116, .num_kept = 40}}));
}

}  // namespace
}  // namespace witan
