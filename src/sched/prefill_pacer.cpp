#include "sched/prefill_pacer.h"

#include <algorithm>

namespace witan {

Prefills PrefillPacer::prefills() const {
  if (max_slowdown_ == 0) return Prefills::kBesideDecodes;
  return debt_seconds_ <= 0 && num_mixed_ < kMostMixed ? Prefills::kBesideDecodes : Prefills::kAlone;
}

void PrefillPacer::step_done(int num_decodes, int num_prefill_tokens, double seconds) {
  if (num_decodes == 0) {  // nobody waited
    debt_seconds_ = 0;
  } else if (num_prefill_tokens == 0) {
    decode_seconds_ = seconds;
    debt_seconds_ = std::max(0.0, debt_seconds_ - (max_slowdown_ - 1) * seconds);
    num_mixed_ = 0;
  } else {
    debt_seconds_ = std::max(0.0, debt_seconds_ + seconds - max_slowdown_ * decode_seconds_);
    ++num_mixed_;
  }
}

}  // namespace witan
