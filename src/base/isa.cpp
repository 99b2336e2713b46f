#include "base/isa.h"

#include <cstdlib>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace witan {
#if defined(__x86_64__)
namespace {

// Leaf 1, ECX bit 29. Clang 14 has no name for it in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}

// Intel's cores from Sapphire Rapids on, which are those with FP16 too, begin a BF16 product of 512 bits every second
// cycle and two float32 ones in each: half as many operations. Their way of multiplying BF16 is AMX. Measured on model
// 207; docs/performance.md has what it is worth.
bool multiplies_f32_faster_than_bf16() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  const bool has_fp16 = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & (1u << 23)) != 0;
  return __builtin_cpu_is("intel") && has_fp16;
}

}  // namespace
#endif

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return "reference";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

bool cpu_supports(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  switch (isa) {
    case Isa::kReference:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Vnni:
      return vnni;
    case Isa::kAvx512Bf16:
      return vnni && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return isa == Isa::kReference;
#endif
}

bool prefetcher_keeps_up() {
#if defined(__x86_64__)
  return !__builtin_cpu_is("intel");
#else
  return true;
#endif
}

Isa select_isa() {
  if (const char* forced = std::getenv("WITAN_ISA"); forced != nullptr && *forced != '\0') {
    for (Isa isa : kAllIsas) {
      if (isa_name(isa) != forced) continue;
      if (!cpu_supports(isa)) fail(ErrorCode::kUnsupported, "WITAN_ISA={}: this CPU does not have it", forced);
      return isa;
    }
    fail(ErrorCode::kInvalidArgument,
         "WITAN_ISA={}: unknown instruction set; expected reference, avx2, avx512, avx512_vnni or avx512_bf16", forced);
  }
  Isa best = Isa::kReference;
  for (Isa isa : kAllIsas) {
    if (cpu_supports(isa)) best = isa;
  }
#if defined(__x86_64__)
  if (best == Isa::kAvx512Bf16 && multiplies_f32_faster_than_bf16()) return Isa::kAvx512Vnni;
#endif
  return best;
}

}  // namespace witan
