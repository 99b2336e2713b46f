// Runs KV policies over made-up entries and queries, for kv_policy_numpy_test.py.
//
//   kv_policy_dump FOLDER POLICY...
//
// Writes FOLDER/keys.f32 [layers, heads, entries, dim], values.f32 [layers, heads, entries, value_dim] and queries.f32
// [layers, tokens, heads * group, dim], the queries of the last tokens, masses.f32 and norms.f32 [layers, heads,
// entries], attention had so far (or when the text was repeated) and weights of values, unrotated.f32 [layers, entries,
// heads * group, dim], the queries of all tokens before RoPE, and sinks.f32 [heads * group], of the last layer alone,
// and prints a JSON line with these numbers and where the parts of the text begin, then one per policy with what it
// keeps, with the values [tables, kept, value_dim] then if it merges any, and by table with the channels that older
// keys keep if these lose some. Of a policy that demotes entries it writes all that stay, as they are read then, to the
// file that the line names, [tables, kept, dim + value_dim], and of one that reads pages the line has those that each
// of the queries reads, [tables, tokens, pages], null where a layer is read whole.
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <random>

#include "base/error.h"
#include "kv/policy/key_channels.h"
#include "kv/policy/kv_compression.h"
#include "kv/policy/page_bounds.h"

namespace witan {
namespace {

constexpr int32_t kLayers = 4;
constexpr int32_t kHeads = 2;
constexpr int32_t kGroup = 3;
constexpr int32_t kDim = 16;
constexpr int32_t kValueDim = 40;  // more than one group of components that share a range, and a part of one
constexpr int32_t kEntries = 700;  // more than one split
constexpr int32_t kQueryTokens = 64;
constexpr float kScale = 0.25f;
constexpr int64_t kQueryFloats = int64_t{kHeads} * kGroup * kDim;

// Of each layer: which components are rotated, and how.
struct Rope {
  RopeConfig config;
  int32_t offset;
};
const Rope kRopes[kLayers] = {
    {.config = {.layout = RopeLayout::kHalves, .dim = 16, .theta = 10000.0}, .offset = 0},
    {.config = {.layout = RopeLayout::kPairs, .dim = 6, .theta = 100.0}, .offset = 10},
    {.config = {.layout = RopeLayout::kHalves, .dim = 8, .theta = 50.0}, .offset = 0},
    {.config = {.layout = RopeLayout::kPairs, .dim = 16, .theta = 1e6}, .offset = 0},
};

class Values {
 public:
  Values(int64_t count, uint32_t seed) : floats_(static_cast<size_t>(count)) {
    std::mt19937 random(seed);
    // Sums of three uniform numbers: nearly normal, and the same in every standard library.
    for (float& x : floats_) x = uniform(random) + uniform(random) + uniform(random);
  }
  float* at(int64_t offset) { return floats_.data() + offset; }
  void write(const std::string& path) const {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(floats_.data()),
               static_cast<std::streamsize>(floats_.size() * sizeof(float)));
  }

 private:
  static float uniform(std::mt19937& random) { return static_cast<float>(random() >> 8) * 0x1p-23f - 1.0f; }
  std::vector<float> floats_;
};

struct MadeUp {
  Values keys{int64_t{kLayers} * kHeads * kEntries * kDim, 1};
  Values values{int64_t{kLayers} * kHeads * kEntries * kValueDim, 2};
  Values queries{int64_t{kLayers} * kQueryTokens * kQueryFloats, 3};
  Values masses{int64_t{kLayers} * kHeads * kEntries, 4};
  Values unrotated{int64_t{kLayers} * kEntries * kQueryFloats, 5};
  Values norms{int64_t{kLayers} * kHeads * kEntries, 6};
  Values sinks{int64_t{kHeads} * kGroup, 7};
  std::vector<RopeTable> ropes;

  MadeUp() {
    for (const Rope& rope : kRopes) ropes.emplace_back(rope.config);
    for (int64_t i = 0; i < int64_t{kLayers} * kHeads * kEntries; ++i) *norms.at(i) = std::abs(*norms.at(i));
    // As much as many entries together.
    for (int32_t i = 0; i < kHeads * kGroup; ++i) *sinks.at(i) = 6.0f + 2.0f * *sinks.at(i);
    // Queries that are not centred, and whose components belong together.
    for (int64_t row = 0; row < int64_t{kLayers} * kEntries * kHeads * kGroup; ++row) {
      float* query = unrotated.at(row * kDim);
      for (int32_t i = 0; i + 1 < kDim; ++i)
        query[i] = 0.5f * query[i] + 0.5f * query[i + 1] + 0.125f * static_cast<float>(i % 5) - 0.25f;
    }
  }

  void write(const std::string& folder) const {
    keys.write(folder + "/keys.f32");
    values.write(folder + "/values.f32");
    queries.write(folder + "/queries.f32");
    masses.write(folder + "/masses.f32");
    unrotated.write(folder + "/unrotated.f32");
    norms.write(folder + "/norms.f32");
    sinks.write(folder + "/sinks.f32");
  }

  // What a policy wants to know of them.
  KvEvidence evidence(MemoryPool& pool, std::span<const KvLayerSpec> layers, const KvWants& wants) {
    KvEvidence evidence;
    if (wants.num_query_tokens > 0) evidence.window = window(pool, wants.num_query_tokens);
    if (wants.attention_mass) evidence.mass = std::make_unique<AttentionMass>(pool, layers, kEntries);
    if (wants.value_norms) evidence.value_norms = std::make_unique<ValueNorms>(pool, layers, kEntries);
    if (wants.moments) evidence.moments = moments(pool, layers, *wants.moments);
    if (wants.repetitions) {
      evidence.repetition = std::make_unique<RepetitionAttention>(pool, layers, kEntries, wants.repetitions->num_sinks);
    }
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t head = 0; head < kHeads; ++head) {
        const int64_t at = (int64_t{layer} * kHeads + head) * kEntries;
        if (wants.attention_mass) std::copy_n(masses.at(at), kEntries, evidence.mass->of(layer, head));
        if (wants.repetitions) std::copy_n(masses.at(at), kEntries, evidence.repetition->of(layer, head));
        if (!wants.value_norms) continue;
        std::copy_n(norms.at(at), kEntries, evidence.value_norms->of(layer, head));
        evidence.value_norms->set_num_known(layer, head, kEntries);
      }
    }
    return evidence;
  }

 private:
  std::unique_ptr<QueryWindow> window(MemoryPool& pool, int32_t num_tokens) {
    const int32_t first = kEntries - num_tokens;
    auto window = std::make_unique<QueryWindow>(pool, kLayers, kHeads * kGroup, kDim, first, num_tokens);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      window->scoring(layer).scale = kScale;
      for (int32_t token = 0; token < num_tokens; ++token) {
        const int64_t row = int64_t{layer} * kQueryTokens + kQueryTokens - num_tokens + token;
        std::copy_n(queries.at(row * kQueryFloats), kQueryFloats, window->queries(layer, first + token));
      }
    }
    return window;
  }

  std::unique_ptr<QueryMoments> moments(MemoryPool& pool, std::span<const KvLayerSpec> layers,
                                        const KvWants::Moments& wanted) {
    auto moments = std::make_unique<QueryMoments>(pool, layers, kHeads * kGroup, wanted.order, wanted.first_token);
    const int32_t num_tokens = kEntries - wanted.first_token;
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      moments->scoring(layer) = {.scale = kScale,
                                 .sinks = layer + 1 == kLayers ? sinks.at(0) : nullptr,
                                 .rope = &ropes[static_cast<size_t>(layer)],
                                 .rope_offset = kRopes[layer].offset};
      const float* first = unrotated.at((int64_t{layer} * kEntries + wanted.first_token) * kQueryFloats);
      for (int32_t head = 0; head < kHeads * kGroup; ++head) {
        moments->add(layer, head, first + int64_t{head} * kDim, kQueryFloats, num_tokens);
      }
      moments->count(layer, num_tokens);
    }
    return moments;
  }
};

SequenceId fill(KvCache& kv, MadeUp& made_up) {
  const SequenceId sequence = kv.create();
  if (!kv.reserve(sequence, kEntries)) fail(ErrorCode::kOutOfMemory, "no room");
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t head = 0; head < kHeads; ++head) {
      for (int32_t i = 0; i < kEntries; ++i) {
        const int64_t entry = (int64_t{layer} * kHeads + head) * kEntries + i;
        const KvCache::Slot slot = kv.slot(sequence, layer, head, i);
        kv_store(kv.block_format(layer), slot.block, slot.slot, made_up.keys.at(entry * kDim),
                 made_up.values.at(entry * kValueDim));
      }
    }
  }
  kv.commit(sequence, std::vector<TokenId>(kEntries, 1), std::vector<TokenRole>(kEntries, TokenRole::kPrompt));
  return sequence;
}

// The view of all entries of a table.
KvView view_of(const KvCache& kv, SequenceId sequence, int32_t table) {
  const int32_t layer = table / kHeads;
  const int32_t head = table % kHeads;
  return kv.view(sequence, layer, head, kv.num_entries(sequence, layer, head));
}

// The values [tables, entries, value_dim] of a sequence.
std::vector<std::vector<std::vector<float>>> values_of(const KvCache& kv, SequenceId sequence) {
  std::vector<std::vector<std::vector<float>>> tables;
  for (int32_t table = 0; table < kLayers * kHeads; ++table) {
    const KvView view = view_of(kv, sequence, table);
    tables.emplace_back(static_cast<size_t>(view.num_entries), std::vector<float>(kValueDim));
    for (int32_t i = 0; i < view.num_entries; ++i) {
      kv_load_value(view.format, view.blocks[i / kKvBlockSize], i % kKvBlockSize,
                    tables.back()[static_cast<size_t>(i)].data());
    }
  }
  return tables;
}

// Writes the keys and values of a sequence, [tables, entries, dim + value_dim].
void write_entries(const KvCache& kv, SequenceId sequence, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  float entry[kDim + kValueDim];
  for (int32_t table = 0; table < kLayers * kHeads; ++table) {
    const KvView view = view_of(kv, sequence, table);
    for (int32_t i = 0; i < view.num_entries; ++i) {
      view.load(i, entry, entry + kDim);
      file.write(reinterpret_cast<const char*>(entry), sizeof(entry));
    }
  }
}

// The pages [tables, tokens, pages] of a sequence that tokens with the made-up queries would read one after the other,
// the query heads of a kv head together; null where a layer is read whole.
nlohmann::json pages_read(ComputeContext& ctx, MemoryPool& pool, const KvCache& kv, SequenceId sequence,
                          const KvPageReader& reader, MadeUp& made_up) {
  PageBounds bounds(pool, kv.config().layers, reader, kEntries);
  bounds.learn_anew(ctx.isa, ctx.threads, kv, sequence);
  nlohmann::json tables = nlohmann::json::array();
  for (int32_t table = 0; table < kLayers * kHeads; ++table) {
    const int32_t layer = table / kHeads;
    const int32_t head = table % kHeads;
    tables.push_back(nullptr);
    for (int32_t token = 0; bounds.has(layer) && token < kQueryTokens; ++token) {
      const KvView view = view_of(kv, sequence, table);
      const float* queries[kGroup];
      for (int32_t g = 0; g < kGroup; ++g) {
        const int64_t row = (int64_t{layer} * kQueryTokens + token) * kHeads * kGroup + head * kGroup + g;
        queries[g] = made_up.queries.at(row * kDim);
      }
      const ScratchScope scope(ctx.scratch);
      auto* scratch = ctx.scratch.allocate<float>(bounds.scratch_floats(layer, view, kGroup));
      std::vector<int32_t> pages(static_cast<size_t>(bounds.num_pages_read(view.num_entries)));
      pages.resize(static_cast<size_t>(bounds.choose(ctx.isa, ctx.precision, layer, head, view,
                                                     {.queries = queries, .num_rows = kGroup, .scale = kScale},
                                                     pages.data(), scratch)));
      tables.back().push_back(pages);
    }
  }
  return tables;
}

// Where the parts of the text begin: they are of 3 to 42 tokens.
std::vector<int32_t> made_up_parts() {
  std::mt19937 random(8);
  std::vector<int32_t> starts;
  for (int32_t start = 0; start < kEntries; start += 3 + static_cast<int32_t>(random() % 40)) starts.push_back(start);
  return starts;
}

void run(int argc, char** argv) {
  const std::string folder = argv[1];
  MemoryPool pool(size_t{256} << 20);
  KvCacheConfig config;
  config.layers.assign(kLayers, {.num_kv_heads = kHeads, .key_dim = kDim, .value_dim = kValueDim});
  config.codec = KvCodec::kF32;
  config.capacity_bytes = size_t{64} << 20;
  KvCache kv(pool, config);
  MadeUp made_up;
  const SequenceId sequence = fill(kv, made_up);
  made_up.write(folder);
  using nlohmann::json;
  json ropes = json::array();
  for (const Rope& rope : kRopes) {
    ropes.push_back({{"halves", rope.config.layout == RopeLayout::kHalves},
                     {"dim", rope.config.dim},
                     {"theta", rope.config.theta},
                     {"offset", rope.offset}});
  }
  const std::vector<int32_t> parts = made_up_parts();
  std::cout << json{{"layers", kLayers},      {"heads", kHeads},     {"group", kGroup}, {"dim", kDim},
                    {"value_dim", kValueDim}, {"entries", kEntries}, {"scale", kScale}, {"tokens", kQueryTokens},
                    {"ropes", ropes},         {"parts", parts}}
            << "\n";

  ThreadPool threads(2);
  Scratch scratch(pool);
  ComputeContext ctx{.threads = threads, .scratch = scratch, .isa = select_isa(), .precision = Precision::kExact};
  for (int i = 2; i < argc; ++i) {
    const KvPolicy policy = parse_kv_policy(argv[i]);
    const KvEvidence evidence = made_up.evidence(pool, config.layers, policy.wants());
    KvChoice choice;
    if (policy.scorer != nullptr) {
      KvText text{.num_prompt_tokens = kEntries};
      if (!policy.span_separator.empty()) text.span_starts = parts;
      choice = choose_kept(ctx, kv, sequence, text, policy, &evidence);
    }
    json line = {{"policy", argv[i]}, {"kept", choice.kept}};
    if (policy.demotion || policy.pages) {
      const SequenceId left = fill(kv, made_up);
      if (policy.scorer != nullptr && !kv.keep(left, choice.kept)) fail(ErrorCode::kOutOfMemory, "no room");
      if (policy.pages) line["pages"] = pages_read(ctx, pool, kv, left, *policy.pages, made_up);
      if (policy.demotion) {
        const KvDemotion demotion = policy.demotion->of(config.layers, config.codec);
        if (policy.demotion->drops_channels()) {
          line["channels"] = choose_key_channels(ctx.isa, threads, kv, left, demotion, *evidence.window);
          kv.choose_channels(left, line["channels"]);
        }
        if (!kv.demote(left, demotion, ctx.isa, threads)) fail(ErrorCode::kOutOfMemory, "no room");
        line["entries"] = "entries-" + std::to_string(i) + ".f32";
        write_entries(kv, left, folder + "/" + line["entries"].get<std::string>());
      }
      kv.release(left);
    }
    if (policy.merging) {
      const SequenceId merged = fill(kv, made_up);
      if (!kv.keep(merged, choice.kept, choice.merges)) fail(ErrorCode::kOutOfMemory, "no room");
      line["values"] = values_of(kv, merged);
      kv.release(merged);
    }
    std::cout << line << "\n";
  }
}

}  // namespace
}  // namespace witan

int main(int argc, char** argv) {
  try {
    witan::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kv_policy_dump: %s\n", error.what());
    return 1;
  }
}
