#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>

#include "memory/memory_pool.h"

namespace witan {

// Resident zeros as the engine's memory is: anonymous, in huge pages where the system has them. With small pages the
// hardware's prefetchers end at every 4096 bytes, and other ways of asking ahead win.
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : size_(size),
        pool_((static_cast<size_t>(size) / MemoryPool::kFrameBytes + 1) * MemoryPool::kFrameBytes),
        region_(pool_.allocate(MemoryTag::kWeights, static_cast<size_t>(size))) {
    if (!region_) std::abort();
    std::memset(region_->data(), 0, static_cast<size_t>(size));
  }
  std::byte* data() const { return region_->data(); }
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  MemoryPool pool_;
  std::optional<MemoryRegion> region_;
};

// main() of a benchmark program: its own flag --decode_threads=N (2), which comes first, then Google Benchmark's.
inline int run_benchmarks(int argc, char** argv, void (*register_all)(int decode_threads)) {
  constexpr std::string_view kThreadsFlag = "--decode_threads=";
  int decode_threads = 2;
  if (argc > 1 && std::string_view(argv[1]).starts_with(kThreadsFlag)) {
    decode_threads = std::max(1, std::atoi(argv[1] + kThreadsFlag.size()));
    std::rotate(argv + 1, argv + 2, argv + argc);
    --argc;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  register_all(decode_threads);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace witan
