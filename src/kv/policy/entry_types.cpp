// Which types older entries are rounded to.
#include <algorithm>

#include "base/error.h"
#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

std::string known_codecs() {
  std::vector<std::string_view> names;
  for (const KvCodec codec : kKvCodecs) names.push_back(kv_codec_name(codec));
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

// Key and value types by layer, as KVTuner (Li et al., arXiv 2502.04420) searches them. Here the table is given.
void kv_tuner(PolicyBuilder& builder, PartArguments& arguments) {
  std::vector<KvCodec> codecs;
  for (const std::string& name : arguments.by_layer("layers")) {
    const auto* codec = std::ranges::find(kKvCodecs, name, kv_codec_name);
    if (codec == std::end(kKvCodecs)) {
      fail(ErrorCode::kInvalidArgument, "{}: layers: '{}' is no type of KV entries; there are {}", arguments.part(),
           name, known_codecs());
    }
    codecs.push_back(*codec);
  }
  builder.choose_layer_types(arguments, std::move(codecs));
  builder.choose_residual(arguments);
}

// KIVI (Liu et al., arXiv 2402.02750). Keys and values are flushed by the block of 32, not the keys by the residual and
// the values one by one.
void kivi(PolicyBuilder& builder, PartArguments& arguments) {
  const KvCodec codec = arguments.choice("bits", {"2", "4"}) == "2" ? KvCodec::kKivi2 : KvCodec::kKivi4;
  builder.choose_types(arguments, {codec});
  builder.choose_residual(arguments);
}

void entry_types(PolicyBuilder& builder, PartArguments& arguments) {
  const std::string key = arguments.text("k");
  const std::string value = arguments.text_or("v", key);
  const std::optional<KvCodec> codec = kv_codec_of(key, value);
  if (!codec) {
    fail(ErrorCode::kInvalidArgument,
         "there are no KV entries with keys of type {} and values of type {}; there are {}, where k8v4-hadamard is "
         "k=int8-hadamard,v=int4-hadamard",
         key, value, known_codecs());
  }
  builder.choose_types(arguments, {*codec});
  builder.choose_residual(arguments);
}

}  // namespace witan
