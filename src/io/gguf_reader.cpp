#include "io/gguf_reader.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <unordered_set>

#include "base/error.h"
#include "base/printable.h"
#include "io/byte_cursor.h"
#include "io/tensor_size.h"

namespace witan {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kMaxDims = 4;
constexpr uint64_t kMaxNameBytes = 65535;  // the format's limit for keys
constexpr uint32_t kDefaultAlignment = 32;
constexpr uint32_t kMinAlignment = 8;  // the format wants a multiple of 8
constexpr uint32_t kMaxAlignment = 1 << 20;
constexpr std::string_view kAlignmentKey = "general.alignment";

// The least that one entry can take, to refuse impossible counts before reading: a name of one byte with its length,
// and a type with a one-byte value; or the number of dimensions, a type and an offset.
constexpr uint64_t kMinMetadataBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 4 + 8;

struct TypeRow {
  std::string_view name;
  uint64_t size_bytes;  // for strings and arrays the least: without their elements
};
constexpr std::array<TypeRow, kNumGgufTypes> kTypes = {{{"uint8", 1},
                                                        {"int8", 1},
                                                        {"uint16", 2},
                                                        {"int16", 2},
                                                        {"uint32", 4},
                                                        {"int32", 4},
                                                        {"float32", 4},
                                                        {"bool", 1},
                                                        {"string", 8},
                                                        {"array", 12},
                                                        {"uint64", 8},
                                                        {"int64", 8},
                                                        {"float64", 8}}};

// ggml's names of its tensor types by id, for messages about those that Witan does not read; empty: retired ids.
constexpr std::array<std::string_view, 40> kGgmlTypeNames = {
    "F32",    "F16",   "Q4_0",  "Q4_1",   "",      "",      "Q5_0",    "Q5_1",   "Q8_0",    "Q8_1",
    "Q2_K",   "Q3_K",  "Q4_K",  "Q5_K",   "Q6_K",  "Q8_K",  "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",
    "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",    "I16",   "I32",     "I64",    "F64",     "IQ1_M",
    "BF16",   "",      "",      "",       "TQ1_0", "TQ2_0", "",        "",       "",        "MXFP4"};

std::string ggml_type_text(uint32_t id) {
  const std::string_view name = id < kGgmlTypeNames.size() ? kGgmlTypeNames[id] : std::string_view();
  return name.empty() ? fmt::format("unknown ({})", id) : std::string(name);
}

std::string readable_types() {
  std::string names;
  for (const QuantType& type : quant_types()) {
    if (type.ggml_id == kNoGgmlId) continue;
    if (!names.empty()) names += ", ";
    names += type.name;
  }
  return names;
}

struct Preamble {
  uint32_t version;
  uint64_t num_tensors;
  uint64_t num_metadata;
};

uint32_t read_version(ByteCursor& cursor) {
  const auto version = cursor.read<uint32_t>("the version");
  if (version != 0 && (version & 0xFFFF) == 0) {
    fail(ErrorCode::kUnsupported, "{}: a big-endian GGUF file (version {}), expected a little-endian one",
         cursor.source(), version >> 24);
  }
  if (version == 0) fail(ErrorCode::kBadFile, "{}: GGUF version 0, expected 2 or 3", cursor.source());
  if (version == 1 || version > 3) {
    fail(ErrorCode::kUnsupported, "{}: GGUF version {}, expected 2 or 3", cursor.source(), version);
  }
  return version;
}

Preamble read_preamble(ByteCursor& cursor, std::span<const std::byte> file) {
  if (!has_gguf_magic(file)) {
    const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    fail(ErrorCode::kBadFile, "{}: not a GGUF file: expected it to begin with \"GGUF\", found {}", cursor.source(),
         file.empty() ? "an empty file" : printable(text.substr(0, kMagic.size())));
  }
  cursor.read_bytes(kMagic.size(), "the magic");
  Preamble preamble{};
  preamble.version = read_version(cursor);
  preamble.num_tensors = cursor.read<uint64_t>("the number of tensors");
  preamble.num_metadata = cursor.read<uint64_t>("the number of metadata entries");
  if (preamble.num_metadata > cursor.remaining() / kMinMetadataBytes) {
    fail(ErrorCode::kBadFile, "{}: the header claims {} metadata entries, the {} bytes after it hold {} at most",
         cursor.source(), preamble.num_metadata, cursor.remaining(), cursor.remaining() / kMinMetadataBytes);
  }
  if (preamble.num_tensors > cursor.remaining() / kMinTensorBytes) {
    fail(ErrorCode::kBadFile, "{}: the header claims {} tensors, the {} bytes after it hold {} at most",
         cursor.source(), preamble.num_tensors, cursor.remaining(), cursor.remaining() / kMinTensorBytes);
  }
  return preamble;
}

std::string_view read_name(ByteCursor& cursor, std::string_view what) {
  const std::string_view name = cursor.read_string(what);
  if (name.empty() || name.size() > kMaxNameBytes) {
    fail(ErrorCode::kBadFile, "{}: {} has {} bytes, expected 1 to {}", cursor.place(), what, name.size(),
         kMaxNameBytes);
  }
  return name;
}

GgufType read_type(ByteCursor& cursor, std::string_view key) {
  const auto id = cursor.read<uint32_t>("a value type");
  if (id >= kNumGgufTypes) {
    fail(ErrorCode::kBadFile, "{}: {} has value type {}, expected 0 to {}", cursor.source(), printable(key), id,
         kNumGgufTypes - 1);
  }
  return static_cast<GgufType>(id);
}

void read_array_start(ByteCursor& cursor, std::string_view key, GgufValue& value) {
  value.type = read_type(cursor, key);
  if (value.type == GgufType::kArray) {
    fail(ErrorCode::kUnsupported, "{}: {} is an array of arrays, expected an array of numbers, bools or strings",
         cursor.source(), printable(key));
  }
  value.is_array = true;
  value.count = cursor.read<uint64_t>("an array's length");
  const uint64_t limit = cursor.remaining() / kTypes[static_cast<size_t>(value.type)].size_bytes;
  if (value.count > limit) {
    fail(ErrorCode::kBadFile, "{}: {} claims to be an array of {} {}, the {} bytes after it hold {} at most",
         cursor.source(), printable(key), value.count, gguf_type_name(value.type), cursor.remaining(), limit);
  }
}

GgufValue read_value(ByteCursor& cursor, std::string_view key) {
  GgufValue value;
  value.type = read_type(cursor, key);
  if (value.type == GgufType::kArray) read_array_start(cursor, key, value);
  if (value.type == GgufType::kString) {
    value.strings.reserve(value.count);
    for (uint64_t i = 0; i < value.count; ++i) value.strings.push_back(cursor.read_string("a string"));
    return value;
  }
  value.bytes = cursor.read_bytes(value.count * kTypes[static_cast<size_t>(value.type)].size_bytes, "a value");
  if (value.type == GgufType::kBool) {
    const auto is_bool = [](std::byte byte) { return byte == std::byte{0} || byte == std::byte{1}; };
    const auto bad = std::find_if_not(value.bytes.begin(), value.bytes.end(), is_bool);
    if (bad != value.bytes.end()) {
      fail(ErrorCode::kBadFile, "{}: {} holds the bool {}, expected 0 or 1", cursor.source(), printable(key),
           static_cast<int>(*bad));
    }
  }
  return value;
}

void read_metadata(ByteCursor& cursor, uint64_t num_metadata, GgufFile& gguf) {
  for (uint64_t i = 0; i < num_metadata; ++i) {
    cursor.enter("metadata entry", i);
    const std::string_view key = read_name(cursor, "a key");
    GgufValue value = read_value(cursor, key);
    if (!gguf.metadata.emplace(key, std::move(value)).second) {
      fail(ErrorCode::kBadFile, "{}: key {} is there twice", cursor.place(), printable(key));
    }
  }
}

uint32_t read_alignment(const GgufFile& gguf, const std::string& source) {
  const GgufValue* value = gguf.find(kAlignmentKey);
  if (value == nullptr) return kDefaultAlignment;
  if (value->type != GgufType::kUint32 || value->is_array) {
    fail(ErrorCode::kBadFile, "{}: {} is {}{}, expected uint32", source, kAlignmentKey,
         value->is_array ? "an array of " : "", gguf_type_name(value->type));
  }
  uint32_t alignment = 0;
  std::memcpy(&alignment, value->bytes.data(), sizeof(alignment));
  if (!std::has_single_bit(alignment) || alignment < kMinAlignment || alignment > kMaxAlignment) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, expected a power of two from {} to {}", source, kAlignmentKey, alignment,
         kMinAlignment, kMaxAlignment);
  }
  return alignment;
}

// A tensor's place in the data section, before that section's start is known.
struct Extent {
  uint64_t offset;
  uint64_t size_bytes;
  size_t tensor;
};

// Outermost first; the file has the innermost first.
std::vector<int64_t> read_shape(ByteCursor& cursor, std::string_view name) {
  const auto num_dims = cursor.read<uint32_t>("the number of dimensions");
  if (num_dims > kMaxDims) {
    fail(ErrorCode::kBadFile, "{}: tensor {} has {} dimensions, expected {} at most", cursor.source(), printable(name),
         num_dims, kMaxDims);
  }
  std::vector<int64_t> shape(num_dims);
  for (uint32_t i = 0; i < num_dims; ++i) {
    const auto dim = cursor.read<uint64_t>("a dimension");
    if (dim == 0 || dim > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      fail(ErrorCode::kBadFile, "{}: tensor {} has a dimension of {}, expected 1 to 2^63 - 1", cursor.source(),
           printable(name), dim);
    }
    shape[num_dims - 1 - i] = static_cast<int64_t>(dim);
  }
  return shape;
}

int64_t size_in_bytes(const GgufTensor& tensor, const std::string& source) {
  const QuantType& type = quant_type(tensor.dtype);
  const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
  if (row % type.block_size != 0) {
    fail(ErrorCode::kBadFile, "{}: tensor {} of type {} has rows of {} elements, expected a multiple of {}", source,
         printable(tensor.name), type.name, row, type.block_size);
  }
  const std::optional<int64_t> num_elements = count_elements(tensor.shape);
  const std::optional<int64_t> size_bytes =
      num_elements ? multiply(*num_elements / type.block_size, type.block_bytes) : std::nullopt;
  if (!size_bytes) {
    fail(ErrorCode::kBadFile, "{}: tensor {} is larger than 2^63 - 1 bytes by its shape", source,
         printable(tensor.name));
  }
  return *size_bytes;
}

Extent read_tensor(ByteCursor& cursor, uint32_t alignment, GgufTensor& tensor) {
  tensor.name = read_name(cursor, "a tensor's name");
  tensor.shape = read_shape(cursor, tensor.name);
  const auto type_id = cursor.read<uint32_t>("a tensor's type");
  const auto offset = cursor.read<uint64_t>("a tensor's offset");
  const std::optional<DType> dtype = dtype_from_ggml_id(type_id);
  if (!dtype) {
    fail(ErrorCode::kUnsupported, "{}: tensor {} has type {}, expected one of {}", cursor.source(),
         printable(tensor.name), ggml_type_text(type_id), readable_types());
  }
  tensor.dtype = *dtype;
  if (offset % alignment != 0) {
    fail(ErrorCode::kBadFile, "{}: tensor {} is at offset {} of the data, expected a multiple of {}", cursor.source(),
         printable(tensor.name), offset, alignment);
  }
  return {.offset = offset, .size_bytes = static_cast<uint64_t>(size_in_bytes(tensor, cursor.source())), .tensor = 0};
}

std::vector<Extent> read_tensors(ByteCursor& cursor, uint64_t num_tensors, uint32_t alignment, GgufFile& gguf) {
  std::vector<Extent> extents;
  std::unordered_set<std::string_view> names;
  for (uint64_t i = 0; i < num_tensors; ++i) {
    cursor.enter("tensor", i);
    GgufTensor tensor;
    Extent extent = read_tensor(cursor, alignment, tensor);
    extent.tensor = gguf.tensors.size();
    if (!names.insert(tensor.name).second) {
      fail(ErrorCode::kBadFile, "{}: tensor {} is there twice", cursor.place(), printable(tensor.name));
    }
    extents.push_back(extent);
    gguf.tensors.push_back(std::move(tensor));
  }
  return extents;
}

// Gives each tensor its bytes: file [0, header) [padding) [data: extents in any order, gaps allowed, none shared).
void place_tensors(std::span<const std::byte> file, uint64_t header_bytes, uint32_t alignment,
                   std::vector<Extent> extents, const std::string& source, GgufFile& gguf) {
  const uint64_t begin = (header_bytes + alignment - 1) / alignment * alignment;
  const std::span<const std::byte> data = file.subspan(std::min<uint64_t>(begin, file.size()));
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
  const Extent* previous = nullptr;
  for (const Extent& extent : extents) {
    GgufTensor& tensor = gguf.tensors[extent.tensor];
    if (extent.offset > data.size() || extent.size_bytes > data.size() - extent.offset) {
      fail(ErrorCode::kBadFile,
           "{}: tensor {} of {} bytes at offset {} of the data reaches beyond the file, which has {} bytes of data",
           source, printable(tensor.name), extent.size_bytes, extent.offset, data.size());
    }
    if (previous != nullptr && extent.offset - previous->offset < previous->size_bytes) {
      fail(ErrorCode::kBadFile, "{}: tensor {} at offset {} overlaps tensor {} of {} bytes at offset {}", source,
           printable(tensor.name), extent.offset, printable(gguf.tensors[previous->tensor].name), previous->size_bytes,
           previous->offset);
    }
    tensor.data = data.subspan(extent.offset, extent.size_bytes);
    previous = &extent;
  }
}

}  // namespace

std::string_view gguf_type_name(GgufType type) { return kTypes[static_cast<size_t>(type)].name; }

bool has_gguf_magic(std::span<const std::byte> file) {
  return file.size() >= kMagic.size() && std::memcmp(file.data(), kMagic.data(), kMagic.size()) == 0;
}

GgufFile parse_gguf(std::span<const std::byte> file, const std::string& source) {
  ByteCursor cursor(file, source);
  const Preamble preamble = read_preamble(cursor, file);
  GgufFile gguf;
  gguf.version = preamble.version;
  read_metadata(cursor, preamble.num_metadata, gguf);
  const uint32_t alignment = read_alignment(gguf, source);
  std::vector<Extent> extents = read_tensors(cursor, preamble.num_tensors, alignment, gguf);
  place_tensors(file, cursor.offset(), alignment, std::move(extents), source, gguf);
  return gguf;
}

}  // namespace witan
