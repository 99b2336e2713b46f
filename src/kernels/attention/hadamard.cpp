#include "kernels/attention/hadamard.h"

#include <cmath>

namespace witan {

void hadamard_rotate(float* x, int32_t dim) {
  const int32_t size = hadamard_size(dim);
  const float factor = 1.0f / std::sqrt(static_cast<float>(size));
  for (int32_t i = 0; i < dim; ++i) x[i] *= factor;
  for (float* block = x; block < x + dim; block += size) {
    for (int32_t distance = 1; distance < size; distance *= 2) {
      for (int32_t begin = 0; begin < size; begin += 2 * distance) {
        float* const low = block + begin;
        float* const high = low + distance;
        for (int32_t i = 0; i < distance; ++i) {
          const float sum = low[i] + high[i];
          high[i] = low[i] - high[i];
          low[i] = sum;
        }
      }
    }
  }
}

}  // namespace witan
