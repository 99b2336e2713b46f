// KVzip (Kim et al., arXiv 2505.23416): entries stay that the model attends to when it repeats the text, whatever will
// be asked of it, by one budget for all heads of all layers. The words that ask for the repetition follow the prompt as
// it is; the authors put a chat template around them.
#include <algorithm>

#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

class RepetitionScore : public KvScorer {
 public:
  explicit RepetitionScore(const KvWants::Repetitions& repetitions) : repetitions_(repetitions) {}

  KvWants wants() const override { return {.repetitions = repetitions_}; }

  bool scores_are_attention() const override { return true; }

  void score(const HeadEvidence& head, std::span<float> scores, float*) const override {
    std::copy_n(head.repetition, scores.size(), scores.begin());
  }

 private:
  KvWants::Repetitions repetitions_;
};

}  // namespace

void kv_zip(PolicyBuilder& builder, PartArguments& arguments) {
  const KvWants::Repetitions repetitions{.chunk_tokens = arguments.integer("chunk", 2048, 1, 1 << 20),
                                         .num_sinks = arguments.integer("sinks", 4, 0, 1 << 20)};
  builder.choose_score(arguments, std::make_shared<RepetitionScore>(repetitions));
  builder.protect(repetitions.num_sinks, 0);
  if (arguments.choice("heads", {"compete", "alike"}) == "compete") builder.suggest_scope(KvScope::kModel);
}

}  // namespace witan
