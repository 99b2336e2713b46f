#include "io/gguf_parts.h"

#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "io/gguf_config.h"

namespace witan {
namespace {

constexpr int64_t kMaxParts = 65535;  // split.count is a uint16
constexpr std::string_view kNumberKey = "split.no";
constexpr std::string_view kCountKey = "split.count";
constexpr std::string_view kTensorsKey = "split.tensors.count";

// "-00002-of-00003.gguf" for part 1 of 3.
std::string name_suffix(int64_t part, int64_t num_parts) {
  return fmt::format("-{:05}-of-{:05}.gguf", part + 1, num_parts);
}

int64_t read_in_range(const GgufPart& part, std::string_view key, int64_t first, int64_t last) {
  const int64_t value = GgufConfig(part.gguf, part.file.path()).get_int(key);
  if (value < first || value > last) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, expected {} to {}", part.file.path(), key, value, first, last);
  }
  return value;
}

int64_t count_parts(const GgufPart& part) {
  return part.gguf.find(kCountKey) == nullptr ? 1 : read_in_range(part, kCountKey, 1, kMaxParts);
}

std::unique_ptr<GgufPart> open_other_part(const std::string& path, int64_t part, int64_t num_parts,
                                          const std::string& found_from) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    fail(ErrorCode::kIo, "{}: not found; it is part {} of {} of the model of {}", path, part + 1, num_parts,
         found_from);
  }
  auto opened = std::make_unique<GgufPart>(path);
  if (opened->gguf.find(kCountKey) == nullptr || count_parts(*opened) != num_parts) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, expected {} as in {}", path, kCountKey,
         opened->gguf.find(kCountKey) == nullptr ? "missing" : std::to_string(count_parts(*opened)), num_parts,
         found_from);
  }
  const int64_t number = read_in_range(*opened, kNumberKey, 0, num_parts - 1);
  if (number != part) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, expected {} by the file's name", path, kNumberKey, number, part);
  }
  return opened;
}

void check_num_tensors(std::span<const std::unique_ptr<GgufPart>> parts) {
  const GgufPart& first = *parts.front();
  const int64_t expected = GgufConfig(first.gguf, first.file.path()).get_int(kTensorsKey);
  int64_t found = 0;
  for (const auto& part : parts) found += std::ssize(part->gguf.tensors);
  if (found != expected) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, but the {} parts hold {} tensors", first.file.path(), kTensorsKey,
         expected, parts.size(), found);
  }
}

}  // namespace

std::vector<std::unique_ptr<GgufPart>> open_gguf_parts(const std::string& path) {
  std::vector<std::unique_ptr<GgufPart>> parts;
  auto given = std::make_unique<GgufPart>(path);
  const int64_t num_parts = count_parts(*given);
  if (num_parts == 1) {
    parts.push_back(std::move(given));
    return parts;
  }

  const int64_t number = read_in_range(*given, kNumberKey, 0, num_parts - 1);
  const std::string suffix = name_suffix(number, num_parts);
  if (!path.ends_with(suffix)) {
    fail(ErrorCode::kBadFile, "{}: holds part {} of {} of a model, expected its name to end in {}", path, number + 1,
         num_parts, suffix);
  }
  const std::string stem = path.substr(0, path.size() - suffix.size());
  for (int64_t i = 0; i < num_parts; ++i) {
    if (i == number) {
      parts.push_back(std::move(given));
    } else {
      parts.push_back(open_other_part(stem + name_suffix(i, num_parts), i, num_parts, path));
    }
  }
  check_num_tensors(parts);
  return parts;
}

}  // namespace witan
