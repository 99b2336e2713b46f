#pragma once

#include <cstdint>

#include "kernels/matmul/block_formats.h"
#include "kernels/matmul/matmul.h"

// The entry points of the instruction sets' files; matmul.cpp and activations.cpp choose among them.
namespace witan {

// The arguments of matmul(), checked.
struct MatmulArgs {
  const uint8_t* panels = nullptr;
  int64_t panel_stride_bytes = 0;
  DType type = DType::kF32;
  ActivationFormat format = ActivationFormat::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* const* activations = nullptr;
  int64_t num_rows = 0;
  int64_t panel_begin = 0;
  int64_t panel_end = 0;
  float* const* out = nullptr;
  const BlockFormat* blocks = nullptr;  // of `type`, where it has one
  int64_t block_scales_bytes = 0;       // at the start of a panel, of such a type
  bool always_far_ahead = false;        // see PrefetchAhead
};

using MatmulFunction = void (*)(const MatmulArgs& args);

void matmul_reference(const MatmulArgs& args);  // any type and format

void matmul_f32_avx2(const MatmulArgs& args);
void matmul_f16_avx2(const MatmulArgs& args);
void matmul_bf16_exact_avx2(const MatmulArgs& args);
void matmul_f8_e4m3_exact_avx2(const MatmulArgs& args);
void matmul_f8_e4m3_avx2(const MatmulArgs& args);
void matmul_q8_0_exact_avx2(const MatmulArgs& args);
void matmul_q4_k_exact_avx2(const MatmulArgs& args);
void matmul_q6_k_exact_avx2(const MatmulArgs& args);
void matmul_bf16_avx2(const MatmulArgs& args);
void matmul_q8_0_avx2(const MatmulArgs& args);
void matmul_q4_k_avx2(const MatmulArgs& args);
void matmul_q6_k_avx2(const MatmulArgs& args);

void matmul_f32_avx512(const MatmulArgs& args);
void matmul_f16_avx512(const MatmulArgs& args);
void matmul_bf16_exact_avx512(const MatmulArgs& args);
void matmul_f8_e4m3_exact_avx512(const MatmulArgs& args);
void matmul_f8_e4m3_avx512(const MatmulArgs& args);
void matmul_q8_0_exact_avx512(const MatmulArgs& args);
void matmul_q4_k_exact_avx512(const MatmulArgs& args);
void matmul_q6_k_exact_avx512(const MatmulArgs& args);
void matmul_bf16_avx512(const MatmulArgs& args);
void matmul_q8_0_avx512(const MatmulArgs& args);
void matmul_q4_k_avx512(const MatmulArgs& args);
void matmul_q6_k_avx512(const MatmulArgs& args);

void matmul_q8_0_avx512_vnni(const MatmulArgs& args);
void matmul_q4_k_avx512_vnni(const MatmulArgs& args);
void matmul_q6_k_avx512_vnni(const MatmulArgs& args);

void matmul_blocks_exact_avx2(const MatmulArgs& args);
void matmul_blocks_exact_avx512(const MatmulArgs& args);
void matmul_blocks_avx2(const MatmulArgs& args);
void matmul_blocks_avx512(const MatmulArgs& args);
void matmul_blocks_avx512_vnni(const MatmulArgs& args);

void matmul_bf16_avx512_bf16(const MatmulArgs& args);
void matmul_f8_e4m3_avx512_bf16(const MatmulArgs& args);

// Stores x [cols] as activation_bytes(format, cols) bytes.
using StoreFunction = void (*)(const float* x, int64_t cols, std::byte* out);

void store_bf16_reference(const float* x, int64_t cols, std::byte* out);
void store_int8_per_32_reference(const float* x, int64_t cols, std::byte* out);
void store_int8_per_256_reference(const float* x, int64_t cols, std::byte* out);

void store_bf16_avx2(const float* x, int64_t cols, std::byte* out);
void store_int8_per_32_avx2(const float* x, int64_t cols, std::byte* out);
void store_int8_per_256_avx2(const float* x, int64_t cols, std::byte* out);

}  // namespace witan
