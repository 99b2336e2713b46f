// KV policies that read the prompt a second time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "kv_policy_test_support.h"

namespace witan {
namespace {

using test::Answer;
using test::arch_name;
using test::ask;
using test::expect_the_same_answer_everywhere;
using test::kModels;
using test::kPrompt;
using test::KvModelTest;
using test::prompt_tokens;
using test::request_for;
using test::run_all;
using test::small_options;

RepetitionWords repetition_words(const Tokenizer& tokenizer) {
  const auto encode = [&](const char* text) { return tokenizer.encode(text, AddSpecial::kNo, ParseSpecial::kNo); };
  return {.first = encode("\n\nRepeat the previous context exactly."),
          .next = encode("\n\nRepeat the part of the previous context exactly, starting with")};
}

// Policies that read the prompt a second time.
class KvRepetitionTest : public KvModelTest {};

TEST_P(KvRepetitionTest, TheAnswerDoesNotDependOnChunksThreadsBatchOrCache) {
  for (const char* policy :
       {"kvzip(chunk=40),keep=0.3", "kvzip(chunk=61,sinks=0,heads=alike),criticalkv(window=8),keep=0.5",
        "kvzip(chunk=7),adakv,tokens=40", "kvzip(chunk=64),quest(tokens=64,dense=0),keep=0.8"}) {
    expect_the_same_answer_everywhere(options(), policy);
  }
}

TEST_P(KvRepetitionTest, PreemptionDoesNotChangeAnything) {
  ModelOptions o = options();
  o.prefix_cache = false;
  o.max_step_tokens = 40;
  o.max_decode_slowdown = 0;  // who is preempted does not depend on times
  const auto run = [](Engine& engine) {
    std::vector<decltype(Answer::steps)> steps(4);
    for (int32_t i = 0; i < 4; ++i) {
      engine.submit(request_for(prompt_tokens(60 + 10 * i, i), i == 1 ? "" : "kvzip(chunk=30),keep=0.6", 240),
                    [&steps, i](const GenerationOutput& output) {
                      EXPECT_EQ(output.error, "");
                      if (!output.token) return;
                      Answer answer;
                      answer.take(output);
                      steps[static_cast<size_t>(i)].push_back(answer.steps[0]);
                    });
    }
    run_all(engine);
    return steps;
  };
  Engine calm(o);
  const auto expected = run(calm);
  EXPECT_EQ(calm.stats().scheduler.num_preemptions, 0);
  int64_t num_preemptions = 0;
  for (const int64_t percent : {75, 60, 50}) {
    ModelOptions tight = o;
    tight.prefix_cache = percent == 50;
    tight.kv_capacity_bytes = calm.stats().kv.peak_block_bytes_held * percent / 100;
    Engine engine(tight);
    EXPECT_EQ(run(engine), expected) << percent << " % of the room";
    EXPECT_LE(engine.stats().kv.peak_block_bytes_held, tight.kv_capacity_bytes);
    EXPECT_EQ(engine.stats().kv.block_bytes_held, engine.stats().kv.block_bytes_cached);
    num_preemptions += engine.stats().scheduler.num_preemptions;
  }
  EXPECT_GT(num_preemptions, 0);
}

// What a dense pass over the prompt and one of its repetitions gives, the weights of its last tokens taken among the
// first entries, those of the chunk and the repetition's own: the entries with the largest are kept, and the answer
// goes on from them.
TEST_P(KvRepetitionTest, ScoresAreThoseOfADensePassOverThePromptAndItsRepetition) {
  constexpr int32_t kChunk = 64;
  constexpr int32_t kSinks = 4;
  const KvPolicy policy = parse_kv_policy("kvzip(chunk=64),keep=0.4");
  const std::vector<TokenId> prompt = prompt_tokens(kPrompt, 5);
  LoadedModel model(options());
  const std::vector<KvLayerSpec>& layers = model.info().kv_layers;
  const auto compute = [&](SequenceId sequence, std::span<const TokenId> tokens, const KvEvidence* evidence) {
    const int32_t first = model.kv().num_tokens(sequence);
    ForwardBatch batch;
    batch.slices.push_back({.kv_sequence = sequence,
                            .num_tokens = static_cast<int32_t>(tokens.size()),
                            .first_token = first,
                            .evidence = evidence});
    for (const TokenId token : tokens) {
      batch.positions.push_back(first + static_cast<int32_t>(batch.tokens.size()));
      batch.tokens.push_back(token);
      batch.roles.push_back(first < kPrompt ? TokenRole::kPrompt : TokenRole::kGenerated);
    }
    batch.logit_rows = {static_cast<int32_t>(tokens.size()) - 1};
    EXPECT_TRUE(model.kv().reserve(sequence, static_cast<int32_t>(tokens.size())));
    const std::span<const float> logits = model.forward(batch);
    model.kv().commit(sequence, batch.tokens, batch.roles);
    return std::vector<float>(logits.begin(), logits.end());
  };
  KvEvidence scores;
  scores.repetition = model.make_repetition_attention(kPrompt, *policy.wants().repetitions);
  for (const Repetition& repetition : repetitions_of(prompt, kChunk, repetition_words(*model.tokenizer()))) {
    std::vector<TokenId> text = prompt;
    text.insert(text.end(), repetition.tokens.begin(), repetition.tokens.end());
    const auto num_tokens = static_cast<int32_t>(text.size());
    KvEvidence seen;
    seen.window = model.make_query_window(kPrompt, num_tokens - kPrompt);
    const SequenceId sequence = model.kv().create();
    compute(sequence, text, &seen);
    for (int32_t layer = 0; layer < std::ssize(layers); ++layer) {
      const KvLayerSpec& spec = layers[static_cast<size_t>(layer)];
      if (spec.window > 0) continue;
      const int32_t group = model.info().num_heads / spec.num_kv_heads;
      const QueryWindow::Scoring& scoring = seen.window->scoring(layer);
      for (int32_t head = 0; head < model.info().num_heads; ++head) {
        const KvView view = model.kv().view(sequence, layer, head / group, num_tokens);
        for (int32_t token = kPrompt; token < num_tokens; ++token) {
          const float* query = seen.window->queries(layer, token) + int64_t{head} * spec.key_dim;
          std::vector<double> weights(kPrompt);
          double total = scoring.sinks == nullptr ? 0.0 : std::exp(static_cast<double>(scoring.sinks[head]));
          for (int32_t i = 0; i <= token; ++i) {
            const bool in_chunk = i >= repetition.chunk.begin && i < repetition.chunk.end;
            if (i >= kSinks && !in_chunk && i < kPrompt) continue;
            std::vector<float> key(static_cast<size_t>(spec.key_dim));
            std::vector<float> value(static_cast<size_t>(spec.value_dim));
            kv_load(view.format, view.blocks[i / kKvBlockSize], i % kKvBlockSize, key.data(),
                    spec.value_in_key ? nullptr : value.data());
            const double weight =
                std::exp(static_cast<double>(scoring.scale) * std::inner_product(key.begin(), key.end(), query, 0.0));
            total += weight;
            if (in_chunk) weights[static_cast<size_t>(i)] = weight;
          }
          float* of_head = scores.repetition->of(layer, head / group);
          for (int32_t i = repetition.chunk.begin; i < repetition.chunk.end; ++i) {
            of_head[i] = std::max(of_head[i], static_cast<float>(weights[static_cast<size_t>(i)] / total));
          }
        }
      }
    }
    model.kv().release(sequence);
  }
  const SequenceId sequence = model.kv().create();
  compute(sequence, prompt, nullptr);
  const KvChoice choice = model.choose_kept(sequence, {.num_prompt_tokens = kPrompt}, policy, &scores);
  ASSERT_TRUE(model.kv().keep(sequence, choice.kept));

  ModelOptions o = options();
  o.max_step_tokens = 50;  // less than a repetition
  Engine engine(o);
  GenerationRequest request = request_for(prompt, "");
  request.kv_policy = policy;
  const Answer answer = ask(engine, request);
  ASSERT_NE(answer.usage.kv, nullptr);
  std::vector<std::vector<int32_t>> num_kept;
  size_t table = 0;
  for (const KvLayerSpec& spec : layers) {
    if (spec.window == 0) num_kept.emplace_back();
    for (int32_t head = 0; head < spec.num_kv_heads; ++head, ++table) {
      if (spec.window == 0) num_kept.back().push_back(static_cast<int32_t>(choice.kept[table].size()));
    }
  }
  EXPECT_EQ(answer.usage.kv->kept, num_kept);
  for (size_t i = 0; i + 1 < answer.steps.size(); ++i) {
    const std::vector<float> logits = compute(sequence, std::span(&answer.steps[i].first, 1), nullptr);
    EXPECT_EQ(std::ranges::max_element(logits) - logits.begin(), answer.steps[i + 1].first) << i;
    const double best = static_cast<double>(std::ranges::max(logits));
    double total = 0.0;
    for (const float logit : logits) total += std::exp(static_cast<double>(logit) - best);
    EXPECT_NEAR(std::bit_cast<float>(answer.steps[i + 1].second[0]), -std::log(total), 1e-5) << i;
  }
}

TEST_P(KvRepetitionTest, OthersGoOnWhileAPromptIsRepeated) {
  ModelOptions o = options();
  o.max_mixed_prompt_tokens = 10;
  o.with_tokenizer = false;
  o.max_decode_slowdown = 0;  // as many tokens of prompts in every step
  Engine engine(o);
  int32_t num_beside = 0;
  engine.submit(request_for(prompt_tokens(10, 1), "", 200), [&](const GenerationOutput&) { ++num_beside; });
  engine.step();
  std::vector<int32_t> beside;  // what the other had when each token came
  engine.submit(request_for(prompt_tokens(60, 2), "kvzip,keep=0.5", 3),
                [&](const GenerationOutput&) { beside.push_back(num_beside); });
  run_all(engine);
  ASSERT_EQ(beside.size(), 3u);
  EXPECT_EQ(beside[1] - beside[0], 7) << "6 chunks of its repetition, and its next token";
  EXPECT_EQ(beside[2] - beside[1], 1);
  EXPECT_EQ(engine.stats().prompt_tokens, 10 + 60 + 60);
}

INSTANTIATE_TEST_SUITE_P(All, KvRepetitionTest, testing::ValuesIn(kModels), arch_name);

TEST(KvRepetitionEngine, APromptIsRepeatedOnlyWhereSomethingIsDropped) {
  ModelOptions o = small_options();
  o.with_tokenizer = false;  // no words
  o.prefix_cache = false;
  Engine engine(o);
  const auto num_computed = [&](const char* policy, int32_t num_new) {
    const int64_t before = engine.stats().prompt_tokens;
    ask(engine, request_for(prompt_tokens(100, 1), policy, num_new));
    return engine.stats().prompt_tokens - before;
  };
  EXPECT_EQ(num_computed("kvzip(chunk=40),keep=0.5", 5), 100 + 40 + 48 + 28);
  EXPECT_EQ(num_computed("kvzip(chunk=40),keep=1", 5), 100);
  EXPECT_EQ(num_computed("kvzip(chunk=40),tokens=100", 5), 100);
  EXPECT_EQ(num_computed("kvzip(chunk=40),keep=0.5", 1), 100) << "the answer is there";
}

TEST(KvRepetitionEngine, APromptAndItsRepetitionHaveToFitIntoTheContext) {
  ModelOptions o = small_options();
  o.with_tokenizer = false;
  o.context_length = 300;
  Engine engine(o);
  ask(engine, request_for(prompt_tokens(150, 1), "kvzip,keep=0.5"));
  try {
    engine.submit(request_for(prompt_tokens(151, 1), "kvzip,keep=0.5"), {});
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(error.what(), testing::HasSubstr("its 151 tokens and 151 that repeat a chunk do not fit into the "
                                                 "context of 300 tokens; smaller chunks, of less than 151 tokens"));
  }
  ask(engine, request_for(prompt_tokens(151, 1), "kvzip(chunk=100),keep=0.5"));
}

TEST(KvRepetitionEngine, CancellingWhileAPromptIsRepeatedFreesEverything) {
  ModelOptions o = small_options();
  o.max_step_tokens = 60;
  Engine engine(o);
  Answer answer;
  const RequestId id = engine.submit(request_for(prompt_tokens(100, 2), "kvzip,keep=0.2", 50),
                                     [&](const GenerationOutput& output) { answer.take(output); });
  for (int i = 0; i < 3; ++i) engine.step();
  EXPECT_EQ(engine.stats().prompt_tokens, 160) << "60 of its 100 are repeated";
  engine.cancel(id);
  run_all(engine);
  EXPECT_EQ(answer.steps.size(), 1u);
  EXPECT_EQ(engine.stats().kv.block_bytes_held, engine.stats().kv.block_bytes_cached);
}

// As many as the tokenizer makes of them.
TEST(KvRepetitionEngine, WordsAskForEachRepetition) {
  ModelOptions o = small_options();
  o.prefix_cache = false;
  Engine engine(o);
  ask(engine, request_for(prompt_tokens(50, 1), "kvzip(chunk=20),keep=0.5", 3));
  const RepetitionWords words = repetition_words(*engine.tokenizer());
  EXPECT_GT(words.first.size(), 1u);
  EXPECT_NE(words.first, words.next);
  EXPECT_EQ(engine.stats().prompt_tokens, std::ssize(words.first) + 20 + 2 * std::ssize(words.next) + 28 + 18 + 50);
}

}  // namespace
}  // namespace witan
