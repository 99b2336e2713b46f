// Methods whose generated tokens read a part of the entries.
#include "kv/policy/window_attention.h"

namespace witan {
namespace {

KvPageReader page_reader(PartArguments& arguments, std::string_view budget, int32_t num_tokens) {
  return {.num_tokens = arguments.integer(budget, num_tokens, 1, 1 << 30),
          .num_dense_layers = arguments.integer("dense", 2, 0, 1 << 20)};
}

}  // namespace

// Quest (Tang et al., arXiv 2406.10774). Nothing is dropped. A page is a block of 32 entries, where the paper has 16;
// the query heads that share a kv head read the same pages.
void quest(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_pages(arguments, page_reader(arguments, "tokens", 2048));
}

// RocketKV (Behnam et al., arXiv 2502.14051): SnapKV with wide pooling, once, and of what stays the best pages.
void rocket_kv(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_score(arguments, window_attention(builder, arguments, 63));
  builder.choose_pages(arguments, page_reader(arguments, "read", 512));
}

}  // namespace witan
