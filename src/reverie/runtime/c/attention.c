// softmax(Q K^T scale) V without ever holding all weights (Dao et al. 2205.14135, algorithm 1, with the running maximum
// of Milakov and Gimelshein 1805.02867, algorithm 3). Everything is transposed: lanes of vectors are queries, so that
// maxima and sums need no lane of another, any width of a head fills the vectors, and keys and values are read as they
// lie. A query's answer depends on its own row alone: neither the batch nor the number of threads change it.
//
// bfloat16 is computed in pairs, which take the place of single floats: q and k as they lie, weights and values of two
// keys side by side. "Words" are 32 bits: a float or a pair. With AMX, tiles multiply pairs; then rows of keys and of
// transposed values are filled up with zeros to whole tiles.
#include "common.h"
#include "tiles.h"
#include <immintrin.h>
#ifdef __AVX512F__
enum { LANES = 16, VECTORS = 4 };
#else
enum { LANES = 8, VECTORS = 2 };
#endif

enum {
    BLOCK = LANES * VECTORS,  // queries
    ROWS = 6,                 // of a product, whose sums fill the registers: ROWS x VECTORS
    KEYS = 96,                // of a block
    HELD = 1 << 16,           // words of queries and sums for which one block of keys is packed, about
    MOST = 8,                 // blocks of queries that share it at most
#ifdef __AMX_BF16__
    TILED = 1,                // whether tiles multiply pairs
#else
    TILED = 0,
#endif
};

typedef int32_t word;
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))
#define EACH(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); i++)

// The first `count` numbers alone are read, zeros for the others, or written.
#ifdef __AVX512F__
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec load_some(const float *from, int64_t count) { return (vec)_mm512_maskz_loadu_ps((1u << count) - 1, from); }
INLINE void store_some(float *to, vec x, int64_t count) { _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)x); }
#else
INLINE vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE __m256i first(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}
INLINE vec load_some(const float *from, int64_t count) { return (vec)_mm256_maskload_ps(from, first(count)); }
INLINE void store_some(float *to, vec x, int64_t count) { _mm256_maskstore_ps(to, first(count), (__m256)x); }
#endif

#ifdef __AVX512BF16__
INLINE vec dot(vec sum, word a, vec b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
}
INLINE vec pair(vec low, vec high) {  // the conversion lays `low` before `high`
    const __m512i places = _mm512_add_epi32(_mm512_set1_epi32(16 << 16), _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(1 << 16 | 1)));
    return (vec)_mm512_permutexvar_epi16(places, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}
#else
INLINE vec dot(vec sum, word a, vec b) { return (void)a, (void)b, sum; }  // never asked for
INLINE vec pair(vec low, vec high) { return (void)high, low; }
#endif

INLINE vec multiply_add(word a, vec b, vec sum, const int pairs) {
    float number;
    memcpy(&number, &a, 4);
    if (pairs) return dot(sum, a, b);
    return sum + number * b;
}

// c[r] = factors c[r] + the sum over `count` steps t of a[r][t] b[t], where factors of NULL stand for zeros.
INLINE void tile(const int rows, const int vectors, const int pairs, const word *a, int64_t row, int64_t step,
                 const float *b, int64_t count, float *c, const float *factors) {
    const int wide = vectors * LANES;
    vec sums[ROWS][VECTORS];
    EACH(r, rows) EACH(j, vectors) {
        sums[r][j] = (vec){0};
        if (factors) sums[r][j] = *(vec *)(c + r * wide + j * LANES) * *(vec *)(factors + j * LANES);
    }
    for (int64_t t = 0; t < count; t++) {
        vec right[VECTORS];
        EACH(j, vectors) right[j] = *(vec *)(b + t * wide + j * LANES);
        EACH(r, rows) EACH(j, vectors)
            sums[r][j] = multiply_add(a[r * row + t * step], right[j], sums[r][j], pairs);
    }
    EACH(r, rows) EACH(j, vectors) *(vec *)(c + r * wide + j * LANES) = sums[r][j];
}

#ifdef __AMX_BF16__
// c = a b, or c += a b: one or two tiles of rows by one or two of columns, over `count` pairs of each.
INLINE void multiply_tiles(const int two_high, const int two_wide, const word *a, int64_t row, const float *b,
                           int64_t wide, int64_t count, float *c, const int more) {
    const int64_t next = 4 * wide;  // bytes from a row of b and c to the next
    __asm__ volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
#define START(n, from) if (more) _tile_loadd(n, from, next); else _tile_zero(n);
    START(0, c)
    if (two_wide) { START(1, c + TILE) }
    if (two_high) { START(2, c + TILE * wide) }
    if (two_high && two_wide) { START(3, c + TILE * wide + TILE) }
#undef START
    for (int64_t t = 0; t < count; t += TILE, b += TILE * wide) {
        _tile_loadd(4, a + t, 4 * row);
        _tile_loadd(6, b, next);
        _tile_dpbf16ps(0, 4, 6);
        if (two_wide) {
            _tile_loadd(7, b + TILE, next);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (two_high) {
            _tile_loadd(5, a + TILE * row + t, 4 * row);
            _tile_dpbf16ps(2, 5, 6);
            if (two_wide) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, next);
    if (two_wide) _tile_stored(1, c + TILE, next);
    if (two_high) _tile_stored(2, c + TILE * wide, next);
    if (two_high && two_wide) _tile_stored(3, c + TILE * wide + TILE, next);
}

// The same for any number of rows, of which there is room for whole tiles.
INLINE void multiply_pairs(const int vectors, const word *a, int64_t row, const float *b, int64_t count, float *c,
                           int64_t rows, const int more) {
    const int64_t wide = vectors * TILE;
    for (; rows > 0; rows -= 2 * TILE, a += 2 * TILE * row, c += 2 * TILE * wide)
        for (int64_t left = 0; left < wide; left += 2 * TILE)
            if (rows > TILE) multiply_tiles(1, vectors > 1, a, row, b + left, wide, count, c + left, more);
            else multiply_tiles(0, vectors > 1, a, row, b + left, wide, count, c + left, more);
}
#else
INLINE void multiply_pairs(const int vectors, const word *a, int64_t row, const float *b, int64_t count, float *c,
                           int64_t rows, const int more) {}  // never asked for
#endif

INLINE void tiles(const int vectors, const int pairs, const word *a, int64_t row, int64_t step, const float *b,
                  int64_t count, float *c, int64_t rows, const float *factors) {
    const int wide = vectors * LANES;
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * row, c += ROWS * wide)
        tile(ROWS, vectors, pairs, a, row, step, b, count, c, factors);
    switch (rows) {
        case 5: tile(5, vectors, pairs, a, row, step, b, count, c, factors); break;
        case 4: tile(4, vectors, pairs, a, row, step, b, count, c, factors); break;
        case 3: tile(3, vectors, pairs, a, row, step, b, count, c, factors); break;
        case 2: tile(2, vectors, pairs, a, row, step, b, count, c, factors); break;
        case 1: tile(1, vectors, pairs, a, row, step, b, count, c, factors); break;
    }
}

// Transpose a tile: in each turn squares of `half` x `half` beside the diagonal change places.
#define LOW(l) ((l) & half ? LANES + (l) - half : (l))
#define HIGH(l) ((l) & half ? LANES + (l) : (l) + half)
#define EIGHT(of, l) of(l), of(l + 1), of(l + 2), of(l + 3), of(l + 4), of(l + 5), of(l + 6), of(l + 7)
#if defined(__AVX512F__)
#define ALL(of) {EIGHT(of, 0), EIGHT(of, 8)}
#else
#define ALL(of) {EIGHT(of, 0)}
#endif
INLINE void exchange(const int half, vec *x) {
    EACH(r, LANES) if (!(r & half)) {
        vec upper = x[r], lower = x[r + half];
        x[r] = __builtin_shuffle(upper, lower, (mask)ALL(LOW));
        x[r + half] = __builtin_shuffle(upper, lower, (mask)ALL(HIGH));
    }
}

// Turn (rows, columns) into (columns, rows), with zeros behind, up to the next multiple of LANES, where `padded`. Words
// are moved, whatever they hold.
INLINE void transpose(const float *from, int64_t stride, int64_t rows, int64_t columns, float *to, int64_t to_stride,
                      const int padded) {
    for (int64_t top = 0; top < rows; top += LANES)
        for (int64_t left = 0; left < columns; left += LANES) {
            int64_t high = rows - top, wide = columns - left;
            vec x[LANES];
            if (high >= LANES && wide >= LANES)
                EACH(r, LANES) x[r] = *(vec *)(from + (top + r) * stride + left);
            else
                EACH(r, LANES)
                    x[r] = r < high ? load_some(from + (top + r) * stride + left, wide < LANES ? wide : LANES) : (vec){0};
            exchange(1, x), exchange(2, x), exchange(4, x);
            if (LANES == 16) exchange(8, x);
            float *at = to + left * to_stride + top;
            EACH(r, LANES)
                if (r < wide) {
                    if (padded || high >= LANES) *(vec *)(at + r * to_stride) = x[r];
                    else store_some(at + r * to_stride, x[r], high);
                }
        }
}

// 2^x for x <= 0 by a polynomial of what is beside a whole number, |r| <= 1/2: the one of degree 5 errs by 1e-7 of the
// result, that of degree 3 by 7e-5, a fiftieth of what bfloat16 rounds by (both minimax).
INLINE vec power_of_two(vec x, const int rough) {
#ifdef __AVX512F__
    vec whole = (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    x = larger((vec){0} - 126, x);  // in this order what is not a number stays so
    vec whole = (vec)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
    vec r = x - whole, p;
    if (rough)
        p = ((5.517166722e-2f * r + 2.426111221e-1f) * r + 6.932609858e-1f) * r + 9.999280736e-1f;
    else
        p = ((((1.327647178e-3f * r + 9.675541333e-3f) * r + 5.550713274e-2f) * r + 2.402211972e-1f) * r +
             6.931469671e-1f) * r + 1.000000072f;
#ifdef __AVX512F__
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return (vec)((mask)p + __builtin_convertvector(whole, mask) * (1 << 23));
#endif
}

// Turn scores (keys, vectors x LANES) into weights 2^(scale score - greatest so far), in place, or into pairs of two keys
// each. What was summed before is to be multiplied by `factors`: 2^(greatest before - greatest so far).
INLINE void soften(const int vectors, const int pairs, float *scores, float *paired, int64_t keys, float scale,
                   float *greatest, float *sums, float *factors) {
    const int wide = vectors * LANES;
    vec most[VECTORS], sum[VECTORS];
    EACH(j, vectors) most[j] = *(vec *)(scores + j * LANES);
    for (int64_t key = 1; key < keys; key++)
        EACH(j, vectors) most[j] = larger(most[j], *(vec *)(scores + key * wide + j * LANES));
    EACH(j, vectors) {
        vec *before = (vec *)(greatest + j * LANES), *summed = (vec *)(sums + j * LANES);
        most[j] = larger(most[j] * scale, *before);
        vec factor = power_of_two(*before - most[j], 0);
        *(vec *)(factors + j * LANES) = factor;
        *before = most[j];
        sum[j] = *summed * factor;
    }
    if (pairs && keys & 1) EACH(j, vectors) *(vec *)(scores + keys * wide + j * LANES) = (vec){0} - 1e30f;
    for (int64_t key = 0; key < keys; key += 1 + pairs)
        EACH(j, vectors) {
            float *at = scores + key * wide + j * LANES;
            vec weight = power_of_two(*(vec *)at * scale - most[j], pairs);
            sum[j] += weight;
            if (pairs) {
                vec other = power_of_two(*(vec *)(at + wide) * scale - most[j], pairs);
                sum[j] += other;
                *(vec *)(paired + key / 2 * wide + j * LANES) = pair(weight, other);
            } else
                *(vec *)at = weight;
        }
    EACH(j, vectors) *(vec *)(sums + j * LANES) = sum[j];
}

// Copy rows of keys, so that they lie `to_stride` words apart.
static void pack_keys(const word *from, int64_t stride, int64_t keys, int64_t words, word *to, int64_t to_stride) {
    for (int64_t key = 0; key < keys; key++) memcpy(to + key * to_stride, from + key * stride, 4 * words);
}

// Lay the values of two keys beside each other, zeros beside a last one.
static void pair_values(const word *from, int64_t stride, int64_t keys, int64_t width, uint32_t *to) {
    for (int64_t key = 0; key < keys; key += 2) {
        const bf16 *one = (const bf16 *)(from + key * stride), *other = (const bf16 *)(from + (key + 1) * stride);
        uint32_t *pairs = to + key / 2 * width;
        if (key + 1 < keys)
            for (int64_t c = 0; c < width; c++) pairs[c] = one[c] | (uint32_t)other[c] << 16;
        else
            for (int64_t c = 0; c < width; c++) pairs[c] = one[c];
    }
}

// A block of keys with its values: `k` (keys, words), whose rows are `k_row` words apart, and `v` (keys, width), or
// (pairs of keys, width) of pairs, `v_row`.
typedef struct {
    const word *k, *v;
    int64_t keys, k_row, v_row;
} Seen;

// A block of queries: `asked` (words, lanes), what was gathered so far, `gathered` (width, lanes), the greatest score so
// far and the sum of the weights.
typedef struct {
    float *asked, *gathered, *greatest, *sums;
} Asking;

// What is computed in between: scores (KEYS, lanes), pairs of weights (KEYS / 2, lanes), and factors (lanes).
typedef struct {
    float *scores, *paired, *factors;
} Scratch;

INLINE int64_t whole_tiles(int64_t count) { return (count + TILE - 1) / TILE * TILE; }

// Multiply what was gathered so far by `factors`, which mostly all are 1: the greatest score comes early.
INLINE void fade(const int vectors, float *gathered, int64_t width, const float *factors) {
    const int wide = vectors * LANES;
    int all_one = 1;
    for (int l = 0; l < wide; l++) all_one &= factors[l] == 1.0f;
    if (all_one) return;
    for (int64_t c = 0; c < width; c++)
        EACH(j, vectors) *(vec *)(gathered + c * wide + j * LANES) *= *(vec *)(factors + j * LANES);
}

INLINE void gather(const int vectors, const int pairs, Seen seen, Asking at, Scratch s, int64_t words, int64_t width,
                   float scale, int first) {
    if (pairs && TILED) {
        const int wide = vectors * LANES;
        const int64_t count = (seen.keys + 1) / 2, whole = whole_tiles(count);
        multiply_pairs(vectors, seen.k, seen.k_row, at.asked, seen.k_row, s.scores, seen.keys, 0);
        soften(vectors, 1, s.scores, s.paired, seen.keys, scale, at.greatest, at.sums, s.factors);
        memset(s.paired + count * wide, 0, 4 * (whole - count) * wide);
        if (first) {
            multiply_pairs(vectors, seen.v, seen.v_row, s.paired, whole, at.gathered, width, 0);
            return;
        }
        fade(vectors, at.gathered, width, s.factors);
        multiply_pairs(vectors, seen.v, seen.v_row, s.paired, whole, at.gathered, width, 1);
        return;
    }
    tiles(vectors, pairs, seen.k, seen.k_row, 1, at.asked, words, s.scores, seen.keys, NULL);
    soften(vectors, pairs, s.scores, s.paired, seen.keys, scale, at.greatest, at.sums, s.factors);
    tiles(vectors, pairs, seen.v, 1, seen.v_row, pairs ? s.paired : s.scores, pairs ? (seen.keys + 1) / 2 : seen.keys,
          at.gathered, width, first ? NULL : s.factors);
}

static void begin(const float *q, int64_t q_row, int64_t queries, int64_t lanes, int64_t words, int64_t deep,
                  Asking at) {
    transpose(q, q_row, queries, words, at.asked, lanes, 1);
    memset(at.asked + words * lanes, 0, 4 * (deep - words) * lanes);
    for (int64_t l = 0; l < lanes; l++) at.greatest[l] = -1e30f, at.sums[l] = 0;
}

INLINE void finish(const int pairs, Asking at, int64_t queries, int64_t lanes, int64_t words, float *out,
                   int64_t out_row) {
    for (int64_t l = 0; l < lanes; l += LANES) {
        vec factor = 1.0f / *(vec *)(at.sums + l);
        for (int64_t c = 0; c < words; c++) {
            vec *to = (vec *)(at.gathered + c * lanes + l);
            const float *from = at.gathered + 2 * c * lanes + l;
            if (pairs) *to = pair(*(vec *)from * factor, *(vec *)(from + lanes) * factor);
            else *to *= factor;
        }
    }
    transpose(at.gathered, lanes, words, queries, out, out_row, 0);
}

// q (images, queries, heads x width), k and v (images, keys, heads x width), rows and images so many words apart, into
// out (images, queries, heads x width), without gaps. Where `pairs`, all are bfloat16, and width is even.
static int attention(const int pairs, const word *q, const word *k, const word *v, float *out, int64_t images,
                     int64_t queries, int64_t keys, int64_t heads, int64_t width, int64_t q_image, int64_t q_row,
                     int64_t k_image, int64_t k_row, int64_t v_image, int64_t v_row, float scale) {
    const int64_t words = pairs ? width / 2 : width, tiled = pairs && TILED;
    const int64_t deep = tiled ? whole_tiles(words) : words, high = tiled ? whole_tiles(width) : width;
    const int64_t state = (deep + high + 2) * BLOCK, fit = HELD / state;
    const int64_t blocks = fit < 1 ? 1 : (fit < MOST ? fit : MOST), group = blocks * BLOCK;
    const int64_t groups = (queries + group - 1) / group;
    int result = DONE;
    scale *= 1.44269504f;  // log2(e)
#pragma omp parallel if (images * heads * queries * keys * width > 65536)
    {
        float *held = aligned_alloc(64, 4 * (blocks * state + (2 * KEYS + 1) * BLOCK + KEYS * (deep + width + high)));
        if (!held) {
#pragma omp atomic write
            result = NO_MEMORY;
        }
        float *scores = held + blocks * state;
        Scratch scratch = {scores, scores + KEYS * BLOCK, scores + 2 * KEYS * BLOCK};
        word *packed_k = (word *)(scratch.factors + BLOCK), *packed_v = packed_k + KEYS * deep;
        word *turned_v = packed_v + KEYS * width;
        if (tiled && held) {
            take_tiles();
            memset(packed_k, 0, 4 * KEYS * (deep + width + high));
        }
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t image = 0; image < images; image++)
            for (int64_t head = 0; head < heads; head++)
                for (int64_t part = 0; part < groups; part++)
                    for (int64_t key = 0; held && key < keys; key += KEYS) {
                        int64_t count = keys - key < KEYS ? keys - key : KEYS;
                        Seen seen = {k + image * k_image + key * k_row + head * words,
                                     v + image * v_image + key * v_row + head * words, count, k_row, v_row};
                        if (pairs) {
                            pair_values(seen.v, v_row, count, width, (uint32_t *)packed_v);
                            seen.v = packed_v, seen.v_row = width;
                        }
                        if (tiled) {
                            transpose((float *)packed_v, width, (count + 1) / 2, width, (float *)turned_v, KEYS / 2, 1);
                            seen.v = turned_v, seen.v_row = KEYS / 2;
                            pack_keys(seen.k, k_row, count, words, packed_k, deep);
                            seen.k = packed_k, seen.k_row = deep;
                        } else if (blocks > 1) {
                            pack_keys(seen.k, k_row, count, words, packed_k, words);
                            seen.k = packed_k, seen.k_row = words;
                            if (!pairs) pack_keys(seen.v, v_row, count, words, packed_v, words);
                            seen.v = packed_v, seen.v_row = width;
                        }
                        for (int64_t block = 0; block < blocks; block++) {
                            int64_t query = part * group + block * BLOCK, left = queries - query, vectors = 1;
                            if (left <= 0) break;
                            while (vectors < VECTORS && vectors * LANES < left) vectors *= 2;
                            int64_t lanes = vectors * LANES, some = left < BLOCK ? left : BLOCK;
                            float *at = held + block * state;
                            Asking asking = {at, at + deep * BLOCK, at + state - 2 * BLOCK, at + state - BLOCK};
                            if (!key)
                                begin((const float *)q + image * q_image + query * q_row + head * words, q_row, some,
                                      lanes, words, deep, asking);
#define WAY(n, p) case 2 * n + p: gather(n, p, seen, asking, scratch, words, width, scale, !key); break;
                            switch (2 * vectors + pairs) {
                                WAY(1, 0) WAY(2, 0)
#ifdef __AVX512F__
                                WAY(4, 0)
#endif
#ifdef __AVX512BF16__
                                WAY(1, 1) WAY(2, 1) WAY(4, 1)
#endif
                            }
#undef WAY
                            if (key + count < keys) continue;
                            float *to = out + ((image * queries + query) * heads + head) * words;
                            if (pairs) finish(1, asking, some, lanes, words, to, heads * words);
                            else finish(0, asking, some, lanes, words, to, heads * words);
                        }
                    }
        if (tiled && held) return_tiles();
        free(held);
    }
    return result;
}

#define ATTENTION(name, pairs)                                                                                       \
    int name(const word *q, const word *k, const word *v, float *out, int64_t images, int64_t queries, int64_t keys,   \
             int64_t heads, int64_t width, int64_t q_image, int64_t q_row, int64_t k_image, int64_t k_row,             \
             int64_t v_image, int64_t v_row, float scale) {                                                            \
        return attention(pairs, q, k, v, out, images, queries, keys, heads, width, q_image, q_row, k_image, k_row,     \
                         v_image, v_row, scale);                                                                       \
    }
ATTENTION(attention_float32, 0)
#ifdef __AVX512BF16__
ATTENTION(attention_bfloat16, 1)
#endif
