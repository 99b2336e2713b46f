// One fresh process that measures llama.cpp: llama_cpp BACKENDS MODEL PROMPT_TOKENS DECODE_TOKENS THREADS F16|F32
//
// Prints one JSON object with the prompt it made, and the seconds that one prefill and DECODE_TOKENS single-token
// steps after it took, sampling not included. With DECODE_TOKENS 0 it makes the prompt and measures nothing.
// A native program because Node's main thread keeps a core awake between two evaluations: on two cores that costs
// llama.cpp's second thread milliseconds per token.

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr int32_t kBatch = 512;  // llama.cpp's own default for both of its batch sizes

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "llama_cpp: %s\n", message.c_str());
  std::exit(1);
}

std::vector<llama_token> tokenize(const llama_model* model, const std::string& text) {
  std::vector<llama_token> tokens(text.size() + 8);
  const int32_t count = llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<int32_t>(text.size()),
                                       tokens.data(), static_cast<int32_t>(tokens.size()), true, false);
  if (count < 0) fail("the tokenizer refused the prompt");
  tokens.resize(static_cast<size_t>(count));
  return tokens;
}

// A text of exactly `count` tokens in this model's tokenizer, the beginning-of-text token included where it adds one.
std::string make_prompt(const llama_model* model, size_t count) {
  static const char* const kWords[] = {"the",   "keeper", "of",      "lighthouse", "walked", "down", "to",
                                       "water", "each",   "morning", "and",        "wrote",  "what", "he",
                                       "saw",   "in",     "a",       "small",      "book"};
  constexpr size_t kNumWords = std::size(kWords);
  std::string prompt;
  for (size_t i = 0; tokenize(model, prompt + kWords[i * i % kNumWords]).size() < count; ++i) {
    prompt += kWords[i * i % kNumWords];
    prompt += ' ';
  }
  for (const char* filler : {"a ", "a", "."}) {
    while (tokenize(model, prompt + filler).size() <= count) prompt += filler;
  }
  const size_t made = tokenize(model, prompt).size();
  if (made != count) fail("could not make a prompt of exactly " + std::to_string(count) + " tokens");
  return prompt;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void evaluate(llama_context* context, llama_token* tokens, size_t count) {
  if (llama_decode(context, llama_batch_get_one(tokens, static_cast<int32_t>(count))) != 0) fail("llama_decode failed");
  llama_synchronize(context);
}

struct Times {
  double prefill_seconds;
  double decode_seconds;
};

Times measure(llama_context* context, std::vector<llama_token> tokens, int32_t decode_tokens) {
  llama_memory_clear(llama_get_memory(context), true);
  const auto start = std::chrono::steady_clock::now();
  for (size_t first = 0; first < tokens.size(); first += kBatch) {
    evaluate(context, tokens.data() + first, std::min<size_t>(kBatch, tokens.size() - first));
  }
  const double prefill_seconds = seconds_since(start);
  const auto decode_start = std::chrono::steady_clock::now();
  for (int32_t i = 0; i < decode_tokens; ++i) {
    evaluate(context, &tokens[static_cast<size_t>(7 * i + 1) % tokens.size()], 1);
  }
  return {prefill_seconds, seconds_since(decode_start)};
}

// Threads that live as long as the context, as llama.cpp's own programs have them.
void attach_threads(llama_context* context, int num_threads) {
  ggml_backend_reg_t cpu = ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
  auto* const new_threads =
      reinterpret_cast<decltype(&ggml_threadpool_new)>(ggml_backend_reg_get_proc_address(cpu, "ggml_threadpool_new"));
  if (new_threads == nullptr) fail("the CPU backend has no ggml_threadpool_new");
  ggml_threadpool_params params = ggml_threadpool_params_default(num_threads);
  ggml_threadpool_t threads = new_threads(&params);
  if (threads == nullptr) fail("could not start threads");
  llama_attach_threadpool(context, threads, threads);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) fail("usage: llama_cpp BACKENDS MODEL PROMPT_TOKENS DECODE_TOKENS THREADS F16|F32");
  const int prompt_tokens = std::atoi(argv[3]);
  const int decode_tokens = std::atoi(argv[4]);
  const int num_threads = std::atoi(argv[5]);
  const ggml_type kv_type = std::string(argv[6]) == "F32" ? GGML_TYPE_F32 : GGML_TYPE_F16;

  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  ggml_backend_load_all_from_path(argv[1]);
  llama_backend_init();

  llama_model_params model_params = llama_model_default_params();
  model_params.load_mode = LLAMA_LOAD_MODE_NONE;
  llama_model* model = llama_model_load_from_file(argv[2], model_params);
  if (model == nullptr) fail("could not load the model");
  const std::string prompt = make_prompt(model, static_cast<size_t>(prompt_tokens));

  Times times{};
  if (decode_tokens > 0) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(prompt_tokens + decode_tokens);
    params.n_batch = kBatch;
    params.n_ubatch = kBatch;
    params.n_threads = num_threads;
    params.n_threads_batch = num_threads;
    params.type_k = kv_type;
    params.type_v = kv_type;
    llama_context* context = llama_init_from_model(model, params);
    if (context == nullptr) fail("could not make a context");
    attach_threads(context, num_threads);
    const std::vector<llama_token> tokens = tokenize(model, prompt);
    measure(context, tokens, decode_tokens);  // touches all memory once and warms the caches
    times = measure(context, tokens, decode_tokens);
  }
  std::printf(
      "{\"prompt\": \"%s\", \"version\": \"%s\", \"systemInfo\": \"%s\", \"prefillSeconds\": %.9f, "
      "\"decodeSeconds\": %.9f}\n",
      prompt.c_str(), llama_version(), llama_print_system_info(), times.prefill_seconds, times.decode_seconds);
}
