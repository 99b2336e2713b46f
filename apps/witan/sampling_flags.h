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
};
void add_generation_flags(CLI::App& app, GenerationFlags& flags);

}  // namespace witan
