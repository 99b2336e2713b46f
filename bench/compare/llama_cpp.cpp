// One fresh process that measures llama.cpp:
//
//   llama_cpp BACKENDS MODEL THREADS F16|F32|BF16|Q8_0 NUM_TOKENS CASE...
//
// A case is prompt:N, the speed of a prompt of N tokens, or generate:DEPTH:BATCH, that of NUM_TOKENS steps in which
// each of BATCH sequences, with DEPTH tokens of its own, generates one. Prints a JSON object with the speed of each in
// tokens per second. Tokens are random; sampling is not included. A native program because Node's main thread keeps a
// core awake between two evaluations: on two cores that costs llama.cpp's second thread milliseconds per token.

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr int32_t kBatch = 512;  // llama.cpp's own default for both of its batch sizes

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "llama_cpp: %s\n", message.c_str());
  std::exit(1);
}

struct Case {
  int32_t prompt = 0;  // 0: generating
  int32_t depth = 0;
  int32_t batch = 1;
};

Case parse_case(const char* text) {
  Case c;
  if (std::sscanf(text, "prompt:%d", &c.prompt) == 1 && c.prompt > 0) return c;
  if (std::sscanf(text, "generate:%d:%d", &c.depth, &c.batch) == 2 && c.depth >= 0 && c.batch > 0) return c;
  fail(std::string("no case: ") + text);
}

struct Settings {
  llama_model* model;
  int num_threads;
  ggml_type kv_type;
  int32_t num_tokens;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
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

class Measurement {
 public:
  Measurement(const Settings& settings, const Case& c)
      : settings_(settings), case_(c), batch_(llama_batch_init(std::max(kBatch, c.batch), 0, 1)) {
    llama_context_params params = llama_context_default_params();
    // Every sequence has its own part of it.
    params.n_ctx = static_cast<uint32_t>(c.batch * (std::max(c.prompt, c.depth) + settings.num_tokens + 64));
    params.n_seq_max = static_cast<uint32_t>(c.batch);
    params.n_batch = static_cast<uint32_t>(std::max(kBatch, c.batch));
    params.n_ubatch = kBatch;
    params.n_threads = settings.num_threads;
    params.n_threads_batch = settings.num_threads;
    params.type_k = settings.kv_type;
    params.type_v = settings.kv_type;
    context_ = llama_init_from_model(settings.model, params);
    if (context_ == nullptr) fail("could not make a context");
    attach_threads(context_, settings.num_threads);
  }
  ~Measurement() {
    llama_batch_free(batch_);
    llama_free(context_);
  }

  double tokens_per_second() {
    if (case_.prompt > 0) {
      fill(0, case_.prompt);  // touches all memory once and warms the caches
      llama_memory_clear(llama_get_memory(context_), true);
      const auto start = std::chrono::steady_clock::now();
      fill(0, case_.prompt);
      return case_.prompt / seconds_since(start);
    }
    const int32_t depth = std::max(1, case_.depth);
    for (int32_t sequence = 0; sequence < case_.batch; ++sequence) fill(sequence, depth);
    generate(depth);
    const auto start = std::chrono::steady_clock::now();
    for (int32_t step = 1; step <= settings_.num_tokens; ++step) generate(depth + step);
    return static_cast<double>(settings_.num_tokens) * case_.batch / seconds_since(start);
  }

 private:
  void add(int32_t sequence, int32_t position, bool logits) {
    const auto vocab_size = static_cast<uint64_t>(llama_vocab_n_tokens(llama_model_get_vocab(settings_.model)));
    const int32_t i = batch_.n_tokens++;
    batch_.token[i] = static_cast<llama_token>(random_() % vocab_size);
    batch_.pos[i] = position;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = sequence;
    batch_.logits[i] = logits ? 1 : 0;
  }

  void evaluate() {
    if (llama_decode(context_, batch_) != 0) fail("llama_decode failed");
    llama_synchronize(context_);
    batch_.n_tokens = 0;
  }

  // A prompt, in batches; the last token's logits.
  void fill(int32_t sequence, int32_t count) {
    for (int32_t first = 0; first < count; first += kBatch) {
      const int32_t end = std::min(count, first + kBatch);
      for (int32_t position = first; position < end; ++position) add(sequence, position, position == count - 1);
      evaluate();
    }
  }

  // A token of each sequence.
  void generate(int32_t position) {
    for (int32_t sequence = 0; sequence < case_.batch; ++sequence) add(sequence, position, true);
    evaluate();
  }

  Settings settings_;
  Case case_;
  llama_batch batch_;
  llama_context* context_ = nullptr;
  std::mt19937_64 random_{1};
};

// Versions of llama.cpp differ in how to say it.
void load_without_mmap(auto& params) {
  if constexpr (requires { params.use_mmap; }) {
    params.use_mmap = false;
  } else {
    params.load_mode = {};  // LLAMA_LOAD_MODE_NONE
  }
}

ggml_type kv_type_of(const std::string& name) {
  if (name == "F16") return GGML_TYPE_F16;
  if (name == "F32") return GGML_TYPE_F32;
  if (name == "BF16") return GGML_TYPE_BF16;
  if (name == "Q8_0") return GGML_TYPE_Q8_0;
  fail("no KV cache type: " + name);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) fail("usage: llama_cpp BACKENDS MODEL THREADS F16|F32|BF16|Q8_0 NUM_TOKENS CASE...");
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  ggml_backend_load_all_from_path(argv[1]);
  llama_backend_init();
  llama_model_params model_params = llama_model_default_params();
  load_without_mmap(model_params);
  llama_model* model = llama_model_load_from_file(argv[2], model_params);
  if (model == nullptr) fail("could not load the model");
  const Settings settings{model, std::atoi(argv[3]), kv_type_of(argv[4]), std::atoi(argv[5])};
  std::string speeds;
  for (int i = 6; i < argc; ++i) {
    char text[64];
    std::snprintf(text, sizeof(text), "%.6f", Measurement(settings, parse_case(argv[i])).tokens_per_second());
    speeds += (speeds.empty() ? "" : ", ") + std::string(text);
  }
  std::printf("{\"systemInfo\": \"%s\", \"tokensPerSecond\": [%s]}\n", llama_print_system_info(), speeds.c_str());
}
