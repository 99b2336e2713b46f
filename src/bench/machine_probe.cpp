#include "bench/machine_probe.h"

#include <algorithm>
#include <atomic>
#include <ctime>

#include "base/isa.h"

namespace witan {
namespace {

constexpr int64_t kRounds = 2'000'000;
constexpr int64_t kChainsPerRound = 12;

template <typename F>
double best_seconds(int repeats, const F& run) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double start = thread_seconds();
    run();
    best = std::min(best, thread_seconds() - start);
  }
  return best;
}

uint64_t sum_words(const uint64_t* words, size_t count) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= count; i += 8) {
    for (size_t j = 0; j < 8; ++j) sums[j] += words[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double busy_seconds(ThreadPool& threads, int64_t num_items, FunctionRef<void(int64_t)> body) {
  std::atomic<double> total{0};
  threads.parallel_for(num_items, [&](int64_t item, int) {
    const double start = thread_seconds();
    body(item);
    total += thread_seconds() - start;
  });
  return total / threads.num_threads();
}

double read_bandwidth(ThreadPool& threads, std::span<const std::byte> memory) {
  constexpr size_t kItemBytes = size_t{1} << 20;
  std::atomic<uint64_t> total{0};
  const auto num_items = static_cast<int64_t>(memory.size() / kItemBytes);
  const bool has_avx512 = cpu_supports(Isa::kAvx512Bf16);  // asking takes longer than an item, in a virtual machine
  double best = 1e30;
  for (int i = 0; i < 3; ++i) {
    best = std::min(best, busy_seconds(threads, num_items, [&](int64_t item) {
                      const std::byte* from = memory.data() + static_cast<size_t>(item) * kItemBytes;
                      if (has_avx512) {
                        avx512::read_lines(from, kItemBytes / 64);
                      } else {
                        total += sum_words(reinterpret_cast<const uint64_t*>(from), kItemBytes / sizeof(uint64_t));
                      }
                    }));
  }
  return static_cast<double>(num_items) * static_cast<double>(kItemBytes) / best;
}

double int8_peak() {
  if (!cpu_supports(Isa::kAvx512Bf16)) return 0;
  return static_cast<double>(kRounds * kChainsPerRound) * 128 / best_seconds(5, [] { avx512::int8_rounds(kRounds); });
}

double bf16_peak() {
  if (!cpu_supports(Isa::kAvx512Bf16)) return 0;
  return static_cast<double>(kRounds * kChainsPerRound) * 64 / best_seconds(5, [] { avx512::bf16_rounds(kRounds); });
}

double f32_peak() {
  if (!cpu_supports(Isa::kAvx512Bf16)) return 0;
  return static_cast<double>(kRounds * kChainsPerRound) * 32 / best_seconds(5, [] { avx512::f32_rounds(kRounds); });
}

}  // namespace witan
