#include "kv/policy/page_bounds.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "kv/policy/row_weights.h"

namespace witan {
namespace {

int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

KvBlockFormat bounds_format(int32_t key_dim) {
  return {.codec = KvCodec::kBF16, .key_dim = 2 * key_dim, .value_dim = 2 * key_dim, .value_in_key = true};
}

bool reads_pages(const KvLayerSpec& spec, int32_t layer, const KvPageReader& reader) {
  return layer >= reader.num_dense_layers && spec.window == 0;
}

int64_t blocks_per_head(const KvPageReader& reader, int32_t max_entries) {
  return (max_entries / reader.page_entries + kKvBlockSize - 1) / kKvBlockSize;
}

// The nearest bfloat16 that is no smaller than x, as a float.
float round_up(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t toward_zero = bits & 0xffff0000u;
  return std::bit_cast<float>(toward_zero == bits || x < 0.0f ? toward_zero : toward_zero + 0x10000u);
}

float round_down(float x) { return -round_up(-x); }

}  // namespace

int64_t PageBounds::bytes(std::span<const KvLayerSpec> layers, const KvPageReader& reader, int32_t max_entries) {
  int64_t bytes = 0;
  for (int32_t layer = 0; layer < std::ssize(layers); ++layer) {
    const KvLayerSpec& spec = layers[static_cast<size_t>(layer)];
    if (!reads_pages(spec, layer, reader)) continue;
    bytes += spec.num_kv_heads * blocks_per_head(reader, max_entries) * bounds_format(spec.key_dim).block_bytes();
  }
  return bytes;
}

PageBounds::PageBounds(MemoryPool& pool, std::span<const KvLayerSpec> layers, const KvPageReader& reader,
                       int32_t max_entries)
    : reader_(reader) {
  int64_t num_heads = 0;
  for (int32_t layer = 0; layer < std::ssize(layers); ++layer) {
    const KvLayerSpec& spec = layers[static_cast<size_t>(layer)];
    const bool reads = reads_pages(spec, layer, reader);
    formats_.push_back(bounds_format(spec.key_dim));
    first_heads_.push_back(reads ? num_heads : -1);
    num_heads += reads ? spec.num_kv_heads : 0;
  }
  const int64_t bytes = PageBounds::bytes(layers, reader, max_entries);
  auto region = pool.allocate(MemoryTag::kActivations, static_cast<size_t>(bytes));
  if (!region) {
    fail(ErrorCode::kOutOfMemory, "the bounds of the pages of {} KV entries need {} bytes; {} are free", max_entries,
         bytes, pool.free_bytes());
  }
  region_ = std::move(*region);
  heads_.resize(static_cast<size_t>(num_heads));
  const std::byte* next = region_.data();
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    if (first_heads_[layer] < 0) continue;
    for (int32_t h = 0; h < layers[layer].num_kv_heads; ++h) {
      for (int64_t block = 0; block < blocks_per_head(reader, max_entries);
           ++block, next += formats_[layer].block_bytes()) {
        head(static_cast<int32_t>(layer), h).blocks.push_back(next);
      }
    }
  }
}

void PageBounds::learn(int32_t layer, int32_t index, const KvView& view) {
  Head& known = head(layer, index);
  const int32_t key_dim = view.format.key_dim;
  const int32_t num_whole = view.num_entries / page_entries();
  if (known.num_known >= num_whole) return;
  WITAN_CHECK(num_whole <= std::ssize(known.blocks) * kKvBlockSize, "{} pages, {} blocks for bounds", num_whole,
              known.blocks.size());
  std::vector<float> key(static_cast<size_t>(key_dim));
  std::vector<float> bounds(static_cast<size_t>(2 * key_dim));
  float* largest = bounds.data();
  float* least = largest + key_dim;
  for (; known.num_known < num_whole; ++known.num_known) {
    const int32_t page = known.num_known;
    std::fill_n(largest, key_dim, -std::numeric_limits<float>::infinity());
    std::fill_n(least, key_dim, std::numeric_limits<float>::infinity());
    for (int32_t entry = page * page_entries(); entry < (page + 1) * page_entries(); ++entry) {
      view.load(entry, key.data(), nullptr);
      for (int32_t d = 0; d < key_dim; ++d) {
        largest[d] = std::max(largest[d], key[static_cast<size_t>(d)]);
        least[d] = std::min(least[d], key[static_cast<size_t>(d)]);
      }
    }
    for (int32_t d = 0; d < key_dim; ++d) {
      largest[d] = round_up(largest[d]);
      least[d] = round_down(least[d]);
    }
    kv_store(formats_[static_cast<size_t>(layer)], const_cast<std::byte*>(known.blocks[page / kKvBlockSize]),
             page % kKvBlockSize, bounds.data(), nullptr);
  }
}

void PageBounds::forget() {
  for (Head& head : heads_) head.num_known = 0;
}

KvView PageBounds::bounds(int32_t layer, int32_t index, int32_t num_pages) const {
  const Head& known = head(layer, index);
  WITAN_CHECK(num_pages <= known.num_known, "the bounds of {} pages, {} are known", num_pages, known.num_known);
  return {.format = formats_[static_cast<size_t>(layer)], .blocks = known.blocks.data(), .num_entries = num_pages};
}

int64_t PageBounds::scratch_floats(int32_t layer, const KvView& view, int32_t num_rows) const {
  const int32_t num_pages = view.num_entries / page_entries();
  const KvView of_pages{.format = formats_[static_cast<size_t>(layer)], .blocks = nullptr, .num_entries = num_pages};
  return RowWeights::scratch_floats(of_pages) + padded(int64_t{num_rows} * of_pages.format.key_dim) +
         2 * padded(num_pages);
}

int32_t PageBounds::choose(Isa isa, int32_t layer, int32_t index, const KvView& view, const AttentionRows& rows,
                           int32_t* pages, float* scratch) const {
  const int32_t last = (view.num_entries - 1) / page_entries();
  const int32_t num_pages = num_pages_read(view.num_entries);
  if (last < num_pages) {
    for (int32_t page = 0; page <= last; ++page) pages[page] = page;
    return last + 1;
  }
  const KvView of_pages = bounds(layer, index, last);
  const int32_t key_dim = view.format.key_dim;
  RowWeights weights(of_pages, scratch);
  float* queries = scratch + RowWeights::scratch_floats(of_pages);  // [num_rows][2 * key_dim]: positive, negative part
  float* best = queries + padded(int64_t{rows.num_rows} * 2 * key_dim);  // exp(bound - shift), largest over the rows
  float* of_row = best + padded(last);
  const float* pointers[RowWeights::kMaxRows];
  int32_t positions[RowWeights::kMaxRows];
  std::ranges::fill(positions, std::numeric_limits<int32_t>::max());
  const auto rows_of = [&](int32_t first, int32_t count) -> AttentionRows {
    for (int32_t r = 0; r < count; ++r) {
      float* parts = queries + int64_t{first + r} * 2 * key_dim;
      for (int32_t d = 0; d < key_dim; ++d) {
        const float x = rows.queries[first + r][d];
        parts[d] = std::max(x, 0.0f);
        parts[key_dim + d] = std::min(x, 0.0f);
      }
      pointers[r] = parts;
    }
    // Only the order matters: a small scale keeps exponentials from vanishing.
    return {.queries = pointers, .positions = positions, .num_rows = count, .scale = rows.scale / 16};
  };
  weights.find_largest(isa, rows.num_rows, rows_of, best, of_row);
  // The worst page that is read, and how many of its worth are.
  const int32_t num_chosen = num_pages - 1;
  std::copy_n(best, last, of_row);
  std::nth_element(of_row, of_row + num_chosen - 1, of_row + last, std::greater<>());
  const float worst = of_row[num_chosen - 1];
  auto num_ties = num_chosen - std::count_if(best, best + last, [&](float x) { return x > worst; });
  int32_t count = 0;
  for (int32_t page = 0; page < last; ++page) {
    if (best[page] > worst || (best[page] == worst && num_ties-- > 0)) pages[count++] = page;
  }
  pages[count++] = last;
  return count;
}

double PageBounds::bytes_per_entry(int32_t key_dim, int32_t page_entries) {
  return static_cast<double>(bounds_format(key_dim).block_bytes()) / (kKvBlockSize * page_entries);
}

}  // namespace witan
