#pragma once

#include "base/isa.h"
#include "base/thread_pool.h"
#include "kernels/matmul/matmul.h"
#include "memory/scratch.h"

namespace witan {

// What every step of a forward pass computes with. Borrowed references; one per running forward.
struct ComputeContext {
  ThreadPool& threads;
  Scratch& scratch;
  Isa isa;
  Precision precision;
};

// Gives scratch memory back at the end of a scope.
class ScratchScope {
 public:
  explicit ScratchScope(Scratch& scratch) : scratch_(scratch), mark_(scratch.mark()) {}
  ~ScratchScope() { scratch_.reset(mark_); }
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;

 private:
  Scratch& scratch_;
  Scratch::Mark mark_;
};

}  // namespace witan
