#pragma once

#include "sched/scheduler.h"

namespace witan {

// Decides in which steps prompts are computed beside sequences that decode, so that these are slowed by no more than
// a factor on average. A step with a long chunk of a prompt takes many times as long as one without, and computes far
// more tokens per second than many steps with a short one: so chunks stay long, and steps without follow.
//
// What a step with a chunk took longer than the last without is a debt; each step without pays off max_slowdown - 1
// times what it took. At the latest after kMostMixed steps with chunks comes one without, to see what it takes now.
class PrefillPacer {
 public:
  static constexpr int kMostMixed = 8;

  // max_slowdown > 1, or 0: prompts are computed in every step.
  explicit PrefillPacer(double max_slowdown) : max_slowdown_(max_slowdown) {}

  // Of the next step.
  Prefills prefills() const;

  // A step is done that took so long and computed the next tokens of num_decodes sequences and num_prefill_tokens of
  // prefill chunks. Before the first step without chunks is known, those with them are debt in full.
  void step_done(int num_decodes, int num_prefill_tokens, double seconds);

 private:
  double max_slowdown_;
  double decode_seconds_ = 0;  // of the last step without a chunk
  double debt_seconds_ = 0;
  int num_mixed_ = 0;  // steps since
};

}  // namespace witan
