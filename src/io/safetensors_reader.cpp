#include "io/safetensors_reader.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/printable.h"
#include "io/byte_cursor.h"
#include "io/tensor_size.h"
#include "text/json_text.h"

namespace witan {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's reference implementation
constexpr size_t kMaxDims = 4;

// What messages about one tensor need.
struct Place {
  const std::string& source;
  const std::string& tensor;

  std::string text() const { return fmt::format("{}: tensor {}", source, printable(tensor)); }
};

// A dtype that is recognised only to be left out.
struct SkippedDtype {
  std::string_view name;
  int64_t size_bytes;
};
constexpr SkippedDtype kSkippedDtypes[] = {{"I64", 8}, {"BOOL", 1}};

// A dtype of a byte per element whose tensors are parts of weights of `whole`.
struct PartDtype {
  std::string_view name;
  DType whole;
};
constexpr PartDtype kPartDtypes[] = {{"F8_E4M3", DType::kF8_E4M3}, {"U8", DType::kMXFP4}};

json read_header(ByteCursor& cursor) {
  const auto length = cursor.read<uint64_t>("the header's length");
  if (length > cursor.remaining() || length > kMaxHeaderBytes) {
    fail(ErrorCode::kBadFile, "{}: not a safetensors file: the header claims {} bytes, expected at most {}",
         cursor.source(), length, std::min(cursor.remaining(), kMaxHeaderBytes));
  }
  const std::span<const std::byte> bytes = cursor.read_bytes(length, "the header");
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return parse_json_object(text, cursor.source() + ": header");
}

const json& member(const json& tensor, const char* key, const Place& place) {
  const auto found = tensor.find(key);
  if (found == tensor.end()) fail(ErrorCode::kBadFile, "{}: {} is missing", place.text(), key);
  return *found;
}

std::vector<int64_t> read_shape(const json& tensor, const Place& place) {
  const json& dims = member(tensor, "shape", place);
  if (!dims.is_array()) {
    fail(ErrorCode::kBadFile, "{}: shape is {}, expected an array", place.text(), describe_json(dims));
  }
  std::vector<int64_t> shape;
  for (const json& dim : dims) {
    if (!dim.is_number_unsigned() || dim == 0 || !std::in_range<int64_t>(dim.get<uint64_t>())) {
      fail(ErrorCode::kBadFile, "{}: shape holds {}, expected integers from 1 to 2^63 - 1", place.text(),
           describe_json(dim));
    }
    shape.push_back(dim.get<int64_t>());
  }
  return shape;
}

// Half-open, from the start of the data.
struct Offsets {
  uint64_t begin;
  uint64_t end;
};

Offsets read_offsets(const json& tensor, uint64_t data_bytes, const Place& place) {
  const json& offsets = member(tensor, "data_offsets", place);
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    fail(ErrorCode::kBadFile, "{}: data_offsets is {}, expected two integers", place.text(), describe_json(offsets));
  }
  const Offsets result{.begin = offsets[0].get<uint64_t>(), .end = offsets[1].get<uint64_t>()};
  if (result.begin > result.end || result.end > data_bytes) {
    fail(ErrorCode::kBadFile, "{}: data_offsets are {} to {}, expected a range within the file's {} bytes of data",
         place.text(), result.begin, result.end, data_bytes);
  }
  return result;
}

std::string readable_dtypes() {
  std::string names;
  for (const QuantType& type : quant_types()) {
    if (type.safetensors.empty()) continue;
    if (!names.empty()) names += ", ";
    names += type.safetensors;
  }
  for (const PartDtype& part : kPartDtypes) {
    names += ", ";
    names += part.name;
  }
  return names;
}

// Sets the dtype and returns the bytes of one element.
int64_t read_dtype(const json& tensor, const Place& place, SafetensorsTensor& out) {
  const json& value = member(tensor, "dtype", place);
  if (!value.is_string()) {
    fail(ErrorCode::kBadFile, "{}: dtype is {}, expected a string", place.text(), describe_json(value));
  }
  const auto& name = value.get_ref<const std::string&>();
  out.dtype = dtype_from_safetensors(name);
  if (out.dtype) return quant_type(*out.dtype).block_bytes;
  for (const PartDtype& part : kPartDtypes) {
    if (part.name != name) continue;
    out.dtype = part.whole;
    out.is_part = true;
    return 1;
  }
  for (const SkippedDtype& skipped : kSkippedDtypes) {
    if (skipped.name == name) return skipped.size_bytes;
  }
  fail(ErrorCode::kUnsupported, "{}: dtype is {}, expected one of {}", place.text(), printable(name),
       readable_dtypes());
}

SafetensorsTensor read_tensor(const std::string& name, const json& value, std::span<const std::byte> data,
                              const std::string& source) {
  const Place place{.source = source, .tensor = name};
  if (name.empty()) fail(ErrorCode::kBadFile, "{}: a tensor without a name", source);
  if (!value.is_object()) {
    fail(ErrorCode::kBadFile, "{}: is {}, expected an object", place.text(), describe_json(value));
  }
  SafetensorsTensor tensor{.name = name, .dtype = std::nullopt, .shape = read_shape(value, place), .data = {}};
  const int64_t element_bytes = read_dtype(value, place, tensor);
  if (tensor.dtype && tensor.shape.size() > kMaxDims) {
    fail(ErrorCode::kUnsupported, "{}: shape has {} dimensions, expected {} at most", place.text(), tensor.shape.size(),
         kMaxDims);
  }
  const Offsets offsets = read_offsets(value, data.size(), place);
  const std::optional<int64_t> num_elements = count_elements(tensor.shape);
  const std::optional<int64_t> size_bytes = num_elements ? multiply(*num_elements, element_bytes) : std::nullopt;
  if (!size_bytes || static_cast<uint64_t>(*size_bytes) != offsets.end - offsets.begin) {
    fail(ErrorCode::kBadFile, "{}: data_offsets span {} bytes, expected {} by dtype and shape", place.text(),
         offsets.end - offsets.begin, size_bytes ? std::to_string(*size_bytes) : "more than 2^63 - 1");
  }
  tensor.data = data.subspan(offsets.begin, offsets.end - offsets.begin);
  return tensor;
}

void check_metadata(const json& metadata, const std::string& source) {
  if (!metadata.is_object()) {
    fail(ErrorCode::kBadFile, "{}: __metadata__ is {}, expected an object", source, describe_json(metadata));
  }
}

// The tensors, in ascending order, must tile the data.
void check_tiling(std::span<const SafetensorsTensor> tensors, std::span<const std::byte> data,
                  const std::string& source) {
  const std::byte* end = data.data();
  const SafetensorsTensor* previous = nullptr;
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.data.data() < end) {
      fail(ErrorCode::kBadFile, "{}: tensor {} overlaps tensor {} by {} bytes", source, printable(tensor.name),
           printable(previous->name), end - tensor.data.data());
    }
    if (tensor.data.data() > end) {
      fail(ErrorCode::kBadFile, "{}: {} bytes before tensor {} belong to no tensor", source, tensor.data.data() - end,
           printable(tensor.name));
    }
    end = tensor.data.data() + tensor.data.size();
    previous = &tensor;
  }
  const auto rest = data.data() + data.size() - end;
  if (rest != 0) fail(ErrorCode::kBadFile, "{}: the last {} bytes belong to no tensor", source, rest);
}

}  // namespace

std::vector<SafetensorsTensor> parse_safetensors(std::span<const std::byte> file, const std::string& source) {
  ByteCursor cursor(file, source);
  const json header = read_header(cursor);
  const std::span<const std::byte> data = file.subspan(cursor.offset());
  std::vector<SafetensorsTensor> tensors;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      check_metadata(value, source);
    } else {
      tensors.push_back(read_tensor(name, value, data, source));
    }
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const SafetensorsTensor& a, const SafetensorsTensor& b) { return a.data.data() < b.data.data(); });
  check_tiling(tensors, data, source);
  return tensors;
}

}  // namespace witan
