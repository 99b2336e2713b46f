#pragma once

#include <cstdint>

namespace witan {

// Vectors are turned block by block of this many components: the largest power of two that divides their number.
constexpr int32_t hadamard_size(int32_t dim) { return dim & -dim; }

// Multiplies each block of x [dim] by the orthonormal Hadamard matrix of its size (Sylvester's construction). It is
// symmetric, so that doing it twice gives x again, and dot products of two vectors stay the same.
void hadamard_rotate(float* x, int32_t dim);

}  // namespace witan
