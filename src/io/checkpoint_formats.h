#pragma once

#include <memory>
#include <string>

#include "io/checkpoint.h"

namespace witan {

// What Checkpoint::open chooses from. Errors as there.
std::unique_ptr<Checkpoint> open_gguf_checkpoint(const std::string& path);
std::unique_ptr<Checkpoint> open_huggingface_checkpoint(const std::string& directory);

}  // namespace witan
