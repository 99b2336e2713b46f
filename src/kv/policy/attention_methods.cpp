// Methods that judge entries by what the last tokens attend to, and differ in what they make of it.
#include "kv/policy/window_attention.h"

#include <string>
#include <vector>

#include "base/error.h"

namespace witan {

// SnapKV (Li et al., arXiv 2404.14469).
void snap_kv(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_score(arguments, window_attention(builder, arguments));
}

// TOVA (Oren et al., arXiv 2401.06104): the last token alone, and all heads of a layer keep the same.
void tova(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_score(arguments, window_attention(1, 1, Pooling::kMean));
  builder.choose_grouping(arguments);
  builder.policy.heads_agree = true;
  builder.protect(0, 1);
}

// FINCH (Corallo and Papotti, arXiv 2408.00167): what the question attends to, the last `window` tokens, each
// token's weights times the number of entries that it sees. With chunk=N the same share of every N entries stays.
// The paper computes a long text chunk by chunk, the question with each, over what it kept of those before, and
// gives what stays new positions. Here the prompt is computed as a whole, and entries keep their positions.
void finch(PolicyBuilder& builder, PartArguments& arguments) {
  const int32_t window = arguments.integer("window", 32, 1, 4096);
  builder.choose_score(arguments, window_attention(window, 1, Pooling::kMean, TokenWeight::kEntriesSeen));
  builder.protect(0, window);
  builder.policy.share_chunk = arguments.integer("chunk", 0, 0, 1 << 20);
  if (builder.policy.share_chunk > 0) builder.choose_grouping(arguments);
}

// PyramidKV (Cai et al., arXiv 2406.02069): SnapKV with less for each higher layer.
void pyramid_kv(PolicyBuilder& builder, PartArguments& arguments) {
  builder.suggest_score(window_attention(builder, arguments));
  builder.choose_layers(arguments, KvLayerBudget::kPyramid);
  builder.policy.pyramid_slope = arguments.number("slope", 20.0, 1.0, 1e6);
}

// A budget by layer, of a table that somebody measured or chose.
void layer_shares(PolicyBuilder& builder, PartArguments& arguments) {
  std::vector<double> shares;
  double sum = 0.0;
  for (const std::string& text : arguments.by_layer("shares")) {
    shares.push_back(PartArguments(arguments.part(), {{"shares", text}}).number("shares", 0.0, 0.0, 1e6));
    sum += shares.back();
  }
  if (sum == 0.0) fail(ErrorCode::kInvalidArgument, "{}: shares: all layers have 0", arguments.part());
  builder.suggest_score(window_attention(builder, arguments));
  builder.choose_layer_shares(arguments, std::move(shares));
}

// AdaKV (Feng et al., arXiv 2407.11550): the heads of a layer compete for the layer's budget, of which
// each keeps a share in any case.
void ada_kv(PolicyBuilder& builder, PartArguments& arguments) {
  builder.suggest_score(window_attention(builder, arguments));
  builder.choose_scope(arguments, KvScope::kLayer, arguments.number("floor", 0.2, 0.0, 1.0));
}

// CriticalKV (Feng et al., arXiv 2502.03805): half of the budget by the score, half by the score times what the
// output projection makes of the value. With AdaKV, heads compete by the score for what each keeps.
void critical_kv(PolicyBuilder& builder, PartArguments& arguments) {
  builder.suggest_score(window_attention(builder, arguments));
  builder.choose_second_stage(arguments, {.first_share = arguments.number("first", 0.5, 0.0, 1.0),
                                          .epsilon = arguments.number("epsilon", 1e-4, 0.0, 1e6)});
}

// KVCompose (arXiv 2509.05165): heads choose for themselves, and as many in all heads of a layer; layers compete.
void kv_compose(PolicyBuilder& builder, PartArguments& arguments) {
  builder.suggest_score(window_attention(builder, arguments, 1));
  builder.choose_layers(arguments, KvLayerBudget::kComposite);
}

// As AdaKV with all layers for one (the budget of KVzip, arXiv 2505.23416).
void shared_budget(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_scope(arguments, KvScope::kModel, arguments.number("floor", 0.0, 0.0, 1.0));
}

// ShotKV (Liu et al., arXiv 2502.01941): the examples of a prompt, or its paragraphs, stay or go as a whole, by the
// mean of their scores, the same in all heads. The paper's pool for generated tokens is generated_budget.
void shot_kv(PolicyBuilder& builder, PartArguments& arguments) {
  builder.suggest_score(window_attention(builder, arguments, 1));
  builder.choose_grouping(arguments);
  builder.policy.heads_agree = true;
  builder.policy.chunk_by_sum = false;
  builder.policy.span_separator = arguments.choice("separator", {"paragraph", "line"}) == "line" ? "\n" : "\n\n";
}

// ChunkKV (Liu et al., arXiv 2502.00299): whole chunks stay by the sum of their scores,
// the same in all heads, and `reuse` neighbouring layers keep what the first of them would.
void chunk_kv(PolicyBuilder& builder, PartArguments& arguments) {
  builder.suggest_score(window_attention(builder, arguments, 1));
  builder.choose_grouping(arguments);
  builder.policy.chunk = arguments.integer("chunk", 10, 1, 4096);
  builder.policy.reused_layers = arguments.integer("reuse", 1, 1, 1024);
  builder.policy.chunk_by_sum = arguments.choice("score", {"sum", "mean"}) == "sum";
  builder.policy.heads_agree = arguments.choice("heads", {"together", "apart"}) == "together";
}

}  // namespace witan
