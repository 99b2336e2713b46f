#include "models/value_projection.h"

#include <algorithm>
#include <cmath>

namespace witan {
namespace {

// Of the output projection that is unpacked at a time. Sums are over these parts, so that it decides their bits.
constexpr int64_t kUnpackedBytes = int64_t{16} << 20;

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Entries of one kv head.
struct Tile {
  KvView view;
  float* norms;  // of the head
  int32_t head;
  int32_t first;
  int32_t count;
};

// One thread's working memory.
struct TileBuffers {
  float* values;      // [kMaxEntries, value_dim]
  std::byte* stored;  // [kMaxEntries] rows of activations
  float* products;    // [kMaxEntries, rows of a part]
  std::byte* scratch;
};

double sum_of_magnitudes(const float* x, int64_t n) {
  constexpr int kLanes = 8;
  double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += std::fabs(static_cast<double>(x[i + lane]));
  }
  for (; i < n; ++i) sums[0] += std::fabs(static_cast<double>(x[i]));
  double sum = 0.0;
  for (const double s : sums) sum += s;
  return sum;
}

// Adds what `part`, some rows of the output projection in float32, makes of a tile's values.
void add_norms(Isa isa, const ValueProjection& projection, const PackedMatrix& part, const Tile& tile,
               const TileBuffers& buffers) {
  const int32_t dim = projection.value_dim;
  const int32_t group = projection.num_heads / projection.num_kv_heads;
  const int64_t row_bytes = activation_bytes(ActivationFormat::kF32, dim);
  const std::byte* rows[ValueProjection::kMaxEntries];
  float* products[ValueProjection::kMaxEntries];
  double sums[ValueProjection::kMaxEntries] = {};
  for (int32_t g = 0; g < group; ++g) {
    const int32_t head = tile.head * group + g;
    projection.values(tile.view, head, tile.first, tile.count, buffers.values, buffers.scratch);
    for (int32_t i = 0; i < tile.count; ++i) {
      std::byte* row = buffers.stored + i * row_bytes;
      store_activations(isa, ActivationFormat::kF32, buffers.values + int64_t{i} * dim, dim, row);
      rows[i] = row;
      products[i] = buffers.products + i * part.rows;
    }
    // The columns of one head lie together: see layout.h.
    const PackedMatrix of_head{
        .type = DType::kF32,
        .rows = part.rows,
        .cols = dim,
        .data = part.data + int64_t{head} * dim * kPanelRows * static_cast<int64_t>(sizeof(float)),
        .panel_stride_bytes = part.panel_stride_bytes};
    matmul(isa, of_head, ActivationFormat::kF32, rows, tile.count, 0, of_head.num_panels(), products);
    for (int32_t i = 0; i < tile.count; ++i) sums[i] += sum_of_magnitudes(products[i], part.rows);
  }
  for (int32_t i = 0; i < tile.count; ++i) tile.norms[tile.first + i] += static_cast<float>(sums[i] / group);
}

std::vector<Tile> unknown_tiles(const KvCache& kv, SequenceId sequence, int32_t layer, int32_t num_kv_heads,
                                ValueNorms& norms) {
  std::vector<Tile> tiles;
  for (int32_t head = 0; head < num_kv_heads; ++head) {
    const KvView view = kv.all_entries(sequence, layer, head);
    const int32_t num_entries = view.num_entries;
    float* of_head = norms.of(layer, head);
    const int32_t num_known = norms.num_known(layer, head);
    std::fill(of_head + num_known, of_head + num_entries, 0.0f);
    for (int32_t first = num_known; first < num_entries; first += ValueProjection::kMaxEntries) {
      tiles.push_back({.view = view,
                       .norms = of_head,
                       .head = head,
                       .first = first,
                       .count = std::min(ValueProjection::kMaxEntries, num_entries - first)});
    }
  }
  return tiles;
}

}  // namespace

void learn_value_norms(ComputeContext& ctx, const KvCache& kv, SequenceId sequence, int32_t layer,
                       const ValueProjection& projection, ValueNorms& norms) {
  const std::vector<Tile> tiles = unknown_tiles(kv, sequence, layer, projection.num_kv_heads, norms);
  if (tiles.empty()) return;
  const PackedMatrix& output = projection.output;
  const auto float_bytes = static_cast<int64_t>(sizeof(float));
  const int64_t panel_floats = output.cols * kPanelRows;
  const int64_t part_panels =
      std::clamp<int64_t>(kUnpackedBytes / (panel_floats * float_bytes), 1, output.num_panels());

  const ScratchScope scope(ctx.scratch);
  auto* unpacked = ctx.scratch.allocate<float>(part_panels * panel_floats);
  const int64_t values_bytes = aligned(ValueProjection::kMaxEntries * projection.value_dim * float_bytes);
  const int64_t stored_bytes =
      ValueProjection::kMaxEntries * activation_bytes(ActivationFormat::kF32, projection.value_dim);
  const int64_t products_bytes = ValueProjection::kMaxEntries * part_panels * kPanelRows * float_bytes;
  const int64_t thread_bytes = values_bytes + stored_bytes + products_bytes + aligned(projection.scratch_bytes);
  auto* buffers = ctx.scratch.allocate_bytes(static_cast<size_t>(thread_bytes * ctx.threads.num_threads()));

  for (int64_t first = 0; first < output.num_panels(); first += part_panels) {
    const int64_t count = std::min(part_panels, output.num_panels() - first);
    ctx.threads.parallel_for(count,
                             [&](int64_t i, int) { unpack_panel(output, first + i, unpacked + i * panel_floats); });
    const PackedMatrix part{.type = DType::kF32,
                            .rows = std::min(output.rows - first * kPanelRows, count * kPanelRows),
                            .cols = output.cols,
                            .data = reinterpret_cast<const std::byte*>(unpacked),
                            .panel_stride_bytes = panel_floats * float_bytes};
    ctx.threads.parallel_for(std::ssize(tiles), [&](int64_t i, int thread) {
      std::byte* memory = buffers + thread * thread_bytes;
      add_norms(ctx.isa, projection, part, tiles[static_cast<size_t>(i)],
                {.values = reinterpret_cast<float*>(memory),
                 .stored = memory + values_bytes,
                 .products = reinterpret_cast<float*>(memory + values_bytes + stored_bytes),
                 .scratch = memory + values_bytes + stored_bytes + products_bytes});
    });
  }
  for (int32_t head = 0; head < projection.num_kv_heads; ++head) {
    norms.set_num_known(layer, head, kv.all_entries(sequence, layer, head).num_entries);
  }
}

}  // namespace witan
