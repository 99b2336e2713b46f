#include "kv/prefix_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace witan {
namespace {

constexpr int64_t kNumTables = 3;

struct Text {
  std::vector<TokenId> tokens = std::vector<TokenId>(kKvBlockSize);
  std::vector<TokenRole> roles = std::vector<TokenRole>(kKvBlockSize, TokenRole::kPrompt);
};

Text text_of(TokenId first) {
  Text text;
  std::iota(text.tokens.begin(), text.tokens.end(), first);
  return text;
}

PrefixId find(const PrefixIndex& index, PrefixId parent, const Text& text) {
  return index.find(parent, text.tokens, text.roles);
}

PrefixId insert(PrefixIndex& index, PrefixId parent, const Text& text) {
  static BlockId block = 0;
  return index.insert(parent, text.tokens, text.roles, std::vector<BlockId>{block++, block++, block++});
}

TEST(PrefixIndexTest, AnEntryIsFoundOnlyByItsTokensRolesAndParent) {
  PrefixIndex index(kNumTables, 0);
  const Text text = text_of(0);
  const PrefixId first = insert(index, kNoPrefix, text);
  const PrefixId second = insert(index, first, text);
  EXPECT_NE(first, second);
  EXPECT_EQ(find(index, kNoPrefix, text), first);
  EXPECT_EQ(find(index, first, text), second);
  EXPECT_EQ(find(index, second, text), kNoPrefix);
  for (int i : {0, 17, kKvBlockSize - 1}) {
    Text other_token = text;
    ++other_token.tokens[i];
    EXPECT_EQ(find(index, kNoPrefix, other_token), kNoPrefix);
    Text other_role = text;
    other_role.roles[i] = TokenRole::kGenerated;
    EXPECT_EQ(find(index, kNoPrefix, other_role), kNoPrefix);
  }
}

TEST(PrefixIndexTest, AnEntryMayBeTakenByTheOnlyOneWhoReferencesIt) {
  PrefixIndex index(kNumTables, 0);
  const PrefixId first = insert(index, kNoPrefix, text_of(0));
  const PrefixId second = insert(index, first, text_of(1));
  index.reference_window(second);
  index.reference(first);
  EXPECT_EQ(index.num_references(first), 2);
  index.take(second);
  index.check_integrity({2});
  EXPECT_EQ(find(index, first, text_of(1)), kNoPrefix);
  index.unreference(first);
  index.reference_window(first);
  index.unreference_window(first, PrefixIndex::WindowEnd::kPassed);
  index.take(first);
  EXPECT_EQ(index.num_entries(), 0);
  EXPECT_EQ(index.num_passed(), 0);
  index.check_integrity({});
}

TEST(PrefixIndexTest, TheChainOfHashesDependsOnRootParentTokensAndRoles) {
  const auto hash_of = [](uint64_t root, TokenId first_block, const Text& second_block) {
    PrefixIndex index(kNumTables, root);
    return index.chain_hash(insert(index, insert(index, kNoPrefix, text_of(first_block)), second_block));
  };
  Text other_role = text_of(1);
  other_role.roles[kKvBlockSize - 1] = TokenRole::kGenerated;
  std::vector<uint64_t> hashes = {hash_of(0, 0, text_of(1)), hash_of(9, 0, text_of(1)), hash_of(0, 5, text_of(1)),
                                  hash_of(0, 0, text_of(2)), hash_of(0, 0, other_role)};
  EXPECT_EQ(hashes[0], hash_of(0, 0, text_of(1)));
  std::ranges::sort(hashes);
  EXPECT_EQ(std::ranges::adjacent_find(hashes), hashes.end());
}

TEST(PrefixIndexTest, CollidingHashesKeepTextsApart) {
  Text generated = text_of(0);
  generated.roles[5] = TokenRole::kGenerated;
  // All texts of up to three blocks, each of which is one of these.
  const std::vector<Text> choices = {text_of(0), text_of(1), generated};
  for (PrefixIndex::Hash weak :
       {+[](const void*, size_t) -> uint64_t { return 4; },
        +[](const void*data, size_t bytes) { return PrefixIndex::default_hash(data, bytes) % 3; }}) {
    PrefixIndex index(kNumTables, 0, weak);
    struct Added {
      PrefixId parent;
      Text text;
      PrefixId entry;
    };
    std::vector<Added> added;
    std::vector<PrefixId> parents = {kNoPrefix};
    for (int depth = 0; depth < 3; ++depth) {
      std::vector<PrefixId> children;
      for (PrefixId parent : parents) {
        for (const Text& text : choices) {
          ASSERT_EQ(find(index, parent, text), kNoPrefix);
          children.push_back(insert(index, parent, text));
          added.push_back({parent, text, children.back()});
        }
      }
      parents = children;
    }
    std::vector<int64_t> references(added.size(), 1);
    index.check_integrity(references);
    for (const Added& a : added) EXPECT_EQ(find(index, a.parent, a.text), a.entry);

    // Dropping one of many under the same hash drops that one.
    const Added dropped = added[20];
    index.unreference(dropped.entry);
    index.erase(dropped.entry);
    references[dropped.entry] = 0;
    index.check_integrity(references);
    for (const Added& a : added) {
      EXPECT_EQ(find(index, a.parent, a.text), a.entry == dropped.entry ? kNoPrefix : a.entry);
    }
  }
}

TEST(PrefixIndexTest, UnreferencedEntriesLeaveOldestFirstAndTailsBeforeHeads) {
  PrefixIndex index(kNumTables, 0);
  const PrefixId root = insert(index, kNoPrefix, text_of(0));
  const PrefixId left = insert(index, root, text_of(1));
  index.reference(root);  // by the right chain
  const PrefixId right = insert(index, root, text_of(2));

  index.unreference(right);
  index.unreference(root);
  EXPECT_EQ(index.oldest_unreferenced(), right);
  EXPECT_EQ(index.num_unreferenced(), 1);
  index.unreference(left);
  index.unreference(root);

  index.reference(root);  // the right chain is used again
  index.reference(right);
  EXPECT_EQ(index.oldest_unreferenced(), left);
  index.unreference(right);
  index.unreference(root);

  for (PrefixId expected : {left, right, root}) {
    EXPECT_EQ(index.oldest_unreferenced(), expected);
    index.erase(expected);
    index.check_integrity({});
  }
  EXPECT_EQ(index.oldest_unreferenced(), kNoPrefix);
  EXPECT_EQ(index.num_entries(), 0);
}

TEST(PrefixIndexTest, BlocksAreKeptPerEntry) {
  PrefixIndex index(kNumTables, 0);
  const PrefixId first = index.insert(kNoPrefix, text_of(0).tokens, text_of(0).roles, std::vector<BlockId>{7, 8, 9});
  const PrefixId second = index.insert(first, text_of(0).tokens, text_of(0).roles, std::vector<BlockId>{1, 2, 3});
  EXPECT_TRUE(std::ranges::equal(index.blocks(first), std::vector<BlockId>{7, 8, 9}));
  EXPECT_TRUE(std::ranges::equal(index.blocks(second), std::vector<BlockId>{1, 2, 3}));
}

TEST(PrefixIndexDeathTest, EntriesInUseAreNotDropped) {
  PrefixIndex index(kNumTables, 0);
  const PrefixId parent = insert(index, kNoPrefix, text_of(0));
  const PrefixId child = insert(index, parent, text_of(1));
  EXPECT_DEATH(index.erase(child), "1 references");
  index.unreference(child);
  index.unreference(parent);
  EXPECT_DEATH(index.erase(parent), "1 children");
}

}  // namespace
}  // namespace witan
