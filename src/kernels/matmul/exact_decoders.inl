// Decoders for multiply_exact, of the types with layouts of their own. Included inside an anonymous namespace after
// exact.inl, q4_k.inl and q6_k.inl.

struct F32Decoder {
  static const float* decode(const MatmulArgs&, const uint8_t* panel, int64_t begin, int64_t, ExactBuffer&) {
    return reinterpret_cast<const float*>(panel) + begin * kPanelRows;
  }
};

struct F16Decoder {
  static const float* decode(const MatmulArgs&, const uint8_t* panel, int64_t begin, int64_t end, ExactBuffer& buffer) {
    float* out = buffer[0];
    const uint8_t* from = panel + begin * 2 * kPanelRows;
    for (int64_t i = 0; i < (end - begin) * kPanelRows; i += kLanes) store_floats(out + i, load_halves(from + 2 * i));
    return out;
  }
};

struct Bf16Decoder {
  static const float* decode(const MatmulArgs&, const uint8_t* panel, int64_t begin, int64_t end, ExactBuffer& buffer) {
    const Int upper = broadcast(static_cast<int32_t>(0xffff0000u));
    for (int64_t k = begin; k < end; k += 2) {
      for (int slice = 0; slice < kSlices; ++slice) {
        const Int pair = load(panel + k / 2 * kWordVectorBytes + slice * 4 * kLanes);
        store_floats(buffer[k - begin] + slice * kLanes, as_floats(shift_left<16>(pair)));
        store_floats(buffer[k - begin + 1] + slice * kLanes, as_floats(bit_and(pair, upper)));
      }
    }
    return buffer[0];
  }
};

struct F8Decoder {
  static const float* decode(const MatmulArgs& args, const uint8_t* panel, int64_t begin, int64_t end,
                             ExactBuffer& buffer) {
    const int64_t num_blocks = (args.cols + kF8ScaleColumns - 1) / kF8ScaleColumns;
    const auto* scales = reinterpret_cast<const float*>(panel) + begin / kF8ScaleColumns * kPanelRows;
    const uint8_t* codes = panel + num_blocks * kPanelRows * 4;
    const Float unit = broadcast(256.0f);  // as halves, the codes are 2^8 times smaller
    for (int slice = 0; slice < kSlices; ++slice) {
      const Float scale = load_floats(scales + slice * kLanes);
      for (int64_t k = begin; k < end; ++k) {
        const Float value = multiply(load_bytes_as_halves(codes + k * kPanelRows + slice * kLanes), unit);
        store_floats(buffer[k - begin] + slice * kLanes, multiply(value, scale));
      }
    }
    return buffer[0];
  }
};

struct Q8Decoder {
  static const float* decode(const MatmulArgs& args, const uint8_t* panel, int64_t begin, int64_t end,
                             ExactBuffer& buffer) {
    const Float offset = broadcast(128.0f);
    const int64_t group = begin / kKQuantColumns;
    const int64_t in_group = smaller(kQ8GroupBlocks, args.cols / kQ8BlockColumns - group * kQ8GroupBlocks);
    const uint8_t* scales = panel + group * kQ8GroupBytes;
    const uint8_t* quants = scales + (in_group * 32 + 63) / 64 * 64;
    for (int64_t k = begin; k < end; k += kQ8BlockColumns) {
      const int64_t b = k % kKQuantColumns / kQ8BlockColumns;
      for (int slice = 0; slice < kSlices; ++slice) {
        const Float d = load_halves(scales + b * 32 + slice * 2 * kLanes);
        for (int64_t word = 0; word < 8; ++word) {
          const Int v = load(quants + b * kQ8BlockBytes + word * kWordVectorBytes + slice * 4 * kLanes);
          decode_words(v, buffer + (k - begin) + 4 * word, slice,
                       [&](Float q) { return multiply(d, subtract(q, offset)); });
        }
      }
    }
    return buffer[0];
  }
};

struct Q4KDecoder {
  static const float* decode(const MatmulArgs&, const uint8_t* panel, int64_t begin, int64_t, ExactBuffer& buffer) {
    const Q4KCell& cell = reinterpret_cast<const Q4KCell*>(panel)[begin / kKQuantColumns];
    const int64_t pair = begin % kKQuantColumns / 64;
    Q4KScales scales;
    unpack_q4_k_scales(cell, scales);
    for (int slice = 0; slice < kSlices; ++slice) {
      const int lane = slice * kLanes;
      const Int mins = load(scales.mins[pair] + 4 * lane);
      const Float dmin = load_floats(scales.dmin + lane);
      const Float scale0 = load_floats(scales.scales[2 * pair] + lane);
      const Float scale1 = load_floats(scales.scales[2 * pair + 1] + lane);
      const Float min0 = multiply(dmin, to_floats(bit_and(mins, broadcast(0xffff))));
      const Float min1 = multiply(dmin, to_floats(shift_right<16>(mins)));
      for (int64_t word = 0; word < 8; ++word) {
        const Int v = load(cell.quants[pair][word] + 4 * lane);
        const Int nibble = broadcast_byte(15);
        // scale * q is exact, so the fused operation rounds as decode's multiplication and subtraction do.
        decode_words(bit_and(v, nibble), buffer + 4 * word, slice,
                     [&](Float q) { return multiply_subtract(scale0, q, min0); });
        decode_words(bit_and(shift_right<4>(v), nibble), buffer + 32 + 4 * word, slice,
                     [&](Float q) { return multiply_subtract(scale1, q, min1); });
      }
    }
    return buffer[0];
  }
};

struct Q6KDecoder {
  template <int kBlock>
  static void block(const Q6KCell& cell, int64_t half, const float (*scales)[16], ExactBuffer& buffer) {
    const Float offset = broadcast(32.0f);
    for (int slice = 0; slice < kSlices; ++slice) {
      for (int word = 0; word < 8; ++word) {
        const Float scale = load_floats(scales[8 * half + 2 * kBlock + word / 4] + slice * kLanes);
        decode_words(q6_k_quants<kBlock>(cell.halves[half], word, slice), buffer + 32 * (kBlock % 2) + 4 * word, slice,
                     [&](Float q) { return multiply(scale, subtract(q, offset)); });
      }
    }
  }
  static const float* decode(const MatmulArgs& args, const uint8_t* panel, int64_t begin, int64_t,
                             ExactBuffer& buffer) {
    const int64_t c = begin / kKQuantColumns;
    const Q6KCell& cell = reinterpret_cast<const Q6KCell*>(panel + q6_k_cells_offset(args))[c];
    const int64_t half = begin % kKQuantColumns / 128;
    alignas(64) float scales[16][16];
    unpack_q6_k_scales(cell, panel + 32 * c, scales);
    if (begin % 128 == 0) {
      block<0>(cell, half, scales, buffer);
      block<1>(cell, half, scales, buffer);
    } else {
      block<2>(cell, half, scales, buffer);
      block<3>(cell, half, scales, buffer);
    }
    return buffer[0];
  }
};
