// exp of attention's weights where results need not be those of simd/exp.inl. Included after vector_avx512.inl.

// exp(x) where seen and 0 elsewhere, for x <= 0; 0 where it is below 1.2e-38. exp(-inf) = 0, exp(NaN) = NaN.
//
// As exp_of_nonpositive() with a term less: x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 q(r), where q
// interpolates at the 4 Chebyshev nodes of that range (relative error of exp 4.1e-07).
inline Float exp_of_seen(Mask seen, Float x) {
  const Float n =
      _mm512_roundscale_ps(multiply(x, broadcast(0x1.715476p0f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Float r = negative_multiply_add(n, broadcast(0x1.62e43p-1f), x);
  Float exp_r = broadcast(0x1.11d946p-7f);
  exp_r = multiply_add(exp_r, r, broadcast(0x1.56b3d8p-5f));
  exp_r = multiply_add(exp_r, r, broadcast(0x1.555526p-3f));
  exp_r = multiply_add(exp_r, r, broadcast(0x1.ffff58p-2f));
  exp_r = multiply_add(exp_r, r, broadcast(1.0f));
  exp_r = multiply_add(exp_r, r, broadcast(1.0f));
  const Mask kept = _mm512_mask_cmp_ps_mask(seen, x, broadcast(-87.3f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(kept, exp_r, n);
}
