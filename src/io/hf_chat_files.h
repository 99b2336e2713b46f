#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "io/json_config.h"

namespace witan {

// What the files of a Hugging Face directory say about conversations. All throw Error(kBadFile) naming file, key,
// expected and found.

// chat_template.jinja and additional_chat_templates/*.jinja of the directory, then the key chat_template of
// tokenizer_config.json: a string, or a list of {"name", "template"}. A name that was there before is left out.
std::vector<ChatTemplateText> read_chat_templates(const std::string& directory, const nlohmann::json& tokenizer_config);

// bos_token, eos_token, unk_token and pad_token of tokenizer_config.json or special_tokens_map.json: "<s>", or
// {"content": "<s>"}.
SpecialTokenNames read_special_tokens(const nlohmann::json& config, const std::string& source);

GenerationDefaults read_generation_defaults(const JsonConfig& config, const std::string& source);

}  // namespace witan
