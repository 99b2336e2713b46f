#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/function_ref.h"
#include "base/thread_pool.h"

namespace witan {

// What the machine can do at this moment: shared and virtual machines drift, so measure right before what is compared.

// CPU time of the calling thread, in seconds. Measuring it rather than wall-clock time leaves out the time for which
// other programs have the core; on an idle machine the two are equal.
double thread_seconds();

// Runs body(item) for all items on the pool's threads and returns the mean CPU time that the items took a thread.
double busy_seconds(ThreadPool& threads, int64_t num_items, FunctionRef<void(int64_t)> body);

// Bytes per second that the pool's threads read from `memory`, best of three passes.
double read_bandwidth(ThreadPool& threads, std::span<const std::byte> memory);

// Operations (a multiply and an add are two) per second of one core, from registers; best of five. 0 without AVX-512
// VNNI, BF16.
double int8_peak();
double bf16_peak();
double f32_peak();

namespace avx512 {

// Runs `steps` rounds of 12 independent vpdpbusd, vdpbf16ps or vfmadd231ps on 64-byte registers.
void int8_rounds(int64_t steps);
void bf16_rounds(int64_t steps);
void f32_rounds(int64_t steps);

// Reads num_lines times 64 bytes, asking for lines 8 KiB ahead: without that, a Zen 4 core reads a quarter slower.
void read_lines(const std::byte* from, int64_t num_lines);

}  // namespace avx512
}  // namespace witan
