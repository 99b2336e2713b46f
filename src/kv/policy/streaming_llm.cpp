// StreamingLLM (Xiao et al., arXiv 2309.17453): the first tokens, which attention falls back on, and the most recent.
// Entries keep the positions that they had, where the paper gives them those of their places in the cache.
#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

class MostRecent : public KvScorer {
 public:
  void score(const HeadEvidence&, std::span<float> scores, float*) const override {
    for (size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(i);
  }
};

}  // namespace

void streaming_llm(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_score(arguments, std::make_shared<MostRecent>());
  builder.protect(arguments.integer("sinks", 4, 0, 1 << 20), 0);
}

}  // namespace witan
