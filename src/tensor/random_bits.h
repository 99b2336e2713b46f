#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace witan {

// One step of mixing: a bijection of 64-bit values whose every output bit depends on every input bit (the finaliser
// of SplitMix64; Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
constexpr uint64_t mix_bits(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// SplitMix64: a seeded stream of random bits, the same on every machine, several GB/s on one core. For test weights,
// not for sampling or secrets.
class RandomBits {
 public:
  explicit RandomBits(uint64_t seed) : state_(mix_bits(seed)) {}

  uint64_t next() { return mix_bits(state_ += 0x9e3779b97f4a7c15u); }

  // In [-1, 1), symmetric but for the end point: 24 bits.
  float next_signed_unit() { return static_cast<float>(static_cast<int64_t>(next()) >> 40) * 0x1p-23f; }

  void fill(std::byte* out, size_t num_bytes) {
    for (; num_bytes >= sizeof(uint64_t); num_bytes -= sizeof(uint64_t), out += sizeof(uint64_t)) {
      const uint64_t bits = next();
      std::memcpy(out, &bits, sizeof(bits));
    }
    if (num_bytes > 0) {
      const uint64_t bits = next();
      std::memcpy(out, &bits, num_bytes);
    }
  }

 private:
  uint64_t state_;
};

}  // namespace witan
