#include "models/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "base/check.h"
#include "nn/rows.h"

namespace witan {
namespace {

// Query rows of one kv head that walk the entries together: num_tokens tokens times the heads that share the kv head.
struct Tile {
  const SequenceSlice* slice;
  int32_t kv_head;
  int32_t first_row;
  int32_t num_tokens;
  KvView view;          // ends at the last entry that the tile's last token sees
  int32_t first_split;  // splits before it lie outside every row's window
  int64_t first_query;  // of this tile, among all tiles' query rows
};

// Decoding an entry's codec is shared by the rows of a tile; more rows than this gain nothing.
constexpr int32_t kMaxTileRows = 64;
// Partial states of all splits at once, when splits are spread over the threads.
constexpr int64_t kMaxStateBytes = int64_t{32} << 20;
// Then, neighbouring splits that a thread takes at once, so that what one prefetches is read by the same thread, and
// how often it does at least, so that threads end at about the same time.
constexpr int64_t kMaxNeighbours = 8;
constexpr int64_t kMinTurns = 16;

struct AttentionTask {
  ForwardContext& ctx;
  const ForwardBatch& batch;
  const AttentionSpec& spec;
  const float* queries;
  float* out;
  int64_t group;         // query heads per kv head
  int64_t state_floats;  // of one row's state
  int64_t scratch_bytes;

  std::span<const Tile> tiles;
  const float** query_rows;  // [query rows of all tiles]
  int32_t* query_positions;  // [query rows of all tiles]

  AttentionRows rows(const Tile& tile) const {
    return {.queries = query_rows + tile.first_query,
            .positions = query_positions + tile.first_query,
            .num_rows = static_cast<int32_t>(tile.num_tokens * group),
            .scale = spec.scale,
            .window = spec.window};
  }

  int64_t head(const Tile& tile, int64_t row) const { return tile.kv_head * group + row % group; }
  const float* sink(const Tile& tile, int64_t row) const {
    return spec.sinks == nullptr ? nullptr : spec.sinks + head(tile, row);
  }
  float* out_row(const Tile& tile, int64_t row) const {
    const int64_t token = tile.first_row + row / group;
    return out + (token * spec.num_heads + head(tile, row)) * spec.value_dim;
  }
};

// The bounds of the pages that generated tokens of a slice choose from, in a layer where they do.
PageBounds* pages_of(const SequenceSlice& slice, int32_t layer) {
  PageBounds* pages = slice.evidence == nullptr ? nullptr : slice.evidence->pages.get();
  return pages != nullptr && pages->has(layer) ? pages : nullptr;
}

// What one tile's choice of pages needs.
struct PageChoice {
  const std::byte** blocks;
  int32_t* pages;
  int32_t* positions;  // [entries of the blocks], where a block is more than a page
  const float** rows;
};

// Makes a tile's view one of the blocks of the chosen pages. Entries of other pages in these blocks are put behind
// everything that the row sees, those of the chosen ones where it sees them, as it did.
void narrow_view(Tile& tile, int32_t page_entries, std::span<const int32_t> pages, const PageChoice& choice) {
  WITAN_CHECK(tile.view.num_demoted % kKvBlockSize == 0, "{} demoted entries, in pages", tile.view.num_demoted);
  const int32_t num_all_blocks = tile.view.num_blocks();
  const int32_t tail = num_all_blocks * kKvBlockSize - tile.view.num_entries;  // of the last block, which is chosen
  const int32_t pages_per_block = kKvBlockSize / page_entries;
  int32_t num_blocks = 0;
  int32_t num_demoted_blocks = 0;
  int32_t last_block = -1;
  for (const int32_t page : pages) {
    if (page / pages_per_block != last_block) {
      last_block = page / pages_per_block;
      if (last_block < tile.view.num_demoted_blocks()) ++num_demoted_blocks;
      choice.blocks[num_blocks++] = tile.view.blocks[last_block];
      if (pages_per_block > 1) {
        std::fill_n(choice.positions + (num_blocks - 1) * kKvBlockSize, kKvBlockSize,
                    std::numeric_limits<int32_t>::max());
      }
    }
    if (pages_per_block > 1) {
      const int32_t first = (num_blocks - 1) * kKvBlockSize + page % pages_per_block * page_entries;
      std::fill_n(choice.positions + first, page_entries, 0);
    }
  }
  tile.view.blocks = choice.blocks;
  tile.view.num_entries = num_blocks * kKvBlockSize - tail;
  tile.view.num_demoted = num_demoted_blocks * kKvBlockSize;
  tile.view.positions = pages_per_block > 1 ? choice.positions : nullptr;
}

// A tile of a generated token that reads some pages of its view gets a view of those alone.
void choose_pages(ForwardContext& ctx, const ForwardBatch& batch, std::span<Tile> tiles, int32_t layer,
                  const AttentionSpec& spec, const float* queries) {
  ComputeContext& compute = ctx.compute;
  const int32_t group = spec.num_heads / spec.num_kv_heads;
  std::vector<Tile*> choosing;
  int64_t scratch_floats = 0;
  for (Tile& tile : tiles) {
    const PageBounds* pages = pages_of(*tile.slice, layer);
    if (pages == nullptr || batch.roles[static_cast<size_t>(tile.first_row)] == TokenRole::kPrompt) continue;
    choosing.push_back(&tile);
    scratch_floats = std::max(scratch_floats, pages->scratch_floats(layer, tile.view, group));
  }
  if (choosing.empty()) return;
  auto* choices = compute.scratch.allocate<PageChoice>(std::ssize(choosing));
  for (size_t i = 0; i < choosing.size(); ++i) {
    const PageBounds& bounds = *pages_of(*choosing[i]->slice, layer);
    const int32_t num_entries = choosing[i]->view.num_entries;
    const int32_t num_all = (num_entries + bounds.page_entries() - 1) / bounds.page_entries();
    const int32_t num_pages = std::min(num_all, bounds.num_pages_read(num_entries));
    const bool is_block = bounds.page_entries() == kKvBlockSize;
    choices[i] = {.blocks = compute.scratch.allocate<const std::byte*>(num_pages),
                  .pages = compute.scratch.allocate<int32_t>(num_pages),
                  .positions = is_block ? nullptr : compute.scratch.allocate<int32_t>(num_pages * kKvBlockSize),
                  .rows = compute.scratch.allocate<const float*>(group)};
  }
  scratch_floats = (scratch_floats + 15) / 16 * 16;
  auto* scratch = compute.scratch.allocate<float>(scratch_floats * compute.threads.num_threads());
  compute.threads.parallel_for(std::ssize(choosing), [&](int64_t i, int thread) {
    Tile& tile = *choosing[static_cast<size_t>(i)];
    const PageBounds& bounds = *pages_of(*tile.slice, layer);
    const PageChoice& choice = choices[i];
    for (int32_t g = 0; g < group; ++g) {
      choice.rows[g] = queries + (int64_t{tile.first_row} * spec.num_heads + tile.kv_head * group + g) * spec.key_dim;
    }
    const int32_t num_pages = bounds.choose(compute.isa, compute.precision, layer, tile.kv_head, tile.view,
                                            {.queries = choice.rows, .num_rows = group, .scale = spec.scale},
                                            choice.pages, scratch + thread * scratch_floats);
    const int32_t num_all = (tile.view.num_entries + bounds.page_entries() - 1) / bounds.page_entries();
    if (num_pages == num_all) return;
    narrow_view(tile, bounds.page_entries(), {choice.pages, static_cast<size_t>(num_pages)}, choice);
  });
}

// Tells what the generated tokens of sequences that read pages, in some layers, read of this one.
void count_reads(const ForwardContext& ctx, const ForwardBatch& batch, std::span<const Tile> tiles, int32_t layer,
                 const AttentionSpec& spec) {
  const int64_t block_bytes = ctx.kv.block_format(layer).block_bytes();
  const int64_t most = spec.window > 0 ? spec.window : std::numeric_limits<int64_t>::max();
  for (const Tile& tile : tiles) {
    PageBounds* pages = tile.slice->evidence == nullptr ? nullptr : tile.slice->evidence->pages.get();
    if (pages == nullptr) continue;
    for (int32_t i = 0; i < tile.num_tokens; ++i) {
      const auto row = static_cast<size_t>(tile.first_row) + static_cast<size_t>(i);
      if (batch.roles[row] == TokenRole::kPrompt) continue;
      const int64_t num_demoted = tile.view.num_demoted;
      const int64_t num_seen = tile.view.num_entries - num_demoted - (tile.num_tokens - 1 - i);
      pages->reads().bytes += std::min(most, num_seen) * block_bytes / kKvBlockSize;
      if (num_demoted > 0) {
        pages->reads().bytes += num_demoted * tile.view.demoted_format.block_bytes() / kKvBlockSize;
      }
      pages->reads().bytes_of_all += std::min<int64_t>(most, batch.positions[row] + 1) * block_bytes / kKvBlockSize;
    }
  }
}

std::span<Tile> make_tiles(ForwardContext& ctx, const ForwardBatch& batch, std::span<const SliceRows> parts,
                           int32_t layer, const AttentionSpec& spec) {
  const int32_t group = spec.num_heads / spec.num_kv_heads;
  // Tokens that read pages choose them for themselves.
  const auto tile_tokens_of = [&](const SliceRows& part) {
    const auto last_row = static_cast<size_t>(part.first_row + part.num_tokens - 1);
    const bool chooses = pages_of(*part.slice, layer) != nullptr && batch.roles[last_row] != TokenRole::kPrompt;
    return chooses ? 1 : std::max(1, kMaxTileRows / group);
  };
  int64_t num_tiles = 0;
  for (const SliceRows& part : parts) {
    num_tiles += (part.num_tokens + tile_tokens_of(part) - 1) / tile_tokens_of(part);
  }
  num_tiles *= spec.num_kv_heads;
  Tile* tiles = ctx.compute.scratch.allocate<Tile>(num_tiles);
  int64_t count = 0;
  int64_t first_query = 0;
  // The last tokens see most entries: they go first, so that no thread begins a long tile when the others are done.
  for (const SliceRows& part : parts) {
    const int32_t end = part.first_row + part.num_tokens;
    const int32_t tile_tokens = tile_tokens_of(part);
    for (int32_t tile_end = end; tile_end > part.first_row; tile_end -= tile_tokens) {
      const int32_t first_row = std::max(part.first_row, tile_end - tile_tokens);
      // Windows are of positions; layers that have one never lose entries, so that these are entries too.
      const int32_t first_position = part.slice->first_token + (first_row - part.slice->first_row);
      const int32_t first_seen = spec.window > 0 ? std::max(0, first_position - spec.window + 1) : 0;
      for (int32_t head = 0; head < spec.num_kv_heads; ++head) {
        const int32_t last = tile_end - 1;
        const int32_t num_entries =
            part.slice->entry(ctx.kv, layer, head, last - part.slice->first_row, batch.positions) + 1;
        tiles[count++] = {.slice = part.slice,
                          .kv_head = head,
                          .first_row = first_row,
                          .num_tokens = tile_end - first_row,
                          .view = ctx.kv.view(part.slice->kv_sequence, layer, head, num_entries),
                          .first_split = first_seen / kAttentionSplit,
                          .first_query = first_query};
        first_query += static_cast<int64_t>(tile_end - first_row) * group;
      }
    }
  }
  return {tiles, static_cast<size_t>(num_tiles)};
}

// Sequences that read pages learn the bounds of those that the entries just written have filled, and of those that
// came with a cached prefix. Entries of a repetition are gone before anyone reads pages of them.
void learn_pages(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, int32_t num_kv_heads) {
  struct FilledHead {
    PageBounds* pages;
    int32_t head;
    KvView view;
  };
  std::vector<FilledHead> filled;
  for (const SequenceSlice& slice : batch.slices) {
    PageBounds* pages = pages_of(slice, layer);
    if (pages == nullptr || !slice.repeated_chunk.empty()) continue;
    for (int32_t head = 0; head < num_kv_heads; ++head) {
      const int32_t num_entries = slice.num_entries(ctx.kv, layer, head) + slice.num_tokens;
      if (pages->num_known(layer, head) >= num_entries / pages->page_entries()) continue;
      filled.push_back({pages, head, ctx.kv.view(slice.kv_sequence, layer, head, num_entries)});
    }
  }
  ctx.compute.threads.parallel_for(std::ssize(filled), [&](int64_t i, int) {
    const FilledHead& of_head = filled[static_cast<size_t>(i)];
    of_head.pages->learn(ctx.compute.isa, layer, of_head.head, of_head.view);
  });
}

void clear_state(float* state, int64_t num_floats) {
  std::fill_n(state, num_floats, 0.0f);
  state[0] = -std::numeric_limits<float>::infinity();
}

// Each work item is a tile that walks all its splits.
void walk_tiles(const AttentionTask& task) {
  ComputeContext& compute = task.ctx.compute;
  const int num_threads = compute.threads.num_threads();
  const int64_t rows = std::max<int64_t>(kMaxTileRows, task.group);
  auto* scratch = compute.scratch.allocate<std::byte>(task.scratch_bytes * num_threads);
  auto* states = compute.scratch.allocate<float>(2 * rows * task.state_floats * num_threads);
  auto** next_rows = compute.scratch.allocate<float*>(rows * num_threads);
  compute.threads.parallel_for(std::ssize(task.tiles), [&](int64_t i, int thread) {
    const Tile& tile = task.tiles[i];
    AttentionRows query = task.rows(tile);
    float* total = states + thread * 2 * rows * task.state_floats;
    float* next = total + rows * task.state_floats;
    float** next_of = next_rows + thread * rows;
    for (int32_t r = 0; r < query.num_rows; ++r) {
      clear_state(total + r * task.state_floats, task.state_floats);
      next_of[r] = next + r * task.state_floats;
    }
    for (int32_t split = tile.first_split; split < tile.view.num_splits(); ++split) {
      query.same_as_before = split > tile.first_split && split != tile.view.num_demoted_splits();
      attention_split(compute.isa, compute.precision, tile.view, query, split, next_of,
                      scratch + thread * task.scratch_bytes);
      for (int32_t r = 0; r < query.num_rows; ++r) {
        merge_attention_state(compute.isa, total + r * task.state_floats, next_of[r], task.spec.value_dim);
      }
    }
    for (int32_t r = 0; r < query.num_rows; ++r) {
      finish_attention(compute.isa, total + r * task.state_floats, task.sink(tile, r), task.spec.value_dim,
                       task.out_row(tile, r));
    }
  });
}

// Each work item is one split of one tile: for few tiles over long contexts. The merge keeps the order of walk_tiles.
void walk_splits(const AttentionTask& task, int64_t num_items) {
  struct Item {
    const Tile* tile;
    int32_t split;
    float** states;  // [tile rows]
  };
  ComputeContext& compute = task.ctx.compute;
  auto* items = compute.scratch.allocate<Item>(num_items);
  auto** first_item = compute.scratch.allocate<Item*>(std::ssize(task.tiles));
  int64_t count = 0;
  for (const Tile& tile : task.tiles) {
    const int64_t num_rows = tile.num_tokens * task.group;
    first_item[&tile - task.tiles.data()] = items + count;
    for (int32_t split = tile.first_split; split < tile.view.num_splits(); ++split) {
      auto** states = compute.scratch.allocate<float*>(num_rows);
      auto* floats = compute.scratch.allocate<float>(num_rows * task.state_floats);
      for (int64_t r = 0; r < num_rows; ++r) states[r] = floats + r * task.state_floats;
      items[count++] = {.tile = &tile, .split = split, .states = states};
    }
  }
  auto* scratch = compute.scratch.allocate<std::byte>(task.scratch_bytes * compute.threads.num_threads());
  // A split prefetches what the next one begins with, so neighbours go to the same thread.
  const int64_t turn = std::clamp<int64_t>(count / (kMinTurns * compute.threads.num_threads()), 1, kMaxNeighbours);
  compute.threads.parallel_for((count + turn - 1) / turn, [&](int64_t i, int thread) {
    const Item* const first = items + i * turn;
    for (const Item* item = first; item < items + std::min(count, (i + 1) * turn); ++item) {
      AttentionRows query = task.rows(*item->tile);
      query.same_as_before =
          item > first && item->tile == item[-1].tile && item->split != item->tile->view.num_demoted_splits();
      attention_split(compute.isa, compute.precision, item->tile->view, query, item->split, item->states,
                      scratch + thread * task.scratch_bytes);
    }
  });
  auto* totals = compute.scratch.allocate<float>(task.state_floats * compute.threads.num_threads());
  compute.threads.parallel_for(std::ssize(task.tiles), [&](int64_t i, int thread) {
    const Tile& tile = task.tiles[i];
    float* total = totals + thread * task.state_floats;
    for (int64_t r = 0; r < tile.num_tokens * task.group; ++r) {
      clear_state(total, task.state_floats);
      for (int32_t split = tile.first_split; split < tile.view.num_splits(); ++split) {
        merge_attention_state(compute.isa, total, first_item[i][split - tile.first_split].states[r],
                              task.spec.value_dim);
      }
      finish_attention(compute.isa, total, task.sink(tile, r), task.spec.value_dim, task.out_row(tile, r));
    }
  });
}

// Of an entry's value from a new one [value_dim]. entry: [key_dim + value_dim] of room.
float squared_distance(const KvBlockFormat& format, const KvCache::Slot& slot, const float* value, float* entry) {
  float* old = entry + format.key_dim;
  kv_load(format, slot.block, slot.slot, entry, old);
  float sum = 0.0f;
  for (int32_t i = 0; i < format.value_dim; ++i) sum += (value[i] - old[i]) * (value[i] - old[i]);
  return sum;
}

}  // namespace

void write_kv(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const AttentionSpec& spec,
              const float* keys, const float* values) {
  const KvBlockFormat format = ctx.kv.block_format(layer);
  for (const SequenceSlice& slice : batch.slices) {
    if (slice.in_place == SequenceSlice::InPlace::kReads) continue;
    const bool compares = slice.value_deviations != nullptr && batch.ends_at(layer);
    const ScratchScope scope(ctx.compute.scratch);
    const int64_t entry_floats = format.key_dim + format.value_dim;
    float* entries = compares ? ctx.compute.scratch.allocate<float>(slice.num_tokens * entry_floats) : nullptr;
    for_rows(ctx.compute, slice.num_tokens, [&](int64_t i) {
      const auto row = static_cast<int32_t>(slice.first_row + i);
      if (compares) slice.value_deviations[i] = 0.0f;
      for (int32_t head = 0; head < spec.num_kv_heads; ++head) {
        const int64_t vector = int64_t{row} * spec.num_kv_heads + head;
        const int32_t entry = slice.entry(ctx.kv, layer, head, static_cast<int32_t>(i), batch.positions);
        const KvCache::Slot slot = ctx.kv.slot(slice.kv_sequence, layer, head, entry);
        if (compares) {
          const float* value = values == nullptr ? keys + vector * spec.key_dim : values + vector * spec.value_dim;
          slice.value_deviations[i] += squared_distance(format, slot, value, entries + i * entry_floats);
        }
        kv_store(format, slot.block, slot.slot, keys + vector * spec.key_dim,
                 values == nullptr ? nullptr : values + vector * spec.value_dim);
      }
    });
  }
  learn_pages(ctx, batch, layer, spec.num_kv_heads);
}

void paged_attention(ForwardContext& ctx, const ForwardBatch& batch, std::span<const SliceRows> parts, int32_t layer,
                     const AttentionSpec& spec, const float* queries, float* out) {
  WITAN_CHECK(spec.num_heads % spec.num_kv_heads == 0, "{} heads, {} kv heads", spec.num_heads, spec.num_kv_heads);
  if (parts.empty()) return;
  const ScratchScope scope(ctx.compute.scratch);
  const int64_t group = spec.num_heads / spec.num_kv_heads;
  const std::span<Tile> tiles = make_tiles(ctx, batch, parts, layer, spec);
  choose_pages(ctx, batch, tiles, layer, spec, queries);
  count_reads(ctx, batch, tiles, layer, spec);
  const int64_t num_queries = tiles.back().first_query + tiles.back().num_tokens * group;
  AttentionTask task{.ctx = ctx,
                     .batch = batch,
                     .spec = spec,
                     .queries = queries,
                     .out = out,
                     .group = group,
                     .state_floats = (attention_state_floats(spec.value_dim) + 15) / 16 * 16,
                     .scratch_bytes = 0,
                     .tiles = tiles,
                     .query_rows = ctx.compute.scratch.allocate<const float*>(num_queries),
                     .query_positions = ctx.compute.scratch.allocate<int32_t>(num_queries)};
  int64_t num_splits = 0;
  int64_t state_bytes = 0;
  for (const Tile& tile : tiles) {
    for (int64_t r = 0; r < tile.num_tokens * group; ++r) {
      const int64_t token = tile.first_row + r / group;
      task.query_rows[tile.first_query + r] =
          queries + (token * spec.num_heads + tile.kv_head * group + r % group) * spec.key_dim;
      task.query_positions[tile.first_query + r] = batch.positions[static_cast<size_t>(token)];
    }
    const auto most_rows = static_cast<int32_t>(std::max<int64_t>(kMaxTileRows, group));
    task.scratch_bytes = std::max(task.scratch_bytes, attention_scratch_bytes(tile.view, most_rows));
    const int64_t splits = tile.view.num_splits() - tile.first_split;
    num_splits += splits;
    state_bytes += splits * tile.num_tokens * group * task.state_floats * static_cast<int64_t>(sizeof(float));
  }
  const bool few_tiles = std::ssize(tiles) < 8 * static_cast<int64_t>(ctx.compute.threads.num_threads());
  if (few_tiles && num_splits > std::ssize(tiles) && state_bytes <= kMaxStateBytes) {
    walk_splits(task, num_splits);
  } else {
    walk_tiles(task);
  }
}

void paged_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const AttentionSpec& spec,
                     const float* queries, float* out) {
  const ScratchScope scope(ctx.compute.scratch);
  auto* parts = ctx.compute.scratch.allocate<SliceRows>(std::ssize(batch.slices));
  for (size_t i = 0; i < batch.slices.size(); ++i) {
    parts[i] = {
        .slice = &batch.slices[i], .first_row = batch.slices[i].first_row, .num_tokens = batch.slices[i].num_tokens};
  }
  paged_attention(ctx, batch, {parts, batch.slices.size()}, layer, spec, queries, out);
}

}  // namespace witan
