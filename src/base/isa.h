#pragma once

#include <array>
#include <string_view>

namespace witan {

// Instruction sets that kernels are written for, weakest first. An op that has no variant for one uses the next weaker.
enum class Isa {
  kReference,   // plain loops, double sums: the oracle
  kAvx2,        // AVX2, FMA, F16C, BMI2
  kAvx512,      // + F, BW, DQ, VL
  kAvx512Vnni,  // + VNNI
  kAvx512Bf16,  // + BF16
};
inline constexpr std::array kAllIsas = {Isa::kReference, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16};

// "reference", "avx2", "avx512", "avx512_vnni", "avx512_bf16".
std::string_view isa_name(Isa isa);

// True when this CPU and operating system can run `isa`.
bool cpu_supports(Isa isa);

// Whether the hardware's prefetcher keeps up with a core that reads one ascending stream: Zen 4's does, that of Intel's
// cores (measured on model 207) lags behind unless lines are asked for early.
bool prefetcher_keeps_up();

// The strongest supported set, but kAvx512Vnni on a CPU that multiplies float32 faster than BF16 (Intel's from Sapphire
// Rapids on); or the one named by the environment variable WITAN_ISA.
// Throws Error(kInvalidArgument) when that names no set, Error(kUnsupported) when the CPU lacks it.
Isa select_isa();

}  // namespace witan
