// Any bytes as a GGUF file: parsed with every tensor's bytes and every setting read, or refused with an Error.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "io/gguf_config.h"
#include "io/gguf_reader.h"

namespace {

template <typename Read>
void try_read(Read read) {
  try {
    (void)read();
  } catch (const witan::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string source = "fuzz.gguf";
  const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
  try {
    const witan::GgufFile gguf = witan::parse_gguf(file, source);
    for (const witan::GgufTensor& tensor : gguf.tensors) {
      const bool inside =
          tensor.data.data() >= file.data() && tensor.data.data() + tensor.data.size() <= file.data() + file.size();
      if (tensor.data.empty() || !inside) std::abort();
    }
    const witan::GgufConfig config(gguf, source);
    for (const auto& entry : gguf.metadata) {
      const std::string_view key = entry.first;
      try_read([&] { return config.get_int(key); });
      try_read([&] { return config.get_double(key); });
      try_read([&] { return config.get_bool(key); });
      try_read([&] { return config.get_string(key); });
      try_read([&] { return config.get_ints(key); });
      try_read([&] { return config.get_strings(key); });
      try_read([&] { return config.get_floats(key); });
    }
  } catch (const witan::Error&) {
  }
  return 0;
}
