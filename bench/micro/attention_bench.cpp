// Attention over KV blocks against the memory bandwidth and the bf16 or f32 peak of the machine.
//
//   decode/CODEC/PRECISION/HEADS/KV_HEADS/CONTEXT   one query token; --decode_threads threads (default 2) take the
//   splits
//                                 of all kv heads of one layer after the other, over 768 MiB of layers, so that entries
//                                 come from memory:
//                                 bandwidth = bytes of entries per second / read_bandwidth() just before
//   prefill/CODEC/PRECISION/HEADS/KV_HEADS/CONTEXT  1 thread, the last 256 tokens of a prompt, one kv head:
//                                 bf16_peak, int8_peak, f32_peak = operations on visible entries per second / the probe
//                                 just before
//
// Heads have 128 components. KV_HEADS latent is the absorbed form of latent attention (MLA): one kv head of 576
// components, the first 512 of which are its value. A head's blocks lie in runs of 512 entries in random order, as the
// block pool hands them to a long sequence. PRECISION fast is bf16 arithmetic where entries are bf16 or decoded to it,
// and int8 arithmetic where they are multiplied as quants, if the instruction set has it. Times are CPU times (see
// thread_seconds()) and each line is the best of several passes: on a shared machine the fastest is the least
// disturbed. WITAN_ISA chooses the instruction set.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "bench/machine_probe.h"
#include "bench_main.h"
#include "kernels/attention/attention.h"

namespace witan {
namespace {

constexpr int64_t kSetBytes = int64_t{768} << 20;
constexpr int32_t kPromptTokens = 256;
constexpr int32_t kTileRows = 64;      // as paged_attention does
constexpr int64_t kSplitsPerItem = 8;  // of decoding: neighbours, as a thread meets them
constexpr int kPasses = 7;

struct Case {
  KvBlockFormat format;
  Precision precision;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t num_entries;

  int32_t group() const { return num_heads / num_kv_heads; }
  int64_t num_blocks() const { return num_entries / kKvBlockSize; }
  // Of one row over one entry.
  double operations() const { return 2.0 * (format.key_dim + format.value_dim); }
};

// The entries of `num_tables` kv heads.
class Entries {
 public:
  Entries(const Case& test, int64_t num_tables)
      : test_(test),
        bytes_(num_tables * test.num_blocks() * test.format.block_bytes()),
        data_(bytes_),
        blocks_(static_cast<size_t>(num_tables * test.num_blocks())) {
    const KvBlockFormat format = test.format;
    const int64_t block_bytes = format.block_bytes();
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    std::vector<float> keys(static_cast<size_t>(kKvBlockSize * format.key_dim));
    std::vector<float> values(static_cast<size_t>(kKvBlockSize * format.value_dim));
    constexpr int64_t kDistinct = 64;  // blocks; the others repeat them
    const auto num_blocks = std::ssize(blocks_);
    for (int64_t block = 0; block < num_blocks; ++block) {
      std::byte* at = data_.data() + block * block_bytes;
      if (block >= kDistinct) {
        std::memcpy(at, data_.data() + block % kDistinct * block_bytes, static_cast<size_t>(block_bytes));
        continue;
      }
      for (float& x : keys) x = normal(engine);
      for (float& x : values) x = normal(engine);
      kv_store_block(Isa::kReference, format, at, kKvBlockSize,
                     {keys.data(), format.key_dim, values.data(), format.value_dim});
    }
    constexpr int64_t kRun = kAttentionSplit / kKvBlockSize;
    std::vector<int64_t> runs(static_cast<size_t>(num_blocks / kRun));
    std::iota(runs.begin(), runs.end(), 0);
    std::shuffle(runs.begin(), runs.end(), engine);
    for (int64_t block = 0; block < num_blocks; ++block) {
      const int64_t place = runs[static_cast<size_t>(block / kRun)] * kRun + block % kRun;
      blocks_[static_cast<size_t>(block)] = data_.data() + place * block_bytes;
    }
  }

  std::span<const std::byte> bytes() const { return {data_.data(), static_cast<size_t>(bytes_)}; }
  KvView view(int64_t table, int32_t num_entries) const {
    return {.format = test_.format, .blocks = blocks_.data() + table * test_.num_blocks(), .num_entries = num_entries};
  }

 private:
  Case test_;
  int64_t bytes_;
  Buffer data_;
  std::vector<const std::byte*> blocks_;
};

// A tile's rows: the heads of each token in turn.
class Rows {
 public:
  Rows(const Case& test, int32_t first_position, int32_t num_tokens)
      : scale_(1.0f / std::sqrt(static_cast<float>(test.format.key_dim))) {
    const int64_t key_dim = test.format.key_dim;
    const int32_t num_rows = num_tokens * test.group();
    data_.resize(static_cast<size_t>(num_rows * key_dim));
    std::mt19937 engine(2);
    std::normal_distribution<float> normal;
    for (float& x : data_) x = normal(engine);
    for (int32_t r = 0; r < num_rows; ++r) {
      queries_.push_back(data_.data() + r * key_dim);
      positions_.push_back(first_position + r / test.group());
    }
  }
  AttentionRows rows() const {
    return {.queries = queries_.data(),
            .positions = positions_.data(),
            .num_rows = static_cast<int32_t>(queries_.size()),
            .scale = scale_};
  }

 private:
  float scale_;
  std::vector<float> data_;
  std::vector<const float*> queries_;
  std::vector<int32_t> positions_;
};

// States and scratch of one thread.
class Workspace {
 public:
  explicit Workspace(const Case& test)
      : value_dim_(test.format.value_dim),
        stride_(attention_state_floats(value_dim_)),
        floats_(static_cast<size_t>(2 * kTileRows * stride_)),
        scratch_(std::make_unique<Buffer>(attention_scratch_bytes(test.format, kTileRows))) {
    for (int32_t r = 0; r < kTileRows; ++r) next_.push_back(floats_.data() + (kTileRows + r) * stride_);
  }
  float* const* next() { return next_.data(); }
  std::byte* scratch() { return scratch_->data(); }

  // All splits of a view, merged.
  void attend(Isa isa, Precision precision, const KvView& view, AttentionRows rows, float* out) {
    for (int32_t r = 0; r < rows.num_rows; ++r) {
      std::fill_n(total(r), stride_, 0.0f);
      total(r)[0] = -std::numeric_limits<float>::infinity();
    }
    for (int32_t split = 0; split < view.num_splits(); ++split) {
      rows.same_as_before = split > 0;
      attention_split(isa, precision, view, rows, split, next(), scratch());
      for (int32_t r = 0; r < rows.num_rows; ++r) merge_attention_state(isa, total(r), next_[r], value_dim_);
    }
    for (int32_t r = 0; r < rows.num_rows; ++r) finish_attention(isa, total(r), nullptr, value_dim_, out);
  }

 private:
  float* total(int32_t row) { return floats_.data() + row * stride_; }

  int32_t value_dim_;
  int64_t stride_;
  std::vector<float> floats_;
  std::vector<float*> next_;
  std::unique_ptr<Buffer> scratch_;
};

void decode(benchmark::State& state, const Case& test, int num_threads) {
  const Isa isa = select_isa();
  const int64_t table_bytes = test.num_blocks() * test.format.block_bytes();
  const int64_t num_tables = std::max<int64_t>(1, kSetBytes / table_bytes / test.num_kv_heads) * test.num_kv_heads;
  const Entries entries(test, num_tables);
  const Rows rows(test, test.num_entries - 1, 1);
  ThreadPool threads(num_threads);
  std::vector<Workspace> workspaces;
  for (int t = 0; t < num_threads; ++t) workspaces.emplace_back(test);
  const int64_t num_splits = entries.view(0, test.num_entries).num_splits();
  const double bandwidth = read_bandwidth(threads, entries.bytes());
  double best = 1e30;
  for (auto _ : state) {
    std::vector<double> busy(static_cast<size_t>(num_threads), 0.0);
    threads.parallel_for(num_tables * num_splits / kSplitsPerItem, [&](int64_t item, int thread) {
      Workspace& own = workspaces[static_cast<size_t>(thread)];
      const double start = thread_seconds();
      for (int64_t i = item * kSplitsPerItem; i < (item + 1) * kSplitsPerItem; ++i) {
        AttentionRows query = rows.rows();
        query.same_as_before = i > item * kSplitsPerItem && i % num_splits != 0;
        attention_split(isa, test.precision, entries.view(i / num_splits, test.num_entries), query,
                        static_cast<int32_t>(i % num_splits), own.next(), own.scratch());
      }
      busy[static_cast<size_t>(thread)] += thread_seconds() - start;
    });
    const double seconds = std::accumulate(busy.begin(), busy.end(), 0.0) / num_threads;
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  const auto bytes = static_cast<double>(entries.bytes().size());
  const double operations =
      test.operations() * static_cast<double>(num_tables) * test.group() * static_cast<double>(test.num_entries);
  state.counters["GB/s"] = bytes / best / 1e9;
  state.counters["bandwidth"] = bytes / best / bandwidth;
  state.counters["GFLOPS"] = operations / best / 1e9;
}

void prefill(benchmark::State& state, const Case& test) {
  const Isa isa = select_isa();
  const Entries entries(test, 1);
  Workspace workspace(test);
  struct Tile {
    Rows rows;
    KvView view;
  };
  std::vector<Tile> tiles;
  const int32_t tile_tokens = std::max(1, kTileRows / test.group());
  double visible = 0;
  for (int32_t end = test.num_entries; end > test.num_entries - kPromptTokens; end -= tile_tokens) {
    tiles.push_back({Rows(test, end - tile_tokens, tile_tokens), entries.view(0, end)});
    for (int32_t token = end - tile_tokens; token < end; ++token) visible += test.group() * (token + 1.0);
  }
  std::vector<float> out(static_cast<size_t>(test.format.value_dim));
  const AttentionArithmetic arithmetic = attention_arithmetic(isa, test.format, test.precision);
  const auto [peak, peak_name] = arithmetic == AttentionArithmetic::kBF16   ? std::pair(bf16_peak(), "bf16_peak")
                                 : arithmetic == AttentionArithmetic::kInt8 ? std::pair(int8_peak(), "int8_peak")
                                                                            : std::pair(f32_peak(), "f32_peak");
  double best = 1e30;
  for (auto _ : state) {
    const double start = thread_seconds();
    for (const Tile& tile : tiles) workspace.attend(isa, test.precision, tile.view, tile.rows.rows(), out.data());
    const double seconds = thread_seconds() - start;
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  state.counters["GFLOPS"] = test.operations() * visible / best / 1e9;
  if (peak > 0) state.counters[peak_name] = test.operations() * visible / best / peak;
}

void register_all(int decode_threads) {
  struct Shape {
    const char* name;
    int32_t num_heads;
    int32_t num_kv_heads;
    KvBlockFormat format;
  };
  const Shape shapes[] = {{"32/4", 32, 4, {.key_dim = 128, .value_dim = 128}},
                          {"16/16", 16, 16, {.key_dim = 128, .value_dim = 128}},
                          {"16/latent", 16, 1, {.key_dim = 576, .value_dim = 512, .value_in_key = true}}};
  struct Entry {
    KvCodec codec;
    Precision precision;
  };
  constexpr Entry kEntries[] = {{KvCodec::kBF16, Precision::kFast},
                                {KvCodec::kBF16, Precision::kExact},
                                {KvCodec::kQ8, Precision::kFast},
                                {KvCodec::kQ8, Precision::kExact},
                                {KvCodec::kF16, Precision::kFast},
                                {KvCodec::kF32, Precision::kFast},
                                {KvCodec::kHadamard8, Precision::kFast},
                                {KvCodec::kHadamard8, Precision::kExact},
                                {KvCodec::kHadamard8Value4, Precision::kFast},
                                {KvCodec::kHadamard4, Precision::kFast},
                                {KvCodec::kHadamard4, Precision::kExact},
                                {KvCodec::kHadamard4Value2, Precision::kFast},
                                {KvCodec::kHadamard2, Precision::kFast},
                                {KvCodec::kLatent8, Precision::kFast},
                                {KvCodec::kLatent4, Precision::kFast},
                                {KvCodec::kKivi4, Precision::kFast},
                                {KvCodec::kKivi2, Precision::kFast}};
  for (const bool decoding : {true, false}) {
    for (const Shape& shape : shapes) {
      if (!decoding && shape.format.value_in_key) continue;  // prompts use the expanded form
      for (const int32_t num_entries : {4096, 16384, 32768}) {
        if (!decoding && num_entries > 16384) continue;
        for (const Entry entry : kEntries) {
          if (!kv_codec_fits(entry.codec, shape.format.value_in_key)) continue;
          Case test = {shape.format, entry.precision, shape.num_heads, shape.num_kv_heads, num_entries};
          test.format.codec = entry.codec;
          const auto name =
              fmt::format("{}/{}/{}/{}/{}", decoding ? "decode" : "prefill", kv_codec_name(entry.codec),
                          entry.precision == Precision::kFast ? "fast" : "exact", shape.name, num_entries);
          benchmark::RegisterBenchmark(name.c_str(),
                                       [test, decoding, decode_threads](benchmark::State& state) {
                                         decoding ? decode(state, test, decode_threads) : prefill(state, test);
                                       })
              ->UseManualTime()
              ->Unit(benchmark::kMillisecond)
              ->Iterations(kPasses);
        }
      }
    }
  }
}

}  // namespace
}  // namespace witan

int main(int argc, char** argv) { return witan::run_benchmarks(argc, argv, witan::register_all); }
