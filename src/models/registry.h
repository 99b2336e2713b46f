#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "io/checkpoint.h"
#include "models/model.h"

namespace witan {

// One row per architecture; two where Hugging Face has two names for what is one here.
struct Architecture {
  std::string_view name;         // "mixtral"
  std::string_view title;        // for people: "Mixtral"
  std::string_view gguf;         // general.architecture in GGUF files; empty: there are none
  std::string_view huggingface;  // model_type in config.json
  bool moe;
  // Reads the configuration; weights are loaded later.
  std::unique_ptr<Model> (*make)(const Checkpoint& checkpoint);
};

std::span<const Architecture> architectures();

// The model of a checkpoint, without weights yet. Throws Error(kUnsupported) naming an unknown architecture and those
// there are, Error(kBadFile) or Error(kUnsupported) for a configuration that is contradictory or not supported.
std::unique_ptr<Model> create_model(const Checkpoint& checkpoint);

}  // namespace witan
