#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

namespace witan::test {

// The path of a golden file or folder ("quants/Q4_K.bin"): from tests/data/goldens, which every clone has, else from
// the full set beside the repository, else nothing.
inline std::optional<std::string> find_golden(const std::string& relative) {
  for (const char* root : {WITAN_TEST_DATA "/goldens/", WITAN_GOLDENS "/"}) {
    if (std::filesystem::exists(root + relative)) return root + relative;
  }
  return std::nullopt;
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

// A whole file of little-endian values.
template <typename T>
std::vector<T> read_array(const std::string& path) {
  const std::string bytes = read_file(path);
  EXPECT_EQ(bytes.size() % sizeof(T), 0u) << path;
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace witan::test

// Declares `variable` as the golden's path, or skips the test, saying what was missing.
#define WITAN_GOLDEN_OR_SKIP(variable, relative)                                    \
  const auto variable##_found = ::witan::test::find_golden(relative);               \
  if (!variable##_found) GTEST_SKIP() << "golden data not present: " << (relative); \
  const std::string& variable = *variable##_found
