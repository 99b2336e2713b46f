#include "base/thread_pool.h"

#include "base/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace witan {
namespace {

// Loops of one step follow each other within microseconds; a futex sleep and wake costs about 50 of them.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waits until `value` differs from `old`: spins first, then sleeps.
template <typename T>
void wait_while_equal(const std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  WITAN_CHECK(num_threads >= 1, "{} threads", num_threads);
  for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { worker_loop(thread); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::parallel_for(int64_t num_items, FunctionRef<void(int64_t, int)> body) {
  if (num_items <= 0) return;
  if (num_threads_ == 1 || num_items == 1) {
    for (int64_t item = 0; item < num_items; ++item) body(item, 0);
    return;
  }
  body_ = &body;
  num_items_ = num_items;
  num_unfinished_.store(num_items, std::memory_order_relaxed);
  num_unclaimed_.store(num_items, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  run_items(0);
  for (int64_t unfinished = num_unfinished_.load(std::memory_order_acquire); unfinished != 0;
       unfinished = num_unfinished_.load(std::memory_order_acquire)) {
    wait_while_equal(num_unfinished_, unfinished);
  }
}

void ThreadPool::run_items(int thread) {
  int64_t num_finished = 0;
  int64_t unclaimed = num_unclaimed_.load(std::memory_order_acquire);
  while (unclaimed > 0) {
    if (!num_unclaimed_.compare_exchange_weak(unclaimed, unclaimed - 1, std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
      continue;
    }
    (*body_)(num_items_ - unclaimed, thread);
    ++num_finished;
    unclaimed = num_unclaimed_.load(std::memory_order_acquire);
  }
  if (num_finished == 0) return;
  if (num_unfinished_.fetch_sub(num_finished, std::memory_order_acq_rel) == num_finished) num_unfinished_.notify_one();
}

void ThreadPool::worker_loop(int thread) {
  uint32_t seen = generation_.load(std::memory_order_acquire);
  while (!stopping_.load(std::memory_order_acquire)) {
    run_items(thread);
    wait_while_equal(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
  }
}

}  // namespace witan
