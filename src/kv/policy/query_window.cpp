#include "kv/policy/query_window.h"

#include <utility>

#include "base/check.h"
#include "base/error.h"

namespace witan {

QueryWindow::QueryWindow(MemoryPool& pool, int32_t num_layers, int32_t num_heads, int32_t key_dim, int32_t first_token,
                         int32_t num_tokens)
    : num_heads_(num_heads),
      key_dim_(key_dim),
      first_token_(first_token),
      num_tokens_(num_tokens),
      max_tokens_(num_tokens),
      scorings_(static_cast<size_t>(num_layers)) {
  const auto bytes = static_cast<size_t>(QueryWindow::bytes(num_layers, num_heads, key_dim, num_tokens));
  auto region = pool.allocate(MemoryTag::kActivations, bytes);
  if (!region) {
    fail(ErrorCode::kOutOfMemory, "the queries of {} tokens that a KV policy judges by need {} bytes; {} are free",
         num_tokens, bytes, pool.free_bytes());
  }
  region_ = std::move(*region);
}

void QueryWindow::move_to(int32_t first_token, int32_t num_tokens) {
  WITAN_CHECK(first_token >= 0 && num_tokens >= 0 && num_tokens <= max_tokens_, "tokens {}+{} in a window of {}",
              first_token, num_tokens, max_tokens_);
  first_token_ = first_token;
  num_tokens_ = num_tokens;
}

}  // namespace witan
