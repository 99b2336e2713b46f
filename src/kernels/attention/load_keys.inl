// kv_load_keys. Included after codecs.inl, transpose_*.inl and hadamard.inl.

// out [count][stride] = the first `count` keys, as they are stored: [key_dim][32] turned to [count][key_dim].
template <typename Keys>
void transpose_keys(const Keys& keys, int64_t key_dim, int64_t count, float* out, int64_t stride) {
  for (int64_t d = 0; d < key_dim; d += kLanes) {
    for (int64_t entry = 0; entry < count; entry += kLanes) {
      Float square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = d + i < key_dim ? keys.vector(d + i, entry) : zero();
      transpose(square);
      const int64_t num_components = key_dim - d < kLanes ? key_dim - d : kLanes;
      const Mask components = first_lanes(num_components);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (entry + i < count) store(components, out + (entry + i) * stride + d, square[i]);
      }
    }
  }
}

template <typename Codec>
void load_keys(const SplitTask& task, const std::byte* block, int count, float* out, int64_t stride) {
  const auto keys = Codec::Keys::of(task, reinterpret_cast<const uint8_t*>(block));
  transpose_keys(keys, task.format.key_dim, count, out, stride);
  if (task.turned_key_dim == 0) return;
  for (int entry = 0; entry < count; ++entry) {
    turn(out + entry * stride, task.turned_key_dim, task.key_rotation, out + entry * stride);
  }
}
