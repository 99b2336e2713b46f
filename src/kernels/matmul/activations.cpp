#include <array>
#include <cstring>

#include "base/check.h"
#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/matmul_variants.h"

namespace witan {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct StoreRow {
  ActivationFormat format;
  int64_t cols_multiple;
  StoreFunction reference;
  StoreFunction avx2;
};

constexpr std::array kStores = {
    StoreRow{ActivationFormat::kBF16, 1, store_bf16_reference, store_bf16_avx2},
    StoreRow{ActivationFormat::kInt8Per32, kQ8BlockColumns, store_int8_per_32_reference, store_int8_per_32_avx2},
    StoreRow{ActivationFormat::kInt8Per256, kKQuantColumns, store_int8_per_256_reference, store_int8_per_256_avx2},
};

}  // namespace

int64_t activation_bytes(ActivationFormat format, int64_t cols) {
  switch (format) {
    case ActivationFormat::kF32:
      return round_up(4 * cols, 64);
    case ActivationFormat::kBF16:
      return round_up(2 * cols, 64);
    case ActivationFormat::kInt8Per32:
      return round_up(cols, 256) / 256 * static_cast<int64_t>(sizeof(Int8Per32Group));
    case ActivationFormat::kInt8Per256:
      return round_up(cols, 256) / 256 * static_cast<int64_t>(sizeof(Int8Per256Block));
  }
  WITAN_CHECK(false, "activation format {}", static_cast<int>(format));
}

void store_activations(Isa isa, ActivationFormat format, const float* x, int64_t cols, std::byte* out) {
  if (format == ActivationFormat::kF32) {
    std::memcpy(out, x, static_cast<size_t>(cols) * sizeof(float));
    return;
  }
  for (const StoreRow& row : kStores) {
    if (row.format != format) continue;
    WITAN_CHECK(cols % row.cols_multiple == 0, "{} activations are not a multiple of {}", cols, row.cols_multiple);
    return (isa == Isa::kReference ? row.reference : row.avx2)(x, cols, out);
  }
  WITAN_CHECK(false, "activation format {}", static_cast<int>(format));
}

}  // namespace witan
