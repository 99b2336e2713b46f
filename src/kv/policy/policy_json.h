#pragma once

#include <string>
#include <string_view>

namespace witan {

// The text of a policy that is given as a JSON object (docs/kv-cache.md). Throws Error(kInvalidArgument) naming what is
// not as it should be; whether the parts exist is for parse_kv_policy.
std::string kv_policy_text_of_json(std::string_view text);

}  // namespace witan
