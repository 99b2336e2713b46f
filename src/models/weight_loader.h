#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/function_ref.h"
#include "base/thread_pool.h"
#include "io/checkpoint.h"
#include "kernels/precision.h"
#include "memory/arena.h"
#include "models/matrix_rows.h"
#include "moe/moe_ffn.h"

namespace witan {

// The two spellings of one tensor; "{}" stands for the layer number.
struct TensorName {
  std::string_view gguf;
  std::string_view huggingface;
};

// The spellings of one matrix of all experts of a layer.
struct ExpertTensorName {
  std::string_view gguf;             // one tensor [num_experts, rows, cols]: "blk.{}.ffn_gate_exps.weight"
  std::string_view gguf_per_expert;  // older files: "blk.{}.ffn_gate.{}.weight"
  std::string_view huggingface;      // "model.layers.{}.mlp.experts.{}.gate_proj.weight": layer, expert
};

struct ExpertTensorNames {
  ExpertTensorName gate;
  ExpertTensorName up;
  ExpertTensorName down;

  bool has_gate() const { return !gate.gguf.empty() || !gate.huggingface.empty(); }  // else down(relu(up x))
};

// The rows of a token embedding, in the file's type.
struct EmbeddingTable {
  DType type = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;  // row-major
};

// Finds a checkpoint's tensors by name, checks their shapes and packs them for the kernels, in memory of two arenas.
// Every tensor of the file must be asked for: one that a model does not know is an error, since leaving it out would
// give wrong text. Errors name file, tensor, expected and found.
// For a checkpoint with a conversion log, nothing is packed: matrices have no data, and the log gets the names.
class WeightLoader {
 public:
  // `precision` is what the weights will be used with. `progress` is told the bytes of the file's tensors packed so
  // far, now and then.
  WeightLoader(const Checkpoint& checkpoint, Arena& weights, Arena& experts, ThreadPool& threads, Precision precision,
               FunctionRef<void(int64_t bytes_done, int64_t bytes_total)> progress);

  const std::string& path() const { return checkpoint_.path(); }
  Precision precision() const { return precision_; }
  bool is_gguf() const { return checkpoint_.format() == CheckpointFormat::kGguf; }
  const CheckpointConfig& config() const { return checkpoint_.config(); }
  bool has(TensorName name, int32_t layer = 0) const;
  bool has_exactly(std::string_view name) const { return checkpoint_.find(name) != nullptr; }

  // A matrix [rows, cols], packed.
  PackedMatrix matrix(TensorName name, int32_t layer, int64_t rows, int64_t cols);
  // A tensor of n elements (norm weights, biases) as f32.
  const float* vector(TensorName name, int32_t layer, int64_t n);
  // A tensor [rows, cols] as f32, row-major: biases of several experts.
  const float* matrix_of_floats(TensorName name, int32_t layer, int64_t rows, int64_t cols);
  // A matrix of one row of n elements, packed, whether the file calls it [n] or [1, n].
  PackedMatrix row(TensorName name, int32_t layer, int64_t n);
  EmbeddingTable embedding(TensorName name, int64_t rows, int64_t cols);
  FfnWeights ffn(TensorName gate, TensorName up, TensorName down, int32_t layer, int64_t ffn_dim, int64_t model_dim);
  // All experts of a layer; in GGUF files also from fused or per-expert tensors.
  std::vector<FfnWeights> experts(const ExpertTensorNames& names, int32_t layer, int32_t num_experts, int64_t ffn_dim,
                                  int64_t model_dim);

  // The file's tensor, its shape checked and counted as used; for models that transform weights themselves.
  const TensorEntry& tensor(TensorName name, int32_t layer, const std::vector<int64_t>& shape);
  // A part of quantised weights, by its own name; `whole` is what it is a part of.
  const TensorEntry& part(const std::string& name, DType whole, const std::vector<int64_t>& shape);
  // The rows of a matrix [num_rows, cols], counted as used. Codes of F8_E4M3 come with the scales of X_scale_inv
  // [ceil(num_rows / 128), ceil(cols / 128)].
  MatrixRows rows(TensorName name, int32_t layer, int64_t num_rows, int64_t cols);
  PackedMatrix pack(const MatrixRows& rows, Arena& arena);
  // Experts of which all gates (or none), ups and downs have the same shape and type.
  std::vector<FfnWeights> pack_experts(std::span<const MatrixRows> gate, std::span<const MatrixRows> up,
                                       std::span<const MatrixRows> down);
  Arena& weights_arena() { return weights_; }
  std::string full_name(TensorName name, int32_t layer) const;
  // For a converter: a tensor of GGUF files, called `gguf` where "{}" is the layer, whose rows are those of all parts.
  void note(std::string_view gguf, int32_t layer, std::vector<MatrixRows> parts, std::vector<int64_t> shape);

  // Marks a tensor, or all of a layer, as known and not needed. No effect when there is none.
  void ignore(std::string_view name);
  void ignore_layer(int32_t layer);

  // Error(kUnsupported) naming a tensor of the file that was never asked for.
  void check_all_used() const;

 private:
  bool only_names() const { return checkpoint_.conversion_log() != nullptr; }
  PackedMatrix allocate(Arena& arena, const MatrixRows& rows) const;
  const float* floats(const TensorEntry& source);
  const TensorEntry& entry(const std::string& name, const std::vector<int64_t>& shape);
  // The same, of whole weights.
  const TensorEntry& whole_entry(const std::string& name, const std::vector<int64_t>& shape);
  MatrixRows rows(const std::string& name, int64_t num_rows, int64_t cols);
  MatrixRows rows_of_codes(const TensorEntry& codes, int64_t rows, int64_t cols);
  std::vector<MatrixRows> expert_rows(const ExpertTensorName& name, int32_t layer, int32_t num_experts,
                                      int64_t num_rows, int64_t cols);
  void drop_read_pages();
  // From any thread of a loop that packs: so many bytes of what is read are packed. The file's pages count as this
  // process's memory until they are dropped; of big tensors that is now and then, not at their end.
  void count_packed(int64_t num_bytes);
  void count_done(const TensorEntry& tensor);

  const Checkpoint& checkpoint_;
  Arena& weights_;
  Arena& experts_;
  ThreadPool& threads_;
  Precision precision_;
  FunctionRef<void(int64_t, int64_t)> progress_;
  std::unordered_set<std::string> used_;
  std::vector<std::span<const std::byte>> read_;  // in the file, its pages not dropped yet
  std::atomic<int64_t> bytes_packed_{0};
  int64_t bytes_done_ = 0;
  int64_t bytes_total_ = 0;
};

}  // namespace witan
