// Runs KV policies over made-up entries and queries, for kv_policy_numpy_test.py.
//
//   kv_policy_dump FOLDER POLICY...
//
// Writes FOLDER/keys.f32, values.f32 [layers, heads, entries, dim] and queries.f32 [layers, tokens, heads * group,
// dim], the queries of the last tokens, and masses.f32 [layers, heads, entries], attention had so far, and prints a
// JSON line with these numbers, then one per policy with what it keeps, and with the values [tables, kept, dim] then if
// it merges any.
#include <nlohmann/json.hpp>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <random>

#include "base/error.h"
#include "kv/policy/kv_compression.h"

namespace witan {
namespace {

constexpr int32_t kLayers = 4;
constexpr int32_t kHeads = 2;
constexpr int32_t kGroup = 3;
constexpr int32_t kDim = 16;
constexpr int32_t kEntries = 700;  // more than one split
constexpr int32_t kQueryTokens = 64;
constexpr float kScale = 0.25f;

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

SequenceId fill(KvCache& kv, Values& keys, Values& values) {
  const SequenceId sequence = kv.create();
  if (!kv.reserve(sequence, kEntries)) fail(ErrorCode::kOutOfMemory, "no room");
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t head = 0; head < kHeads; ++head) {
      for (int32_t i = 0; i < kEntries; ++i) {
        const int64_t offset = ((int64_t{layer} * kHeads + head) * kEntries + i) * kDim;
        const KvCache::Slot slot = kv.slot(sequence, layer, head, i);
        kv_store(kv.block_format(layer), slot.block, slot.slot, keys.at(offset), values.at(offset));
      }
    }
  }
  kv.commit(sequence, std::vector<TokenId>(kEntries, 1), std::vector<TokenRole>(kEntries, TokenRole::kPrompt));
  return sequence;
}

// The values [tables, entries, dim] of a sequence.
std::vector<std::vector<std::vector<float>>> values_of(const KvCache& kv, SequenceId sequence) {
  std::vector<std::vector<std::vector<float>>> tables;
  for (int32_t table = 0; table < kLayers * kHeads; ++table) {
    const int32_t layer = table / kHeads;
    const KvView view = kv.view(sequence, layer, table % kHeads, kv.num_entries(sequence, layer, table % kHeads));
    tables.emplace_back(static_cast<size_t>(view.num_entries), std::vector<float>(kDim));
    for (int32_t i = 0; i < view.num_entries; ++i) {
      kv_load_value(view.format, view.blocks[i / kKvBlockSize], i % kKvBlockSize,
                    tables.back()[static_cast<size_t>(i)].data());
    }
  }
  return tables;
}

void run(int argc, char** argv) {
  const std::string folder = argv[1];
  MemoryPool pool(size_t{256} << 20);
  KvCacheConfig config;
  config.layers.assign(kLayers, {.num_kv_heads = kHeads, .key_dim = kDim, .value_dim = kDim});
  config.codec = KvCodec::kF32;
  config.capacity_bytes = size_t{64} << 20;
  KvCache kv(pool, config);
  Values keys(int64_t{kLayers} * kHeads * kEntries * kDim, 1);
  Values values(int64_t{kLayers} * kHeads * kEntries * kDim, 2);
  Values masses(int64_t{kLayers} * kHeads * kEntries, 4);
  Values queries(int64_t{kLayers} * kQueryTokens * kHeads * kGroup * kDim, 3);
  const SequenceId sequence = fill(kv, keys, values);
  keys.write(folder + "/keys.f32");
  values.write(folder + "/values.f32");
  queries.write(folder + "/queries.f32");
  masses.write(folder + "/masses.f32");
  using nlohmann::json;
  std::cout << json{{"layers", kLayers},   {"heads", kHeads}, {"group", kGroup},       {"dim", kDim},
                    {"entries", kEntries}, {"scale", kScale}, {"tokens", kQueryTokens}}
            << "\n";

  ThreadPool threads(2);
  Scratch scratch(pool);
  ComputeContext ctx{.threads = threads, .scratch = scratch, .isa = select_isa(), .precision = Precision::kExact};
  for (int i = 2; i < argc; ++i) {
    const KvPolicy policy = parse_kv_policy(argv[i]);
    const int32_t num_tokens = policy.wants().num_query_tokens;
    KvEvidence evidence;
    if (num_tokens > 0) {
      evidence.window =
          std::make_unique<QueryWindow>(pool, kLayers, kHeads * kGroup, kDim, kEntries - num_tokens, num_tokens);
    }
    if (policy.scorer->wants().attention_mass) {
      evidence.mass = std::make_unique<AttentionMass>(pool, config.layers, kEntries);
      for (int32_t layer = 0; layer < kLayers; ++layer) {
        for (int32_t head = 0; head < kHeads; ++head) {
          std::copy_n(masses.at((int64_t{layer} * kHeads + head) * kEntries), kEntries, evidence.mass->of(layer, head));
        }
      }
    }
    for (int32_t layer = 0; num_tokens > 0 && layer < kLayers; ++layer) {
      evidence.window->scoring(layer).scale = kScale;
      for (int32_t token = 0; token < num_tokens; ++token) {
        const int64_t row = int64_t{layer} * kQueryTokens + kQueryTokens - num_tokens + token;
        std::copy_n(queries.at(row * kHeads * kGroup * kDim), kHeads * kGroup * kDim,
                    evidence.window->queries(layer, kEntries - num_tokens + token));
      }
    }
    const KvChoice choice = choose_kept(ctx, kv, sequence, {.num_prompt_tokens = kEntries}, policy, &evidence);
    json line = {{"policy", argv[i]}, {"kept", choice.kept}};
    if (policy.merging) {
      const SequenceId merged = fill(kv, keys, values);
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
