#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kv/policy/kv_policy.h"

namespace witan {

// The arguments of one part: `name(a=1,b=max)`. Every getter throws Error(kInvalidArgument), naming part and argument,
// for a value that is not in range.
class PartArguments {
 public:
  PartArguments(std::string part, std::map<std::string, std::string> values)
      : part_(std::move(part)), values_(std::move(values)) {}

  const std::string& part() const { return part_; }
  int32_t integer(std::string_view name, int32_t otherwise, int32_t min, int32_t max);
  int32_t odd_integer(std::string_view name, int32_t otherwise, int32_t min, int32_t max);
  double number(std::string_view name, double otherwise, double min, double max);
  std::string text(std::string_view name);  // throws where there is none
  std::string text_or(std::string_view name, const std::string& otherwise);
  // "a/b*2": one for each layer, a, b and b. Throws where there are none.
  std::vector<std::string> by_layer(std::string_view name);
  // One of `choices`, the first where none is given.
  std::string_view choice(std::string_view name, std::initializer_list<std::string_view> choices);

  // Names to tell of that are read elsewhere.
  void also_known(std::initializer_list<std::string_view> names);
  // Throws for arguments that nobody asked for.
  void check_all_known() const;

 private:
  const std::string* find(std::string_view name);

  std::string part_;
  std::map<std::string, std::string> values_;
  std::vector<std::string> known_;
};

// A policy in the making. Each choice is made by one part: the second to make it is refused, with both names.
class PolicyBuilder {
 public:
  KvPolicy policy;

  void choose_score(const PartArguments& by, std::shared_ptr<const KvScorer> scorer);
  // The score of refinements that stand alone, if no other part chooses one.
  void suggest_score(std::shared_ptr<const KvScorer> scorer);
  void choose_scope(const PartArguments& by, KvScope scope, double head_floor);
  // The scope where no part decides how heads or layers share their budget, nor which entries stay together.
  void suggest_scope(KvScope scope) { suggested_scope_ = scope; }
  void choose_layers(const PartArguments& by, KvLayerBudget layers);
  void choose_layer_shares(const PartArguments& by, std::vector<double> shares);
  void choose_second_stage(const PartArguments& by, const KvSecondStage& stage);
  void choose_pages(const PartArguments& by, const KvPageReader& pages);
  void choose_kinds(const PartArguments& by, std::vector<std::string> head_kinds);
  void choose_grouping(const PartArguments& by);
  void choose_merging(const PartArguments& by, const KvMerging& merging);
  void choose_types(const PartArguments& by, std::vector<KvCodec> codecs);        // of older entries
  void choose_layer_types(const PartArguments& by, std::vector<KvCodec> codecs);  // one for each layer
  void choose_channels(const PartArguments& by, double key_share, int32_t num_query_tokens);
  void choose_reuse(const PartArguments& by, const KvReuse& reuse);
  void choose_residual(PartArguments& by);  // its argument `residual`, if it is given
  void choose_recent(const PartArguments& by);
  // Leaves all of these to be chosen when a request arrives.
  void choose_later(const PartArguments& by, double floor);
  void protect(int32_t num_sinks, int32_t num_recent);  // at least so many

  // Throws where parts are missing or cannot be combined.
  KvPolicy finish();

 private:
  void check_second_stage();
  void claim(const char* what, const PartArguments& by);
  KvDemotionRule& demotion();

  std::map<std::string, std::string> chosen_by_;  // what -> part
  std::shared_ptr<const KvScorer> suggested_;
  std::optional<KvScope> suggested_scope_;
};

// The methods, each in a file of its own: see parts.cpp.
void choose_automatically(PolicyBuilder& builder, PartArguments& arguments);
void streaming_llm(PolicyBuilder& builder, PartArguments& arguments);
void key_norm(PolicyBuilder& builder, PartArguments& arguments);
void key_diff(PolicyBuilder& builder, PartArguments& arguments);
void expected_attention(PolicyBuilder& builder, PartArguments& arguments);
void heavy_hitters(PolicyBuilder& builder, PartArguments& arguments);
void r_kv(PolicyBuilder& builder, PartArguments& arguments);
void lag_kv(PolicyBuilder& builder, PartArguments& arguments);
void snap_kv(PolicyBuilder& builder, PartArguments& arguments);
void finch(PolicyBuilder& builder, PartArguments& arguments);
void tova(PolicyBuilder& builder, PartArguments& arguments);
void pyramid_kv(PolicyBuilder& builder, PartArguments& arguments);
void layer_shares(PolicyBuilder& builder, PartArguments& arguments);
void ada_kv(PolicyBuilder& builder, PartArguments& arguments);
void critical_kv(PolicyBuilder& builder, PartArguments& arguments);
void kv_compose(PolicyBuilder& builder, PartArguments& arguments);
void quest(PolicyBuilder& builder, PartArguments& arguments);
void rocket_kv(PolicyBuilder& builder, PartArguments& arguments);
void kv_zip(PolicyBuilder& builder, PartArguments& arguments);
void sim_layer_kv(PolicyBuilder& builder, PartArguments& arguments);
void duo_attention(PolicyBuilder& builder, PartArguments& arguments);
void shot_kv(PolicyBuilder& builder, PartArguments& arguments);
void chunk_kv(PolicyBuilder& builder, PartArguments& arguments);
void merge_similar(PolicyBuilder& builder, PartArguments& arguments);
void merge_next(PolicyBuilder& builder, PartArguments& arguments);
void shared_budget(PolicyBuilder& builder, PartArguments& arguments);
void kivi(PolicyBuilder& builder, PartArguments& arguments);
void kv_tuner(PolicyBuilder& builder, PartArguments& arguments);
void think(PolicyBuilder& builder, PartArguments& arguments);
void epic(PolicyBuilder& builder, PartArguments& arguments);
void cache_blend(PolicyBuilder& builder, PartArguments& arguments);
void route_blend(PolicyBuilder& builder, PartArguments& arguments);
void random_blend(PolicyBuilder& builder, PartArguments& arguments);
// The keys k, v and residual of a policy.
void entry_types(PolicyBuilder& builder, PartArguments& arguments);

}  // namespace witan
