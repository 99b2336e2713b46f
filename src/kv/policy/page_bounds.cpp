#include "kv/policy/page_bounds.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/error.h"

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

// bounds [2 * key_dim] = the largest and the least component of keys [count][key_dim] in every channel, rounded
// outward; NaNs are passed over.
void find_bounds(const float* keys, int32_t count, int32_t key_dim, float* bounds) {
  float* largest = bounds;
  float* least = bounds + key_dim;
  std::fill_n(largest, key_dim, -std::numeric_limits<float>::infinity());
  std::fill_n(least, key_dim, std::numeric_limits<float>::infinity());
  for (const float* key = keys; key < keys + int64_t{count} * key_dim; key += key_dim) {
    for (int32_t d = 0; d < key_dim; ++d) largest[d] = largest[d] < key[d] ? key[d] : largest[d];
    for (int32_t d = 0; d < key_dim; ++d) least[d] = key[d] < least[d] ? key[d] : least[d];
  }
  for (int32_t d = 0; d < key_dim; ++d) {
    largest[d] = round_up(largest[d]);
    least[d] = round_down(least[d]);
  }
}

// A whole number that orders as x does; that of a NaN lies beyond those of the infinities.
int32_t order_of(float x) {
  const auto bits = std::bit_cast<int32_t>(x + 0.0f);  // of zeros there is one
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}

// The k-th largest of n numbers, 1 <= k <= n: the largest number that k of them reach, found bit by bit until no more
// than k do. Unlike std::nth_element's, its branches do not depend on what is compared, and all n are compared side by
// side.
int32_t kth_largest(const int32_t* numbers, int32_t n, int32_t k) {
  constexpr uint32_t kSign = 0x80000000u;
  uint32_t found = 0;  // above the least of all numbers
  for (uint32_t bit = kSign; bit != 0; bit >>= 1) {
    const auto least = static_cast<int32_t>((found | bit) ^ kSign);
    int32_t count = 0;
    for (int32_t i = 0; i < n; ++i) count += numbers[i] >= least;
    if (count >= k) found |= bit;
    if (count == k) break;
  }
  const auto least = static_cast<int32_t>(found ^ kSign);
  int32_t kth = std::numeric_limits<int32_t>::max();
  for (int32_t i = 0; i < n; ++i) kth = std::min(kth, numbers[i] >= least ? numbers[i] : kth);
  return kth;
}

// How the scratch of a choice is divided; in floats, each a multiple of 16. The kernel's comes first.
struct ChoiceLayout {
  int64_t parts;   // [num_rows][2 * key_dim]: the positive and the negative components of a query
  int64_t best;    // [num_pages] the largest bound of the rows
  int64_t orders;  // [num_pages] theirs
  int64_t rows;    // [num_rows] pointers to parts, as long as two floats
  int64_t positions;
  int64_t end;

  ChoiceLayout(const KvBlockFormat& of_bounds, int64_t num_pages, int32_t num_rows)
      : parts(padded(attention_scratch_bytes(of_bounds, num_rows) / static_cast<int64_t>(sizeof(float)))),
        best(parts + padded(int64_t{num_rows} * of_bounds.key_dim)),
        orders(best + padded(num_pages)),
        rows(orders + padded(num_pages)),
        positions(rows + padded(2 * int64_t{num_rows})),
        end(positions + padded(num_rows)) {}
};

// best[p] = the largest bound that a row has for the scores of page p, unscaled, which leaves their order as it is.
void score_bounds(Isa isa, Precision precision, const KvView& of_pages, const AttentionRows& rows,
                  const ChoiceLayout& layout, float* scratch, float* best) {
  const int32_t key_dim = of_pages.format.key_dim / 2;
  auto** parts = reinterpret_cast<const float**>(scratch + layout.rows);
  auto* positions = reinterpret_cast<int32_t*>(scratch + layout.positions);
  std::fill_n(positions, rows.num_rows, std::numeric_limits<int32_t>::max());
  for (int32_t r = 0; r < rows.num_rows; ++r) {
    float* of_row = scratch + layout.parts + int64_t{r} * 2 * key_dim;
    parts[r] = of_row;
    for (int32_t d = 0; d < key_dim; ++d) {
      const float x = rows.queries[r][d];
      of_row[d] = std::max(x, 0.0f);
      of_row[key_dim + d] = std::min(x, 0.0f);
    }
  }
  const AttentionRows of_parts{.queries = parts, .positions = positions, .num_rows = rows.num_rows};
  for (int32_t split = 0; split < of_pages.num_splits(); ++split) {
    attention_largest_scores(isa, precision, of_pages, of_parts, split, best + of_pages.split_begin(split),
                             reinterpret_cast<std::byte*>(scratch));
  }
}

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

void PageBounds::learn(Isa isa, int32_t layer, int32_t index, const KvView& view) {
  Head& known = head(layer, index);
  const int32_t key_dim = view.format.key_dim;
  const int32_t num_whole = view.num_entries / page_entries();
  if (known.num_known >= num_whole) return;
  WITAN_CHECK(num_whole <= std::ssize(known.blocks) * kKvBlockSize, "{} pages, {} blocks for bounds", num_whole,
              known.blocks.size());
  WITAN_CHECK(view.num_demoted % kKvBlockSize == 0, "{} demoted entries, in pages", view.num_demoted);
  std::vector<float> keys(static_cast<size_t>(kKvBlockSize) * static_cast<size_t>(key_dim));
  std::vector<float> bounds(static_cast<size_t>(2 * key_dim));
  const int32_t pages_per_block = kKvBlockSize / page_entries();
  int32_t loaded = -1;
  for (; known.num_known < num_whole; ++known.num_known) {
    const int32_t page = known.num_known;
    if (const int32_t block = page / pages_per_block; block != loaded) {
      view.load_keys(isa, block, keys.data());
      loaded = block;
    }
    const float* of_page = keys.data() + int64_t{page % pages_per_block} * page_entries() * key_dim;
    find_bounds(of_page, page_entries(), key_dim, bounds.data());
    kv_store(formats_[static_cast<size_t>(layer)], const_cast<std::byte*>(known.blocks[page / kKvBlockSize]),
             page % kKvBlockSize, bounds.data(), nullptr);
  }
}

void PageBounds::learn_anew(Isa isa, ThreadPool& threads, const KvCache& kv, SequenceId sequence) {
  struct LayerHead {
    int32_t layer;
    int32_t head;
  };
  std::vector<LayerHead> all;
  for (int32_t layer = 0; layer < std::ssize(formats_); ++layer) {
    if (!has(layer)) continue;
    const int32_t num_kv_heads = kv.config().layers[static_cast<size_t>(layer)].num_kv_heads;
    for (int32_t h = 0; h < num_kv_heads; ++h) all.push_back({layer, h});
  }
  threads.parallel_for(std::ssize(all), [&](int64_t i, int) {
    const auto [layer, h] = all[static_cast<size_t>(i)];
    head(layer, h).num_known = 0;
    learn(isa, layer, h, kv.view(sequence, layer, h, kv.num_entries(sequence, layer, h)));
  });
}

KvView PageBounds::bounds(int32_t layer, int32_t index, int32_t num_pages) const {
  const Head& known = head(layer, index);
  WITAN_CHECK(num_pages <= known.num_known, "the bounds of {} pages, {} are known", num_pages, known.num_known);
  return {.format = formats_[static_cast<size_t>(layer)], .blocks = known.blocks.data(), .num_entries = num_pages};
}

int64_t PageBounds::scratch_floats(int32_t layer, const KvView& view, int32_t num_rows) const {
  return ChoiceLayout(formats_[static_cast<size_t>(layer)], view.num_entries / page_entries(), num_rows).end;
}

int32_t PageBounds::choose(Isa isa, Precision precision, int32_t layer, int32_t index, const KvView& view,
                           const AttentionRows& rows, int32_t* pages, float* scratch) const {
  const int32_t last = (view.num_entries - 1) / page_entries();
  const int32_t num_pages = num_pages_read(view.num_entries);
  if (last < num_pages) {
    for (int32_t page = 0; page <= last; ++page) pages[page] = page;
    return last + 1;
  }
  const KvView of_pages = bounds(layer, index, last);
  const ChoiceLayout layout(of_pages.format, last, rows.num_rows);
  float* best = scratch + layout.best;
  const bool rounds = attention_arithmetic(isa, view.format, precision) == AttentionArithmetic::kBF16;
  score_bounds(isa, rounds ? precision : Precision::kExact, of_pages, rows, layout, scratch, best);
  auto* orders = reinterpret_cast<int32_t*>(scratch + layout.orders);
  for (int32_t page = 0; page < last; ++page) orders[page] = order_of(best[page]);
  // The worst page that is read, and how many of its worth are.
  const int32_t num_chosen = num_pages - 1;
  const int32_t worst = kth_largest(orders, last, num_chosen);
  auto num_ties = num_chosen - std::count_if(orders, orders + last, [&](int32_t order) { return order > worst; });
  int32_t count = 0;
  for (int32_t page = 0; page < last; ++page) {
    if (orders[page] > worst || (orders[page] == worst && num_ties-- > 0)) pages[count++] = page;
  }
  pages[count++] = last;
  return count;
}

double PageBounds::bytes_per_entry(int32_t key_dim, int32_t page_entries) {
  return static_cast<double>(bounds_format(key_dim).block_bytes()) / (kKvBlockSize * page_entries);
}

}  // namespace witan
