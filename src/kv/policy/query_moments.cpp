#include "kv/policy/query_moments.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "base/error.h"

namespace witan {
namespace {

// sums += the products of each query's components i >= j, query by query. Products of two floats are exact in
// double, so that only the order of the queries decides the bits, and several can be added in one walk over the
// sums.
template <int kQueries>
void add_products(const std::array<const double*, kQueries>& queries, int32_t dim, double* sums) {
  for (int32_t i = 0; i < dim; ++i) {
    std::array<double, kQueries> factors;
    for (int q = 0; q < kQueries; ++q) factors[static_cast<size_t>(q)] = queries[static_cast<size_t>(q)][i];
    for (int32_t j = 0; j <= i; ++j) {
      double sum = sums[j];
      for (size_t q = 0; q < kQueries; ++q) sum += factors[q] * queries[q][j];
      sums[j] = sum;
    }
    sums += i + 1;
  }
}

}  // namespace

int64_t QueryMoments::head_doubles(int32_t key_dim, Order order) {
  return key_dim + (order == Order::kCovariance ? int64_t{key_dim} * (key_dim + 1) / 2 : 0);
}

int64_t QueryMoments::bytes(std::span<const KvLayerSpec> layers, int32_t num_heads, Order order) {
  int64_t doubles = 0;
  for (const KvLayerSpec& layer : layers) {
    if (layer.window == 0) doubles += num_heads * head_doubles(layer.key_dim, order);
  }
  return doubles * static_cast<int64_t>(sizeof(double));
}

QueryMoments::QueryMoments(MemoryPool& pool, std::span<const KvLayerSpec> layers, int32_t num_heads, Order order,
                           int32_t first_token)
    : num_heads_(num_heads), order_(order), first_token_(first_token) {
  int64_t doubles = 0;
  for (const KvLayerSpec& layer : layers) {
    places_.push_back({.first_double = doubles, .key_dim = layer.key_dim, .num_tokens = 0, .scoring = {}});
    if (layer.window == 0) doubles += num_heads * head_doubles(layer.key_dim, order);
  }
  const auto bytes = static_cast<size_t>(QueryMoments::bytes(layers, num_heads, order));
  auto region = pool.allocate(MemoryTag::kActivations, bytes);
  if (!region) {
    fail(ErrorCode::kOutOfMemory,
         "the {} of the queries of {} heads, which a KV policy judges by, needs {} bytes; {} are free",
         order == Order::kMean ? "mean" : "covariance", num_heads, bytes, pool.free_bytes());
  }
  region_ = std::move(*region);  // of zeros
}

double* QueryMoments::sums(int32_t layer, int32_t head) {
  const Place& place = places_[static_cast<size_t>(layer)];
  return reinterpret_cast<double*>(region_.data()) + place.first_double + head * head_doubles(place.key_dim, order_);
}

void QueryMoments::add(int32_t layer, int32_t head, const float* first, int64_t stride, int32_t num_tokens) {
  constexpr int32_t kTogether = 4;
  const int32_t dim = key_dim(layer);
  double* sum = sums(layer, head);
  double* products = sum + dim;
  std::vector<double> queries(static_cast<size_t>(kTogether) * static_cast<size_t>(dim));
  for (int32_t token = 0; token < num_tokens; token += kTogether) {
    const int32_t count = std::min(kTogether, num_tokens - token);
    std::array<const double*, kTogether> pointers{};
    for (int32_t q = 0; q < count; ++q) {
      double* query = queries.data() + int64_t{q} * dim;
      std::copy_n(first + (token + q) * stride, dim, query);
      for (int32_t i = 0; i < dim; ++i) sum[i] += query[i];
      pointers[static_cast<size_t>(q)] = query;
    }
    if (order_ == Order::kMean) continue;
    if (count == kTogether) {
      add_products<kTogether>(pointers, dim, products);
    } else {
      for (int32_t q = 0; q < count; ++q) add_products<1>({pointers[static_cast<size_t>(q)]}, dim, products);
    }
  }
}

void QueryMoments::mean(int32_t layer, int32_t head, double* mean) const {
  const Place& place = places_[static_cast<size_t>(layer)];
  const double* sum = sums(layer, head);
  const auto n = static_cast<double>(std::max<int64_t>(1, place.num_tokens));
  for (int32_t i = 0; i < place.key_dim; ++i) mean[i] = sum[i] / n;
}

void QueryMoments::covariance(int32_t layer, int32_t head, const double* mean, double* covariance) const {
  WITAN_CHECK(order_ == Order::kCovariance, "of the mean alone there is no covariance");
  const Place& place = places_[static_cast<size_t>(layer)];
  const int64_t dim = place.key_dim;
  const double* products = sums(layer, head) + dim;
  const auto n = static_cast<double>(std::max<int64_t>(1, place.num_tokens));
  for (int64_t i = 0; i < dim; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      covariance[i * dim + j] = covariance[j * dim + i] = *products++ / n - mean[i] * mean[j];
    }
  }
}

}  // namespace witan
