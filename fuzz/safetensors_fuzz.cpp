// Any bytes as a safetensors file: parsed with every tensor inside the file, or refused with an Error.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "io/safetensors_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string source = "fuzz.safetensors";
  const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
  try {
    const std::byte* end = nullptr;
    for (const witan::SafetensorsTensor& tensor : witan::parse_safetensors(file, source)) {
      if (tensor.data.empty() || (end != nullptr && tensor.data.data() != end)) std::abort();
      end = tensor.data.data() + tensor.data.size();
    }
    if (end != nullptr && end != file.data() + file.size()) std::abort();
  } catch (const witan::Error&) {
  }
  return 0;
}
