#include "kernels/attention/attention.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/attention/attention_variants.h"
#include "kernels/attention/hadamard.h"
#include "kernels/isa_table.h"

namespace witan {
namespace {

// The reference has its own signature.
constexpr IsaTable<SplitFunction> kSplit{{nullptr, attention_split_avx2, attention_split_avx512}};
constexpr IsaTable<SplitFunction> kSplitBf16{{nullptr, nullptr, nullptr, nullptr, attention_split_bf16_avx512_bf16}};
constexpr IsaTable<SplitFunction> kSplitDecoded{
    {nullptr, nullptr, nullptr, nullptr, attention_split_decoded_avx512_bf16}};
constexpr IsaTable<SplitFunction> kSplitQ8{{nullptr, nullptr, nullptr, attention_split_q8_avx512_vnni}};
constexpr IsaTable<SplitFunction> kSplitHadamard{{nullptr, nullptr, nullptr, attention_split_hadamard_avx512_vnni}};
constexpr IsaTable<SplitFunction> kWeights{{nullptr, attention_weights_avx2, attention_weights_avx512}};
constexpr IsaTable<SplitFunction> kLargestScores{
    {nullptr, attention_largest_scores_avx2, attention_largest_scores_avx512}};
constexpr IsaTable<SplitFunction> kLargestScoresBf16{
    {nullptr, nullptr, nullptr, nullptr, attention_largest_scores_bf16_avx512_bf16}};
constexpr IsaTable<MergeFunction> kMerge{
    {merge_attention_state_reference, merge_attention_state_avx2, merge_attention_state_avx512}};
constexpr IsaTable<FinishFunction> kFinish{
    {finish_attention_reference, finish_attention_avx2, finish_attention_avx512}};

// Words of quants of a query in kInt8.
int64_t num_int8_words(const KvBlockFormat& format) { return (format.key_dim + 31) / 32 * 8; }

// Groups of `dim` components that share a scale in kInt8.
int64_t num_int8_groups(const KvBlockFormat& format, int32_t dim) {
  return format.is_hadamard() ? 1 : (dim + kKvQ8Group - 1) / kKvQ8Group;
}

// Whether entries can be multiplied as quants, in kInt8.
bool has_int8_products(const KvBlockFormat& format) {
  return !format.value_in_key && (format.codec == KvCodec::kQ8 || format.is_hadamard());
}

// Whether entries that are no bf16 ones are decoded to these, block by block, where bf16 is multiplied.
bool is_decoded_to_bf16(const KvBlockFormat& format) {
  return format.is_latent() || format.is_kivi() || (format.codec == KvCodec::kQ8 && format.value_in_key);
}

// Of one row's rounded or turned query, see SplitTask.
int64_t query_words_of(const KvBlockFormat& format) {
  const int64_t num_pairs = (format.key_dim + 1) / 2;
  const int64_t num_int8 = num_int8_words(format) + 2 * num_int8_groups(format, format.key_dim);
  if (format.is_hadamard()) return std::max<int64_t>(num_int8, format.key_dim);
  if (format.is_latent()) return format.key_dim;
  if (format.codec == KvCodec::kBF16 || is_decoded_to_bf16(format)) return num_pairs;
  return format.codec == KvCodec::kQ8 ? num_int8 : 0;
}

// The keys of one block, decoded.
int64_t decoded_bytes(const KvBlockFormat& format) {
  if (!is_decoded_to_bf16(format)) return 0;
  return KvBlockFormat{.codec = KvCodec::kBF16, .key_dim = format.key_dim}.key_bytes();
}

// How attention_split divides its scratch; offsets in bytes, each a multiple of 64.
struct ScratchLayout {
  int64_t padded_value_dim;
  int64_t query_stride;
  int64_t scores;
  int64_t sums;
  int64_t tile;
  int64_t query_words;
  int64_t turned_queries;
  int64_t decoded;
  int64_t weight_words;
  int64_t weight_factors;
  int64_t denominators;
  int64_t chosen_queries;  // pointers to [num_rows][chosen_stride] floats, which follow: the channels that keys have
  int64_t chosen_stride;
  int64_t end;

  ScratchLayout(const KvBlockFormat& format, int64_t num_rows, bool chooses_channels)
      : padded_value_dim(padded_row_floats(format.value_dim)),
        query_stride(query_words_of(format) == 0 ? 0 : padded_row_floats(query_words_of(format))),
        scores(num_rows * kBlocksPerSplit * static_cast<int64_t>(sizeof(uint32_t))),
        sums(scores + num_rows * kScoreStride * static_cast<int64_t>(sizeof(float))),
        tile(sums + num_rows * padded_value_dim * static_cast<int64_t>(sizeof(float))),
        query_words(tile + kKvBlockSize * std::max<int64_t>(format.key_dim, padded_value_dim) *
                               static_cast<int64_t>(sizeof(float))),
        turned_queries(query_words + num_rows * query_stride * static_cast<int64_t>(sizeof(uint32_t))),
        decoded(turned_queries + (format.turned_key_dim() != 0 ? pointer_bytes(num_rows) : 0)),
        weight_words(decoded + decoded_bytes(format)),
        weight_factors(weight_words + num_weight_groups(format) * num_rows * kWeightStep),
        denominators(weight_factors + pointer_bytes(num_weight_groups(format) * num_rows)),
        chosen_queries(denominators + (has_int8_products(format) ? num_rows * 64 : 0)),
        chosen_stride(padded_row_floats(format.key_dim)),
        end(chosen_queries + (chooses_channels ? pointer_bytes(num_rows) + num_rows * chosen_stride * 4 : 0)) {}

  static int64_t pointer_bytes(int64_t num_rows) { return (num_rows + 7) / 8 * 64; }

  // Of components of the values, for each of which weights are rounded.
  static int64_t num_weight_groups(const KvBlockFormat& format) {
    return has_int8_products(format) ? num_int8_groups(format, format.value_dim) : 0;
  }
};

// The entries of one block and the span of their positions.
struct BlockEntries {
  const int32_t* positions = nullptr;  // nullptr: entry e is at min_position + e
  int32_t count = 0;                   // 1..32
  int32_t min_position = 0;
  int32_t max_position = 0;

  BlockEntries() = default;
  BlockEntries(const KvView& view, int32_t first_entry, int32_t end) {
    count = std::min(kKvBlockSize, end - first_entry);
    positions = view.positions == nullptr ? nullptr : view.positions + first_entry;
    if (positions == nullptr) {
      min_position = first_entry;
      max_position = first_entry + count - 1;
    } else {
      const auto [min, max] = std::minmax_element(positions, positions + count);
      min_position = *min;
      max_position = *max;
    }
  }

  // Bit e: entry e has a position in (after, until].
  uint32_t visible(int64_t after, int64_t until) const {
    if (max_position <= after || min_position > until) return 0;
    if (min_position > after && max_position <= until) return count == 32 ? ~0u : (1u << count) - 1u;
    uint32_t bits = 0;
    for (int32_t e = 0; e < count; ++e) {
      const int64_t position = positions == nullptr ? min_position + e : positions[e];
      bits |= static_cast<uint32_t>(position > after && position <= until) << e;
    }
    return bits;
  }
};

void find_visible(const KvView& view, const AttentionRows& rows, int32_t split, int32_t num_blocks, uint32_t* visible) {
  BlockEntries blocks[kBlocksPerSplit];
  for (int32_t b = 0; b < num_blocks; ++b) {
    blocks[b] = BlockEntries(view, view.split_begin(split) + b * kKvBlockSize, view.split_begin(split + 1));
  }
  for (int32_t r = 0; r < rows.num_rows; ++r, visible += kBlocksPerSplit) {
    if (r > 0 && rows.positions[r] == rows.positions[r - 1]) {  // heads of one token follow each other
      std::copy_n(visible - kBlocksPerSplit, kBlocksPerSplit, visible);
      continue;
    }
    const int64_t until = rows.positions[r];
    const int64_t after = rows.window > 0 ? until - rows.window : int64_t{INT32_MIN} - 1;
    for (int32_t b = 0; b < num_blocks; ++b) visible[b] = blocks[b].visible(after, until);
    std::fill(visible + num_blocks, visible + kBlocksPerSplit, 0u);
  }
}

void check_task(const KvView& view, int32_t split) {
  WITAN_CHECK(0 <= split && split < view.num_splits(), "split {} of {}", split, view.num_splits());
  const KvBlockFormat& format = view.format_of_split(split);
  WITAN_CHECK(format.key_dim > 0 && format.value_dim > 0, "keys of {}, values of {}", format.key_dim, format.value_dim);
  WITAN_CHECK(
      format.key_dim == view.format.key_dim || (view.channels_of_split(split) != nullptr && !format.value_in_key),
      "keys of {} of {} components", format.key_dim, view.format.key_dim);
  WITAN_CHECK(!format.value_in_key || format.value_dim <= format.key_dim, "values of {} in keys of {}",
              format.value_dim, format.key_dim);
  WITAN_CHECK(kv_codec_fits(format.codec, format.value_in_key), "{} with values {} keys", kv_codec_name(format.codec),
              format.value_in_key ? "in" : "beside");
}

// The rows' queries, of those components that the keys have.
const float* const* choose_channels(const AttentionRows& rows, const int32_t* channels, int32_t key_dim,
                                    const ScratchLayout& layout, std::byte* scratch) {
  if (channels == nullptr) return rows.queries;
  auto** chosen = reinterpret_cast<float**>(scratch + layout.chosen_queries);
  auto* floats =
      reinterpret_cast<float*>(scratch + layout.chosen_queries + ScratchLayout::pointer_bytes(rows.num_rows));
  for (int32_t r = 0; r < rows.num_rows && !rows.same_as_before; ++r) {
    chosen[r] = floats + r * layout.chosen_stride;
    for (int32_t i = 0; i < key_dim; ++i) chosen[r][i] = rows.queries[r][channels[i]];
  }
  return chosen;
}

SplitTask make_task(const KvView& view, const AttentionRows& rows, int32_t split, float* const* states,
                    std::byte* scratch) {
  const KvBlockFormat& format = view.format_of_split(split);
  const int32_t* channels = view.channels_of_split(split);
  const ScratchLayout layout(format, rows.num_rows, channels != nullptr);
  const int32_t first_block = view.split_first_block(split);
  const int32_t end_block = view.split_first_block(split + 1);
  const int32_t num_blocks = end_block - first_block;
  auto* visible = reinterpret_cast<uint32_t*>(scratch);
  find_visible(view, rows, split, num_blocks, visible);
  return {.format = format,
          .blocks = view.blocks + first_block,
          .num_blocks = num_blocks,
          .num_next_blocks = split + 1 < view.num_splits() ? view.split_first_block(split + 2) - end_block : 0,
          .key_scales = format.key_scales_offset(),
          .rope = format.rope_offset(),
          .values = format.value_in_key ? 0 : format.key_bytes(),
          .value_scales = format.value_scales_offset(),
          .block_bytes = format.block_bytes(),
          .queries = choose_channels(rows, channels, format.key_dim, layout, scratch),
          .num_rows = rows.num_rows,
          .scale = rows.scale,
          .biases = rows.biases,
          .first_entry = view.split_begin(split),
          .visible = visible,
          .scores = reinterpret_cast<float*>(scratch + layout.scores),
          .sums = reinterpret_cast<float*>(scratch + layout.sums),
          .tile = reinterpret_cast<float*>(scratch + layout.tile),
          .padded_value_dim = layout.padded_value_dim,
          .decoded = reinterpret_cast<uint8_t*>(scratch + layout.decoded),
          .turned_key_dim = format.turned_key_dim(),
          .key_rotation = hadamard_size(format.turned_key_dim()),
          .value_rotation = hadamard_size(format.value_dim),
          .key_bits = kv_hadamard_bits(format.codec).key,
          .value_bits = kv_hadamard_bits(format.codec).value,
          .query_words = reinterpret_cast<uint32_t*>(scratch + layout.query_words),
          .num_query_words = num_int8_words(format),
          .num_key_groups = num_int8_groups(format, format.key_dim),
          .query_stride = layout.query_stride,
          .has_queries = rows.same_as_before,
          .turned_queries = reinterpret_cast<const float**>(scratch + layout.turned_queries),
          .num_value_groups = num_int8_groups(format, format.value_dim),
          .weight_words = reinterpret_cast<uint32_t*>(scratch + layout.weight_words),
          .weight_factors = reinterpret_cast<float*>(scratch + layout.weight_factors),
          .denominators = reinterpret_cast<float*>(scratch + layout.denominators),
          .states = states};
}

}  // namespace

AttentionArithmetic attention_arithmetic(Isa isa, const KvBlockFormat& format, Precision precision) {
  if (precision != Precision::kFast) return AttentionArithmetic::kF32;
  const auto from = [&](Isa weakest) { return isa == Isa::kReference || isa >= weakest; };
  const bool is_bf16 = format.codec == KvCodec::kBF16 || is_decoded_to_bf16(format);
  if (is_bf16 && from(Isa::kAvx512Bf16)) return AttentionArithmetic::kBF16;
  if (has_int8_products(format) && from(Isa::kAvx512Vnni)) return AttentionArithmetic::kInt8;
  return AttentionArithmetic::kF32;
}

int64_t attention_scratch_bytes(const KvBlockFormat& format, int32_t num_rows) {
  return ScratchLayout(format, num_rows, false).end;
}

int64_t attention_scratch_bytes(const KvView& view, int32_t num_rows) {
  const int64_t bytes = attention_scratch_bytes(view.format, num_rows);
  if (view.num_demoted == 0) return bytes;
  return std::max(bytes, ScratchLayout(view.demoted_format, num_rows, view.demoted_channels != nullptr).end);
}

void attention_split(Isa isa, Precision precision, const KvView& view, const AttentionRows& rows, int32_t split,
                     float* const* states, std::byte* scratch) {
  check_task(view, split);
  const KvBlockFormat& format = view.format_of_split(split);
  const AttentionArithmetic arithmetic = attention_arithmetic(isa, format, precision);
  if (isa == Isa::kReference) return attention_split_reference(arithmetic, view, rows, split, states);
  const auto& variants = arithmetic == AttentionArithmetic::kF32    ? kSplit
                         : is_decoded_to_bf16(format)               ? kSplitDecoded
                         : arithmetic == AttentionArithmetic::kBF16 ? kSplitBf16
                         : format.is_hadamard()                     ? kSplitHadamard
                                                                    : kSplitQ8;
  variants[isa](make_task(view, rows, split, states, scratch));
}

void attention_weights(Isa isa, const KvView& view, const AttentionRows& rows, int32_t split, float* const* states,
                       float* const* weights, std::byte* scratch) {
  check_task(view, split);
  if (isa == Isa::kReference) return attention_weights_reference(view, rows, split, states, weights);
  const SplitTask task = make_task(view, rows, split, states, scratch);
  kWeights[isa](task);
  for (int32_t r = 0; r < rows.num_rows; ++r) {
    for (int32_t b = 0; b < kBlocksPerSplit; ++b) {
      const bool seen = b < task.num_blocks && task.visible[r * kBlocksPerSplit + b] != 0;
      float* of_block = weights[r] + b * kKvBlockSize;
      if (seen) {
        std::memcpy(of_block, task.scores + r * kScoreStride + b * kKvBlockSize, kKvBlockSize * sizeof(float));
      } else {
        std::fill_n(of_block, kKvBlockSize, 0.0f);
      }
    }
  }
}

void attention_largest_scores(Isa isa, Precision precision, const KvView& view, const AttentionRows& rows,
                              int32_t split, float* largest, std::byte* scratch) {
  check_task(view, split);
  const KvBlockFormat& format = view.format_of_split(split);
  const AttentionArithmetic arithmetic =
      format.codec == KvCodec::kBF16 ? attention_arithmetic(isa, format, precision) : AttentionArithmetic::kF32;
  if (isa == Isa::kReference) return attention_largest_scores_reference(arithmetic, view, rows, split, largest);
  const SplitTask task = make_task(view, rows, split, nullptr, scratch);
  (arithmetic == AttentionArithmetic::kBF16 ? kLargestScoresBf16 : kLargestScores)[isa](task);
  const int32_t num_entries = view.split_begin(split + 1) - view.split_begin(split);
  std::memcpy(largest, task.scores, static_cast<size_t>(num_entries) * sizeof(float));
}

void merge_attention_state(Isa isa, float* into, const float* next, int32_t value_dim) {
  kMerge[isa](into, next, value_dim);
}

void finish_attention(Isa isa, float* state, const float* sink, int32_t value_dim, float* out) {
  kFinish[isa](state, sink, value_dim, out);
}

}  // namespace witan
