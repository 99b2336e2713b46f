// Methods whose generated tokens read a part of the entries.
#include <cmath>

#include "base/error.h"
#include "kv/policy/window_attention.h"

namespace witan {
namespace {

constexpr int32_t kMostTokens = 1 << 30;

// The arguments dense=2, page=32 of a part.
KvPageReader page_reader(PartArguments& arguments) {
  KvPageReader reader;
  reader.num_dense_layers = arguments.integer("dense", 2, 0, 1 << 20);
  reader.page_entries = arguments.choice("page", {"32", "16"}) == "16" ? 16 : 32;
  return reader;
}

}  // namespace

// Quest (Tang et al., arXiv 2406.10774). Nothing is dropped. A page is a block of 32 entries, or with page=16 half
// of one, as in the paper; the query heads that share a kv head read the same pages.
void quest(PolicyBuilder& builder, PartArguments& arguments) {
  KvPageReader reader = page_reader(arguments);
  const int32_t num_tokens = arguments.integer("tokens", 0, 1, kMostTokens);
  reader.ratio = arguments.number("keep", 0.0, 1e-6, 1.0);
  if (num_tokens > 0 && reader.ratio > 0.0) {
    fail(ErrorCode::kInvalidArgument,
         "{}: both keep and tokens are given; say how much to read by keep=0.1 (a ratio) or tokens=2048",
         arguments.part());
  }
  if (num_tokens > 0) reader.num_tokens = num_tokens;
  builder.choose_pages(arguments, reader);
}

// RocketKV (Behnam et al., arXiv 2502.14051): SnapKV with wide pooling, once, and of what stays the best pages.
void rocket_kv(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_score(arguments, window_attention(builder, arguments, 63));
  KvPageReader reader = page_reader(arguments);
  const double read = arguments.number("read", 512, 1e-6, kMostTokens);
  const bool is_ratio = read < 1.0;
  if (!is_ratio && read != std::floor(read)) {
    fail(ErrorCode::kInvalidArgument, "{}: read is a number of entries, or a share below 1; not {}", arguments.part(),
         read);
  }
  reader.ratio = is_ratio ? read : 0.0;
  reader.num_tokens = is_ratio ? 0 : static_cast<int32_t>(read);
  builder.choose_pages(arguments, reader);
}

}  // namespace witan
