#include "io/gguf_writer.h"

#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/check.h"
#include "base/error.h"
#include "io/tensor_size.h"

namespace witan {
namespace {

static_assert(std::endian::native == std::endian::little, "values are written as they lie in memory");

constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kVersion = 3;
constexpr size_t kMaxDimensions = 4;
constexpr size_t kMaxNameBytes = 63;

template <typename T>
void append_value(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_text(std::string& out, std::string_view text) {
  append_value(out, static_cast<uint64_t>(text.size()));
  out.append(text);
}

int64_t align_up(int64_t value, int64_t alignment) { return (value + alignment - 1) / alignment * alignment; }

void check_target(const std::string& path, int64_t file_bytes) {
  namespace fs = std::filesystem;
  std::error_code error;  // what it hides, opening reports
  const fs::file_status status = fs::status(path, error);
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    fail(ErrorCode::kIo, "cannot write '{}': there is something of that name that is not a file", path);
  }
  fs::path directory = fs::path(path).parent_path();
  if (directory.empty()) directory = ".";
  const fs::space_info space = fs::space(directory, error);
  if (!error && space.available < static_cast<uintmax_t>(file_bytes)) {
    fail(ErrorCode::kIo, "cannot write '{}': it takes {} bytes and its file system has {} free", path, file_bytes,
         space.available);
  }
}

}  // namespace

void GgufMetadata::begin_entry(std::string_view key, GgufType type, const uint64_t* array_count) {
  WITAN_CHECK(keys_.emplace(key).second, "metadata key '{}' is set twice", key);
  append_string(key);
  if (array_count != nullptr) append_value(encoded_, static_cast<uint32_t>(GgufType::kArray));
  append_value(encoded_, static_cast<uint32_t>(type));
  if (array_count != nullptr) append_value(encoded_, *array_count);
}

void GgufMetadata::append(const void* bytes, size_t num_bytes) {
  encoded_.append(static_cast<const char*>(bytes), num_bytes);
}

void GgufMetadata::append_string(std::string_view text) { append_text(encoded_, text); }

void GgufMetadata::set_alignment(uint32_t alignment) {
  WITAN_CHECK(alignment >= 8 && std::has_single_bit(alignment), "alignment {}", alignment);
  alignment_ = alignment;
}

void GgufMetadata::set(std::string_view key, std::string_view value) {
  begin_entry(key, GgufType::kString, nullptr);
  append_string(value);
}

void GgufMetadata::set_array(std::string_view key, std::span<const std::string> values) {
  const uint64_t count = values.size();
  begin_entry(key, GgufType::kString, &count);
  for (const std::string& value : values) append_string(value);
}

void GgufMetadata::copy(std::string_view key, const GgufValue& value) {
  begin_entry(key, value.type, value.is_array ? &value.count : nullptr);
  if (value.type == GgufType::kString) {
    for (const std::string_view text : value.strings) append_string(text);
    return;
  }
  append(value.bytes.data(), value.bytes.size());
  if (key == kAlignmentKey && value.type == GgufType::kUint32 && !value.is_array) {
    uint32_t alignment;
    std::memcpy(&alignment, value.bytes.data(), sizeof(alignment));
    set_alignment(alignment);
  }
}

int64_t GgufTensorHeader::num_rows() const {
  const auto rows = count_elements(std::span(shape).first(shape.size() - 1));
  WITAN_CHECK(rows.has_value(), "tensor '{}'", name);
  return *rows;
}

int64_t GgufTensorHeader::num_bytes() const {
  const auto bytes = multiply(num_rows(), quant_type(dtype).row_bytes(row_length()));
  WITAN_CHECK(bytes.has_value(), "tensor '{}'", name);
  return *bytes;
}

GgufWriter::GgufWriter(std::string path, const GgufMetadata& metadata, std::vector<GgufTensorHeader> tensors)
    : path_(std::move(path)), tensors_(std::move(tensors)) {
  const std::string header = encode_header(metadata);
  check_target(path_, file_bytes_);
  file_ = std::make_unique<AtomicFile>(path_);
  // The gaps between tensors read as zeros.
  if (ftruncate(file_->descriptor(), file_bytes_) != 0) fail_io("cannot set the file's size");
  write_at(0, std::as_bytes(std::span(header)));
}

GgufWriter::~GgufWriter() = default;

// Lays out the file: fills positions_, data_bytes_ and file_bytes_, and returns everything before the tensor data.
std::string GgufWriter::encode_header(const GgufMetadata& metadata) {
  std::string header(kMagic);
  append_value(header, kVersion);
  append_value(header, static_cast<uint64_t>(tensors_.size()));
  append_value(header, metadata.num_entries());
  header += metadata.encoded();

  const int64_t alignment = metadata.alignment();
  std::unordered_set<std::string_view> names;
  int64_t offset = 0;  // from the start of the data section
  for (const GgufTensorHeader& tensor : tensors_) {
    const QuantType& type = quant_type(tensor.dtype);
    WITAN_CHECK(names.insert(tensor.name).second, "tensor '{}' is there twice", tensor.name);
    WITAN_CHECK(tensor.name.size() <= kMaxNameBytes, "tensor '{}'", tensor.name);
    WITAN_CHECK(!tensor.shape.empty() && tensor.shape.size() <= kMaxDimensions, "tensor '{}'", tensor.name);
    WITAN_CHECK(tensor.row_length() % type.block_size == 0, "tensor '{}': rows of {} elements are not whole {} blocks",
                tensor.name, tensor.row_length(), type.name);
    append_text(header, tensor.name);
    append_value(header, static_cast<uint32_t>(tensor.shape.size()));
    for (auto dimension = tensor.shape.rbegin(); dimension != tensor.shape.rend(); ++dimension) {
      append_value(header, static_cast<uint64_t>(*dimension));
    }
    append_value(header, type.ggml_id);
    append_value(header, static_cast<uint64_t>(offset));
    positions_.push_back(offset);
    data_bytes_ += tensor.num_bytes();
    offset += align_up(tensor.num_bytes(), alignment);
  }
  const int64_t data_begin = align_up(static_cast<int64_t>(header.size()), alignment);
  for (int64_t& position : positions_) position += data_begin;
  file_bytes_ = data_begin + offset;
  return header;
}

void GgufWriter::write(size_t tensor, int64_t offset, std::span<const std::byte> bytes) {
  WITAN_CHECK(tensor < tensors_.size(), "{} of {}", tensor, tensors_.size());
  const auto size = static_cast<int64_t>(bytes.size());
  WITAN_CHECK(offset >= 0 && size <= tensors_[tensor].num_bytes() - offset, "tensor '{}': [{}, {}) of {} bytes",
              tensors_[tensor].name, offset, offset + size, tensors_[tensor].num_bytes());
  write_at(positions_[tensor] + offset, bytes);
  written_bytes_ += size;
}

void GgufWriter::write_at(int64_t position, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = pwrite(file_->descriptor(), bytes.data(), bytes.size(), position);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      if (written == 0) errno = ENOSPC;
      fail_io("cannot write to it");
    }
    position += written;
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void GgufWriter::finish() {
  WITAN_CHECK(written_bytes_ == data_bytes_, "{} of {} bytes of '{}' were written", written_bytes_.load(), data_bytes_,
              path_);
  file_->commit();
  file_.reset();
}

void GgufWriter::fail_io(std::string_view what) const {
  const int error = errno;
  fail(ErrorCode::kIo, "'{}': {}: {}", path_, what, std::generic_category().message(error));
}

}  // namespace witan
