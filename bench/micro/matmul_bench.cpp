// Products with packed weights against the memory bandwidth and the peaks of the machine's instructions.
//
//   decode/TYPE/PRECISION/N/K/M   --decode_threads threads (default 2) over 1 GiB of panels, so that weights come from
//   memory:
//                                 bandwidth = bytes of weights per second / read_bandwidth() just before
//   prefill/TYPE/PRECISION/N/K/M  1 thread, one matrix:
//                                 int8_peak, bf16_peak or f32_peak = operations per second / the probe just before
//
// Times are CPU times (see thread_seconds()) and each line is the best of several passes: on a shared machine the
// fastest is the least disturbed. WITAN_ISA chooses the instruction set.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "bench/machine_probe.h"
#include "bench_main.h"
#include "kernels/matmul/matmul.h"

namespace witan {
namespace {

constexpr int64_t kSetBytes = int64_t{1} << 30;
constexpr int kPasses = 7;

struct Shape {
  int64_t rows;
  int64_t cols;
};

struct Case {
  DType type;
  Precision precision;
  Shape shape;
  int64_t num_rows;
};

// Packs random weights into the first panels of `to` and repeats them up to its end; returns the matrix of all of them.
PackedMatrix fill_with_panels(DType type, const Shape& shape, const Buffer& to) {
  const QuantType& quant = quant_type(type);
  const int64_t bytes = panel_bytes(type, shape.cols);
  const int64_t num_panels = to.size() / bytes;
  const int64_t distinct = std::min(num_panels, shape.rows / kPanelRows);
  std::vector<std::byte> row_bytes(static_cast<size_t>(kPanelRows * quant.row_bytes(shape.cols)));
  for (int64_t panel = 0; panel < distinct; ++panel) {
    const std::byte* rows[kPanelRows];
    for (int64_t row = 0; row < kPanelRows; ++row) {
      std::byte* at = row_bytes.data() + row * quant.row_bytes(shape.cols);
      quant.random(static_cast<uint64_t>(panel * kPanelRows + row), 0.02f, at, shape.cols);
      rows[row] = at;
    }
    pack_panel(type, shape.cols, rows, kPanelRows, to.data() + panel * bytes);
  }
  for (int64_t panel = distinct; panel < num_panels; ++panel) {
    std::memcpy(to.data() + panel * bytes, to.data() + panel % distinct * bytes, static_cast<size_t>(bytes));
  }
  return {.type = type,
          .rows = num_panels * kPanelRows,
          .cols = shape.cols,
          .data = to.data(),
          .panel_stride_bytes = bytes};
}

// Stored activation rows and output rows.
class Rows {
 public:
  Rows(Isa isa, ActivationFormat format, int64_t num_rows, int64_t cols, int64_t out_cols)
      : stored_(activation_bytes(format, cols) * num_rows), out_(num_rows * out_cols * 4) {
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(cols));
    for (int64_t i = 0; i < num_rows; ++i) {
      for (float& value : x) value = normal(engine);
      std::byte* row = stored_.data() + i * activation_bytes(format, cols);
      store_activations(isa, format, x.data(), cols, row);
      rows.push_back(row);
      out.push_back(reinterpret_cast<float*>(out_.data()) + i * out_cols);
    }
  }
  std::vector<const std::byte*> rows;
  std::vector<float*> out;

 private:
  Buffer stored_;
  Buffer out_;
};

double operations(const PackedMatrix& matrix, int64_t num_rows) {
  return 2.0 * static_cast<double>(matrix.rows) * static_cast<double>(matrix.cols) * static_cast<double>(num_rows);
}

void decode(benchmark::State& state, const Case& test, int num_threads) {
  const Isa isa = select_isa();
  const ActivationFormat format = activation_format(test.type, test.precision);
  const Buffer set(kSetBytes);
  const PackedMatrix matrix = fill_with_panels(test.type, test.shape, set);
  const Rows rows(isa, format, test.num_rows, test.shape.cols, matrix.rows);
  ThreadPool threads(num_threads);
  constexpr int64_t kPanelsPerItem = 24;
  const int64_t num_items = (matrix.num_panels() + kPanelsPerItem - 1) / kPanelsPerItem;
  const double bandwidth = read_bandwidth(threads, {set.data(), static_cast<size_t>(set.size())});
  double best = 1e30;
  for (auto _ : state) {
    const double seconds = busy_seconds(threads, num_items, [&](int64_t item) {
      const int64_t begin = item * kPanelsPerItem;
      matmul(isa, matrix, format, rows.rows.data(), test.num_rows, begin,
             std::min(matrix.num_panels(), begin + kPanelsPerItem), rows.out.data());
    });
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  const double bytes = static_cast<double>(matrix.num_panels() * matrix.panel_stride_bytes);
  state.counters["GB/s"] = bytes / best / 1e9;
  state.counters["bandwidth"] = bytes / best / bandwidth;
  state.counters["GOPS"] = operations(matrix, test.num_rows) / best / 1e9;
}

void prefill(benchmark::State& state, const Case& test) {
  const Isa isa = select_isa();
  const ActivationFormat format = activation_format(test.type, test.precision);
  const Buffer set(panel_bytes(test.type, test.shape.cols) * (test.shape.rows / kPanelRows));
  const PackedMatrix matrix = fill_with_panels(test.type, test.shape, set);
  const Rows rows(isa, format, test.num_rows, test.shape.cols, matrix.rows);
  const bool in_bf16 = format == ActivationFormat::kBF16 && isa == Isa::kAvx512Bf16;
  const bool in_f32 = format == ActivationFormat::kF32 || (format == ActivationFormat::kBF16 && !in_bf16);
  const auto [peak, peak_name] = in_bf16  ? std::pair(bf16_peak(), "bf16_peak")
                                 : in_f32 ? std::pair(f32_peak(), "f32_peak")
                                          : std::pair(int8_peak(), "int8_peak");
  double best = 1e30;
  for (auto _ : state) {
    const double start = thread_seconds();
    matmul(isa, matrix, format, rows.rows.data(), test.num_rows, 0, matrix.num_panels(), rows.out.data());
    const double seconds = thread_seconds() - start;
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  state.counters["GOPS"] = operations(matrix, test.num_rows) / best / 1e9;
  if (peak > 0) state.counters[peak_name] = operations(matrix, test.num_rows) / best / peak;
}

void store(benchmark::State& state, ActivationFormat format) {
  const Isa isa = select_isa();
  constexpr int64_t kCols = 2048;
  const Buffer x(kCols * 4);
  const Buffer out(activation_bytes(format, kCols));
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  auto* values = reinterpret_cast<float*>(x.data());
  for (int64_t i = 0; i < kCols; ++i) values[i] = normal(engine);
  for (auto _ : state) {
    store_activations(isa, format, values, kCols, out.data());
    benchmark::ClobberMemory();
  }
  state.counters["elements/s"] =
      benchmark::Counter(static_cast<double>(kCols), benchmark::Counter::kIsIterationInvariantRate);
}

void register_all(int decode_threads) {
  for (const QuantType& quant : quant_types()) {
    for (const Precision precision : {Precision::kFast, Precision::kExact}) {
      const bool same = activation_format(quant.dtype, Precision::kFast) == ActivationFormat::kF32;
      if (same && precision == Precision::kFast) continue;
      for (const Shape& shape : {Shape{1536, 2048}, Shape{2048, 768}}) {
        for (const int64_t num_rows : {1, 2, 3, 4, 8, 16, 128, 512}) {
          const Case test = {quant.dtype, precision, shape, num_rows};
          const auto name =
              fmt::format("{}/{}/{}/{}/{}/{}", num_rows <= 16 ? "decode" : "prefill", quant.name,
                          precision == Precision::kFast ? "fast" : "exact", shape.rows, shape.cols, num_rows);
          benchmark::RegisterBenchmark(name.c_str(),
                                       [test, decode_threads](benchmark::State& state) {
                                         test.num_rows <= 16 ? decode(state, test, decode_threads)
                                                             : prefill(state, test);
                                       })
              ->UseManualTime()
              ->Unit(benchmark::kMillisecond)
              ->Iterations(kPasses);
        }
      }
    }
  }
  for (const ActivationFormat format :
       {ActivationFormat::kBF16, ActivationFormat::kInt8Per32, ActivationFormat::kInt8Per256}) {
    constexpr const char* kNames[] = {"f32", "bf16", "int8_per_32", "int8_per_256"};
    benchmark::RegisterBenchmark(fmt::format("store/{}", kNames[static_cast<size_t>(format)]).c_str(),
                                 [format](benchmark::State& state) { store(state, format); });
  }
}

}  // namespace
}  // namespace witan

int main(int argc, char** argv) { return witan::run_benchmarks(argc, argv, witan::register_all); }
