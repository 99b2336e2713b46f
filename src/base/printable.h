#pragma once

#include <string>
#include <string_view>

namespace witan {

// `text` from a file, fit for a message: in double quotes, bytes outside printable ASCII as \xNN, cut after
// 100 bytes.
std::string printable(std::string_view text);

}  // namespace witan
