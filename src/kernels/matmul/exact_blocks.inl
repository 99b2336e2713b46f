// The decoder of block formats for multiply_exact. Included inside an anonymous namespace after exact.inl and
// block_codes.inl.

struct BlockDecoder {
  static const float* decode(const MatmulArgs& args, const uint8_t* panel, int64_t begin, int64_t end,
                             ExactBuffer& buffer) {
    const BlockFormat& format = *args.blocks;
    const int64_t first = begin / kBlockColumns;
    const int64_t count = (end - begin) / kBlockColumns;
    const int64_t unit = first / kUnitBlocks * kUnitBlocks;
    const int64_t sub_blocks = kBlockColumns / format.scale_columns;
    BlockScales scales;
    alignas(64) uint8_t codes[kExactColumns / kBlockColumns][8][64];
    unpack_block_scales(format, panel, unit, first + count - unit, scales);
    unpack_block_codes(args, panel, first, count, codes);
    const Float offset = broadcast(128.0f);
    for (int64_t b = 0; b < count; ++b) {
      for (int word = 0; word < 8; ++word) {
        const int64_t j = (first + b - unit) * sub_blocks + word * sub_blocks / 8;
        float(*out)[kPanelRows] = buffer + b * kBlockColumns + 4 * word;
        for (int slice = 0; slice < kSlices; ++slice) {
          const Int v = load(codes[b][word] + slice * 4 * kLanes);
          const Float scale = load_floats(scales.scale[j] + slice * kLanes);
          if (!format.has_mins) {
            decode_words(v, out, slice, [&](Float byte) { return multiply(scale, subtract(byte, offset)); });
          } else {
            // scale * value is exact, so the fused operation rounds as decode's multiplication and addition do.
            const Float min = multiply(load_floats(scales.min[j] + slice * kLanes), broadcast(kMinDivisor));
            decode_words(v, out, slice, [&](Float byte) { return multiply_add(scale, subtract(byte, offset), min); });
          }
        }
      }
    }
    return buffer[0];
  }
};
