#include "io/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>

#include "base/error.h"
#include "io/gguf_parts.h"

namespace witan {
namespace {

constexpr std::string_view kFileTypeKey = "general.file_type";
constexpr std::string_view kVersionKey = "general.quantization_version";

int64_t num_rows(const TensorShape& tensor) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
  return rows;
}

int64_t source_row_bytes(const TensorShape& tensor) { return quant_type(tensor.dtype).row_bytes(tensor.shape.back()); }

// Consecutive rows of one tensor.
struct Chunk {
  size_t tensor;
  int64_t first_row;
  int64_t num_rows;
};

// About what one thread converts at a time: enough that the calls and locks do not count.
constexpr int64_t kChunkValues = 1 << 18;

std::vector<Chunk> split_into_chunks(std::span<const TensorSource> tensors) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t rows = num_rows(tensors[i].tensor);
    const int64_t step = std::max<int64_t>(1, kChunkValues / tensors[i].tensor.shape.back());
    for (int64_t row = 0; row < rows; row += step) {
      chunks.push_back({.tensor = i, .first_row = row, .num_rows = std::min(step, rows - row)});
    }
  }
  return chunks;
}

// What a thread works in.
struct Buffers {
  std::vector<std::byte> scratch;
  std::vector<std::byte> encoded;  // a chunk
  std::vector<float> before;       // a row
  std::vector<float> after;
};

struct Errors {
  double sum_square_error = 0;
  double sum_square = 0;
};

// Fills buffers.encoded with the chunk in `target`.
Errors convert(const TensorSource& source, DType target, const Chunk& chunk, Buffers& buffers) {
  const QuantType& from = quant_type(source.tensor.dtype);
  const QuantType& to = quant_type(target);
  const int64_t length = source.tensor.shape.back();
  const int64_t row_bytes = to.row_bytes(length);
  buffers.encoded.resize(static_cast<size_t>(chunk.num_rows * row_bytes));
  buffers.before.resize(static_cast<size_t>(length));
  buffers.after.resize(static_cast<size_t>(length));
  Errors errors;
  for (int64_t i = 0; i < chunk.num_rows; ++i) {
    const std::byte* row = source.row(chunk.first_row + i, buffers.scratch);
    std::byte* out = buffers.encoded.data() + i * row_bytes;
    if (from.dtype == to.dtype) {
      std::copy(row, row + row_bytes, out);
      continue;
    }
    from.decode(row, buffers.before.data(), length);
    to.encode(buffers.before.data(), out, length);
    to.decode(out, buffers.after.data(), length);
    for (int64_t k = 0; k < length; ++k) {
      const double before = buffers.before[k];
      const double error = buffers.after[k] - before;
      errors.sum_square_error += error * error;
      errors.sum_square += before * before;
    }
  }
  return errors;
}

// The chunks of a model, converted and written by all threads.
class Conversion {
 public:
  Conversion(const ModelSource& source, std::span<const DType> dtypes, GgufWriter& writer,
             const QuantizeProgress& progress, QuantizedModel& result)
      : source_(source), dtypes_(dtypes), writer_(writer), progress_(progress), result_(result) {
    for (const TensorSource& tensor : source.tensors) {
      bytes_total_ += num_rows(tensor.tensor) * source_row_bytes(tensor.tensor);
    }
  }

  void run(ThreadPool& threads) {
    const std::vector<Chunk> chunks = split_into_chunks(source_.tensors);
    std::vector<Buffers> buffers(static_cast<size_t>(threads.num_threads()));
    std::atomic<bool> failed{false};
    std::exception_ptr first_error;  // the body of a loop must not throw
    threads.parallel_for(static_cast<int64_t>(chunks.size()), [&](int64_t item, int thread) {
      if (failed) return;
      try {
        run_chunk(chunks[item], buffers[thread]);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!first_error) first_error = std::current_exception();
        failed = true;
      }
    });
    if (first_error) std::rethrow_exception(first_error);
  }

 private:
  void run_chunk(const Chunk& chunk, Buffers& buffers) {
    const TensorSource& tensor = source_.tensors[chunk.tensor];
    const Errors errors = convert(tensor, dtypes_[chunk.tensor], chunk, buffers);
    const int64_t row_bytes = std::ssize(buffers.encoded) / chunk.num_rows;
    writer_.write(chunk.tensor, chunk.first_row * row_bytes, buffers.encoded);
    const std::lock_guard lock(mutex_);
    QuantizedClass& sums = result_.classes[static_cast<size_t>(tensor_class(tensor.tensor.name))];
    sums.sum_square_error += errors.sum_square_error;
    sums.sum_square += errors.sum_square;
    bytes_done_ += chunk.num_rows * source_row_bytes(tensor.tensor);
    if (progress_) progress_(bytes_done_, bytes_total_);
  }

  const ModelSource& source_;
  std::span<const DType> dtypes_;
  GgufWriter& writer_;
  const QuantizeProgress& progress_;
  std::mutex mutex_;  // of what follows
  QuantizedModel& result_;
  int64_t bytes_done_ = 0;
  int64_t bytes_total_ = 0;
};

void check_types(const ModelSource& source, std::span<const DType> dtypes) {
  for (size_t i = 0; i < dtypes.size(); ++i) {
    const QuantType& type = quant_type(dtypes[i]);
    const TensorShape& tensor = source.tensors[i].tensor;
    if (tensor.dtype != dtypes[i] && !type.can_encode()) {
      fail(ErrorCode::kInvalidArgument, "tensor {} cannot become {}: Witan reads that type but does not write it",
           tensor.name, type.name);
    }
    if (type.ggml_id == kNoGgmlId) {
      fail(ErrorCode::kInvalidArgument, "tensor {} cannot be {}: GGUF files do not have that type", tensor.name,
           type.name);
    }
  }
}

// Quantising what is quantised already loses more than doing it once.
void note_twice_quantised(const ModelSource& source, std::span<const DType> dtypes, std::vector<std::string>& notes) {
  std::array<int64_t, kNumDTypes> counts{};
  for (size_t i = 0; i < dtypes.size(); ++i) {
    const DType before = source.tensors[i].tensor.dtype;
    if (before != dtypes[i] && quant_type(before).block_size > 1 && quant_type(dtypes[i]).block_size > 1) {
      ++counts[static_cast<size_t>(before)];
    }
  }
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) continue;
    notes.push_back(fmt::format("{} {} quantised already, as {}: errors are against those values and add to theirs.",
                                counts[i], counts[i] == 1 ? "tensor was" : "tensors were",
                                quant_type(static_cast<DType>(i)).name));
  }
}

void count_tensors(const ModelSource& source, std::span<const DType> dtypes, QuantizedModel& result) {
  for (size_t i = 0; i < dtypes.size(); ++i) {
    const TensorShape& tensor = source.tensors[i].tensor;
    QuantizedClass& sums = result.classes[static_cast<size_t>(tensor_class(tensor.name))];
    const int64_t rows = num_rows(tensor);
    ++sums.num_tensors;
    sums.num_values += rows * tensor.shape.back();
    sums.bytes_before += rows * source_row_bytes(tensor);
    sums.bytes_after += rows * quant_type(dtypes[i]).row_bytes(tensor.shape.back());
    sums.types.insert(dtypes[i]);
  }
}

}  // namespace

double QuantizedClass::relative_error() const { return sum_square > 0 ? std::sqrt(sum_square_error / sum_square) : 0; }

ModelSource open_gguf_source(const std::string& path) {
  auto parts = std::make_shared<std::vector<std::unique_ptr<GgufPart>>>(open_gguf_parts(path));
  ModelSource source;
  const auto& metadata = parts->front()->gguf.metadata;
  std::vector<std::string_view> keys;
  for (const auto& [key, value] : metadata) {
    if (key != kFileTypeKey && key != kVersionKey && !key.starts_with("split.")) keys.push_back(key);
  }
  // The architecture comes first, as in other writers' files.
  std::sort(keys.begin(), keys.end(), [](std::string_view a, std::string_view b) {
    const auto rank = [](std::string_view key) { return key == "general.architecture" ? 0 : 1; };
    return std::pair(rank(a), a) < std::pair(rank(b), b);
  });
  for (const std::string_view key : keys) source.metadata.copy(key, metadata.at(key));
  for (const auto& part : *parts) {
    for (const GgufTensor& tensor : part->gguf.tensors) {
      TensorShape shape{.name = std::string(tensor.name), .dtype = tensor.dtype, .shape = tensor.shape};
      if (shape.shape.empty()) shape.shape = {1};
      const int64_t row_bytes = source_row_bytes(shape);
      const std::byte* data = tensor.data.data();
      source.tensors.push_back({.tensor = std::move(shape),
                                .row = [data, row_bytes](int64_t row, auto&) { return data + row * row_bytes; }});
    }
  }
  source.owner = std::move(parts);
  return source;
}

QuantizedModel quantize(const ModelSource& source, const TypeChoice& choice, const std::string& path,
                        ThreadPool& threads, const QuantizeProgress& progress) {
  std::vector<TensorShape> tensors;
  for (const TensorSource& tensor : source.tensors) tensors.push_back(tensor.tensor);
  const ChosenTypes chosen = choose_types(tensors, choice);
  check_types(source, chosen.dtypes);
  QuantizedModel result;
  result.notes = chosen.notes;
  note_twice_quantised(source, chosen.dtypes, result.notes);
  count_tensors(source, chosen.dtypes, result);

  std::vector<GgufTensorHeader> headers;
  for (size_t i = 0; i < tensors.size(); ++i) {
    headers.push_back({.name = tensors[i].name, .dtype = chosen.dtypes[i], .shape = tensors[i].shape});
  }
  GgufMetadata metadata = source.metadata;
  metadata.set(kFileTypeKey, choice.file_type->id);
  metadata.set(kVersionKey, uint32_t{2});
  GgufWriter writer(path, metadata, std::move(headers));
  Conversion(source, chosen.dtypes, writer, progress, result).run(threads);
  result.file_bytes = writer.file_bytes();
  writer.finish();
  return result;
}

}  // namespace witan
