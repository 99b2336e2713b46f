#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace witan {

// The flags that shape a generation.
struct GenerationFlags {
  GenerationRequest request;
  std::vector<std::string> logit_bias;  // "ID=BIAS"

  // A request for this prompt. Throws Error(kInvalidArgument) for a bias that does not parse.
  GenerationRequest finished(std::vector<TokenId> prompt) const;
  // What can be found wrong before a model is loaded. Throws Error(kInvalidArgument) naming it.
  void check() const;
};
void add_generation_flags(CLI::App& app, GenerationFlags& flags);

}  // namespace witan
