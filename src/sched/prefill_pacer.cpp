#include "sched/prefill_pacer.h"

#include <algorithm>

namespace witan {

void PrefillPacer::step_done(int num_decodes, int num_prompt_tokens, double seconds) {
  if (num_decodes == 0) {  // nobody waited
    debt_seconds_ = 0;
  } else if (num_prompt_tokens == 0) {
    decode_seconds_ = seconds;
    debt_seconds_ = std::max(0.0, debt_seconds_ - (max_slowdown_ - 1) * seconds);
  } else {
    debt_seconds_ = std::max(0.0, debt_seconds_ + seconds - max_slowdown_ * decode_seconds_);
  }
}

}  // namespace witan
