#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf_reader.h"

namespace witan::test {

// Appends little-endian values to a string of bytes.
class Bytes {
 public:
  template <typename T>
  Bytes& add(T value) {
    data_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Bytes& u8(uint8_t value) { return add(value); }
  Bytes& u16(uint16_t value) { return add(value); }
  Bytes& u32(uint32_t value) { return add(value); }
  Bytes& u64(uint64_t value) { return add(value); }
  Bytes& type(GgufType value) { return add(static_cast<uint32_t>(value)); }
  Bytes& raw(std::string_view bytes) {
    data_ += bytes;
    return *this;
  }
  Bytes& text(std::string_view value) { return u64(value.size()).raw(value); }  // as GGUF writes strings
  Bytes& pad_to(size_t alignment) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }

  const std::string& str() const { return data_; }

 private:
  std::string data_;
};

// A GGUF file, byte by byte, right or wrong.
class GgufBuilder {
 public:
  GgufBuilder& magic(std::string_view value) {
    magic_ = value;
    return *this;
  }
  GgufBuilder& version(uint32_t value) {
    version_ = value;
    return *this;
  }
  GgufBuilder& claim_tensors(uint64_t count) {
    num_tensors_claimed_ = count;
    return *this;
  }
  GgufBuilder& claim_metadata(uint64_t count) {
    num_metadata_claimed_ = count;
    return *this;
  }
  GgufBuilder& alignment(uint32_t value) {
    data_alignment_ = value;
    return entry("general.alignment", Bytes().type(GgufType::kUint32).u32(value));
  }

  // A key with its value's type and bytes.
  GgufBuilder& entry(std::string_view key, const Bytes& type_and_value) {
    metadata_.text(key).raw(type_and_value.str());
    ++num_metadata_;
    return *this;
  }
  template <typename T>
  GgufBuilder& scalar(std::string_view key, GgufType type, T value) {
    return entry(key, Bytes().type(type).add(value));
  }
  GgufBuilder& uint32(std::string_view key, uint32_t value) { return scalar(key, GgufType::kUint32, value); }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    return entry(key, Bytes().type(GgufType::kString).text(value));
  }
  GgufBuilder& texts(std::string_view key, const std::vector<std::string>& values) {
    Bytes bytes;
    bytes.type(GgufType::kArray).type(GgufType::kString).u64(values.size());
    for (const std::string& value : values) bytes.text(value);
    return entry(key, bytes);
  }
  template <typename T>
  GgufBuilder& array(std::string_view key, GgufType type, const std::vector<T>& values) {
    Bytes bytes;
    bytes.type(GgufType::kArray).type(type).u64(values.size());
    for (const T value : values) bytes.add(value);
    return entry(key, bytes);
  }

  // dims innermost first, as in the file.
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t ggml_type, uint64_t offset) {
    tensors_.text(name).u32(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) tensors_.u64(dim);
    tensors_.u32(ggml_type).u64(offset);
    ++num_tensors_;
    return *this;
  }
  GgufBuilder& data(std::string_view bytes) {
    data_ += bytes;
    return *this;
  }

  std::string build() const {
    Bytes file;
    file.raw(magic_).u32(version_);
    file.u64(num_tensors_claimed_.value_or(num_tensors_)).u64(num_metadata_claimed_.value_or(num_metadata_));
    file.raw(metadata_.str()).raw(tensors_.str());
    if (!data_.empty()) file.pad_to(data_alignment_).raw(data_);
    return file.str();
  }

 private:
  std::string magic_ = "GGUF";
  uint32_t version_ = 3;
  uint32_t data_alignment_ = 32;
  uint64_t num_tensors_ = 0;
  uint64_t num_metadata_ = 0;
  std::optional<uint64_t> num_tensors_claimed_;
  std::optional<uint64_t> num_metadata_claimed_;
  Bytes metadata_;
  Bytes tensors_;
  std::string data_;
};

// A safetensors file: a header of any text, then data.
inline std::string safetensors_file(std::string_view header, std::string_view data) {
  return Bytes().u64(header.size()).raw(header).raw(data).str();
}

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// A copy that ends where its allocation ends, so that a sanitizer sees reads beyond it.
inline std::vector<std::byte> exact_copy(std::string_view text) {
  const std::span<const std::byte> bytes = as_bytes(text);
  return {bytes.begin(), bytes.end()};
}

}  // namespace witan::test
