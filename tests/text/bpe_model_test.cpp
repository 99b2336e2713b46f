#include "text/bpe_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace witan {
namespace {

using Rules = std::map<std::pair<TokenId, TokenId>, std::pair<int32_t, TokenId>>;  // pair -> rank, merged

// The definition: again and again the pair of lowest rank, and of those the leftmost.
std::vector<TokenId> merge_by_definition(std::vector<TokenId> symbols, const Rules& rules) {
  for (;;) {
    size_t best = symbols.size();
    std::pair<int32_t, TokenId> best_rule{INT32_MAX, -1};
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto rule = rules.find({symbols[i], symbols[i + 1]});
      if (rule != rules.end() && rule->second.first < best_rule.first) {
        best = i;
        best_rule = rule->second;
      }
    }
    if (best == symbols.size()) return symbols;
    symbols[best] = best_rule.second;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(MergeTable, MergesAsTheDefinitionSaysForShortAndLongTexts) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    MergeTable table;
    Rules rules;
    const auto num_symbols = static_cast<TokenId>(2 + random() % 20);
    const bool ties = round % 2 == 0;  // SentencePiece's scores may be equal
    for (int32_t rank = 0; rank < 40; ++rank) {
      const auto any = [&] { return static_cast<TokenId>(random() % static_cast<unsigned>(num_symbols)); };
      const TokenId left = any(), right = any(), merged = any();
      table.add(left, right, ties ? rank / 8 : rank, merged);
      rules.emplace(std::pair(left, right), std::pair(ties ? rank / 8 : rank, merged));
    }
    std::vector<TokenId> symbols(random() % 90);
    for (TokenId& symbol : symbols) symbol = static_cast<TokenId>(random() % 4);
    const std::vector<TokenId> expected = merge_by_definition(symbols, rules);
    table.merge(symbols);
    ASSERT_EQ(symbols, expected) << "round " << round;
  }
}

TEST(MergeTable, RulesThatFormACycleEnd) {
  MergeTable table;
  table.add(0, 1, 0, 1);
  table.add(1, 0, 1, 0);
  table.add(1, 1, 2, 0);
  table.add(0, 0, 3, 1);
  std::vector<TokenId> symbols(100000, 0);
  table.merge(symbols);
  EXPECT_EQ(symbols.size(), 1u);
}

TEST(FlatMap, KeepsTheFirstValueOfAKeyThroughGrowth) {
  FlatMap map;
  EXPECT_EQ(map.find(1), nullptr);
  for (uint64_t key = 0; key < 5000; ++key) EXPECT_TRUE(map.insert(key << 32, key));
  for (uint64_t key = 0; key < 5000; ++key) EXPECT_FALSE(map.insert(key << 32, 0));
  EXPECT_EQ(map.size(), 5000u);
  for (uint64_t key = 0; key < 5000; ++key) {
    ASSERT_NE(map.find(key << 32), nullptr);
    EXPECT_EQ(*map.find(key << 32), key);
    EXPECT_EQ(map.find(key << 32 | 1), nullptr);
  }
}

class CharacterModel : public testing::Test {
 protected:
  void SetUp() override {
    model_.unit = SymbolUnit::kCharacter;
    const char* pieces[] = {"<unk>", "a", "b", "\xE2\x96\x81", "<0xC3>", "<0xA4>"};
    for (TokenId id = 0; id < 6; ++id) vocabulary_.set(id, pieces[id], TokenKind::kNormal, "test");
    model_.character_symbols.insert('a', 1);
    model_.character_symbols.insert('b', 2);
    model_.character_symbols.insert(0x2581, 3);
    model_.unknown = 0;
  }
  std::vector<TokenId> encode(std::string_view piece) {
    std::vector<TokenId> ids;
    model_.encode(piece, vocabulary_, ids);
    return ids;
  }
  Vocabulary vocabulary_{6};
  BpeModel model_;
};

TEST_F(CharacterModel, SpellsUnknownCharactersInBytesElseAsUnknown) {
  EXPECT_EQ(encode("a\xC3\xA4"), (std::vector<TokenId>{1, 0}));
  model_.byte_tokens[0xC3] = 4;
  EXPECT_EQ(encode("a\xC3\xA4"), (std::vector<TokenId>{1, 0}));  // one byte token is not enough
  model_.byte_tokens[0xA4] = 5;
  EXPECT_EQ(encode("a\xC3\xA4"), (std::vector<TokenId>{1, 4, 5}));
  model_.unknown.reset();
  EXPECT_EQ(encode("a\xC3\xB6z"), (std::vector<TokenId>{1}));
}

TEST_F(CharacterModel, FusesUnknownCharactersInARow) {
  EXPECT_EQ(encode("xyaz"), (std::vector<TokenId>{0, 0, 1, 0}));
  model_.fuse_unknown = true;
  EXPECT_EQ(encode("xyaz"), (std::vector<TokenId>{0, 1, 0}));
}

TEST_F(CharacterModel, CutsAtWordsOnlyWhereNoPieceCrossesThem) {
  model_.inspect_words(vocabulary_);
  EXPECT_TRUE(model_.words_are_apart);
  vocabulary_.set(6,
                  "\xE2\x96\x81\xE2\x96\x81"
                  "a",
                  TokenKind::kNormal, "test");
  model_.inspect_words(vocabulary_);
  EXPECT_TRUE(model_.words_are_apart);
  vocabulary_.set(7, "a\xE2\x96\x81", TokenKind::kNormal, "test");
  model_.inspect_words(vocabulary_);
  EXPECT_FALSE(model_.words_are_apart);
}

}  // namespace
}  // namespace witan
