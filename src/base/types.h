#pragma once

#include <cstdint>

namespace witan {

using TokenId = int32_t;
using SequenceId = int64_t;

}  // namespace witan
