#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace witan {

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
