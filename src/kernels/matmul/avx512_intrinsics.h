#pragma once

// <immintrin.h> for the AVX-512 files. GCC 12 warns of the deliberately undefined operand inside many AVX-512
// intrinsics once they are inlined (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
