#pragma once

namespace witan {

// Decides in which steps prompts are computed beside sequences that decode, so that these are slowed by no more than
// a factor on average. A step with a long chunk of a prompt takes many times as long as one without, and computes far
// more tokens per second than many steps with a short one: so chunks stay long, and steps without follow.
//
// What a step with prompt tokens took longer than the last without is a debt; each step without pays off max_slowdown -
// 1 times what it took.
class PrefillPacer {
 public:
  // max_slowdown > 1, or 0: prompts are computed in every step.
  explicit PrefillPacer(double max_slowdown) : max_slowdown_(max_slowdown) {}

  // Whether the next step may compute prompt tokens beside tokens of sequences that decode.
  bool may_mix() const { return max_slowdown_ == 0 || debt_seconds_ <= 0; }

  // A step is done that computed a token of each of num_decodes sequences, and prompt tokens.
  void step_done(int num_decodes, int num_prompt_tokens, double seconds);

 private:
  double max_slowdown_;
  double decode_seconds_ = 0;  // of the last step without prompt tokens
  double debt_seconds_ = 0;
};

}  // namespace witan
