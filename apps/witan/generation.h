#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/function_ref.h"
#include "engine/engine.h"

namespace witan {

// What commands that generate text share.

// The engine, with a progress bar while it loads.
std::unique_ptr<Engine> load_engine(const ModelOptions& options);

// Steps until everything submitted has ended, calling after_step each time. The first Ctrl-C ends it early, a second
// one the process; true when there was one.
bool run_to_end(Engine& engine, const std::vector<RequestId>& requests, FunctionRef<void()> after_step);

// The statistics of a run, for programs and for people.
nlohmann::json stats_json(const Engine& engine);
std::string stats_line(const EngineStats& stats, const ModelInfo& info);

// What --kv auto chose, in words.
std::string kv_auto_line(const KvAutoChoice& choice);

}  // namespace witan
