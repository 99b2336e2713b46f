#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention/kv_block.h"
#include "kv/kv_aside.h"
#include "kv/policy/kv_budget.h"
#include "kv/policy/kv_compression_point.h"
#include "kv/policy/kv_scorer.h"
#include "kv/policy/kv_span.h"

namespace witan {

// Whose entries compete for the same budget.
enum class KvScope : uint8_t {
  kHead,   // those of a kv head of a layer: all heads keep equally many
  kLayer,  // those of all heads of a layer
  kModel,  // those of all heads of all layers
};

// How the budget is divided over the layers, unless they compete for it.
enum class KvLayerBudget : uint8_t {
  kUniform,
  kPyramid,    // less from layer to layer (PyramidKV, arXiv 2406.02069)
  kLazy,       // layers that look at little but their protected entries keep those, the others all (SimLayerKV, arXiv
               // 2410.13846)
  kTable,      // by KvPolicy::layer_shares
  kComposite,  // by how much the heads' i-th best entries are worth together (KVCompose, arXiv 2509.05165)
};

// Generated tokens read only the pages of entries that may matter to them, the prompt's tokens all (Quest, Tang et
// al., arXiv 2406.10774).
struct KvPageReader {
  // What a token reads of each kv head, in whole pages, at least 3 of them: so many entries, rounded down, or where
  // `ratio` is more than 0 that share of those that the head has by then, rounded up.
  int32_t num_tokens = 2048;
  double ratio = 0.0;
  int32_t num_dense_layers = 2;         // the first so many layers are read whole
  int32_t page_entries = kKvBlockSize;  // a block or half of one

  int32_t num_pages(int64_t num_entries) const;
};

// What generated tokens have read by pages, over all layers: the bytes of the blocks that have a page that they read,
// without those of the bounds that pages are chosen by.
struct KvReads {
  int64_t bytes = 0;
  int64_t bytes_of_all = 0;  // had they read every entry of the text that they see, and none been dropped
};

// What becomes of the values of entries that are dropped, beside their keys: they go into entries that stay. See
// value_merging.h.
struct KvMerging {
  enum class Into : uint8_t {
    kSimilar,  // the one whose key is most similar
    kNext,     // the next ones
  };
  Into into = Into::kSimilar;
  float threshold = 0.0f;  // kSimilar: but not where the cosine of the keys is less
  int32_t num_next = 32;   // kNext
};

// The scores choose how many entries each head keeps, and of those the first `first_share`; the others are the ones
// of which (score + epsilon) * ValueNorms is largest (CriticalKV, Feng et al., arXiv 2502.03805).
struct KvSecondStage {
  double first_share = 0.5;  // protected entries count
  double epsilon = 1e-4;
};

// Entries that are no longer among the most recent of their head are demoted: rounded to a codec of fewer bits (as
// the residual of KIVI, Liu et al., arXiv 2402.02750; codecs by layer: KVTuner, Li et al., arXiv 2502.04420), or left
// with the channels of their keys that matter most (ThinK, Xu et al., arXiv 2407.21018), or both.
struct KvDemotionRule {
  // One for all layers, or if is_by_layer one for each without a window; none: the cache's own.
  std::vector<KvCodec> codecs = {};
  bool is_by_layer = false;
  int32_t num_recent = 128;
  double key_share = 1.0;        // of the channels of a key, that stay; see choose_key_channels
  int32_t num_query_tokens = 0;  // they are chosen by the queries of so many last tokens

  bool drops_channels() const { return key_share < 1.0; }

  // For a model whose cache has entries of type `own`. Throws Error(kInvalidArgument) for one of other layers.
  KvDemotion of(std::span<const KvLayerSpec> layers, KvCodec own) const;
};

// The last tokens whose attention a guard looks at, or a merging, of policies that want the queries of fewer.
inline constexpr int32_t kKvLastTokens = 32;

// Documents of the prompt have the entries of the same tokens at the beginning of a text, moved to where they stand,
// but for some tokens, which are computed again where they are: see sched/reuse_plan.h.
struct KvReuse {
  enum class By : uint8_t {
    kNone,
    kRandom,
    kValues,  // whose values deviate most in the layer behind the probed ones (CacheBlend, arXiv 2405.16444, 4.3)
    kRoutes,  // whose weights of experts deviate most, summed over the probed layers
  };
  By by = By::kNone;
  double share = 0.0;  // of the documents' tokens, that are computed again
  // Of each document, that are so before others (EPIC, arXiv 2410.15332), if need be beyond the share.
  int32_t num_first = 0;
  int32_t num_layers = 1;  // probed: of which all tokens are computed where they are

  bool probes() const { return by == By::kValues || by == By::kRoutes; }
  // Of documents of so many tokens each.
  int32_t num_recomputed(std::span<const int32_t> num_tokens) const;
};

// What a policy leaves to be chosen when a request arrives: see kv_auto.h.
struct KvAuto {
  double floor = 0.5;           // the least share of the prompt's entries that is ever chosen by the room
  bool by_room = false;         // the budget is chosen too, by the room that the KV cache has
  std::string rest;             // the policy's text without the part that leaves the choice
  std::string unbudgeted_rest;  // and without keep, tokens and floor
};

// How a sequence's KV cache is made smaller, or less of it read: a score, and what is done with it. Lossy, but for a
// budget of everything.
//
// Once the prompt is computed, every kv head of every layer without a sliding window keeps its best entries and drops
// the others. What is generated then is kept, or judged in its turn. Entries keep their positions.
struct KvPolicy {
  std::string text;                        // as parse_kv_policy reads it
  std::shared_ptr<const KvScorer> scorer;  // nullptr: nothing is dropped
  std::optional<KvPageReader> pages;
  std::optional<KvMerging> merging;        // of what is dropped; none: it is lost
  std::optional<KvDemotionRule> demotion;  // of what stays, older entries
  bool demotes_others = false;             // but of what does not stay, all entries, which are not dropped then
  std::optional<KvReuse> reuse;            // of documents in the prompt

  // What becomes of entries that do not stay: they lie there, not read, and may come back when entries are judged
  // again, as all are then (recallable eviction: ArkVale, Chen et al., NeurIPS 2024); none: they are lost.
  std::optional<KvAside> aside;

  KvBudget budget;  // of what a head keeps of all tokens, or of the prompt where generated ones have a budget

  // When so many tokens were generated since, entries are judged again; 0: never, what is generated is kept.
  int32_t every = 0;
  // Entries are not judged at points of the text, but where others want their room, or the text's own next ones,
  // once the prompt is computed; and again when `every` tokens were generated since. So what the text becomes
  // depends on what else runs.
  bool under_pressure = false;
  // > 0: while the prompt is computed entries are judged too, whenever so many tokens of it were, with the budget of
  // those so far. So heads never hold more than that and so many, on average, but for a guard.
  int32_t prefill_every = 0;
  // Generated tokens have a pool of their own: what the prompt has left stays for good, and only they are judged.
  std::optional<KvBudget> generated_budget;
  // That pool grows: it has room for the most recent tokens alone at first, and for one more at regular intervals
  // until it has its whole budget when all tokens are generated (the adaptive strategy of SCOPE, Wu et al., arXiv
  // 2412.13649, section 3.3).
  bool generated_grows = false;
  int32_t max_generated = 0;  // tokens, for a pool that grows; known when a request arrives

  // Entries that stay whatever their score, where the budget has room for them: sinks first, then the most recent.
  int32_t num_sinks = 0;
  int32_t num_recent = 0;
  double recent_share = 0.0;  // of the budget: of the most recent at least so many stay

  std::optional<KvSecondStage> second_stage;

  int32_t chunk = 1;           // > 1: so many neighbouring entries stay or go together
  std::string span_separator;  // not empty: the parts of the prompt that end with it stay or go together
  int32_t share_chunk = 0;     // > 0: the same share of every so many neighbouring entries stays (FINCH)
  bool chunk_by_sum = true;    // a chunk's or part's score is the sum of its entries', or their mean
  bool heads_agree = false;    // all heads of a layer keep the entries with the best sum of their scores
  int32_t reused_layers = 1;   // > 1: of so many neighbouring layers the first is scored for all
  KvScope scope = KvScope::kHead;
  double head_floor = 0.0;  // share of its equal part that no head goes below, in the wider scopes
  KvLayerBudget layers = KvLayerBudget::kUniform;
  double lazy_threshold = 0.9;  // of attention: a layer that looks at more than that of its protected entries is lazy
  double pyramid_slope = 20.0;  // of the last layer's budget, beyond the recent entries: 1 / pyramid_slope
  // Of the budget beyond the protected entries, by layer without a window, in any unit; not all 0.
  std::vector<double> layer_shares;

  // > 0: where less of what the last tokens attend to would stay than this share, on average over the heads, everything
  // does.
  double guard = 0.0;

  // Not empty: by layer without a window, a character per kv head. Heads with '1' keep everything, those with '0' their
  // protected entries (DuoAttention, arXiv 2410.10819).
  std::vector<std::string> head_kinds;

  // Then the other members are of a choice that may be made: the method that fits any model, and the least budget.
  std::optional<KvAuto> automatic;

  KvWants wants() const;

  // Of num_entries entries of which num_kept stay: the sinks, if they are among them, and the most recent that stay in
  // any case.
  struct Protected {
    int32_t num_sinks;
    int32_t num_recent;
    int32_t count() const { return num_sinks + num_recent; }
  };
  Protected num_protected(int32_t num_entries, int32_t num_kept, bool has_sinks = true) const;

  // Whether the policy itself says how much stays, and no budget does.
  bool has_own_budget() const { return layers == KvLayerBudget::kLazy || !head_kinds.empty(); }

  // Whether entries that stayed once may be dropped later.
  bool judges_again() const { return every > 0 || prefill_every > 0; }

  // Whether all heads keep equally many entries.
  bool heads_keep_alike() const {
    return scope == KvScope::kHead && layers == KvLayerBudget::kUniform && head_kinds.empty();
  }

  // Entries that each head keeps, or the mean over the heads, when a text of so many tokens is judged. Where layers may
  // be lazy, the most that it is when one is.
  int32_t num_kept(int32_t num_prompt_tokens, int32_t num_generated_tokens = 0) const;

  // Of the pool of generated tokens, with generated_budget, when there are so many.
  int32_t num_generated_kept(int32_t num_generated_tokens) const;
  // Those of a pool that grows that stay in any case: the most recent that its whole budget protects.
  int32_t num_recent_of_pool() const;

  // The same when so many tokens are computed, since the last time that they were judged.
  int32_t num_entries(int32_t num_prompt_tokens, int32_t num_tokens) const;

  // When entries are judged in a text of so many tokens, as long as there is something to drop; and demoted: where
  // entries of the prompt are judged, and from its end on whenever a block of them is no longer recent. None under
  // pressure.
  std::vector<KvCompressionPoint> compression_points(int32_t num_prompt_tokens, int32_t num_tokens) const;

 private:
  std::vector<KvCompressionPoint> judgements(int32_t num_prompt_tokens, int32_t num_tokens) const;
  std::vector<int32_t> times_in_prompt(int32_t num_prompt_tokens, int32_t num_tokens) const;
};

// A policy from parts with commas between them:
//
//   snapkv(window=32),adakv(floor=0.2),keep=0.2,every=64
//
// Parts are the methods and refinements of kv_policy_parts(), and the keys keep (a ratio), tokens, floor, sinks,
// recent, when, every, prefill_every, generated_keep, generated_tokens, generated_growth, guard, action, k, v and
// residual.
// The same may be said as a JSON object. Throws Error(kInvalidArgument) naming what is unknown, missing, out of
// range or cannot be combined.
KvPolicy parse_kv_policy(std::string_view text);

// What parts there are, for help texts and tests.
struct KvPolicyPart {
  std::string_view name;
  bool is_method;  // says what stays, within a budget; the others refine one, or need no budget
  std::string_view summary;
};
std::span<const KvPolicyPart> kv_policy_parts();

}  // namespace witan
