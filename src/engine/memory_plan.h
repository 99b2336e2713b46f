#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "io/checkpoint.h"
#include "kernels/attention/kv_block.h"
#include "models/model.h"

namespace witan {

// What a model needs of a memory budget, from its files' headers alone: computed before anything is loaded.
struct MemoryPlan {
  int64_t budget_bytes = 0;
  int64_t weight_bytes = 0;      // packed, everything but routed experts
  int64_t expert_bytes = 0;      // packed routed experts
  int64_t activation_bytes = 0;  // of the largest step
  int64_t kv_bytes_per_token = 0;
  int64_t context_tokens = 0;         // the context asked for
  int64_t kv_context_bytes = 0;       // KV of one sequence of that context, whole blocks
  bool is_limited_by_memory = false;  // the context is less than the model's for want of memory
  int64_t kv_available_bytes = 0;     // what the budget leaves for the KV cache; negative when it does not suffice
};

struct MemoryPlanRequest {
  int64_t budget_bytes = 0;
  KvCodec kv_codec = KvCodec::kF16;
  int64_t context_tokens = 0;
  int64_t max_step_tokens = 0;
  int64_t max_logit_rows = 0;
  int num_threads = 1;
};

MemoryPlan plan_memory(const Checkpoint& checkpoint, const ModelInfo& model, const MemoryPlanRequest& request);

// Bytes that a tensor takes once packed for the kernels; vectors become float32.
int64_t packed_bytes(const TensorEntry& tensor);
// The table that token ids are looked up in; without an output tensor it is the output layer too.
bool is_embedding_tensor(std::string_view name);
bool is_output_tensor(std::string_view name);
// True for tensors of routed experts, by their names in either format.
bool is_expert_tensor(std::string_view name);

// A few lines for people: each part in MiB and what is left.
std::string describe(const MemoryPlan& plan);

// 90 % of the memory that the system says is available now.
int64_t default_memory_budget();

}  // namespace witan
