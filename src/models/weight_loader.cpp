#include "models/weight_loader.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "io/mapped_file.h"
#include "models/conversion_log.h"

namespace witan {
namespace {

// `buffer`: working memory for rows that are put together.
void pack_one_panel(const PackedMatrix& matrix, int64_t panel, const MatrixRows& from, std::vector<std::byte>& buffer) {
  const std::byte* rows[kPanelRows];
  const int64_t first = panel * kPanelRows;
  const int num_rows = static_cast<int>(std::min<int64_t>(kPanelRows, matrix.rows - first));
  const bool whole = from.form == RowForm::kWhole;
  const int64_t row_bytes = from.row_bytes();
  if (!whole) buffer.resize(static_cast<size_t>(kPanelRows * row_bytes));
  for (int i = 0; i < num_rows; ++i) rows[i] = from.row(first + i, whole ? nullptr : buffer.data() + i * row_bytes);
  // The arena's memory is ours to write; a PackedMatrix only reads it.
  pack_panel(matrix.type, matrix.cols, rows, num_rows,
             const_cast<std::byte*>(matrix.data) + panel * matrix.panel_stride_bytes);
}

int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

}  // namespace

WeightLoader::WeightLoader(const Checkpoint& checkpoint, Arena& weights, Arena& experts, ThreadPool& threads,
                           Precision precision, FunctionRef<void(int64_t, int64_t)> progress)
    : checkpoint_(checkpoint),
      weights_(weights),
      experts_(experts),
      threads_(threads),
      precision_(precision),
      progress_(progress) {
  for (const TensorEntry& tensor : checkpoint.tensors()) bytes_total_ += std::ssize(tensor.data);
}

std::string WeightLoader::full_name(TensorName name, int32_t layer) const {
  return fmt::format(fmt::runtime(is_gguf() ? name.gguf : name.huggingface), layer);
}

bool WeightLoader::has(TensorName name, int32_t layer) const {
  return checkpoint_.find(full_name(name, layer)) != nullptr;
}

void WeightLoader::count_done(const TensorEntry& tensor) {
  if (!used_.insert(tensor.name).second) return;
  read_.push_back(tensor.data);
  bytes_done_ += std::ssize(tensor.data);
  progress_(bytes_done_, bytes_total_);
}

void WeightLoader::drop_read_pages() {
  std::ranges::for_each(read_, drop_pages);
  read_.clear();
}

void WeightLoader::count_packed(int64_t num_bytes) {
  constexpr int64_t kDropEvery = int64_t{64} << 20;
  const int64_t before = bytes_packed_.fetch_add(num_bytes, std::memory_order_relaxed);
  // What other threads still read of these pages comes back from the page cache.
  if (before / kDropEvery != (before + num_bytes) / kDropEvery) std::ranges::for_each(read_, drop_pages);
}

const TensorEntry& WeightLoader::entry(const std::string& name, const std::vector<int64_t>& shape) {
  const TensorEntry* tensor = checkpoint_.find(name);
  if (tensor == nullptr) {
    fail(ErrorCode::kBadFile, "{}: tensor {} is missing, expected shape [{}]", checkpoint_.path(), name,
         fmt::join(shape, ", "));
  }
  if (tensor->shape != shape) {
    fail(ErrorCode::kBadFile, "{}: tensor {} has shape [{}], expected [{}]", tensor->file, name,
         fmt::join(tensor->shape, ", "), fmt::join(shape, ", "));
  }
  return *tensor;
}

const TensorEntry& WeightLoader::whole_entry(const std::string& name, const std::vector<int64_t>& shape) {
  const TensorEntry& found = entry(name, shape);
  if (found.is_part) {
    fail(ErrorCode::kUnsupported, "{}: tensor {} has codes of {} without scales, expected floats", found.file, name,
         quant_type(found.dtype).name);
  }
  return found;
}

void WeightLoader::note(std::string_view gguf, int32_t layer, std::vector<MatrixRows> parts,
                        std::vector<int64_t> shape) {
  if (!only_names()) return;
  checkpoint_.conversion_log()->tensors.push_back(
      {.gguf = fmt::format(fmt::runtime(gguf), layer), .parts = std::move(parts), .shape = std::move(shape)});
}

PackedMatrix WeightLoader::allocate(Arena& arena, const MatrixRows& rows) const {
  PackedMatrix matrix{
      .type = rows.type, .rows = rows.num_rows, .cols = rows.cols, .data = nullptr, .panel_stride_bytes = 0};
  matrix.panel_stride_bytes = panel_bytes(rows.type, rows.cols);
  if (!only_names()) {
    matrix.data = arena.allocate(static_cast<size_t>(matrix.panel_stride_bytes * matrix.num_panels()));
  }
  return matrix;
}

const TensorEntry& WeightLoader::tensor(TensorName name, int32_t layer, const std::vector<int64_t>& shape) {
  const TensorEntry& found = whole_entry(full_name(name, layer), shape);
  const int64_t row_length = shape.empty() ? 1 : shape.back();
  note(name.gguf, layer, {whole_rows(found.dtype, found.num_elements() / row_length, row_length, found.data.data())},
       shape);
  count_done(found);
  return found;
}

const TensorEntry& WeightLoader::part(const std::string& name, DType whole, const std::vector<int64_t>& shape) {
  const TensorEntry& found = entry(name, shape);
  if (!found.is_part || found.dtype != whole) {
    fail(ErrorCode::kUnsupported, "{}: tensor {} is {}, expected codes of {}", found.file, name,
         quant_type(found.dtype).name, quant_type(whole).name);
  }
  count_done(found);
  return found;
}

MatrixRows WeightLoader::rows_of_codes(const TensorEntry& codes, int64_t rows, int64_t cols) {
  const std::vector<int64_t> shape{ceil_div(rows, MatrixRows::kF8ScaleRows),
                                   ceil_div(cols, quant_type(DType::kF8_E4M3).block_size)};
  const TensorEntry& scales = whole_entry(codes.name + "_scale_inv", shape);
  if (codes.dtype != DType::kF8_E4M3 || scales.dtype != DType::kF32) {
    fail(ErrorCode::kUnsupported, "{}: tensor {} is {} with scales of {}, expected F8_E4M3 with scales of F32",
         codes.file, codes.name, quant_type(codes.dtype).name, quant_type(scales.dtype).name);
  }
  count_done(scales);
  MatrixRows matrix = whole_rows(DType::kF8_E4M3, rows, cols, codes.data.data());
  matrix.form = RowForm::kF8Parts;
  matrix.stride_bytes = cols;
  matrix.scales = scales.data.data();
  matrix.scales_stride_bytes = shape[1] * static_cast<int64_t>(sizeof(float));
  return matrix;
}

MatrixRows WeightLoader::rows(const std::string& name, int64_t num_rows, int64_t cols) {
  const TensorEntry& source = entry(name, {num_rows, cols});
  const MatrixRows matrix = source.is_part ? rows_of_codes(source, num_rows, cols)
                                           : whole_rows(source.dtype, num_rows, cols, source.data.data());
  count_done(source);
  return matrix;
}

MatrixRows WeightLoader::rows(TensorName name, int32_t layer, int64_t num_rows, int64_t cols) {
  const MatrixRows found = rows(full_name(name, layer), num_rows, cols);
  note(name.gguf, layer, {found}, {num_rows, cols});
  return found;
}

PackedMatrix WeightLoader::pack(const MatrixRows& rows, Arena& arena) {
  const PackedMatrix matrix = allocate(arena, rows);
  if (only_names()) return matrix;
  std::vector<std::vector<std::byte>> buffers(static_cast<size_t>(threads_.num_threads()));
  threads_.parallel_for(matrix.num_panels(), [&](int64_t panel, int thread) {
    pack_one_panel(matrix, panel, rows, buffers[static_cast<size_t>(thread)]);
    count_packed(matrix.panel_stride_bytes);
  });
  return matrix;
}

PackedMatrix WeightLoader::matrix(TensorName name, int32_t layer, int64_t num_rows, int64_t cols) {
  const PackedMatrix packed = pack(rows(name, layer, num_rows, cols), weights_);
  drop_read_pages();
  return packed;
}

const float* WeightLoader::floats(const TensorEntry& source) {
  const int64_t n = source.num_elements();
  auto* values = reinterpret_cast<float*>(weights_.allocate(static_cast<size_t>(n) * sizeof(float)));
  quant_type(source.dtype).decode(source.data.data(), values, n);
  return values;
}

const float* WeightLoader::vector(TensorName name, int32_t layer, int64_t n) {
  return floats(tensor(name, layer, {n}));
}

const float* WeightLoader::matrix_of_floats(TensorName name, int32_t layer, int64_t rows, int64_t cols) {
  return floats(tensor(name, layer, {rows, cols}));
}

PackedMatrix WeightLoader::row(TensorName name, int32_t layer, int64_t n) {
  const TensorEntry* found = checkpoint_.find(full_name(name, layer));
  const bool flat = found == nullptr ? is_gguf() : found->shape.size() == 1;
  const TensorEntry& source = tensor(name, layer, flat ? std::vector<int64_t>{n} : std::vector<int64_t>{1, n});
  return pack(whole_rows(source.dtype, 1, n, source.data.data()), weights_);
}

EmbeddingTable WeightLoader::embedding(TensorName name, int64_t rows, int64_t cols) {
  const TensorEntry& source = tensor(name, 0, {rows, cols});
  if (only_names()) return {.type = source.dtype, .rows = rows, .cols = cols, .data = nullptr};
  std::byte* data = weights_.allocate(source.data.size());
  constexpr int64_t kPiece = int64_t{1} << 22;
  const int64_t size = std::ssize(source.data);
  threads_.parallel_for((size + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t begin = piece * kPiece;
    std::memcpy(data + begin, source.data.data() + begin, static_cast<size_t>(std::min(kPiece, size - begin)));
    count_packed(kPiece);
  });
  drop_read_pages();
  return {.type = source.dtype, .rows = rows, .cols = cols, .data = data};
}

FfnWeights WeightLoader::ffn(TensorName gate, TensorName up, TensorName down, int32_t layer, int64_t ffn_dim,
                             int64_t model_dim) {
  return {.gate = matrix(gate, layer, ffn_dim, model_dim),
          .up = matrix(up, layer, ffn_dim, model_dim),
          .down = matrix(down, layer, model_dim, ffn_dim)};
}

std::vector<MatrixRows> WeightLoader::expert_rows(const ExpertTensorName& name, int32_t layer, int32_t num_experts,
                                                  int64_t num_rows, int64_t cols) {
  std::vector<MatrixRows> experts;
  const std::string stacked = fmt::format(fmt::runtime(name.gguf), layer);
  if (is_gguf() && checkpoint_.find(stacked) != nullptr) {
    const TensorEntry& all = entry(stacked, {num_experts, num_rows, cols});
    const MatrixRows rows = whole_rows(all.dtype, num_experts * num_rows, cols, all.data.data());
    for (int64_t e = 0; e < num_experts; ++e) experts.push_back(rows.slice(e * num_rows, num_rows));
    count_done(all);
    return experts;
  }
  for (int32_t e = 0; e < num_experts; ++e) {
    const std::string one = fmt::format(fmt::runtime(is_gguf() ? name.gguf_per_expert : name.huggingface), layer, e);
    if (is_gguf() && checkpoint_.find(one) == nullptr) entry(stacked, {num_experts, num_rows, cols});  // the new form
    experts.push_back(rows(one, num_rows, cols));
    if (experts.back().type != experts.front().type) {
      fail(ErrorCode::kUnsupported, "{}: tensor {} is {}, the layer's other experts are {}", checkpoint_.path(), one,
           quant_type(experts.back().type).name, quant_type(experts.front().type).name);
    }
  }
  note(name.gguf, layer, experts, {num_experts, num_rows, cols});
  return experts;
}

std::vector<FfnWeights> WeightLoader::experts(const ExpertTensorNames& names, int32_t layer, int32_t num_experts,
                                              int64_t ffn_dim, int64_t model_dim) {
  std::vector<MatrixRows> gate;
  std::vector<MatrixRows> up;
  const std::string fused_name = fmt::format("blk.{}.ffn_gate_up_exps.weight", layer);
  if (is_gguf() && checkpoint_.find(fused_name) != nullptr) {  // gate rows first
    for (const MatrixRows& both :
         expert_rows({.gguf = "blk.{}.ffn_gate_up_exps.weight", .gguf_per_expert = {}, .huggingface = {}}, layer,
                     num_experts, 2 * ffn_dim, model_dim)) {
      gate.push_back(both.slice(0, ffn_dim));
      up.push_back(both.slice(ffn_dim, ffn_dim));
    }
  } else {
    if (names.has_gate()) gate = expert_rows(names.gate, layer, num_experts, ffn_dim, model_dim);
    up = expert_rows(names.up, layer, num_experts, ffn_dim, model_dim);
  }
  return pack_experts(gate, up, expert_rows(names.down, layer, num_experts, model_dim, ffn_dim));
}

std::vector<FfnWeights> WeightLoader::pack_experts(std::span<const MatrixRows> gate, std::span<const MatrixRows> up,
                                                   std::span<const MatrixRows> down) {
  std::vector<FfnWeights> experts(up.size());
  for (size_t e = 0; e < experts.size(); ++e) {
    if (!gate.empty()) experts[e].gate = allocate(experts_, gate[e]);
    experts[e].up = allocate(experts_, up[e]);
    experts[e].down = allocate(experts_, down[e]);
  }
  if (only_names()) return experts;
  threads_.parallel_for(std::ssize(experts), [&](int64_t e, int) {
    std::vector<std::byte> buffer;
    const auto pack_all = [&](const PackedMatrix& matrix, const MatrixRows& rows) {
      for (int64_t panel = 0; panel < matrix.num_panels(); ++panel) pack_one_panel(matrix, panel, rows, buffer);
      count_packed(matrix.num_panels() * matrix.panel_stride_bytes);
    };
    if (!gate.empty()) pack_all(experts[e].gate, gate[e]);
    pack_all(experts[e].up, up[e]);
    pack_all(experts[e].down, down[e]);
  });
  drop_read_pages();
  return experts;
}

void WeightLoader::ignore(std::string_view name) {
  if (const TensorEntry* tensor = checkpoint_.find(name)) count_done(*tensor);
}

void WeightLoader::ignore_layer(int32_t layer) {
  const std::string prefix = fmt::format(fmt::runtime(is_gguf() ? "blk.{}." : "model.layers.{}."), layer);
  for (const TensorEntry& tensor : checkpoint_.tensors()) {
    if (tensor.name.starts_with(prefix)) count_done(tensor);
  }
}

void WeightLoader::check_all_used() const {
  for (const TensorEntry& tensor : checkpoint_.tensors()) {
    if (!used_.contains(tensor.name)) {
      fail(ErrorCode::kUnsupported, "{}: tensor {} is not one that the architecture {} has in Witan", tensor.file,
           tensor.name, checkpoint_.architecture());
    }
  }
}

}  // namespace witan
