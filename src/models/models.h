#pragma once

#include <memory>

#include "io/checkpoint.h"
#include "models/model.h"

namespace witan {

// The architectures, one per file of the same name; the table is in registry.cpp.
std::unique_ptr<Model> make_llama(const Checkpoint& checkpoint);
std::unique_ptr<Model> make_mixtral(const Checkpoint& checkpoint);
std::unique_ptr<Model> make_qwen3(const Checkpoint& checkpoint);
std::unique_ptr<Model> make_qwen3_moe(const Checkpoint& checkpoint);
std::unique_ptr<Model> make_qwen2_moe(const Checkpoint& checkpoint);
std::unique_ptr<Model> make_olmoe(const Checkpoint& checkpoint);
std::unique_ptr<Model> make_glm4_moe(const Checkpoint& checkpoint);
std::unique_ptr<Model> make_gpt_oss(const Checkpoint& checkpoint);
std::unique_ptr<Model> make_switch(const Checkpoint& checkpoint);
std::unique_ptr<Model> make_deepseek2(const Checkpoint& checkpoint);

}  // namespace witan
