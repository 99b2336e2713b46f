#include "engine/engine.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <future>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "base/error.h"
#include "support/goldens.h"
#include "support/made_model.h"

namespace witan {
namespace {

using testing::HasSubstr;

ModelOptions tiny_options() {
  return {.path = test::made_model("qwen3moe", "tiny", DType::kQ8_0),
          .num_threads = 2,
          .memory_bytes = int64_t{512} << 20,
          .context_length = 256};
}

GenerationRequest request_of(std::vector<TokenId> prompt, int32_t max_new_tokens = 8) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = max_new_tokens;
  request.ignore_end_tokens = true;
  return request;
}

// Everything a request delivered, by choice.
struct Received {
  std::map<int32_t, std::vector<TokenId>> tokens;
  std::map<int32_t, std::string> text;
  std::map<int32_t, GenerationOutput> last;
  OutputCallback callback() {
    return [this](const GenerationOutput& output) {
      EXPECT_FALSE(last.contains(output.choice)) << "an output after the last";
      if (output.token) tokens[output.choice].push_back(output.token->token);
      text[output.choice] += output.text;
      if (output.finish) last[output.choice] = output;
    };
  }
};

void run_all(Engine& engine) {
  while (engine.step()) {
  }
}

template <typename F>
void expect_error(F&& call, ErrorCode code, const std::string& part) {
  try {
    call();
    FAIL() << "no error, expected one with \"" << part << "\"";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_THAT(error.what(), HasSubstr(part));
  }
}

TEST(EngineTest, RequestsThatCannotBeServedAreRefusedAndNothingElseIsAffected) {
  Engine engine(tiny_options());
  Received good;
  engine.submit(request_of({5, 6, 7}), good.callback());
  const auto refuse = [&](GenerationRequest request, ErrorCode code, const std::string& part) {
    expect_error([&] { engine.submit(std::move(request), {}); }, code, part);
  };
  refuse(request_of({}), ErrorCode::kInvalidArgument, "the prompt has no tokens");
  refuse(request_of({5, -1}), ErrorCode::kInvalidArgument, "token 1 is -1");
  refuse(request_of({512}), ErrorCode::kInvalidArgument, "token 0 is 512");
  refuse(request_of(std::vector<TokenId>(256, 5)), ErrorCode::kInvalidArgument, "256");
  refuse(request_of({5}, 0), ErrorCode::kInvalidArgument, "0");
  refuse(request_of({5}, -3), ErrorCode::kInvalidArgument, "-3");
  GenerationRequest request = request_of({5});
  request.sampling.temperature = std::numeric_limits<float>::quiet_NaN();
  refuse(request, ErrorCode::kInvalidArgument, "temperature");
  request = request_of({5});
  request.stop_strings = {""};
  refuse(request, ErrorCode::kInvalidArgument, "stop string");
  request = request_of({5});
  request.num_choices = 0;
  refuse(request, ErrorCode::kInvalidArgument, "choices");
  run_all(engine);
  EXPECT_EQ(good.tokens[0].size(), 8u);
}

TEST(EngineTest, ARequestThatCouldNeverFitIsRefusedWithTheNumbers) {
  ModelOptions options = tiny_options();
  Engine roomy(options);
  roomy.submit(request_of({5}, 1), {});
  run_all(roomy);
  options.kv_capacity_bytes = roomy.stats().kv.peak_block_bytes_held * 2;  // 64 tokens
  Engine engine(options);
  expect_error([&] { engine.submit(request_of(std::vector<TokenId>(100, 5)), {}); }, ErrorCode::kOutOfMemory, "bytes");
  Received fits;
  engine.submit(request_of(std::vector<TokenId>(40, 5), 8), fits.callback());
  run_all(engine);
  EXPECT_EQ(fits.tokens[0].size(), 8u);
}

TEST(EngineTest, IdsThatTheTokenizerDoesNotNameAreNeverSampled) {
  WITAN_GOLDEN_OR_SKIP(golden, "qwen3moe/hf");
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / fmt::format("witan-padded-vocabulary-{}", getpid());
  std::filesystem::create_directories(folder);
  for (const char* file : {"config.json", "model.safetensors"}) {
    std::filesystem::copy_file(golden + "/" + file, folder / file, std::filesystem::copy_options::overwrite_existing);
  }
  std::ofstream(folder / "tokenizer.json") << R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2},
      "merges": []}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "decoder": {"type": "ByteLevel"}})";
  Engine engine({.path = folder.string(), .num_threads = 1, .memory_bytes = int64_t{512} << 20, .context_length = 256});
  GenerationRequest request = request_of({5, 300, 7}, 100);  // prompts may use them
  request.sampling.temperature = 50.0f;
  Received received;
  engine.submit(request, received.callback());
  run_all(engine);
  std::filesystem::remove_all(folder);
  ASSERT_EQ(received.tokens[0].size(), 100u);
  for (const TokenId token : received.tokens[0]) EXPECT_LT(token, 3);
  EXPECT_EQ(received.text[0].size(), 100u);
}

TEST(EngineTest, AnswersEndAtTheirLengthAndAtTheContextsEnd) {
  Engine engine(tiny_options());
  Received by_length;
  Received by_context;
  engine.submit(request_of({5, 6}, 3), by_length.callback());
  engine.submit(request_of(std::vector<TokenId>(250, 9), 1000), by_context.callback());
  run_all(engine);
  EXPECT_EQ(by_length.tokens[0].size(), 3u);
  EXPECT_EQ(by_length.last[0].finish, FinishReason::kLength);
  EXPECT_EQ(by_length.last[0].usage.prompt_tokens, 2);
  EXPECT_EQ(by_length.last[0].usage.generated_tokens, 3);
  EXPECT_EQ(by_context.tokens[0].size(), 6u);
  EXPECT_EQ(by_context.last[0].finish, FinishReason::kLength);
}

TEST(EngineTest, AStopTokenEndsTheAnswerAndIsNotText) {
  Engine engine(tiny_options());
  Received whole;
  engine.submit(request_of({5, 6, 7}, 10), whole.callback());
  run_all(engine);
  const TokenId stop = whole.tokens[0][4];
  const auto first = std::ranges::find(whole.tokens[0], stop) - whole.tokens[0].begin();
  Received stopped;
  GenerationRequest request = request_of({5, 6, 7}, 10);
  request.stop_tokens = {stop};
  engine.submit(request, stopped.callback());
  run_all(engine);
  EXPECT_EQ(std::ssize(stopped.tokens[0]), first + 1);
  EXPECT_EQ(stopped.last[0].finish, FinishReason::kStop);
  // What the tokens before it were in the whole text.
  Detokenizer detokenizer(*engine.tokenizer(), ShowSpecial::kNo, DecodeFrom::kContinuation);
  std::string before;
  for (int64_t i = 0; i < first; ++i) before += detokenizer.push(whole.tokens[0][i]);
  EXPECT_EQ(stopped.text[0], before + detokenizer.finish());
}

TEST(EngineTest, AStopStringEndsTheTextBeforeIt) {
  Engine engine(tiny_options());
  Received whole;
  engine.submit(request_of({5, 6, 7}, 20), whole.callback());
  run_all(engine);
  ASSERT_GT(whole.text[0].size(), 8u);
  // Spans several tokens of the byte vocabulary.
  const std::string stop = whole.text[0].substr(5, 3);
  Received stopped;
  GenerationRequest request = request_of({5, 6, 7}, 20);
  request.stop_strings = {"never in the text", stop};
  engine.submit(request, stopped.callback());
  run_all(engine);
  EXPECT_EQ(stopped.text[0], whole.text[0].substr(0, whole.text[0].find(stop)));
  EXPECT_EQ(stopped.last[0].finish, FinishReason::kStop);
  EXPECT_LT(stopped.tokens[0].size(), whole.tokens[0].size());
}

TEST(EngineTest, TheSameSeedGivesTheSameTextAndChoicesDiffer) {
  Engine engine(tiny_options());
  GenerationRequest request = request_of({5, 6, 7, 8}, 12);
  request.sampling.temperature = 1.0f;
  request.sampling.seed = 42;
  request.num_choices = 3;
  Received first;
  Received second;
  engine.submit(request, first.callback());
  engine.submit(request, second.callback());
  run_all(engine);
  EXPECT_EQ(first.tokens, second.tokens);
  EXPECT_EQ(first.tokens.size(), 3u);
  EXPECT_NE(first.tokens[0], first.tokens[1]);
  request.num_choices = 1;
  request.sampling.seed = 43;  // what choice 1 used
  Received third;
  engine.submit(request, third.callback());
  run_all(engine);
  EXPECT_EQ(third.tokens[0], first.tokens[1]);
}

TEST(EngineTest, ChoicesShareTheirPromptsBlocks) {
  Engine engine(tiny_options());
  GenerationRequest request = request_of(std::vector<TokenId>(200, 11), 2);
  request.num_choices = 4;
  Received received;
  engine.submit(request, received.callback());
  run_all(engine);
  EXPECT_EQ(engine.stats().scheduler.num_prefix_hit_tokens, 3 * 192);
  EXPECT_EQ(engine.stats().prompt_tokens, 200 + 3 * 8);
}

TEST(EngineTest, ACancelledRequestEndsOnceAndFreesItsMemory) {
  ModelOptions options = tiny_options();
  options.prefix_cache = false;
  Engine engine(options);
  Received cancelled;
  Received other;
  const RequestId id = engine.submit(request_of({5, 6, 7}, 200), cancelled.callback());
  engine.submit(request_of({8, 9}, 20), other.callback());
  for (int i = 0; i < 5; ++i) engine.step();
  engine.cancel(id);
  engine.cancel(id + 1000);
  run_all(engine);
  EXPECT_EQ(cancelled.last[0].finish, FinishReason::kCancelled);
  EXPECT_LT(cancelled.tokens[0].size(), 10u);
  EXPECT_EQ(other.tokens[0].size(), 20u);
  EXPECT_EQ(engine.stats().kv.block_bytes_held, 0);
}

TEST(EngineTest, ACancelledAnswerKeepsTheTextThatAStopStringHeldBack) {
  Engine engine(tiny_options());
  Received whole;
  engine.submit(request_of({5, 6, 7}, 3), whole.callback());
  run_all(engine);
  ASSERT_FALSE(whole.text[0].empty());
  GenerationRequest request = request_of({5, 6, 7}, 100);
  request.stop_strings = {whole.text[0] + "never"};
  Received cancelled;
  const RequestId id = engine.submit(request, cancelled.callback());
  for (int i = 0; i < 3; ++i) engine.step();
  EXPECT_EQ(cancelled.text[0], "");
  engine.cancel(id);
  run_all(engine);
  EXPECT_EQ(cancelled.text[0], whole.text[0]);
}

TEST(EngineTest, AnAnswerWithoutATokenToPickEndsWithAnErrorAndNoOtherDoes) {
  Engine engine(tiny_options());
  GenerationRequest nothing_left = request_of({5, 6, 7});
  for (TokenId token = 0; token < 512; ++token) {
    nothing_left.sampling.logit_bias.push_back({token, -std::numeric_limits<float>::infinity()});
  }
  Received failed;
  Received other;
  engine.submit(nothing_left, failed.callback());
  engine.submit(request_of({8, 9}, 20), other.callback());
  run_all(engine);
  EXPECT_EQ(failed.last[0].finish, FinishReason::kError);
  EXPECT_THAT(failed.last[0].error, HasSubstr("no token can be picked"));
  EXPECT_EQ(failed.tokens[0].size(), 0u);
  EXPECT_EQ(other.last[0].finish, FinishReason::kLength);
  EXPECT_EQ(other.tokens[0].size(), 20u);
}

TEST(EngineTest, ACallbackThatThrowsEndsItsOwnRequestAlone) {
  Engine engine(tiny_options());
  int calls_after = 0;
  bool has_thrown = false;
  std::optional<FinishReason> end;
  Received other;
  engine.submit(request_of({5, 6, 7}, 100), [&](const GenerationOutput& output) {
    if (has_thrown) ++calls_after;
    if (output.finish) end = output.finish;
    if (output.usage.generated_tokens == 3 && !std::exchange(has_thrown, true)) throw std::runtime_error("from a call");
  });
  engine.submit(request_of({8, 9}, 20), other.callback());
  int num_thrown = 0;
  for (bool worked = true; worked;) {
    try {
      worked = engine.step();
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "from a call");
      ++num_thrown;
    }
  }
  EXPECT_EQ(num_thrown, 1);
  EXPECT_EQ(calls_after, 1);
  EXPECT_EQ(end, FinishReason::kCancelled);
  EXPECT_EQ(other.tokens[0].size(), 20u);
}

TEST(EngineTest, ACallbackMayThrowAtTheEndOfItsRequestAndInTheEnginesThread) {
  Engine engine(tiny_options());
  const RequestId id = engine.submit(request_of({5, 6, 7}, 100), [](const GenerationOutput& output) {
    if (output.finish) throw std::runtime_error("at the end");
  });
  engine.step();
  engine.cancel(id);
  Received other;
  engine.submit(request_of({8, 9}, 20), other.callback());
  EXPECT_THROW(engine.step(), std::runtime_error);
  run_all(engine);
  EXPECT_EQ(other.tokens[0].size(), 20u);

  std::promise<void> done;
  engine.submit(request_of({5}, 5), [](const GenerationOutput&) { throw std::runtime_error("always"); });
  engine.submit(request_of({6}, 20), [&](const GenerationOutput& output) {
    if (output.finish) done.set_value();
  });
  engine.start();
  done.get_future().wait();
  engine.stop();
}

TEST(EngineTest, AnEngineThatGoesWithRequestsLeavesThemWithoutAnEnd) {
  Received left;
  {
    Engine engine(tiny_options());
    engine.submit(request_of({5, 6, 7}, 100), left.callback());
    engine.step();
  }
  EXPECT_EQ(left.tokens[0].size(), 1u);
  EXPECT_FALSE(left.last.contains(0));
}

TEST(EngineTest, APromptWaitsForThoseWhoGenerateIfTheyAreNotToBecomeSlower) {
  for (const double max_slowdown : {0.0, 1.0001}) {
    ModelOptions options = tiny_options();
    options.max_mixed_prompt_tokens = 16;
    options.max_decode_slowdown = max_slowdown;
    Engine engine(options);
    std::vector<char> finished;
    const auto submit = [&](char name, size_t num_prompt, int32_t num_new) {
      engine.submit(request_of(std::vector<TokenId>(num_prompt, name), num_new),
                    [&, name](const GenerationOutput& out) {
                      if (out.finish) finished.push_back(name);
                    });
    };
    submit('a', 2, 100);
    for (int i = 0; i < 5; ++i) engine.step();
    submit('b', 200, 1);
    run_all(engine);
    EXPECT_EQ(finished, max_slowdown == 0 ? (std::vector<char>{'b', 'a'}) : (std::vector<char>{'a', 'b'}));
  }
  ModelOptions options = tiny_options();
  options.max_decode_slowdown = 1.0;
  EXPECT_THROW(Engine{options}, Error);
}

TEST(EngineTest, PromptTokensFromThePrefixCacheCountOncePerRequest) {
  ModelOptions options = tiny_options();
  Engine roomy(options);
  roomy.submit(request_of({5}, 1), {});
  run_all(roomy);
  options.kv_capacity_bytes = roomy.stats().kv.peak_block_bytes_held * 10;  // one block of every table, ten times
  Engine engine(options);
  int64_t cached = 0;
  for (int i = 0; i < 12; ++i) {
    std::vector<TokenId> prompt(100, 11);
    prompt.insert(prompt.end(), 40, 20 + i);
    engine.submit(request_of(prompt, 20), [&](const GenerationOutput& output) {
      if (output.finish) cached += output.usage.cached_prompt_tokens;
    });
  }
  run_all(engine);
  EXPECT_GT(cached, 0);
  EXPECT_EQ(engine.stats().scheduler.num_prefix_hit_tokens, cached);
}

TEST(EngineTest, WithoutAContextAskedForItIsTheLargestThatMemoryAllows) {
  ModelOptions options = tiny_options();
  options.context_length = 0;
  options.num_threads = 1;
  options.memory_bytes = int64_t{70} << 20;
  const Engine engine(options);
  const int32_t context = engine.options().context_length;
  ASSERT_LT(context, engine.model_info().context_length);
  options.context_length = context + kKvBlockSize;
  expect_error([&] { Engine more(options); }, ErrorCode::kOutOfMemory, "does not suffice");
  Engine tight({.path = options.path, .num_threads = 1, .memory_bytes = options.memory_bytes});
  expect_error([&] { tight.submit(request_of(std::vector<TokenId>(static_cast<size_t>(context), 5)), {}); },
               ErrorCode::kInvalidArgument, "which is what the memory budget allows (the model's own is 8192)");
}

TEST(EngineTest, ThePlanCoversWhatStepsTake) {
  for (const char* arch : {"llama", "qwen3moe", "deepseek2", "gpt-oss"}) {
    for (const auto& [num_threads, step] : {std::pair(1, 16), std::pair(32, 2000)}) {
      Engine engine({.path = test::made_model(arch, "tiny", DType::kQ8_0),
                     .num_threads = num_threads,
                     .memory_bytes = int64_t{4} << 30,
                     .context_length = 2048,
                     .max_step_tokens = step});
      engine.submit(request_of(std::vector<TokenId>(step == 16 ? 100 : 2000, 5), 2), {});
      run_all(engine);
      const MemoryPlan& plan = engine.memory_plan();
      EXPECT_LE(engine.stats().peak_pool_bytes,
                plan.weight_bytes + plan.expert_bytes + plan.activation_bytes + plan.kv_context_bytes)
          << arch << ", " << num_threads << " threads, steps of " << step << "\n"
          << describe(plan);
    }
  }
}

TEST(EngineTest, AContextBeyondTheModelsOwnIsRefused) {
  ModelOptions options = tiny_options();
  options.context_length = 8193;
  expect_error([&] { Engine engine(options); }, ErrorCode::kInvalidArgument, "the model's own is 8192");
}

TEST(EngineTest, CallbacksMaySubmitAndCancel) {
  Engine engine(tiny_options());
  Received second;
  RequestId first_id = 0;
  std::optional<FinishReason> first_end;
  first_id = engine.submit(request_of({5, 6}, 100), [&](const GenerationOutput& output) {
    if (output.finish) first_end = output.finish;
    if (output.usage.generated_tokens == 2 && !output.finish) {
      engine.submit(request_of({7, 8}, 4), second.callback());
      engine.cancel(first_id);
    }
  });
  run_all(engine);
  EXPECT_EQ(first_end, FinishReason::kCancelled);
  EXPECT_EQ(second.tokens[0].size(), 4u);
}

TEST(EngineTest, LogprobsDescribeTheDistribution) {
  Engine engine(tiny_options());
  GenerationRequest request = request_of({5, 6, 7}, 3);
  request.sampling.num_logprobs = 512;
  engine.submit(request, [](const GenerationOutput& output) {
    ASSERT_EQ(output.token->alternatives.size(), 512u);
    EXPECT_EQ(output.token->alternatives.front().token, output.token->token);
    EXPECT_EQ(output.token->alternatives.front().logprob, output.token->logprob);
    double sum = 0.0;
    for (const TokenLogprob& alternative : output.token->alternatives) sum += std::exp(double{alternative.logprob});
    EXPECT_NEAR(sum, 1.0, 1e-4);
  });
  run_all(engine);
}

TEST(EngineTest, ItsOwnThreadServesRequestsFromManyThreads) {
  Engine engine(tiny_options());
  engine.start();
  std::mutex mutex;
  std::condition_variable changed;
  int finished = 0;
  constexpr int kThreads = 4;
  constexpr int kRequests = 5;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRequests; ++i) {
        const RequestId id = engine.submit(request_of({5 + t, 6 + i, 7}, 6), [&](const GenerationOutput& output) {
          if (!output.finish) return;
          const std::lock_guard lock(mutex);
          ++finished;
          changed.notify_all();
        });
        if (i == 2) engine.cancel(id);
        engine.stats();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return finished == kThreads * kRequests; });
  }
  engine.stop();
  // And goes on afterwards.
  Received again;
  engine.submit(request_of({5, 6}, 2), again.callback());
  run_all(engine);
  EXPECT_EQ(again.tokens[0].size(), 2u);
}

TEST(EngineTest, StatisticsCountTokensExpertsAndBytes) {
  Engine engine(tiny_options());
  engine.submit(request_of(std::vector<TokenId>(70, 3), 5), {});
  run_all(engine);
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.prompt_tokens, 70);
  EXPECT_EQ(stats.generated_tokens, 5);
  EXPECT_EQ(stats.decode_tokens, 4);
  EXPECT_EQ(stats.num_steps, 5);
  EXPECT_GT(stats.distinct_experts, 0);
  EXPECT_LE(stats.distinct_experts,
            static_cast<int64_t>(engine.model_info().moe_layers.size()) * engine.model_info().num_experts);
  // 74 entries are three blocks in every table.
  EXPECT_EQ(stats.kv.peak_block_bytes_held % 3, 0);
  EXPECT_GT(stats.prefill_seconds, 0.0);
  EXPECT_GT(stats.decode_seconds, 0.0);
}

TEST(EngineTest, ABudgetThatDoesNotSufficeIsRefusedBeforeLoadingWithThePlan) {
  ModelOptions options = tiny_options();
  options.memory_bytes = 1 << 20;
  expect_error([&] { Engine engine(options); }, ErrorCode::kOutOfMemory, "weights");
  options = tiny_options();
  options.memory_bytes = int64_t{70} << 20;
  options.context_length = 8192;
  expect_error([&] { Engine engine(options); }, ErrorCode::kOutOfMemory, "left for KV");
}

TEST(EngineTest, OptionsOutOfRangeAreNamed) {
  ModelOptions options = tiny_options();
  options.num_threads = -1;
  expect_error([&] { Engine engine(options); }, ErrorCode::kInvalidArgument, "threads");
  options = tiny_options();
  options.max_step_tokens = 0;
  expect_error([&] { Engine engine(options); }, ErrorCode::kInvalidArgument, "tokens per step");
  options = tiny_options();
  options.path = "/nonexistent/model.gguf";
  expect_error([&] { Engine engine(options); }, ErrorCode::kIo, "/nonexistent/model.gguf");
}

}  // namespace
}  // namespace witan
