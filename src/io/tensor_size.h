#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace witan {

// The number of elements of a shape, or nothing when it does not fit in int64_t. Dimensions must be positive; an empty
// shape has one element.
std::optional<int64_t> count_elements(std::span<const int64_t> shape);

// value * factor, or nothing when it does not fit. Both must not be negative.
std::optional<int64_t> multiply(int64_t value, int64_t factor);

}  // namespace witan
