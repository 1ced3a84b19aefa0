// Products of float32 matrices, tile by tile, with all of a tile's sums in registers (Goto and van de Geijn 2008):
// 14 rows by 32 columns with AVX-512, 6 by 16 with AVX2. The left matrix lies in panels of rows, panel by panel in
// chunks of LANES numbers of every row; the right one in panels of COLUMNS columns, row by row.
#pragma once
#include <stdint.h>

// Sums in the order that stands here, however many rows there are: a row's does not depend on those beside it.
#pragma GCC optimize("no-associative-math")

#ifdef __AVX512F__
enum { LANES = 16, ROWS = 14 };
#else
enum { LANES = 8, ROWS = 6 };
#endif
enum { COLUMNS = 2 * LANES, AHEAD = 4 };  // AHEAD: chunks by which a is fetched before it is used
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// c = a b, or c += a b: `rows` by COLUMNS, over `chunks` of LANES numbers; `high` is how many rows a's panel has, and
// the rows of c lie `stride` apart.
INLINE void multiply_rows(int rows, const float *a, int64_t high, const float *b, int64_t chunks, float *c,
                          int64_t stride, int more) {
    vec left[ROWS], right[ROWS];
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++) {
        left[row] = more ? *(const vec *)(c + row * stride) : (vec){0};
        right[row] = more ? *(const vec *)(c + row * stride + LANES) : (vec){0};
    }
    for (int64_t chunk = 0; chunk < chunks; chunk++, a += high * LANES) {
#pragma GCC unroll 16
        for (int row = 0; row < rows; row++) __builtin_prefetch(a + AHEAD * LANES * high + row * LANES);
        for (int lane = 0; lane < LANES; lane++, b += COLUMNS) {
            vec first = *(const vec *)b, second = *(const vec *)(b + LANES);
#pragma GCC unroll 16
            for (int row = 0; row < rows; row++) {
                float factor = a[row * LANES + lane];
                left[row] += factor * first;
                right[row] += factor * second;
            }
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++) {
        *(vec *)(c + row * stride) = left[row];
        *(vec *)(c + row * stride + LANES) = right[row];
    }
}

// The same for any number of rows up to ROWS.
static void multiply(int64_t rows, const float *a, int64_t high, const float *b, int64_t chunks, float *c,
                     int64_t stride, int more) {
#define CASE(n) case n: multiply_rows(n, a, high, b, chunks, c, stride, more); break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined __AVX512F__
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
}
