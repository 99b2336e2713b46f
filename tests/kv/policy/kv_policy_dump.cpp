// Runs KV policies over made-up entries and queries, for kv_policy_numpy_test.py.
//
//   kv_policy_dump FOLDER POLICY...
//
// Writes FOLDER/keys.f32, values.f32 [layers, heads, entries, dim] and queries.f32 [layers, tokens, heads * group,
// dim], the queries of the last tokens, masses.f32 and norms.f32 [layers, heads, entries], attention had so far and
// weights of values, and prints a JSON line with these numbers, then one per policy with what it keeps.
#include <nlohmann/json.hpp>

#include <cmath>
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
constexpr int64_t kQueryFloats = int64_t{kHeads} * kGroup * kDim;

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
  Values values{int64_t{kLayers} * kHeads * kEntries * kDim, 2};
  Values queries{int64_t{kLayers} * kQueryTokens * kQueryFloats, 3};
  Values masses{int64_t{kLayers} * kHeads * kEntries, 4};
  Values norms{int64_t{kLayers} * kHeads * kEntries, 6};

  MadeUp() {
    for (int64_t i = 0; i < int64_t{kLayers} * kHeads * kEntries; ++i) *norms.at(i) = std::abs(*norms.at(i));
  }

  void write(const std::string& folder) const {
    keys.write(folder + "/keys.f32");
    values.write(folder + "/values.f32");
    queries.write(folder + "/queries.f32");
    masses.write(folder + "/masses.f32");
    norms.write(folder + "/norms.f32");
  }

  // What a policy wants to know of them.
  KvEvidence evidence(MemoryPool& pool, std::span<const KvLayerSpec> layers, const KvWants& wants) {
    KvEvidence evidence;
    if (wants.num_query_tokens > 0) evidence.window = window(pool, wants.num_query_tokens);
    if (wants.attention_mass) evidence.mass = std::make_unique<AttentionMass>(pool, layers, kEntries);
    if (wants.value_norms) evidence.value_norms = std::make_unique<ValueNorms>(pool, layers, kEntries);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t head = 0; head < kHeads; ++head) {
        const int64_t at = (int64_t{layer} * kHeads + head) * kEntries;
        if (wants.attention_mass) std::copy_n(masses.at(at), kEntries, evidence.mass->of(layer, head));
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
};

void run(int argc, char** argv) {
  const std::string folder = argv[1];
  MemoryPool pool(size_t{256} << 20);
  KvCacheConfig config;
  config.layers.assign(kLayers, {.num_kv_heads = kHeads, .key_dim = kDim, .value_dim = kDim});
  config.codec = KvCodec::kF32;
  config.capacity_bytes = size_t{64} << 20;
  KvCache kv(pool, config);
  const SequenceId sequence = kv.create();
  if (!kv.reserve(sequence, kEntries)) fail(ErrorCode::kOutOfMemory, "no room");
  MadeUp made_up;
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t head = 0; head < kHeads; ++head) {
      for (int32_t i = 0; i < kEntries; ++i) {
        const int64_t offset = ((int64_t{layer} * kHeads + head) * kEntries + i) * kDim;
        const KvCache::Slot slot = kv.slot(sequence, layer, head, i);
        kv_store(kv.block_format(layer), slot.block, slot.slot, made_up.keys.at(offset), made_up.values.at(offset));
      }
    }
  }
  kv.commit(sequence, std::vector<TokenId>(kEntries, 1), std::vector<TokenRole>(kEntries, TokenRole::kPrompt));
  made_up.write(folder);
  using nlohmann::json;
  std::cout << json{{"layers", kLayers},   {"heads", kHeads}, {"group", kGroup},       {"dim", kDim},
                    {"entries", kEntries}, {"scale", kScale}, {"tokens", kQueryTokens}}
            << "\n";

  ThreadPool threads(2);
  Scratch scratch(pool);
  ComputeContext ctx{.threads = threads, .scratch = scratch, .isa = select_isa(), .precision = Precision::kExact};
  for (int i = 2; i < argc; ++i) {
    const KvPolicy policy = parse_kv_policy(argv[i]);
    const KvEvidence evidence = made_up.evidence(pool, config.layers, policy.wants());
    const auto kept = choose_kept(ctx, kv, sequence, {.num_prompt_tokens = kEntries}, policy, &evidence).kept;
    std::cout << json{{"policy", argv[i]}, {"kept", kept}} << "\n";
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
