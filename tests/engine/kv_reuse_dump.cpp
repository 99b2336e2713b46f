// Answers prompts with documents, for kv_reuse_numpy_test.py.
//
//   kv_reuse_dump MODEL FOLDER < REQUESTS
//
// A request is a JSON line {"parts": [{"text", "is_document"}], "policies": [TEXT], "num_tokens"}; policy "" is none.
// For each the program prints a line with the ids of the "prompt", its "documents" [begin, end) and, by policy, the
// "answers": how many tokens of documents were "reused" and "recomputed", if any, and the "tokens" generated. The log
// probabilities of the vocabulary are in FOLDER/logprobs.f32: of all answers in this order, [num_tokens, vocab_size].
#include <nlohmann/json.hpp>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>

#include "engine/engine.h"

namespace witan {
namespace {

using nlohmann::json;

json answer(Engine& engine, const GenerationRequest& request, std::ofstream& logprobs) {
  json answer = {{"tokens", json::array()}};
  std::string error;
  engine.submit(request, [&](const GenerationOutput& output) {
    error = output.error;
    if (output.usage.kv_reuse) {
      answer["reused"] = output.usage.kv_reuse->num_reused_tokens;
      answer["recomputed"] = output.usage.kv_reuse->num_recomputed_tokens;
    }
    if (!output.token) return;
    answer["tokens"].push_back(output.token->token);
    std::vector<float> by_token(static_cast<size_t>(engine.model_info().vocab_size));
    for (const TokenLogprob& one : output.token->alternatives) by_token[static_cast<size_t>(one.token)] = one.logprob;
    logprobs.write(reinterpret_cast<const char*>(by_token.data()),
                   static_cast<std::streamsize>(by_token.size() * sizeof(float)));
  });
  while (engine.step()) {
  }
  if (!error.empty()) fail(ErrorCode::kInvalidArgument, "{}", error);
  return answer;
}

void run(const std::string& model, const std::string& folder) {
  Engine engine({.path = model,
                 .precision = Precision::kExact,
                 .kv_codec = KvCodec::kF32,
                 .num_threads = 2,
                 .memory_bytes = int64_t{512} << 20,
                 .context_length = 1024,
                 .max_step_tokens = 100});  // less than a document, so that chunks cut it
  std::ofstream logprobs(folder + "/logprobs.f32", std::ios::binary);
  for (std::string line; std::getline(std::cin, line);) {
    const json asked = json::parse(line);
    GenerationRequest request;
    request.max_new_tokens = asked.at("num_tokens");
    request.sampling.num_logprobs = engine.model_info().vocab_size;
    request.ignore_end_tokens = true;
    json said = {{"documents", json::array()}, {"answers", json::array()}};
    for (const json& part : asked.at("parts")) {
      const auto begin = static_cast<int32_t>(request.prompt.size());
      const std::vector<TokenId> tokens = engine.encode(part.at("text").get<std::string>());
      request.prompt.insert(request.prompt.end(), tokens.begin(), tokens.end());
      if (!part.at("is_document")) continue;
      request.kv_documents.push_back({begin, static_cast<int32_t>(request.prompt.size())});
      said["documents"].push_back({begin, request.prompt.size()});
    }
    said["prompt"] = request.prompt;
    for (const std::string policy : asked.at("policies")) {
      request.kv_policy.reset();
      if (!policy.empty()) request.kv_policy = parse_kv_policy(policy);
      said["answers"].push_back(answer(engine, request, logprobs));
    }
    std::cout << said << "\n";
  }
}

}  // namespace
}  // namespace witan

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: kv_reuse_dump MODEL FOLDER < REQUESTS\n");
    return 2;
  }
  try {
    witan::run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kv_reuse_dump: %s\n", error.what());
    return 1;
  }
}
