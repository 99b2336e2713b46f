#include "io/tensor_size.h"

namespace witan {

std::optional<int64_t> multiply(int64_t value, int64_t factor) {
  int64_t product = 0;
  if (__builtin_mul_overflow(value, factor, &product)) return std::nullopt;
  return product;
}

std::optional<int64_t> count_elements(std::span<const int64_t> shape) {
  std::optional<int64_t> count = 1;
  for (const int64_t dim : shape) {
    if (count) count = multiply(*count, dim);
  }
  return count;
}

}  // namespace witan
