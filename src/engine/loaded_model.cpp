#include "engine/loaded_model.h"

#include <algorithm>
#include <thread>

#include "base/error.h"
#include "models/registry.h"
#include "models/weight_loader.h"

namespace witan {
namespace {

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    fail(ErrorCode::kInvalidArgument, "{} is {}, expected {} to {}", name, value, low, high);
  }
}

ModelOptions complete(ModelOptions options) {
  if (options.num_threads == 0)
    options.num_threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  check_range("threads", options.num_threads, 1, 1024);
  if (options.memory_bytes == 0) options.memory_bytes = default_memory_budget();
  check_range("memory", options.memory_bytes, 1, int64_t{1} << 50);
  check_range("context", options.context_length, 0, 1 << 30);
  check_range("tokens per step", options.max_step_tokens, 1, 1 << 20);
  check_range("prompt tokens per step beside generated ones", options.max_mixed_prompt_tokens, 1, 1 << 20);
  if (options.max_decode_slowdown != 0 && !(options.max_decode_slowdown > 1)) {
    fail(ErrorCode::kInvalidArgument, "generating may become {} times slower; more than 1 is wanted, or 0: any",
         options.max_decode_slowdown);
  }
  check_range("KV capacity", options.kv_capacity_bytes, 0, options.memory_bytes);
  check_range("sequences", options.max_sequences, 1, 1 << 16);
  return options;
}

std::unique_ptr<Tokenizer> load_tokenizer(const Checkpoint& checkpoint, const ModelInfo& info) {
  std::unique_ptr<Tokenizer> tokenizer = checkpoint.load_tokenizer();
  if (tokenizer != nullptr && tokenizer->vocab_size() > info.vocab_size) {
    fail(ErrorCode::kBadFile, "{}: the tokenizer has {} tokens, the model's embedding {}", checkpoint.path(),
         tokenizer->vocab_size(), info.vocab_size);
  }
  return tokenizer;
}

MemoryPlan plan_for(const Checkpoint& checkpoint, const ModelInfo& info, const ModelOptions& options) {
  if (options.context_length > info.context_length) {
    fail(ErrorCode::kInvalidArgument, "{}: a context of {} tokens was asked for, the model's own is {}",
         checkpoint.path(), options.context_length, info.context_length);
  }
  const int32_t context = options.context_length > 0 ? options.context_length : info.context_length;
  MemoryPlanRequest request{.budget_bytes = options.memory_bytes,
                            .kv_codec = options.kv_codec,
                            .context_tokens = context,
                            .max_step_tokens = options.max_step_tokens,
                            .max_logit_rows = std::min(options.max_sequences, options.max_step_tokens),
                            .num_threads = options.num_threads};
  const auto plan_of = [&](int64_t num_tokens) {
    request.context_tokens = num_tokens;
    return plan_memory(checkpoint, info, request);
  };
  const auto fits = [](const MemoryPlan& plan) { return plan.kv_available_bytes >= plan.kv_context_bytes; };
  MemoryPlan plan = plan_of(context);
  if (fits(plan)) return plan;
  if (options.context_length == 0) {  // nobody asked for the model's whole context: the most that fits
    int64_t most = 0;                 // blocks
    for (int64_t too_many = (context + kKvBlockSize - 1) / kKvBlockSize; too_many - most > 1;) {
      const int64_t middle = (most + too_many) / 2;
      (fits(plan_of(middle * kKvBlockSize)) ? most : too_many) = middle;
    }
    plan = plan_of(std::max<int64_t>(most, 1) * kKvBlockSize);
    plan.is_limited_by_memory = true;
  }
  if (!fits(plan)) {
    fail(ErrorCode::kOutOfMemory, "{}: the memory budget does not suffice\n{}", checkpoint.path(), describe(plan));
  }
  return plan;
}

// The salt of the prefix cache: everything but the tokens that decides the bytes of a KV entry.
uint64_t content_salt(const ModelOptions& options, Isa isa) {
  uint64_t salt = static_cast<uint64_t>(options.kv_codec);
  salt = salt * 31 + static_cast<uint64_t>(options.precision);
  return salt * 31 + static_cast<uint64_t>(isa);
}

}  // namespace

LoadedModel::LoadedModel(const ModelOptions& options, const LoadProgress& progress)
    : options_(complete(options)),
      isa_(select_isa()),
      checkpoint_(Checkpoint::open(options_.path)),
      model_(create_model(*checkpoint_)),
      tokenizer_(options_.with_tokenizer ? load_tokenizer(*checkpoint_, model_->info()) : nullptr),
      plan_(plan_for(*checkpoint_, model_->info(), options_)),
      threads_(options_.num_threads),
      pool_(static_cast<size_t>(options_.memory_bytes)),
      weights_(pool_, MemoryTag::kWeights),
      experts_(pool_, MemoryTag::kExperts),
      scratch_(pool_),
      telemetry_(static_cast<int32_t>(model_->info().moe_layers.size()), model_->info().num_experts,
                 model_->info().top_k) {
  options_.context_length = static_cast<int32_t>(plan_.context_tokens);
  if (options_.kv_capacity_bytes == 0) options_.kv_capacity_bytes = plan_.kv_available_bytes;
  if (options_.kv_capacity_bytes > plan_.kv_available_bytes) {
    fail(ErrorCode::kOutOfMemory, "KV capacity: {} bytes, but the budget leaves {}\n{}", options_.kv_capacity_bytes,
         plan_.kv_available_bytes, describe(plan_));
  }
  const auto report = [&](int64_t done, int64_t total) {
    if (progress) progress(done, total);
  };
  WeightLoader loader(*checkpoint_, weights_, experts_, threads_, options_.precision, report);
  model_->load(loader);
  loader.check_all_used();
  kv_ =
      std::make_unique<KvCache>(pool_, KvCacheConfig{.layers = model_->info().kv_layers,
                                                     .codec = options_.kv_codec,
                                                     .capacity_bytes = static_cast<size_t>(options_.kv_capacity_bytes),
                                                     .prefix_cache = options_.prefix_cache,
                                                     .content_salt = content_salt(options_, isa_),
                                                     .input_layers = model_->info().input_layers,
                                                     .aside_directory = options_.kv_offload_directory});
}

std::span<float> LoadedModel::forward(const ForwardBatch& batch) {
  scratch_.reset();
  telemetry_.begin_step();
  const size_t size = batch.logit_rows.size() * static_cast<size_t>(info().vocab_size);
  float* logits = scratch_.allocate<float>(size);
  ForwardContext ctx{
      .compute = {.threads = threads_, .scratch = scratch_, .isa = isa_, .precision = options_.precision},
      .kv = *kv_,
      .telemetry = telemetry_};
  model_->forward(ctx, batch, logits);
  return {logits, size};
}

KvChoice LoadedModel::choose_kept(SequenceId sequence, const KvText& text, const KvPolicy& policy,
                                  const KvEvidence* evidence) {
  ComputeContext ctx{.threads = threads_, .scratch = scratch_, .isa = isa_, .precision = options_.precision};
  if (evidence != nullptr && evidence->value_norms != nullptr) {
    model_->learn_value_norms(ctx, *kv_, sequence, *evidence->value_norms);
  }
  return witan::choose_kept(ctx, *kv_, sequence, text, policy, evidence);
}

template <typename Make>
auto LoadedModel::with_room(const Make& make) {
  try {
    return make();
  } catch (const Error&) {  // what the prefix cache holds can be had
    kv_->clear_prefix_cache();
    return make();
  }
}

int64_t LoadedModel::evidence_bytes(const KvPolicy& policy, const CompressionPlan& plan, int32_t most_judged,
                                    int32_t max_tokens) const {
  const std::vector<KvLayerSpec>& layers = info().kv_layers;
  const KvWants wants = policy.wants();
  const bool chooses_channels = plan.chooses_channels() && !plan.points.empty();
  const int32_t most_observed = chooses_channels ? std::max(most_judged, plan.points[0].num_tokens) : most_judged;
  int64_t bytes = QueryWindow::bytes(static_cast<int32_t>(layers.size()), info().num_heads, layers.front().key_dim,
                                     std::min(wants.num_query_tokens, most_observed));
  if (most_judged > 0) {
    if (wants.attention_mass) bytes += AttentionMass::bytes(layers, most_judged);
    if (wants.moments) bytes += QueryMoments::bytes(layers, info().num_heads, wants.moments->order);
    if (wants.value_norms) bytes += ValueNorms::bytes(layers, most_judged);
    if (wants.repetitions) bytes += RepetitionAttention::bytes(layers, most_judged);
  }
  if (policy.pages) bytes += PageBounds::bytes(layers, *policy.pages, max_tokens);
  return bytes;
}

std::unique_ptr<QueryWindow> LoadedModel::make_query_window(int32_t first_token, int32_t num_tokens) {
  const std::vector<KvLayerSpec>& layers = info().kv_layers;
  return with_room([&] {
    return std::make_unique<QueryWindow>(pool_, static_cast<int32_t>(layers.size()), info().num_heads,
                                         layers.front().key_dim, first_token, num_tokens);
  });
}

std::unique_ptr<AttentionMass> LoadedModel::make_attention_mass(int32_t max_entries) {
  return with_room([&] { return std::make_unique<AttentionMass>(pool_, info().kv_layers, max_entries); });
}

std::unique_ptr<QueryMoments> LoadedModel::make_query_moments(const KvWants::Moments& wanted) {
  return with_room([&] {
    return std::make_unique<QueryMoments>(pool_, info().kv_layers, info().num_heads, wanted.order, wanted.first_token);
  });
}

std::unique_ptr<ValueNorms> LoadedModel::make_value_norms(int32_t max_entries) {
  return with_room([&] { return std::make_unique<ValueNorms>(pool_, info().kv_layers, max_entries); });
}

std::unique_ptr<RepetitionAttention> LoadedModel::make_repetition_attention(int32_t max_entries,
                                                                            const KvWants::Repetitions& wanted) {
  return with_room(
      [&] { return std::make_unique<RepetitionAttention>(pool_, info().kv_layers, max_entries, wanted.num_sinks); });
}

std::unique_ptr<PageBounds> LoadedModel::make_page_bounds(const KvPageReader& reader, int32_t max_entries) {
  return with_room([&] { return std::make_unique<PageBounds>(pool_, info().kv_layers, reader, max_entries); });
}

void check_token_ids(std::span<const TokenId> tokens, int32_t vocab_size) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size) {
      fail(ErrorCode::kInvalidArgument, "token {} is {}, expected an id from 0 to {}", i, tokens[i], vocab_size - 1);
    }
  }
}

namespace {

void check_input(const LoadedModel& model, std::span<const TokenId> input) {
  if (input.empty() == model.info().has_encoder) {
    fail(ErrorCode::kInvalidArgument, "{}: the model {}", model.options().path,
         input.empty() ? "has an encoder: it needs an input for it and tokens for its decoder"
                       : "has no encoder and takes no input for one");
  }
  check_token_ids(input, model.info().vocab_size);
  if (std::ssize(input) > model.options().context_length) {
    fail(ErrorCode::kInvalidArgument, "an input of {} tokens is more than the context of {}", input.size(),
         model.options().context_length);
  }
}

}  // namespace

void score_tokens(LoadedModel& model, std::span<const TokenId> tokens, int32_t chunk,
                  const std::function<void(int32_t, int32_t, std::span<const float>)>& sink,
                  const ScoreInput& encoder) {
  check_token_ids(tokens, model.info().vocab_size);
  check_input(model, encoder.input);
  if (std::ssize(tokens) > model.options().context_length) {
    fail(ErrorCode::kInvalidArgument, "{} tokens are more than the context of {}", tokens.size(),
         model.options().context_length);
  }
  KvCache& kv = model.kv();
  struct Sequence {
    KvCache& kv;
    SequenceId id;
    ~Sequence() { kv.release(id); }
  } sequence{kv, kv.create()};
  if (!encoder.input.empty() && !kv.attach_input(sequence.id, encoder.input)) {
    fail(ErrorCode::kOutOfMemory, "no room in the KV cache for an input of {} tokens: {} bytes are available",
         encoder.input.size(), kv.available_bytes());
  }
  const auto total = static_cast<int32_t>(tokens.size());
  for (int32_t first = 0; first < total; first += chunk) {
    const int32_t count = std::min(chunk, total - first);
    if (!kv.reserve(sequence.id, count)) {
      fail(ErrorCode::kOutOfMemory, "no room in the KV cache for {} tokens: {} bytes are available", first + count,
           kv.available_bytes());
    }
    ForwardBatch batch;
    batch.slices.push_back({.kv_sequence = sequence.id, .first_row = 0, .num_tokens = count, .first_token = first});
    for (int32_t i = 0; i < count; ++i) {
      batch.tokens.push_back(tokens[first + i]);
      batch.positions.push_back(first + i);
      batch.roles.push_back(TokenRole::kPrompt);
      batch.logit_rows.push_back(i);
    }
    batch.expert_capacity = encoder.expert_capacity;
    const bool encodes = !encoder.input.empty() && !kv.input_is_encoded(sequence.id);
    if (encodes) {
      batch.inputs.push_back({.kv_sequence = sequence.id, .tokens = {encoder.input.begin(), encoder.input.end()}});
    }
    const std::span<const float> logits = model.forward(batch);
    if (encodes) kv.commit_input(sequence.id);
    kv.commit(sequence.id, batch.tokens, batch.roles);
    sink(first, count, logits);
  }
}

}  // namespace witan
