#include "models/gguf_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "io/checkpoint.h"
#include "io/tokenizer_source.h"
#include "models/conversion_log.h"
#include "models/registry.h"
#include "models/weight_loader.h"

namespace witan {
namespace {

namespace fs = std::filesystem;

constexpr size_t kNameLoadBytes = size_t{4} << 30;  // a bound: only norms and biases are decoded

std::string_view gguf_architecture(const Checkpoint& checkpoint) {
  for (const Architecture& architecture : architectures()) {
    if (architecture.huggingface != checkpoint.architecture()) continue;
    if (architecture.gguf.empty()) {
      fail(ErrorCode::kUnsupported, "{}: cannot be converted: there are no GGUF files of {}", checkpoint.path(),
           architecture.title);
    }
    return architecture.gguf;
  }
  return {};
}

// Drops tensors that GGUF files have under other names, in parts; refuses those that they do not have.
void drop_unnamed(const Checkpoint& checkpoint, ConversionLog& log) {
  const auto is_named = [](const ConversionLog::Tensor& tensor) {
    return !tensor.gguf.empty() && !tensor.gguf.starts_with("model.");
  };
  std::unordered_set<const std::byte*> named;
  for (const ConversionLog::Tensor& tensor : log.tensors) {
    if (is_named(tensor)) named.insert(tensor.parts.front().data);
  }
  std::erase_if(log.tensors, [&](const ConversionLog::Tensor& tensor) {
    if (is_named(tensor)) return false;
    if (!named.contains(tensor.parts.front().data)) {
      fail(ErrorCode::kUnsupported, "{}: cannot be converted: it has a tensor of shape [{}] that GGUF files of {} lack",
           checkpoint.path(), fmt::join(tensor.shape, ", "), gguf_architecture(checkpoint));
    }
    return true;
  });
}

// Lets the model read the checkpoint without loading its weights.
ConversionLog read_names(Checkpoint& checkpoint, ThreadPool& threads) {
  ConversionLog log;
  checkpoint.set_conversion_log(&log);
  const std::unique_ptr<Model> model = create_model(checkpoint);
  MemoryPool pool(kNameLoadBytes);
  Arena weights(pool, MemoryTag::kWeights);
  Arena experts(pool, MemoryTag::kExperts);
  WeightLoader loader(checkpoint, weights, experts, threads, Precision::kExact, [](int64_t, int64_t) {});
  model->load(loader);
  loader.check_all_used();
  checkpoint.set_conversion_log(nullptr);
  if (!log.obstacle.empty())
    fail(ErrorCode::kUnsupported, "{}: cannot be converted: {}", checkpoint.path(), log.obstacle);
  drop_unnamed(checkpoint, log);
  log.settings.erase("nextn_predict_layers");  // layers that generation does not use are left out
  return log;
}

// ---- Metadata ------------------------------------------------------------------------------------------------------

GgufMetadata make_metadata(const Checkpoint& checkpoint, const ConversionLog& log) {
  const fs::path directory(checkpoint.path());
  const std::string_view architecture = gguf_architecture(checkpoint);
  GgufMetadata metadata;
  metadata.set("general.architecture", architecture);
  metadata.set("general.type", "model");
  metadata.set("general.name", fs::weakly_canonical(directory).filename().string());
  for (const auto& [key, value] : log.settings) {
    const std::string full_key = fmt::format("{}.{}", architecture, key);
    std::visit([&](const auto& v) { metadata.set(full_key, v); }, value);
  }
  const auto vocab_size = log.settings.find("vocab_size");
  set_directory_tokenizer(checkpoint.path(), checkpoint.end_of_generation_tokens(),
                          std::get<uint32_t>(vocab_size->second), metadata);
  return metadata;
}

// ---- Tensors -------------------------------------------------------------------------------------------------------

int64_t setting(const ConversionLog& log, std::string_view key) {
  const auto found = log.settings.find(key);
  return found == log.settings.end() ? 0 : static_cast<int64_t>(std::get<uint32_t>(found->second));
}

// The heads of a tensor whose rows GGUF files have in another order; 0: none. Row 2 i + s of a head is row s * d / 2 +
// i of the d here.
int64_t heads_to_permute(const ConversionLog& log, std::string_view name) {
  if (!log.permutes_rotated_rows) return 0;
  if (name.find(".attn_q.") != std::string_view::npos) return setting(log, "attention.head_count");
  if (name.find(".attn_k.") != std::string_view::npos) return setting(log, "attention.head_count_kv");
  return 0;
}

// Row r of a tensor in the file's order, of all parts, in the order that GGUF files want it.
class OrderedRows {
 public:
  OrderedRows(std::vector<MatrixRows> parts, int64_t num_heads) : parts_(std::move(parts)) {
    if (num_heads > 0) half_head_ = part_rows() / num_heads / 2;
  }

  int64_t row_bytes() const { return parts_.front().row_bytes(); }
  const std::byte* row(int64_t r, std::byte* buffer) const {
    return parts_[static_cast<size_t>(r / part_rows())].row(source_of(r % part_rows()), buffer);
  }

 private:
  int64_t part_rows() const { return parts_.front().num_rows; }
  int64_t source_of(int64_t r) const {
    if (half_head_ == 0) return r;
    const int64_t in_head = r % (2 * half_head_);
    return r - in_head + in_head % 2 * half_head_ + in_head / 2;
  }

  std::vector<MatrixRows> parts_;
  int64_t half_head_ = 0;
};

TensorSource make_tensor(const ConversionLog& log, const ConversionLog::Tensor& tensor) {
  std::vector<MatrixRows> parts = tensor.parts;
  TensorShape shape{.name = tensor.gguf, .dtype = parts.front().type, .shape = tensor.shape};
  if (shape.shape.empty()) shape.shape = {1};
  if (shape.shape.size() == 2 && shape.shape[0] == 1) shape.shape.erase(shape.shape.begin());
  const int64_t num_heads = heads_to_permute(log, tensor.gguf);
  if (num_heads > 0 && shape.shape.size() == 1) {
    // A bias of queries or keys has one element for each row of its matrix.
    for (MatrixRows& part : parts) part = whole_rows(part.type, part.num_rows * part.cols, 1, part.data);
  }
  const OrderedRows rows(parts, num_heads);
  // Elements that do not lie beside each other come one by one.
  const int64_t num_pieces = shape.shape.back() / parts.front().cols;
  return {.tensor = std::move(shape), .row = [rows, num_pieces](int64_t row, std::vector<std::byte>& scratch) {
            const int64_t bytes = rows.row_bytes();
            scratch.resize(static_cast<size_t>(num_pieces * bytes));
            if (num_pieces == 1) return rows.row(row, scratch.data());
            for (int64_t i = 0; i < num_pieces; ++i) {
              std::byte* at = scratch.data() + i * bytes;
              const std::byte* piece = rows.row(row * num_pieces + i, at);
              if (piece != at) std::copy_n(piece, bytes, at);
            }
            return static_cast<const std::byte*>(scratch.data());
          }};
}

ModelSource open_huggingface_source(std::unique_ptr<Checkpoint> checkpoint, ThreadPool& threads) {
  gguf_architecture(*checkpoint);  // before any work
  const ConversionLog log = read_names(*checkpoint, threads);
  ModelSource source;
  source.metadata = make_metadata(*checkpoint, log);
  std::unordered_set<std::string_view> names;
  for (const ConversionLog::Tensor& tensor : log.tensors) {
    // Tied embeddings are read twice.
    if (names.insert(tensor.gguf).second) source.tensors.push_back(make_tensor(log, tensor));
  }
  source.owner = std::move(checkpoint);
  return source;
}

}  // namespace

ModelSource open_model_source(const std::string& path, ThreadPool& threads) {
  std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(path);
  if (checkpoint->format() == CheckpointFormat::kGguf) return open_gguf_source(path);
  return open_huggingface_source(std::move(checkpoint), threads);
}

}  // namespace witan
