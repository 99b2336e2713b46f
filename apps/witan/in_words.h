#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

namespace witan {

// A large count for people: "46.703 billion", "0.420 million".
inline std::string in_words(int64_t count) {
  const bool billions = count >= 1'000'000'000;
  return fmt::format("{:.3f} {}", static_cast<double>(count) / (billions ? 1e9 : 1e6),
                     billions ? "billion" : "million");
}

}  // namespace witan
