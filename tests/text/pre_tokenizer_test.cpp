#include "text/pre_tokenizer.h"

#include <gtest/gtest.h>

namespace witan {
namespace {

template <typename... Steps>
PreTokenizer make(Steps... list) {
  std::vector<PreTokenizer::Step> steps;
  (steps.emplace_back(std::move(list)), ...);
  return PreTokenizer(std::move(steps));
}

PreTokenizer::Split split_at(const char* pattern, SplitBehavior behavior, SplitInvert invert = SplitInvert::kNo) {
  return {Regex(pattern, "test"), behavior, invert};
}

std::string show(const PreTokenizer& pre_tokenizer, std::string_view text, TextPlace place = TextPlace::kStart) {
  RegexWorkspace workspace(text.size());
  std::string shown;
  pre_tokenizer.split(text, place, workspace, [&](std::string_view piece) {
    EXPECT_FALSE(piece.empty());
    if (!shown.empty()) shown += '|';
    shown += piece;
  });
  return shown;
}

TEST(PreTokenizer, SplitBehaviorsAreThoseOfTheTokenizersLibrary) {
  struct Case {
    SplitBehavior behavior;
    const char* middle;  // "the-final--countdown"
    const char* ends;    // "--a-"
    const char* inverted;
  };
  // The first column is the example of the library's documentation.
  const Case cases[] = {
      {SplitBehavior::kRemoved, "the|final|countdown", "a", "-|-|-"},
      {SplitBehavior::kIsolated, "the|-|final|-|-|countdown", "-|-|a|-", "-|-|a|-"},
      {SplitBehavior::kMergedWithPrevious, "the-|final-|-|countdown", "-|-|a-", "-|-a|-"},
      {SplitBehavior::kMergedWithNext, "the|-final|-|-countdown", "-|-a|-", "-|-|a-"},
      {SplitBehavior::kContiguous, "the|-|final|--|countdown", "--|a|-", "--|a|-"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(show(make(split_at("-", c.behavior)), "the-final--countdown"), c.middle);
    EXPECT_EQ(show(make(split_at("-", c.behavior)), "--a-"), c.ends);
  }
  EXPECT_EQ(show(make(split_at("[^-]+", SplitBehavior::kRemoved, SplitInvert::kYes)), "--a-"), "a");
  EXPECT_EQ(show(make(split_at("[^-]+", SplitBehavior::kContiguous, SplitInvert::kYes)), "--a-"), "--|a|-");
}

TEST(PreTokenizer, EachStepCutsThePiecesOfTheOneBefore) {
  const PreTokenizer two = make(split_at("[0-9]", SplitBehavior::kIsolated), split_at("b$", SplitBehavior::kIsolated));
  EXPECT_EQ(show(two, "ab1bb"), "a|b|1|b|b");
  EXPECT_EQ(show(two, ""), "");
  EXPECT_EQ(show(PreTokenizer(), "a b"), "a b");
}

TEST(PreTokenizer, EmptyMatchesCutWithoutTaking) {
  EXPECT_EQ(show(make(split_at("(?=([0-9]{3})+(?![0-9]))", SplitBehavior::kIsolated)), "1234567"), "1|234|567");
}

TEST(PreTokenizer, PrefixSpaceIsPutOnceBeforeEachPiece) {
  const PreTokenizer prefix = make(split_at("-", SplitBehavior::kRemoved), PreTokenizer::PrefixSpace{});
  EXPECT_EQ(show(prefix, "a- b"), " a| b");
}

TEST(PreTokenizer, MetaspaceMarksAndSplitsAtSpaces) {
  const std::string marker = "\u2581";
  const auto metaspace = [&](PrependScheme scheme, bool split) {
    return make(PreTokenizer::Metaspace{marker, scheme, split});
  };
  EXPECT_EQ(show(metaspace(PrependScheme::kAlways, true), "Hey  you"), "▁Hey|▁|▁you");
  EXPECT_EQ(show(metaspace(PrependScheme::kAlways, true), " Hey"), "▁Hey");
  EXPECT_EQ(show(metaspace(PrependScheme::kNever, true), "Hey you"), "Hey|▁you");
  EXPECT_EQ(show(metaspace(PrependScheme::kAlways, false), "Hey you"), "▁Hey▁you");
  EXPECT_EQ(show(metaspace(PrependScheme::kFirst, true), "Hey", TextPlace::kStart), "▁Hey");
  EXPECT_EQ(show(metaspace(PrependScheme::kFirst, true), "Hey", TextPlace::kInside), "Hey");
}

}  // namespace
}  // namespace witan
