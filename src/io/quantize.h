#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "io/gguf_writer.h"
#include "io/type_choice.h"

namespace witan {

// A tensor to be written to a GGUF file.
struct TensorSource {
  TensorShape tensor;
  // The bytes of row `row`, of all but the innermost dimension, in tensor.dtype; they may be put into `scratch`.
  // Thread-safe.
  std::function<const std::byte*(int64_t row, std::vector<std::byte>& scratch)> row;
};

// A model to be written to a GGUF file.
struct ModelSource {
  std::shared_ptr<const void> owner;  // of what the rows point into
  GgufMetadata metadata;              // without general.file_type and general.quantization_version
  std::vector<TensorSource> tensors;
};

// A GGUF file, or all parts of a split one, as it is. Errors as open_gguf_parts.
ModelSource open_gguf_source(const std::string& path);

// What became of the tensors of one class.
struct QuantizedClass {
  int64_t num_tensors = 0;
  int64_t num_values = 0;
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;
  std::set<DType> types = {};  // that they have now
  // Over the values whose type changed: sums of (after - before)^2 and of before^2.
  double sum_square_error = 0;
  double sum_square = 0;

  // Root mean square error relative to the root mean square; 0 where no type changed.
  double relative_error() const;
};

struct QuantizedModel {
  std::array<QuantizedClass, kNumTensorClasses> classes;  // by TensorClass
  int64_t file_bytes = 0;
  std::vector<std::string> notes;  // to be shown
};

// Told the bytes of the source read so far, by one thread at a time.
using QuantizeProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

// Writes `source` to a GGUF file at `path` with the types of `choice`. A tensor that has its type already is copied bit
// for bit; all others are decoded to floats and encoded. The file appears when complete, as GgufWriter says.
// Throws Error(kInvalidArgument) as choose_types and for a type that Witan does not write where it is needed;
// Error(kIo) as GgufWriter.
QuantizedModel quantize(const ModelSource& source, const TypeChoice& choice, const std::string& path,
                        ThreadPool& threads, const QuantizeProgress& progress = {});

}  // namespace witan
