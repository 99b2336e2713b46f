// Included after a vector_*.inl.

// exp(x) for x <= 0, within 1 ulp, the same function on every lane; 0 where the result is below 1.2e-38, so that no
// subnormals arise. exp(-inf) = 0, exp(NaN) = NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 q(r), where q interpolates at the 5 Chebyshev nodes of that
// range (relative error of exp 1.1e-8).
inline Float exp_of_nonpositive(Float x) {
  const Float smallest = broadcast(-87.3f);         // exp of it is just above the smallest normal number
  const Float round_to_int = broadcast(0x1.8p23f);  // adding it leaves no fraction bits
  const Float shifted_n = multiply_add(x, broadcast(0x1.715476p0f), round_to_int);
  const Float n = subtract(shifted_n, round_to_int);
  // ln 2 in two parts; the first has 12 zero bits at its end, so n times it is exact.
  const Float r =
      negative_multiply_add(n, broadcast(0x1.0bfbe8p-15f), negative_multiply_add(n, broadcast(0x1.62ep-1f), x));
  Float q = broadcast(0x1.6d113cp-10f);
  q = multiply_add(q, r, broadcast(0x1.120ba2p-7f));
  q = multiply_add(q, r, broadcast(0x1.55551ap-5f));
  q = multiply_add(q, r, broadcast(0x1.5554dcp-3f));
  q = multiply_add(q, r, broadcast(0.5f));
  const Float exp_r = add(multiply_add(multiply(r, r), q, r), broadcast(1.0f));
  return select(less_than(x, smallest), zero(), scale_by_power(exp_r, shifted_n));
}

inline float exp_of_nonpositive(float x) { return first_lane(exp_of_nonpositive(broadcast(x))); }
