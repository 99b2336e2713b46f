// Query heads that share a kv head (grouped-query attention) are judged for as the same heads with a kv head each
// (multi-head attention), which are copies of the shared one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kv/policy/kv_compression.h"
#include "memory/memory_pool.h"
#include "models/kv_observation.h"
#include "support/packed.h"

namespace witan {
namespace {

constexpr int32_t kLayers = 2;
constexpr int32_t kDim = 16;
constexpr int32_t kTokens = 300;
constexpr int32_t kRepeated = 60;  // tokens that repeat a chunk of the others
constexpr KvSpan kChunk{.begin = 0, .end = kTokens};
constexpr int32_t kSinks = 4;
constexpr float kScale = 0.5f;

// Which of the text's keys and queries each head has.
struct Heads {
  std::vector<int32_t> keys;
  std::vector<int32_t> queries;

  int32_t num_kv_heads() const { return static_cast<int32_t>(keys.size()); }
  int32_t num_heads() const { return static_cast<int32_t>(queries.size()); }
};

// A text in a cache, with all that policies want to know of it as the layers of a model collect it.
class Text {
 public:
  explicit Text(const Heads& heads) : heads_(heads) {
    evidence_.window = std::make_unique<QueryWindow>(pool_, kLayers, heads.num_heads(), kDim, kTokens - 32, 32);
    evidence_.mass = std::make_unique<AttentionMass>(pool_, layers_, kTokens);
    evidence_.moments =
        std::make_unique<QueryMoments>(pool_, layers_, heads.num_heads(), QueryMoments::Order::kCovariance, kSinks);
    compute({.kv_sequence = sequence_, .num_tokens = kTokens, .evidence = &evidence_});
    KvEvidence repeated;
    repeated.repetition = std::make_unique<RepetitionAttention>(pool_, layers_, kTokens, kSinks);
    compute({.kv_sequence = sequence_,
             .num_tokens = kRepeated,
             .first_token = kTokens,
             .evidence = &repeated,
             .repeated_chunk = kChunk});
    EXPECT_TRUE(kv_.reserve(sequence_, 0));
    evidence_.repetition = std::move(repeated.repetition);
    evidence_.value_norms = std::make_unique<ValueNorms>(pool_, layers_, kTokens);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t head = 0; head < heads.num_kv_heads(); ++head) {
        const std::vector<float> norms = floats(layer, 2, heads.keys[static_cast<size_t>(head)]);
        std::ranges::transform(norms.begin(), norms.begin() + kTokens, evidence_.value_norms->of(layer, head),
                               [](float x) { return x * x; });
        evidence_.value_norms->set_num_known(layer, head, kTokens);
      }
    }
  }

  // Entries that stay, by table.
  std::vector<std::vector<int32_t>> kept(const std::string& policy) {
    ComputeContext ctx = compute_context();
    const KvPolicy parsed = parse_kv_policy(policy);
    KvText text{.num_prompt_tokens = kTokens};
    if (!parsed.span_separator.empty()) text.span_starts = {0, 20, 33, 90, 150, 151, 222, 290};
    return choose_kept(ctx, kv_, sequence_, text, parsed, &evidence_).kept;
  }

  // What a policy's score makes of a head's entries.
  std::vector<float> scores(const std::string& policy, int32_t layer, int32_t head) {
    const std::shared_ptr<const KvScorer> scorer = parse_kv_policy(policy).scorer;
    const int32_t group = heads_.num_heads() / heads_.num_kv_heads();
    std::vector<const float*> rows;
    std::vector<int32_t> positions;
    for (int32_t token = kTokens - 32; token < kTokens; ++token) {
      for (int32_t g = 0; g < group; ++g) {
        rows.push_back(evidence_.window->queries(layer, token) + int64_t{head * group + g} * kDim);
        positions.push_back(token);
      }
    }
    const HeadEvidence all{.view = kv_.view(sequence_, layer, head, kTokens),
                           .queries = {.queries = rows.data(),
                                       .positions = positions.data(),
                                       .num_rows = static_cast<int32_t>(std::ssize(rows)),
                                       .scale = kScale},
                           .group = group,
                           .mass = evidence_.mass->of(layer, head),
                           .repetition = evidence_.repetition->of(layer, head),
                           .moments = evidence_.moments.get(),
                           .layer = layer,
                           .first_query_head = head * group};
    const HeadEvidence evidence = all.with_last_queries(scorer->wants().num_query_tokens);
    const ScratchScope scope(scratch_);
    std::vector<float> scores(kTokens);
    scorer->score(evidence, scores, scratch_.allocate<float>(scorer->scratch_floats(evidence)));
    return scores;
  }

 private:
  // Of the keys or queries (`what`) number `which` of a layer: [tokens, kDim].
  static std::vector<float> floats(int32_t layer, uint32_t what, int32_t which) {
    return test::random_floats(int64_t{kTokens + kRepeated} * kDim,
                               1000 * what + 100 * static_cast<uint32_t>(layer) + static_cast<uint32_t>(which));
  }

  // [num_tokens, heads, kDim] from first_token on.
  static std::vector<float> rows(int32_t layer, uint32_t what, const std::vector<int32_t>& heads, int32_t first_token,
                                 int32_t num_tokens) {
    std::vector<float> all(heads.size() * static_cast<size_t>(num_tokens * kDim));
    for (size_t head = 0; head < heads.size(); ++head) {
      const std::vector<float> of_head = floats(layer, what, heads[head]);
      for (int32_t i = 0; i < num_tokens; ++i) {
        std::copy_n(of_head.begin() + int64_t{first_token + i} * kDim, kDim,
                    all.begin() + (i * std::ssize(heads) + static_cast<int64_t>(head)) * kDim);
      }
    }
    return all;
  }

  ComputeContext compute_context() {
    return {.threads = threads_, .scratch = scratch_, .isa = Isa::kReference, .precision = Precision::kExact};
  }

  void compute(const SequenceSlice& slice) {
    ASSERT_TRUE(kv_.reserve(sequence_, slice.num_tokens));
    ForwardBatch batch;
    batch.slices.push_back(slice);
    for (int32_t i = 0; i < slice.num_tokens; ++i) {
      batch.tokens.push_back(i);
      batch.positions.push_back(slice.first_token + i);
      batch.roles.push_back(TokenRole::kPrompt);
    }
    ForwardContext ctx{.compute = compute_context(), .kv = kv_, .telemetry = telemetry_};
    const AttentionSpec spec{.num_heads = heads_.num_heads(),
                             .num_kv_heads = heads_.num_kv_heads(),
                             .key_dim = kDim,
                             .value_dim = kDim,
                             .scale = kScale};
    const RopeAngles angles{
        .table = rope_, .layout = rope_.layout(), .dim = rope_.dim(), .cos = nullptr, .sin = nullptr};
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      const std::vector<float> keys = rows(layer, 0, heads_.keys, slice.first_token, slice.num_tokens);
      const std::vector<float> queries = rows(layer, 1, heads_.queries, slice.first_token, slice.num_tokens);
      write_kv(ctx, batch, layer, spec, keys.data(), keys.data());
      observe_unrotated_queries(ctx, batch, layer, spec, angles, 0, queries.data());
      observe_queries(ctx, batch, layer, spec, queries.data());
    }
    if (slice.repeated_chunk.empty()) kv_.commit(sequence_, batch.tokens, batch.roles);
  }

  Heads heads_;
  MemoryPool pool_{size_t{64} << 20};
  std::vector<KvLayerSpec> layers_{kLayers,
                                   {.num_kv_heads = heads_.num_kv_heads(), .key_dim = kDim, .value_dim = kDim}};
  KvCache kv_{pool_,
              {.layers = layers_, .codec = KvCodec::kF32, .capacity_bytes = size_t{8} << 20, .prefix_cache = false}};
  SequenceId sequence_ = kv_.create();
  KvEvidence evidence_;
  ThreadPool threads_{2};
  Scratch scratch_{pool_};
  RouterTelemetry telemetry_{0, 0, 0};
  RopeTable rope_{{.layout = RopeLayout::kPairs, .dim = kDim, .theta = 100.0}};
};

std::vector<std::string> methods() {
  std::vector<std::string> names;
  for (const KvPolicyPart& part : kv_policy_parts()) {
    if (part.is_method && part.name != "auto") names.emplace_back(part.name);  // auto chooses among the others
  }
  return names;
}

// Each kv head's entries, twice.
std::vector<std::vector<int32_t>> twice(const std::vector<std::vector<int32_t>>& kept) {
  std::vector<std::vector<int32_t>> copies;
  for (const std::vector<int32_t>& of_head : kept) copies.insert(copies.end(), 2, of_head);
  return copies;
}

// Whatever a method makes of several heads: of query heads that ask the same it is what it makes of one.
TEST(KvGroupedHeads, ThatAskTheSameKeepWhatOneHeadKeeps) {
  Text one({.keys = {0, 1}, .queries = {0, 1}});
  Text grouped({.keys = {0, 1}, .queries = {0, 0, 1, 1}});
  Text copied({.keys = {0, 0, 1, 1}, .queries = {0, 0, 1, 1}});
  std::vector<std::string> policies = methods();
  policies.insert(policies.end(), {"keydiff,global", "snapkv,global(floor=0.3)", "layershares(shares=3/1)",
                                   "snapkv(pool=max)", "chunkkv(heads=apart)", "h2o,criticalkv"});
  for (const std::string& policy : policies) {
    SCOPED_TRACE(policy);
    const auto expected = one.kept(policy + ",keep=0.4");
    EXPECT_NE(expected[0].size(), kTokens) << "something is dropped";
    EXPECT_EQ(grouped.kept(policy + ",keep=0.4"), expected);
    EXPECT_EQ(copied.kept(policy + ",keep=0.4"), twice(expected));
  }
}

// Methods that look at no queries, or whose heads keep the same, choose alike for heads that ask for different things.
TEST(KvGroupedHeads, KeepWhatTheirCopiesKeepWhereQueriesDoNotTellThemApart) {
  Text grouped({.keys = {0, 1}, .queries = {0, 1, 2, 3}});
  Text copied({.keys = {0, 0, 1, 1}, .queries = {0, 1, 2, 3}});
  for (const char* policy : {"streamingllm,keep=0.4", "keynorm,keep=0.4", "keydiff,keep=0.4", "lagkv(lag=32),keep=0.4",
                             "keydiff,adakv,keep=0.4", "keydiff,global,keep=0.4", "tova,keep=0.4", "chunkkv,keep=0.4",
                             "shotkv,keep=0.4", "h2o,chunkkv,keep=0.4"}) {
    EXPECT_EQ(copied.kept(policy), twice(grouped.kept(policy))) << policy;
  }
  EXPECT_NE(copied.kept("snapkv,keep=0.4"), twice(grouped.kept("snapkv,keep=0.4"))) << "each copy for itself";
}

// The score of a shared entry is what the scores of its copies are together.
TEST(KvGroupedHeads, ScoreWhatTheirCopiesDoTogether) {
  Text grouped({.keys = {0, 1}, .queries = {0, 1, 2, 3}});
  Text copied({.keys = {0, 0, 1, 1}, .queries = {0, 1, 2, 3}});
  const auto mean = [](float a, float b) { return (a + b) / 2.0f; };
  const auto sum = [](float a, float b) { return a + b; };
  const auto largest = [](float a, float b) { return std::max(a, b); };
  struct Case {
    const char* policy;
    std::function<float(float, float)> together;
  };
  for (const Case& c :
       {Case{"snapkv,keep=0.4", mean}, Case{"snapkv(pool=max,window=9),keep=0.4", mean}, Case{"finch,keep=0.4", mean},
        Case{"tova,keep=0.4", mean}, Case{"simlayerkv", mean}, Case{"expectedattention,keep=0.4", mean},
        Case{"h2o,keep=0.4", sum}, Case{"kvzip,keep=0.4", largest}, Case{"keydiff,keep=0.4", mean}}) {
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t head = 0; head < 2; ++head) {
        const std::vector<float> shared = grouped.scores(c.policy, layer, head);
        const std::vector<float> first = copied.scores(c.policy, layer, 2 * head);
        const std::vector<float> second = copied.scores(c.policy, layer, 2 * head + 1);
        float most = 0.0f;
        for (size_t i = kSinks; i < kTokens; ++i) {  // those are protected, whatever their score
          const float expected = c.together(first[i], second[i]);
          EXPECT_NEAR(shared[i], expected, 1e-5f * std::abs(expected)) << c.policy << " " << layer << " " << head;
          most = std::max(most, std::abs(expected));
        }
        EXPECT_GT(most, 0.0f) << c.policy;
      }
    }
  }
}

}  // namespace
}  // namespace witan
