#include "sched/prefill_pacer.h"

#include <gtest/gtest.h>

namespace witan {
namespace {

bool mixes(const PrefillPacer& pacer) { return pacer.prefills() == Prefills::kBesideDecodes; }

// The mean time of a step, in which each sequence that decodes gets a token, over that of a step without prompt tokens.
double slowdown(PrefillPacer& pacer, double decode_seconds, double mixed_seconds, int num_steps) {
  double seconds = 0;
  for (int i = 0; i < num_steps; ++i) {
    const bool mixed = mixes(pacer);
    const double taken = mixed ? mixed_seconds : decode_seconds;
    pacer.step_done(8, mixed ? 100 : 0, taken);
    seconds += taken;
  }
  return seconds / num_steps / decode_seconds;
}

TEST(PrefillPacer, DecodingIsSlowedByTheFactorAndNoMore) {
  for (const double mixed_seconds : {0.2, 1.0, 7.3}) {
    for (const double factor : {1.1, 1.5, 3.0}) {
      PrefillPacer pacer(factor);
      pacer.step_done(8, 0, 0.04);
      const double measured = slowdown(pacer, 0.04, mixed_seconds, 20000);
      EXPECT_LE(measured, factor * 1.02) << mixed_seconds;
      EXPECT_GE(measured, 1 + 0.6 * (factor - 1)) << mixed_seconds << ": prompts get about what they may";
    }
  }
}

TEST(PrefillPacer, ShortChunksAreComputedInNearlyEveryStep) {
  PrefillPacer pacer(1.5);
  pacer.step_done(8, 0, 0.04);
  for (int i = 1; i <= 100; ++i) {
    const bool measures = i % (PrefillPacer::kMostMixed + 1) == 0;
    ASSERT_EQ(mixes(pacer), !measures) << i;
    pacer.step_done(8, measures ? 0 : 4, measures ? 0.04 : 0.059);
  }
}

TEST(PrefillPacer, OneSlowStepDoesNotMakeChunksFreeForLong) {
  PrefillPacer pacer(1.5);
  pacer.step_done(8, 0, 5.0);
  EXPECT_LE(slowdown(pacer, 0.04, 0.4, 20000), 1.5 * 1.02);
}

TEST(PrefillPacer, WithoutAFactorPromptsNeverWait) {
  PrefillPacer pacer(0);
  for (int i = 0; i < 10; ++i) {
    pacer.step_done(8, i % 2 * 500, 0.5);
    EXPECT_TRUE(mixes(pacer));
  }
}

TEST(PrefillPacer, WhatNobodyWaitedForIsNoDebt) {
  PrefillPacer pacer(1.5);
  pacer.step_done(1, 0, 0.01);
  pacer.step_done(0, 512, 5.0);
  EXPECT_TRUE(mixes(pacer));
  pacer.step_done(1, 512, 5.0);
  EXPECT_FALSE(mixes(pacer));
  pacer.step_done(0, 512, 5.0);  // those that decoded are done
  EXPECT_TRUE(mixes(pacer));
}

}  // namespace
}  // namespace witan
