#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "engine/loaded_model.h"

namespace witan {

// The flags of every command that computes with a model, or plans to.
struct ModelFlags {
  ModelOptions options;
  bool exact = false;
  // Not given: bf16 where the CPU multiplies it, and f16 where entries are turned to float32 anyway.
  std::optional<KvCodec> kv_codec;

  // The options as the flags set them.
  ModelOptions finished() const;
  // The same for work of which nobody sees a part before all of it is there: prompts need not wait for sequences that
  // generate.
  ModelOptions finished_for_throughput() const;
};
CLI::Option* add_model_flag(CLI::App& app, std::string& path);  // required unless the caller changes that
// Where witan-tiny is, the model that comes with Witan: with the installed program, or in the sources that it was built
// from. Throws Error(kIo) naming both places when it is in neither.
std::string shipped_model_path();
void add_exact_flag(CLI::App& app, ModelFlags& flags);
// --kv-type, --threads, --memory and --context; `default_context` says what a context of 0 means.
void add_memory_flags(CLI::App& app, ModelFlags& flags, const std::string& default_context);
// --kv-offload-dir, of commands with --kv.
void add_kv_offload_flag(CLI::App& app, ModelFlags& flags);
// --step-tokens and --sequences.
void add_step_flags(CLI::App& app, ModelFlags& flags);

// Bytes of a size such as "8GB", "1.5 GiB", "512m" or "4096"; units are powers of 1024. Throws Error(kInvalidArgument).
int64_t parse_size(const std::string& text);

}  // namespace witan
