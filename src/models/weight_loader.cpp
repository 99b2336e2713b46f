#include "models/weight_loader.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "io/mapped_file.h"

namespace witan {
namespace {

PackedMatrix allocate_matrix(Arena& arena, DType type, int64_t rows, int64_t cols) {
  PackedMatrix matrix{.type = type, .rows = rows, .cols = cols, .data = nullptr, .panel_stride_bytes = 0};
  matrix.panel_stride_bytes = panel_bytes(type, cols);
  matrix.data = arena.allocate(static_cast<size_t>(matrix.panel_stride_bytes * matrix.num_panels()));
  return matrix;
}

void pack_one_panel(const PackedMatrix& matrix, int64_t panel, FunctionRef<const std::byte*(int64_t row)> row_of) {
  const std::byte* rows[kPanelRows];
  const int64_t first = panel * kPanelRows;
  const int num_rows = static_cast<int>(std::min<int64_t>(kPanelRows, matrix.rows - first));
  for (int i = 0; i < num_rows; ++i) rows[i] = row_of(first + i);
  // The arena's memory is ours to write; a PackedMatrix only reads it.
  pack_panel(matrix.type, matrix.cols, rows, num_rows,
             const_cast<std::byte*>(matrix.data) + panel * matrix.panel_stride_bytes);
}

}  // namespace

// Where expert e's rows are in the file.
struct WeightLoader::ExpertSource {
  DType type = DType::kF32;
  int64_t row_bytes = 0;
  std::vector<const std::byte*> first_row;       // [num_experts]
  std::vector<std::span<const std::byte>> data;  // all of it, in one or more pieces
};

WeightLoader::WeightLoader(const Checkpoint& checkpoint, Arena& weights, Arena& experts, ThreadPool& threads,
                           FunctionRef<void(int64_t, int64_t)> progress)
    : checkpoint_(checkpoint), weights_(weights), experts_(experts), threads_(threads), progress_(progress) {
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
  bytes_done_ += std::ssize(tensor.data);
  progress_(bytes_done_, bytes_total_);
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

const TensorEntry& WeightLoader::tensor(TensorName name, int32_t layer, const std::vector<int64_t>& shape) {
  const TensorEntry& found = entry(full_name(name, layer), shape);
  count_done(found);
  return found;
}

PackedMatrix WeightLoader::pack(DType type, int64_t rows, int64_t cols,
                                FunctionRef<const std::byte*(int64_t row)> row_of, Arena& arena) {
  const PackedMatrix matrix = allocate_matrix(arena, type, rows, cols);
  threads_.parallel_for(matrix.num_panels(), [&](int64_t panel, int) { pack_one_panel(matrix, panel, row_of); });
  return matrix;
}

PackedMatrix WeightLoader::matrix(TensorName name, int32_t layer, int64_t rows, int64_t cols) {
  const TensorEntry& source = entry(full_name(name, layer), {rows, cols});
  const int64_t row_bytes = quant_type(source.dtype).row_bytes(cols);
  const PackedMatrix packed = pack(
      source.dtype, rows, cols, [&](int64_t row) { return source.data.data() + row * row_bytes; }, weights_);
  count_done(source);
  drop_pages(source.data);
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
  return pack(
      source.dtype, 1, n, [&](int64_t) { return source.data.data(); }, weights_);
}

EmbeddingTable WeightLoader::embedding(TensorName name, int64_t rows, int64_t cols) {
  const TensorEntry& source = entry(full_name(name, 0), {rows, cols});
  std::byte* data = weights_.allocate(source.data.size());
  constexpr int64_t kPiece = int64_t{1} << 22;
  const int64_t size = std::ssize(source.data);
  threads_.parallel_for((size + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t begin = piece * kPiece;
    std::memcpy(data + begin, source.data.data() + begin, static_cast<size_t>(std::min(kPiece, size - begin)));
  });
  count_done(source);
  drop_pages(source.data);
  return {.type = source.dtype, .rows = rows, .cols = cols, .data = data};
}

FfnWeights WeightLoader::ffn(TensorName gate, TensorName up, TensorName down, int32_t layer, int64_t ffn_dim,
                             int64_t model_dim) {
  return {.gate = matrix(gate, layer, ffn_dim, model_dim),
          .up = matrix(up, layer, ffn_dim, model_dim),
          .down = matrix(down, layer, model_dim, ffn_dim)};
}

WeightLoader::ExpertSource WeightLoader::expert_source(const ExpertTensorName& name, int32_t layer, int32_t num_experts,
                                                       int64_t rows, int64_t cols) {
  ExpertSource source;
  const std::string stacked = fmt::format(fmt::runtime(name.gguf), layer);
  if (is_gguf() && checkpoint_.find(stacked) != nullptr) {
    const TensorEntry& all = entry(stacked, {num_experts, rows, cols});
    source.type = all.dtype;
    source.row_bytes = quant_type(all.dtype).row_bytes(cols);
    for (int64_t e = 0; e < num_experts; ++e) source.first_row.push_back(all.data.data() + e * rows * source.row_bytes);
    source.data.push_back(all.data);
    count_done(all);
    return source;
  }
  for (int32_t e = 0; e < num_experts; ++e) {
    const std::string one = fmt::format(fmt::runtime(is_gguf() ? name.gguf_per_expert : name.huggingface), layer, e);
    if (is_gguf() && checkpoint_.find(one) == nullptr) entry(stacked, {num_experts, rows, cols});  // names the new form
    const TensorEntry& tensor = entry(one, {rows, cols});
    if (e > 0 && tensor.dtype != source.type) {
      fail(ErrorCode::kUnsupported, "{}: tensor {} is {}, the layer's other experts are {}", tensor.file, one,
           quant_type(tensor.dtype).name, quant_type(source.type).name);
    }
    source.type = tensor.dtype;
    source.row_bytes = quant_type(tensor.dtype).row_bytes(cols);
    source.first_row.push_back(tensor.data.data());
    source.data.push_back(tensor.data);
    count_done(tensor);
  }
  return source;
}

std::vector<FfnWeights> WeightLoader::experts(const ExpertTensorNames& names, int32_t layer, int32_t num_experts,
                                              int64_t ffn_dim, int64_t model_dim) {
  ExpertSource gate;
  ExpertSource up;
  const std::string fused_name = fmt::format("blk.{}.ffn_gate_up_exps.weight", layer);
  if (is_gguf() && checkpoint_.find(fused_name) != nullptr) {  // gate rows first
    gate = expert_source({.gguf = "blk.{}.ffn_gate_up_exps.weight", .gguf_per_expert = {}, .huggingface = {}}, layer,
                         num_experts, 2 * ffn_dim, model_dim);
    up = gate;
    for (const std::byte*& row : up.first_row) row += ffn_dim * up.row_bytes;
  } else {
    gate = expert_source(names.gate, layer, num_experts, ffn_dim, model_dim);
    up = expert_source(names.up, layer, num_experts, ffn_dim, model_dim);
  }
  const ExpertSource down = expert_source(names.down, layer, num_experts, model_dim, ffn_dim);

  std::vector<FfnWeights> experts(static_cast<size_t>(num_experts));
  for (FfnWeights& expert : experts) {
    expert.gate = allocate_matrix(experts_, gate.type, ffn_dim, model_dim);
    expert.up = allocate_matrix(experts_, up.type, ffn_dim, model_dim);
    expert.down = allocate_matrix(experts_, down.type, model_dim, ffn_dim);
  }
  threads_.parallel_for(num_experts, [&](int64_t e, int) {
    const auto pack_all = [&](const PackedMatrix& matrix, const ExpertSource& source) {
      const auto row_of = [&](int64_t row) {
        return source.first_row[static_cast<size_t>(e)] + row * source.row_bytes;
      };
      for (int64_t panel = 0; panel < matrix.num_panels(); ++panel) pack_one_panel(matrix, panel, row_of);
    };
    pack_all(experts[e].gate, gate);
    pack_all(experts[e].up, up);
    pack_all(experts[e].down, down);
  });
  for (const ExpertSource* source : std::array<const ExpertSource*, 3>{&gate, &up, &down}) {
    std::ranges::for_each(source->data, drop_pages);
  }
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
