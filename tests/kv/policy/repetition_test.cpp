#include "kv/policy/repetition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

namespace witan {
namespace {

using testing::ElementsAre;

std::vector<TokenId> numbers(int32_t begin, int32_t end) {
  std::vector<TokenId> tokens(static_cast<size_t>(end - begin));
  std::iota(tokens.begin(), tokens.end(), begin);
  return tokens;
}

std::vector<TokenId> after(std::vector<TokenId> words, const std::vector<TokenId>& tokens) {
  words.insert(words.end(), tokens.begin(), tokens.end());
  return words;
}

TEST(Repetition, ChunksFollowTheWordsThatAskForThemAndTheLastTokensOfTheChunkBefore) {
  const RepetitionWords words{.first = {100, 101}, .next = {200}};
  const std::vector<Repetition> repetitions = repetitions_of(numbers(0, 45), 20, words);
  ASSERT_EQ(repetitions.size(), 3u);
  EXPECT_EQ(repetitions[0].chunk, (KvSpan{0, 20}));
  EXPECT_EQ(repetitions[0].tokens, after({100, 101}, numbers(0, 20)));
  EXPECT_EQ(repetitions[1].chunk, (KvSpan{20, 40}));
  EXPECT_EQ(repetitions[1].tokens, after({200}, numbers(12, 40)));
  EXPECT_EQ(repetitions[2].chunk, (KvSpan{40, 45}));
  EXPECT_EQ(repetitions[2].tokens, after({200}, numbers(32, 45)));
}

TEST(Repetition, AShortPromptIsOneChunkAndAShortChunkIsAllThatLeadsToTheNext) {
  const std::vector<Repetition> whole = repetitions_of(numbers(0, 7), 2048, {});
  ASSERT_EQ(whole.size(), 1u);
  EXPECT_EQ(whole[0].tokens, numbers(0, 7));
  const std::vector<Repetition> threes = repetitions_of(numbers(0, 7), 3, {});
  ASSERT_EQ(threes.size(), 3u);
  EXPECT_EQ(threes[1].tokens, numbers(0, 6));
  EXPECT_EQ(threes[2].tokens, numbers(3, 7));
  EXPECT_TRUE(repetitions_of({}, 3, {}).empty());
}

struct Viewed {
  std::vector<int64_t> blocks;
  std::vector<int32_t> seen;  // positions of the entries that are not hidden
  int32_t num_entries;
};

Viewed view_of(int32_t num_entries, KvSpan chunk, int32_t num_sinks, int32_t num_prompt_tokens) {
  std::vector<std::byte> bytes(100);
  std::vector<const std::byte*> blocks;
  for (const std::byte& byte : bytes) blocks.push_back(&byte);
  const RepetitionView repetition({.format = {}, .blocks = blocks.data(), .num_entries = num_entries}, chunk, num_sinks,
                                  num_prompt_tokens);
  const KvView view = repetition.view();
  Viewed viewed{.blocks = {}, .seen = {}, .num_entries = view.num_entries};
  for (int32_t i = 0; i < view.num_entries; i += kKvBlockSize) {
    viewed.blocks.push_back(view.blocks[i / kKvBlockSize] - bytes.data());
  }
  for (int32_t i = 0; i < view.num_entries; ++i) {
    if (view.positions[i] == std::numeric_limits<int32_t>::max()) continue;
    EXPECT_EQ(view.positions[i] / kKvBlockSize, viewed.blocks[static_cast<size_t>(i / kKvBlockSize)]);
    EXPECT_EQ(view.positions[i] % kKvBlockSize, i % kKvBlockSize);
    viewed.seen.push_back(view.positions[i]);
  }
  // What the entries of the view have goes to those of the text.
  std::vector<float> of_view(static_cast<size_t>(view.num_entries));
  for (size_t i = 0; i < of_view.size(); ++i) of_view[i] = static_cast<float>(view.positions[i]);
  std::vector<float> of_text(static_cast<size_t>(num_prompt_tokens), 37.0f);
  repetition.raise(of_view.data(), of_text.data());
  for (int32_t i = 0; i < num_prompt_tokens; ++i) {
    const bool in_chunk = i >= chunk.begin && i < chunk.end;
    EXPECT_EQ(of_text[static_cast<size_t>(i)], in_chunk ? std::max(37.0f, static_cast<float>(i)) : 37.0f) << i;
  }
  return viewed;
}

std::vector<int32_t> tokens_of(const std::vector<KvSpan>& spans) {
  std::vector<int32_t> all;
  for (const KvSpan& span : spans) {
    for (int32_t i = span.begin; i < span.end; ++i) all.push_back(i);
  }
  return all;
}

TEST(RepetitionView, HasTheSinksTheChunkAndTheRepetitionAlone) {
  Viewed viewed = view_of(310, {100, 140}, 4, 300);
  EXPECT_THAT(viewed.blocks, ElementsAre(0, 3, 4, 9));
  EXPECT_EQ(viewed.seen, tokens_of({{0, 4}, {100, 140}, {300, 310}}));
  EXPECT_EQ(viewed.num_entries, 3 * 32 + 310 - 9 * 32);
  viewed = view_of(330, {96, 128}, 0, 128);
  EXPECT_THAT(viewed.blocks, ElementsAre(3, 4, 5, 6, 7, 8, 9, 10));
  EXPECT_EQ(viewed.seen, tokens_of({{96, 330}}));
  viewed = view_of(150, {0, 20}, 4, 140);
  EXPECT_THAT(viewed.blocks, ElementsAre(0, 4));
  EXPECT_EQ(viewed.seen, tokens_of({{0, 20}, {140, 150}})) << "sinks count once";
  viewed = view_of(150, {40, 140}, 70, 140);
  EXPECT_EQ(viewed.seen, tokens_of({{0, 150}}));
  viewed = view_of(50, {44, 45}, 4, 45);
  EXPECT_THAT(viewed.blocks, ElementsAre(0, 1)) << "the end of the prompt and its repetition share a block";
  EXPECT_EQ(viewed.seen, tokens_of({{0, 4}, {44, 50}}));
}

}  // namespace
}  // namespace witan
