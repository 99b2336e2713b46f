#include "models/paged_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>

#include "memory/memory_pool.h"
#include "support/packed.h"

namespace witan {
namespace {

constexpr int32_t kHeads = 6;
constexpr int32_t kKvHeads = 2;
constexpr int32_t kDim = 16;

// Keys and values of one sequence, plain.
struct History {
  std::vector<float> keys;    // [tokens, kv heads, dim]
  std::vector<float> values;  // [tokens, kv heads, dim]
  // Of the entries that the cache has, by kv head.
  std::vector<std::vector<int32_t>> positions = std::vector<std::vector<int32_t>>(kKvHeads);
};

class PagedAttentionTest : public testing::Test {
 protected:
  PagedAttentionTest()
      : kv_(pool_, {.layers = {{kKvHeads, kDim, kDim, false}},
                    .codec = KvCodec::kF32,
                    .capacity_bytes = size_t{32} << 20,
                    .prefix_cache = false}) {}

  // Runs one batch of (sequence, new tokens) and checks every row against the definition.
  void step(std::vector<std::pair<SequenceId, int32_t>> parts, int32_t window, int num_threads, Isa isa) {
    ForwardBatch batch;
    for (const auto& [sequence, count] : parts) {
      ASSERT_TRUE(kv_.reserve(sequence, count));
      const int32_t first = kv_.num_tokens(sequence);
      batch.slices.push_back({.kv_sequence = sequence,
                              .first_row = static_cast<int32_t>(batch.tokens.size()),
                              .num_tokens = count,
                              .first_token = first,
                              .evidence = &evidence_});
      for (int32_t i = 0; i < count; ++i) {
        batch.tokens.push_back(i);
        batch.positions.push_back(first + i);
        batch.roles.push_back(reads_pages_ ? TokenRole::kPrivate : TokenRole::kPrompt);
      }
    }
    const int64_t n = batch.num_tokens();
    const std::vector<float> q = test::random_floats(n * kHeads * kDim, ++seed_);
    const std::vector<float> k = test::random_floats(n * kKvHeads * kDim, ++seed_);
    const std::vector<float> v = test::random_floats(n * kKvHeads * kDim, ++seed_);
    std::vector<float> out(q.size());
    ThreadPool threads(num_threads);
    Scratch scratch(pool_);
    RouterTelemetry telemetry(0, 0, 0);
    ForwardContext ctx{.compute = {.threads = threads, .scratch = scratch, .isa = isa, .precision = Precision::kExact},
                       .kv = kv_,
                       .telemetry = telemetry};
    const AttentionSpec spec{.num_heads = kHeads,
                             .num_kv_heads = kKvHeads,
                             .key_dim = kDim,
                             .value_dim = kDim,
                             .scale = 0.25f,
                             .window = window};
    write_kv(ctx, batch, 0, spec, k.data(), v.data());
    paged_attention(ctx, batch, 0, spec, q.data(), out.data());
    for (const SequenceSlice& slice : batch.slices) {
      History& history = histories_[slice.kv_sequence];
      const auto begin = slice.first_row * kKvHeads * kDim;
      const auto end = begin + slice.num_tokens * kKvHeads * kDim;
      history.keys.insert(history.keys.end(), k.begin() + begin, k.begin() + end);
      history.values.insert(history.values.end(), v.begin() + begin, v.begin() + end);
      for (auto& positions : history.positions) {
        for (int32_t i = 0; i < slice.num_tokens; ++i) positions.push_back(slice.first_token + i);
      }
      for (int32_t i = 0; i < slice.num_tokens; ++i) {
        check_row(slice, i, window, q, out, reads_pages_ ? of_pages(slice, i, isa, q, history) : history);
      }
      kv_.commit(slice.kv_sequence, std::span(batch.tokens).subspan(slice.first_row, slice.num_tokens),
                 std::span(batch.roles).subspan(slice.first_row, slice.num_tokens));
    }
    EXPECT_EQ(scratch.bytes_used(), 0u);
  }

  // Keeps the entries that `stays(head, entry)` says.
  template <typename Stays>
  void keep(SequenceId sequence, const Stays& stays) {
    std::vector<std::vector<int32_t>> kept(kKvHeads);
    for (int32_t head = 0; head < kKvHeads; ++head) {
      std::vector<int32_t> positions;
      const auto& before = histories_[sequence].positions[static_cast<size_t>(head)];
      for (int32_t entry = 0; entry < std::ssize(before); ++entry) {
        if (!stays(head, entry)) continue;
        kept[static_cast<size_t>(head)].push_back(entry);
        positions.push_back(before[static_cast<size_t>(entry)]);
      }
      histories_[sequence].positions[static_cast<size_t>(head)] = positions;
    }
    ASSERT_TRUE(kv_.keep(sequence, kept));
  }

  // What the i-th token of a slice sees of the history: the entries of the pages that it chooses. Counts them.
  History of_pages(const SequenceSlice& slice, int32_t i, Isa isa, const std::vector<float>& q,
                   const History& history) {
    History seen = history;
    constexpr int32_t kGroup = kHeads / kKvHeads;
    for (int32_t head = 0; head < kKvHeads; ++head) {
      const KvView view = kv_.view(slice.kv_sequence, 0, head, kv_.num_entries(slice.kv_sequence, 0, head) + i + 1);
      const float* rows[kGroup];
      for (int32_t g = 0; g < kGroup; ++g) {
        rows[g] = &q[static_cast<size_t>(((slice.first_row + i) * kHeads + head * kGroup + g) * kDim)];
      }
      PageBounds& bounds = *evidence_.pages;
      std::vector<int32_t> pages(static_cast<size_t>(bounds.num_pages_read(view.num_entries)));
      auto scratch = pool_.allocate(MemoryTag::kActivations,
                                    static_cast<size_t>(bounds.scratch_floats(0, view, kGroup)) * sizeof(float) + 64);
      pages.resize(static_cast<size_t>(bounds.choose(isa, Precision::kExact, 0, head, view,
                                                     {.queries = rows, .num_rows = kGroup, .scale = 0.25f},
                                                     pages.data(), reinterpret_cast<float*>(scratch->data()))));
      seen.positions[static_cast<size_t>(head)].clear();
      for (const int32_t page : pages) {
        const int32_t end = std::min((page + 1) * bounds.page_entries(), view.num_entries);
        for (int32_t entry = page * bounds.page_entries(); entry < end; ++entry) {
          seen.positions[static_cast<size_t>(head)].push_back(
              history.positions[static_cast<size_t>(head)][static_cast<size_t>(entry)]);
        }
      }
      // A block is read whole, whichever of its pages is chosen.
      std::set<int32_t> blocks;
      for (const int32_t page : pages) blocks.insert(page * bounds.page_entries() / kKvBlockSize);
      for (const int32_t block : blocks) num_read_ += std::min(kKvBlockSize, view.num_entries - block * kKvBlockSize);
      num_seen_ += slice.first_token + i + 1;
    }
    return seen;
  }

  void check_row(const SequenceSlice& slice, int32_t i, int32_t window, const std::vector<float>& q,
                 const std::vector<float>& out, const History& history) const {
    const int32_t position = slice.first_token + i;
    const int32_t first = window > 0 ? std::max(0, position - window + 1) : 0;
    for (int32_t head = 0; head < kHeads; ++head) {
      const int64_t row = ((slice.first_row + i) * kHeads + head) * kDim;
      const int32_t kv_head = head / (kHeads / kKvHeads);
      std::vector<double> expected(kDim);
      double denominator = 0.0;
      for (const int32_t entry : history.positions[static_cast<size_t>(kv_head)]) {
        if (entry < first || entry > position) continue;
        const float* key = &history.keys[(entry * kKvHeads + kv_head) * kDim];
        double score = 0.0;
        for (int d = 0; d < kDim; ++d) score += double{q[row + d]} * double{key[d]};
        const double weight = std::exp(score * 0.25);
        denominator += weight;
        for (int d = 0; d < kDim; ++d) {
          expected[d] += weight * double{history.values[(entry * kKvHeads + kv_head) * kDim + d]};
        }
      }
      for (int d = 0; d < kDim; ++d) ASSERT_NEAR(out[row + d], expected[d] / denominator, 2e-5) << position;
    }
  }

  MemoryPool pool_{size_t{128} << 20};
  KvCache kv_;
  std::map<SequenceId, History> histories_;
  uint32_t seed_ = 0;
  bool reads_pages_ = false;  // tokens are generated ones, by the evidence's pages
  KvEvidence evidence_;
  int64_t num_read_ = 0;
  int64_t num_seen_ = 0;
};

TEST_F(PagedAttentionTest, MatchesTheDefinitionForMixedChunksAndDecodes) {
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    const SequenceId a = kv_.create();
    const SequenceId b = kv_.create();
    const SequenceId c = kv_.create();
    step({{a, 70}, {b, 1}}, 0, 2, isa);
    step({{b, 33}, {a, 1}, {c, 5}}, 0, 1, isa);
    step({{a, 1}, {b, 1}, {c, 1}}, 0, 2, isa);
    for (const SequenceId id : {a, b, c}) kv_.release(id);
  }
}

TEST_F(PagedAttentionTest, GeneratedTokensReadTheirPagesAndTellHowMuchThatIs) {
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    for (const KvPageReader& reader : {KvPageReader{.num_tokens = 160, .num_dense_layers = 0, .page_entries = 16},
                                       KvPageReader{.num_tokens = 1100, .num_dense_layers = 0, .page_entries = 16},
                                       KvPageReader{.num_tokens = 160, .num_dense_layers = 0},
                                       KvPageReader{.ratio = 0.3, .num_dense_layers = 0, .page_entries = 16},
                                       KvPageReader{.ratio = 0.3, .num_dense_layers = 0}}) {
      const SequenceId a = kv_.create();
      reads_pages_ = false;
      step({{a, 1300}}, 0, 2, isa);
      keep(a, [](int32_t head, int32_t entry) { return entry % 9 != head; });
      reads_pages_ = true;
      num_read_ = num_seen_ = 0;
      evidence_.pages = std::make_unique<PageBounds>(pool_, kv_.config().layers, reader, 2000);
      const auto expect_all_pages_known = [&] {
        for (int32_t head = 0; head < kKvHeads; ++head) {
          EXPECT_EQ(evidence_.pages->num_known(0, head), kv_.num_entries(a, 0, head) / reader.page_entries);
        }
      };
      for (int i = 0; i < 20; ++i) step({{a, 1}}, 0, 2, isa);
      step({{a, 19}}, 0, 2, isa);  // as after a preemption
      expect_all_pages_known();
      constexpr int64_t kEntryBytes = 2 * kDim * 4;
      EXPECT_EQ(evidence_.pages->reads().bytes, num_read_ * kEntryBytes);
      EXPECT_EQ(evidence_.pages->reads().bytes_of_all, num_seen_ * kEntryBytes);
      EXPECT_LT(num_read_, num_seen_ * (reader.num_tokens == 1100 ? 100 : 60) / 100);
      EXPECT_GT(num_read_, num_seen_ / 10);
      evidence_ = {};
      kv_.release(a);
    }
  }
}

TEST_F(PagedAttentionTest, PagesOfAPromptAreLearntWhileItIsComputed) {
  for (const int32_t page_entries : {16, 32}) {
    const KvPageReader reader{.num_tokens = 160, .num_dense_layers = 0, .page_entries = page_entries};
    const SequenceId a = kv_.create();
    step({{a, 100}}, 0, 2, select_isa());  // of a prefix that others computed
    evidence_.pages = std::make_unique<PageBounds>(pool_, kv_.config().layers, reader, 2000);
    for (const int32_t num_tokens : {3, 1, 29, 5, 300, 1}) {
      step({{a, num_tokens}}, 0, 2, select_isa());
      for (int32_t head = 0; head < kKvHeads; ++head) {
        EXPECT_EQ(evidence_.pages->num_known(0, head), kv_.num_tokens(a) / page_entries);
      }
    }
    EXPECT_EQ(evidence_.pages->reads().bytes, 0) << "a prompt's tokens read all entries, and are not counted";
    evidence_ = {};
    kv_.release(a);
  }
}

TEST_F(PagedAttentionTest, PagesOfARepetitionAreNotLearnt) {
  const SequenceId a = kv_.create();
  evidence_.pages = std::make_unique<PageBounds>(pool_, kv_.config().layers,
                                                 KvPageReader{.num_tokens = 160, .num_dense_layers = 0}, 2000);
  step({{a, 70}}, 0, 2, select_isa());
  constexpr int32_t kRepeated = 40;
  ASSERT_TRUE(kv_.reserve(a, kRepeated));
  ForwardBatch batch;
  batch.slices.push_back({.kv_sequence = a,
                          .num_tokens = kRepeated,
                          .first_token = 70,
                          .evidence = &evidence_,
                          .repeated_chunk = {.begin = 0, .end = kRepeated}});
  ThreadPool threads(2);
  Scratch scratch(pool_);
  RouterTelemetry telemetry(0, 0, 0);
  ForwardContext ctx{.compute = {.threads = threads, .scratch = scratch, .isa = select_isa(), .precision = {}},
                     .kv = kv_,
                     .telemetry = telemetry};
  const std::vector<float> keys = test::random_floats(kRepeated * kKvHeads * kDim, 1);
  write_kv(ctx, batch, 0, {.num_heads = kHeads, .num_kv_heads = kKvHeads, .key_dim = kDim, .value_dim = kDim},
           keys.data(), keys.data());
  EXPECT_EQ(evidence_.pages->num_known(0, 0), 2);
}

// Few rows over several splits of 512 entries: split over the threads.
TEST_F(PagedAttentionTest, LongContextsAreSplitAndMerged) {
  const SequenceId a = kv_.create();
  step({{a, 1100}}, 0, 2, select_isa());
  step({{a, 1}}, 0, 2, select_isa());
  step({{a, 3}}, 0, 2, select_isa());
}

TEST_F(PagedAttentionTest, AWindowHidesWhatLiesBehindIt) {
  const SequenceId a = kv_.create();
  step({{a, 600}}, 40, 2, select_isa());
  step({{a, 1}}, 40, 2, select_isa());
  step({{a, 600}}, 530, 2, select_isa());
}

TEST_F(PagedAttentionTest, HeadsMayHaveLostDifferentEntries) {
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    const SequenceId a = kv_.create();
    const SequenceId b = kv_.create();
    step({{a, 1300}, {b, 40}}, 0, 2, isa);
    keep(a, [](int32_t head, int32_t entry) { return head == 0 ? entry % 7 == 0 : entry < 4 || entry > 500; });
    step({{b, 1}, {a, 1}}, 0, 2, isa);
    step({{a, 70}, {b, 3}}, 0, 1, isa);
    keep(a, [](int32_t head, int32_t entry) { return head == 1 || entry > 100; });
    step({{a, 1}, {b, 1}}, 0, 2, isa);
    kv_.release(a);
    kv_.release(b);
  }
}

// The last token's output over 40 tokens in a cache of the given codec.
std::vector<float> attend_at(Precision precision, KvCodec codec) {
  constexpr int32_t kTokens = 40;
  MemoryPool pool(size_t{16} << 20);
  KvCache kv(pool, {.layers = {{kKvHeads, kDim, kDim, false}},
                    .codec = codec,
                    .capacity_bytes = size_t{2} << 20,
                    .prefix_cache = false});
  const SequenceId sequence = kv.create();
  EXPECT_TRUE(kv.reserve(sequence, kTokens));
  ForwardBatch batch;
  batch.slices.push_back({.kv_sequence = sequence, .first_row = 0, .num_tokens = kTokens, .first_token = 0});
  for (int32_t i = 0; i < kTokens; ++i) {
    batch.tokens.push_back(i);
    batch.positions.push_back(i);
    batch.roles.push_back(TokenRole::kPrompt);
  }
  ThreadPool threads(1);
  Scratch scratch(pool);
  RouterTelemetry telemetry(0, 0, 0);
  // The reference has every arithmetic on every machine.
  ForwardContext ctx{
      .compute = {.threads = threads, .scratch = scratch, .isa = Isa::kReference, .precision = precision},
      .kv = kv,
      .telemetry = telemetry};
  const AttentionSpec spec{
      .num_heads = kHeads, .num_kv_heads = kKvHeads, .key_dim = kDim, .value_dim = kDim, .scale = 0.25f};
  const std::vector<float> q = test::random_floats(kTokens * kHeads * kDim, 1);
  const std::vector<float> k = test::random_floats(kTokens * kKvHeads * kDim, 2);
  const std::vector<float> v = test::random_floats(kTokens * kKvHeads * kDim, 3);
  std::vector<float> out(q.size());
  write_kv(ctx, batch, 0, spec, k.data(), v.data());
  paged_attention(ctx, batch, 0, spec, q.data(), out.data());
  return {out.end() - kHeads * kDim, out.end()};
}

TEST(PagedAttention, RoundsItsOperandsToBf16OnlyWhereEntriesAreBf16AndPrecisionIsFast) {
  const std::vector<float> plain = attend_at(Precision::kExact, KvCodec::kF32);
  EXPECT_EQ(attend_at(Precision::kFast, KvCodec::kF32), plain);
  const std::vector<float> exact = attend_at(Precision::kExact, KvCodec::kBF16);
  const std::vector<float> fast = attend_at(Precision::kFast, KvCodec::kBF16);
  EXPECT_NE(exact, plain);
  EXPECT_NE(fast, exact);
  for (size_t i = 0; i < fast.size(); ++i) EXPECT_NEAR(fast[i], exact[i], 0x1p-7) << i;
}

}  // namespace
}  // namespace witan
