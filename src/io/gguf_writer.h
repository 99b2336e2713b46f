#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/atomic_file.h"
#include "io/gguf_reader.h"
#include "tensor/quant_type.h"

namespace witan {

template <typename T>
concept GgufNumber = std::same_as<T, uint8_t> || std::same_as<T, int8_t> || std::same_as<T, uint16_t> ||
    std::same_as<T, int16_t> || std::same_as<T, uint32_t> || std::same_as<T, int32_t> || std::same_as<T, float> ||
    std::same_as<T, bool> || std::same_as<T, uint64_t> || std::same_as<T, int64_t> || std::same_as<T, double>;

// The metadata of a GGUF file to be written, in the order it was set. The C++ type of a value is its type in the file.
// Setting a key twice is a bug.
class GgufMetadata {
 public:
  template <GgufNumber T>
  void set(std::string_view key, T value) {
    begin_entry(key, type_of<T>(), nullptr);
    append(&value, sizeof(value));
    if constexpr (std::same_as<T, uint32_t>) {
      if (key == kAlignmentKey) set_alignment(value);
    }
  }
  void set(std::string_view key, std::string_view value);
  void set(std::string_view key, const char* value) { set(key, std::string_view(value)); }

  template <GgufNumber T>
  void set_array(std::string_view key, std::span<const T> values) {
    const uint64_t count = values.size();
    begin_entry(key, type_of<T>(), &count);
    append(values.data(), values.size_bytes());
  }
  void set_array(std::string_view key, std::span<const std::string> values);

  // A value as a parsed file holds it.
  void copy(std::string_view key, const GgufValue& value);

  uint64_t num_entries() const { return keys_.size(); }
  // Of tensor data, in bytes: general.alignment where that was set, else 32.
  uint32_t alignment() const { return alignment_; }
  // The entries as they stand in the file.
  const std::string& encoded() const { return encoded_; }

 private:
  static constexpr std::string_view kAlignmentKey = "general.alignment";

  template <GgufNumber T>
  static constexpr GgufType type_of() {
    if constexpr (std::same_as<T, uint8_t>) return GgufType::kUint8;
    if constexpr (std::same_as<T, int8_t>) return GgufType::kInt8;
    if constexpr (std::same_as<T, uint16_t>) return GgufType::kUint16;
    if constexpr (std::same_as<T, int16_t>) return GgufType::kInt16;
    if constexpr (std::same_as<T, uint32_t>) return GgufType::kUint32;
    if constexpr (std::same_as<T, int32_t>) return GgufType::kInt32;
    if constexpr (std::same_as<T, float>) return GgufType::kFloat32;
    if constexpr (std::same_as<T, bool>) return GgufType::kBool;
    if constexpr (std::same_as<T, uint64_t>) return GgufType::kUint64;
    if constexpr (std::same_as<T, int64_t>) return GgufType::kInt64;
    if constexpr (std::same_as<T, double>) return GgufType::kFloat64;
  }

  void begin_entry(std::string_view key, GgufType type, const uint64_t* array_count);
  void append(const void* bytes, size_t num_bytes);
  void append_string(std::string_view text);
  void set_alignment(uint32_t alignment);

  std::string encoded_;
  std::unordered_set<std::string> keys_;
  uint32_t alignment_ = 32;
};

struct GgufTensorHeader {
  std::string name;  // at most 63 bytes, or llama.cpp refuses the file
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first, at most 4 dimensions, rows of whole blocks

  int64_t row_length() const { return shape.back(); }
  int64_t num_rows() const;
  int64_t num_bytes() const;
};

// Writes a GGUF file of version 3, tensor data in any order and from any thread, without holding it in memory. The
// file takes its name only in finish(), as AtomicFile says.
//   write* finish
// All members throw Error(kIo) naming the path when the operating system refuses: no such directory, no permission,
// not enough space.
class GgufWriter {
 public:
  // Writes the header. Refuses a path that names anything but a regular file, and a file larger than the free space.
  GgufWriter(std::string path, const GgufMetadata& metadata, std::vector<GgufTensorHeader> tensors);
  // Without finish(): nothing is left.
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  std::span<const GgufTensorHeader> tensors() const { return tensors_; }
  int64_t file_bytes() const { return file_bytes_; }

  // Bytes [offset, offset + bytes.size()) of a tensor; every byte of every tensor is to be written once. Thread-safe.
  void write(size_t tensor, int64_t offset, std::span<const std::byte> bytes);

  // Everything must have been written. No member may be called after it.
  void finish();

 private:
  std::string encode_header(const GgufMetadata& metadata);
  void write_at(int64_t position, std::span<const std::byte> bytes);
  [[noreturn]] void fail_io(std::string_view what) const;

  std::string path_;
  std::vector<GgufTensorHeader> tensors_;
  std::vector<int64_t> positions_;  // [tensors] in the file
  int64_t file_bytes_ = 0;
  int64_t data_bytes_ = 0;  // of all tensors, without padding
  std::atomic<int64_t> written_bytes_{0};
  std::unique_ptr<AtomicFile> file_;
};

}  // namespace witan
