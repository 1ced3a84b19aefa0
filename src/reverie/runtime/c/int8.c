// Products and convolutions of 8-bit numbers with AVX512-VNNI or AMX, and the rounding of what they are given: unsigned
// inputs, each row or image with a scale and a zero (Jacob et al. 1712.05877, eq. 1), signed weights, sums in 32 bits.
#include "common.h"
#include "tiles.h"
#include <stdlib.h>
#ifdef __AVX512VNNI__
#include <immintrin.h>

enum { LANES = 16, ROWS = 6, WIDE = 64, VECTORS = WIDE / LANES };  // a tile: 6 rows times 64 outputs in 24 registers
enum { QUAD = 4, LINE = 64 };  // inputs that lie together in a weight; bytes that memory moves at once
enum { NARROW = 64 };  // pixels beside each other below which too few are a tile of 16 in one row
enum { DEEP = 4096, MANY = 192, LEVELS = 255 };  // bytes of a row, and rows, for which one panel of a weight stays in L2

#define INLINE static inline __attribute__((always_inline))

INLINE __mmask16 lanes(int64_t left) { return left >= LANES ? 0xffff : (left <= 0 ? 0 : (1u << left) - 1); }

// Numbers are float32, or bfloat16 where `half` is not 0.
INLINE __m512 load(const void *x, int64_t at, int64_t half, __mmask16 mask) {
    if (!half) return _mm512_maskz_loadu_ps(mask, (const float *)x + at);
    __m256i narrow = _mm256_maskz_loadu_epi16(mask, (const bf16 *)x + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

INLINE void store(void *y, int64_t at, int64_t half, __mmask16 mask, __m512 value) {
    if (!half) _mm512_mask_storeu_ps((float *)y + at, mask, value);
    else _mm256_mask_storeu_epi16((bf16 *)y + at, mask, (__m256i)_mm512_cvtneps_pbh(value));
}

// exp(x) for x <= 88, as common.h's `exponential`.
INLINE __m512 exponentials(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.3f));
    __m512 n = _mm512_roundscale_ps(x * 1.44269504f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    __m512 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return _mm512_scalef_ps(p * r * r + r + 1.0f, n);
}

INLINE __m512 reciprocals(__m512 x) {
    __m512 near = _mm512_rcp14_ps(x);
    return near * (2.0f - x * near);
}

INLINE __m512 silus(__m512 x) {
    return x * reciprocals(1.0f + exponentials(_mm512_min_ps(-x, _mm512_set1_ps(87.3f))));
}

enum { NO_NUMBER = 0x81 };  // quiet and signalling (VFPCLASSPS)

// x (1 + erf(x / sqrt 2)) / 2 = max(x, 0) - y 2^p(y), y = |x|, to 1e-7: both polynomials are minimax, p of the logarithm of
// erfc(x / sqrt 2) / 2 up to 5.7, the other of a power of two within half of a whole number.
INLINE __m512 gelus(__m512 x) {
    __m512 y = _mm512_min_ps(_mm512_set1_ps(5.7f), _mm512_abs_ps(x));
    __m512 p = y * 3.309285265e-5f - 7.692201181e-4f;
    p = p * y + 8.080718106e-3f;
    p = p * y - 5.341210681e-2f;
    p = p * y - 4.587709714e-1f;
    p = p * y - 1.151201703f;
    p = p * y - 9.99993061e-1f;
    __m512 n = _mm512_roundscale_ps(p, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = p - n;
    __m512 power = r * 1.327647178e-3f + 9.675541333e-3f;
    power = power * r + 5.550713274e-2f;
    power = power * r + 2.402211972e-1f;
    power = power * r + 6.931469671e-1f;
    power = power * r + 1.000000072f;
    __m512 made = _mm512_max_ps(x, _mm512_setzero_ps()) - y * _mm512_scalef_ps(power, n);
    return _mm512_mask_mov_ps(made, _mm512_fpclass_ps_mask(x, NO_NUMBER), x);  // least and greatest are numbers
}

typedef struct {
    float scale, inverse;
    int32_t zero;
} Rounding;

// What is no number must stay none: comparing loses it, and so does -ffast-math, but not the bits of the exponent.
enum { SIZE = 0x7fffffff, ENDLESS = 0x7f800000 };

INLINE __m512i largest_bits(__m512i bits, __m512 v) {
    return _mm512_max_epu32(bits, _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(SIZE)));
}

static int is_finite(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits & SIZE) < ENDLESS;
}

static Rounding no_rounding(void) {
    const uint32_t bits = 0x7fc00000;
    float none;
    memcpy(&none, &bits, 4);
    return (Rounding){none, 1, 0};
}

// Levels 0 to 255 for numbers from low to high, 0 among them, which has a level of its own.
static Rounding rounding(float low, float high) {
    low = low < 0 ? low : 0;
    high = high > 0 ? high : 0;
    float scale = (high - low) / LEVELS;
    if (scale < 1e-37f) scale = 1;
    return (Rounding){scale, 1 / scale, (int32_t)rintf(-low / scale)};
}

INLINE void store_levels(uint8_t *q, __mmask16 mask, __m512 value, Rounding by) {
    __m512i level = _mm512_cvtps_epi32(value * by.inverse + (float)by.zero);
    level = _mm512_max_epi32(level, _mm512_setzero_si512());
    _mm_mask_storeu_epi8(q, mask, _mm512_cvtusepi32_epi8(level));
}

// What is known of numbers: their sum, and within which bits and bounds they are.
typedef struct {
    __m512 sum, low, high;
    __m512i bits;
} Extent;

INLINE void extend(Extent *known, __m512 v) {
    known->bits = largest_bits(known->bits, v);
    known->sum += v;
    known->low = _mm512_min_ps(known->low, v);
    known->high = _mm512_max_ps(known->high, v);
}

static Rounding rounding_of(Extent known) {
    if (_mm512_reduce_max_epu32(known.bits) >= ENDLESS) return no_rounding();
    return rounding(_mm512_reduce_min_ps(known.low), _mm512_reduce_max_ps(known.high));
}

// Numbers of a row, by LayerNorm where there is a weight.
INLINE __m512 normal(const void *x, int64_t from, int64_t c, int64_t half, __mmask16 mask, const float *weight,
                     const float *bias, float mean, float inverse) {
    __m512 v = load(x, from + c, half, mask);
    if (!weight) return v;
    return (v - mean) * (_mm512_maskz_loadu_ps(mask, weight + c) * inverse) + _mm512_maskz_loadu_ps(mask, bias + c);
}

// Round rows of `width` numbers, each by its own range; after LayerNorm (Ba et al. 1607.06450) where
// there is a weight.
void round_rows(const void *x, uint8_t *q, float *scale, int32_t *zero, const float *weight, const float *bias,
                int64_t rows, int64_t width, int64_t half, float eps) {
#pragma omp parallel for if (rows * width > 32768)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t from = row * width;
        Extent known = {0};
        for (int64_t c = 0; c < width; c += LANES) extend(&known, load(x, from + c, half, lanes(width - c)));
        float mean = 0, inverse = 1;
        if (weight) {
            mean = _mm512_reduce_add_ps(known.sum) / width;
            __m512 square = _mm512_setzero_ps();
            for (int64_t c = 0; c < width; c += LANES) {
                __mmask16 mask = lanes(width - c);
                __m512 v = _mm512_maskz_sub_ps(mask, load(x, from + c, half, mask), _mm512_set1_ps(mean));
                square += v * v;
            }
            inverse = 1 / sqrtf(_mm512_reduce_add_ps(square) / width + eps);
            known = (Extent){0};
            for (int64_t c = 0; c < width; c += LANES)
                extend(&known, normal(x, from, c, half, lanes(width - c), weight, bias, mean, inverse));
        }
        Rounding by = rounding_of(known);
        scale[row] = by.scale;
        zero[row] = by.zero;
        for (int64_t c = 0; c < width; c += LANES) {
            __mmask16 mask = lanes(width - c);
            store_levels(q + from + c, mask, normal(x, from, c, half, mask, weight, bias, mean, inverse), by);
        }
    }
}

// What is known of a channel: sum, sum of squares, least, largest; pixels at a time; chunks of an image at most.
enum { PARTS = 4, TOGETHER = 8, CHUNKS = 16 };

static void statistics(const void *x, int64_t first, int64_t last, int64_t channels, int64_t half, double *known) {
    for (int64_t c = 0; c < channels; c++) {
        known[c] = known[channels + c] = 0;
        known[2 * channels + c] = INFINITY;
        known[3 * channels + c] = -INFINITY;
    }
    for (int64_t row = first; row < last; row += TOGETHER) {
        int64_t count = last - row < TOGETHER ? last - row : TOGETHER;
        for (int64_t c = 0; c < channels; c += LANES) {
            __mmask16 mask = lanes(channels - c);
            __m512 low = load(x, row * channels + c, half, mask), high = low, sum = low, square = low * low;
            for (int64_t k = 1; k < count; k++) {
                __m512 v = load(x, (row + k) * channels + c, half, mask);
                sum += v;
                square += v * v;
                low = _mm512_min_ps(low, v);
                high = _mm512_max_ps(high, v);
            }
            for (int part = 0; part < 2; part++) {
                __mmask8 some = part ? mask >> 8 : mask;
                double *at = known + c + 8 * part;
#define HALF(v) _mm512_cvtps_pd(part ? _mm512_extractf32x8_ps(v, 1) : _mm512_castps512_ps256(v))
#define UPDATE(at, f, v) _mm512_mask_storeu_pd(at, some, f(_mm512_maskz_loadu_pd(some, at), HALF(v)))
                UPDATE(at, _mm512_add_pd, sum);
                UPDATE(at + channels, _mm512_add_pd, square);
                UPDATE(at + 2 * channels, _mm512_min_pd, low);
                UPDATE(at + 3 * channels, _mm512_max_pd, high);
            }
        }
    }
}

// The least and the largest of silu from low to high; it falls to the left of its minimum and rises to the right.
static void silu_range(float *low, float *high) {
    const float lowest = -1.27846454f;
    float left = silu(*low), right = silu(*high);
    float least = *low < lowest && *high > lowest ? silu(lowest) : (left < right ? left : right);
    *high = left > right ? left : right;
    *low = least;
}

// Round images in channels-last, each by its own range, into ones with `above` and `beside` zero pixels around; after
// GroupNorm (Wu and He 1803.08494) where there is a weight, and SiLU where `with_silu`. The range follows from that of
// each channel, without computing the numbers first. `known` has room for 65 numbers of each channel of an image: parts
// by chunk, then what it is multiplied by and what is added.
void round_images(const void *x, uint8_t *q, float *scale, int32_t *zero, const float *weight, const float *bias,
                  double *known, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t groups, int64_t above,
                  int64_t beside, int64_t with_silu, int64_t half, float eps) {
    int64_t pixels = height * width, chunks = pixels < 256 ? 1 : CHUNKS, wide = channels / groups;
    int64_t broad = (width + 2 * beside) * channels;
    float *affine = (float *)(known + images * chunks * PARTS * channels);
#pragma omp parallel for collapse(2) if (images * pixels * channels > 32768)
    for (int64_t image = 0; image < images; image++)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            int64_t first = image * pixels + pixels * chunk / chunks, last = image * pixels + pixels * (chunk + 1) / chunks;
            statistics(x, first, last, channels, half, known + (image * chunks + chunk) * PARTS * channels);
        }
    for (int64_t image = 0; image < images; image++) {
        double *all = known + image * chunks * PARTS * channels;
        for (int64_t chunk = 1; chunk < chunks; chunk++)
            for (int64_t c = 0; c < channels; c++) {
                const double *at = all + chunk * PARTS * channels + c;
                all[c] += at[0];
                all[channels + c] += at[channels];
                all[2 * channels + c] = fmin(all[2 * channels + c], at[2 * channels]);
                all[3 * channels + c] = fmax(all[3 * channels + c], at[3 * channels]);
            }
        float least = 0, largest = 0, *factor = affine + 2 * image * channels, *shift = factor + channels;
        int all_finite = 1;
        for (int64_t group = 0; group < groups; group++) {
            double sum = 0, square = 0, count = (double)pixels * wide;
            for (int64_t c = group * wide; c < (group + 1) * wide; c++) {
                sum += all[c];
                square += all[channels + c];
            }
            double mean = sum / count, variance = square / count - mean * mean;
            double inverse = 1 / sqrt((variance > 0 ? variance : 0) + eps);
            for (int64_t c = group * wide; c < (group + 1) * wide; c++) {
                factor[c] = weight ? (float)(inverse * weight[c]) : 1;
                shift[c] = weight ? (float)(bias[c] - mean * inverse * weight[c]) : 0;
                float one = (float)all[2 * channels + c] * factor[c] + shift[c];
                float other = (float)all[3 * channels + c] * factor[c] + shift[c];
                float low = fminf(one, other), high = fmaxf(one, other);
                all_finite &= is_finite((float)all[c]) & is_finite(factor[c]) & is_finite(shift[c]);
                if (with_silu) silu_range(&low, &high);
                least = fminf(least, low);
                largest = fmaxf(largest, high);
            }
        }
        Rounding by = all_finite ? rounding(least, largest) : no_rounding();
        scale[image] = by.scale;
        zero[image] = by.zero;
    }
    int64_t tall = height + 2 * above;
#pragma omp parallel for collapse(2) if (images * pixels * channels > 32768)
    for (int64_t image = 0; image < images; image++)
        for (int64_t line = 0; line < tall; line++) {
            uint8_t *to = q + (image * tall + line) * broad;
            const float *factor = affine + 2 * image * channels, *shift = factor + channels;
            int64_t row = line - above;
            Rounding by = {scale[image], 1 / scale[image], zero[image]};
            if (row < 0 || row >= height) {
                memset(to, by.zero, broad);
                continue;
            }
            memset(to, by.zero, beside * channels);
            memset(to + (beside + width) * channels, by.zero, beside * channels);
            to += beside * channels;
            for (int64_t column = 0; column < width; column++, to += channels) {
                int64_t from = ((image * height + row) * width + column) * channels;
                for (int64_t c = 0; c < channels; c += LANES) {
                    __mmask16 mask = lanes(channels - c);
                    __m512 v = load(x, from + c, half, mask) * _mm512_maskz_loadu_ps(mask, factor + c);
                    v += _mm512_maskz_loadu_ps(mask, shift + c);
                    store_levels(to + c, mask, with_silu ? silus(v) : v, by);
                }
            }
        }
}

// The taps of a kernel: `count` in rows of `broad`, `right` and `down` bytes apart, each of `quads` times 4 numbers.
typedef struct {
    int64_t count, broad, right, down, quads;
} Taps;

// Add to the sums of a tile what the taps from `first` to `last` give; nothing is summed before tap 0. The first is
// `beside` others in its row, and `place` bytes from the first of all.
INLINE void accumulate(const int rows, const uint8_t *const *at, const Taps *taps, int64_t first, int64_t last,
                       int64_t beside, int64_t place, const int8_t *w, int32_t (*sums)[WIDE]) {
    __m512i sum[ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] = first ? _mm512_load_si512(sums[r] + LANES * v) : _mm512_setzero_si512();
    for (int64_t tap = first; tap < last; tap++) {
        for (int64_t k = 0; k < taps->quads; k++, w += QUAD * WIDE) {
            __m512i weight[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) weight[v] = _mm512_load_si512(w + QUAD * LANES * v);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                int32_t quad;
                memcpy(&quad, at[r] + place + QUAD * k, QUAD);
                __m512i four = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++) sum[r][v] = _mm512_dpbusd_epi32(sum[r][v], four, weight[v]);
            }
        }
        place += taps->right;
        if (++beside < taps->broad) continue;
        beside = 0;
        place += taps->down - taps->broad * taps->right;
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) _mm512_store_si512(sums[r] + LANES * v, sum[r][v]);
}

#ifdef __AMX_INT8__
enum { TILED = 1 };

// The same for 16 rows, `apart` bytes one from the next, of a multiple of 64 inputs.
static void accumulate_tile(const uint8_t *at, int64_t apart, const Taps *taps, int64_t first, int64_t last,
                            int64_t beside, int64_t place, const int8_t *w, int32_t (*sums)[WIDE]) {
#define START(v) if (first) _tile_loadd(v, sums[0] + LANES * v, 4 * WIDE); else _tile_zero(v);
#define ADD(v, weight) \
    _tile_loadd(weight, w + QUAD * LANES * v, QUAD * WIDE); \
    _tile_dpbusd(v, 4, weight);
#define END(v) _tile_stored(v, sums[0] + LANES * v, 4 * WIDE);
    START(0) START(1) START(2) START(3)
    for (int64_t tap = first; tap < last; tap++) {
        for (int64_t k = 0; k < taps->quads; k += TILE, w += TILE * QUAD * WIDE) {
            _tile_loadd(4, at + place + QUAD * k, apart);
            ADD(0, 5) ADD(1, 6) ADD(2, 7) ADD(3, 5)
        }
        place += taps->right;
        if (++beside < taps->broad) continue;
        beside = 0;
        place += taps->down - taps->broad * taps->right;
    }
    END(0) END(1) END(2) END(3)
}
#else
enum { TILED = 0 };
static void accumulate_tile(const uint8_t *at, int64_t apart, const Taps *taps, int64_t first, int64_t last,
                            int64_t beside, int64_t place, const int8_t *w, int32_t (*sums)[WIDE]) {}
#endif

// What each pixel of narrow images sees, tap by tap, so that all are equally far apart; NULL without memory for it.
static uint8_t *unfold(const uint8_t *x, const Taps *taps, int64_t images, int64_t height, int64_t width, int64_t channels,
                       int64_t apart, int64_t down, int64_t right) {
    uint8_t *seen = malloc(images * height * width * taps->count * channels);
    if (!seen) return NULL;
#pragma omp parallel for collapse(2) if (images * height * width * taps->count * channels > 65536)
    for (int64_t image = 0; image < images; image++)
        for (int64_t pixel = 0; pixel < height * width; pixel++) {
            const uint8_t *from = x + image * apart + pixel / width * down + pixel % width * right;
            uint8_t *to = seen + (image * height * width + pixel) * taps->count * channels;
            for (int64_t tap = 0; tap < taps->count; tap++, to += channels)
                memcpy(to, from + tap / taps->broad * taps->down + tap % taps->broad * taps->right, channels);
        }
    return seen;
}

typedef struct {
    int64_t from, to, image, rounding;  // where its inputs and outputs are, and which shift, scale and zero are its own
    int64_t even;                       // how many rows before it are as far apart as the first two
} Row;

typedef struct {
    const int8_t *levels;
    const float *scales, *bias;
    const int32_t *totals;
} Weight;

// One row of a tile: scale scales (sums - zero totals) + bias.
INLINE void widen_sums(const Weight *w, int64_t column, int32_t zero, float scale, const int32_t *sums,
                       __mmask16 masks[VECTORS], __m512 value[VECTORS]) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
        int64_t at = column + LANES * v;
        __m512i total = _mm512_mullo_epi32(_mm512_set1_epi32(zero), _mm512_loadu_si512(w->totals + at));
        __m512i sum = _mm512_sub_epi32(_mm512_load_si512(sums + LANES * v), total);
        value[v] = _mm512_cvtepi32_ps(sum) * (scale * _mm512_loadu_ps(w->scales + at));
        if (w->bias) value[v] += _mm512_maskz_loadu_ps(masks[v], w->bias + at);
    }
}

// Convolve rounded images, or multiply rounded rows, which are images of one row, and add a shift of the image and an
// image, or rows, of the outputs' shape; or multiply by the GELU of what a second weight makes (`gate`). `levels` of a
// weight are panels of 64 outputs: tap by tap, for each 4 inputs 64 times 4; `totals` are their sums, of each output.
// `per` pixels share a scale and a zero. Inputs lie apart in bytes, outputs in numbers.
void convolve_int8(const uint8_t *x, const float *scale, const int32_t *zero, const int8_t *levels, const float *scales,
                   const int32_t *totals, const float *bias, const int8_t *gate, const float *gate_scales,
                   const int32_t *gate_totals, const float *gate_bias, const float *shift, const void *add, void *y,
                   int64_t images, int64_t height, int64_t width, int64_t channels, int64_t outputs, int64_t x_image,
                   int64_t x_row, int64_t x_pixel, int64_t y_image, int64_t y_row, int64_t y_pixel, int64_t tall,
                   int64_t broad, int64_t down, int64_t right, int64_t stride_y, int64_t stride_x, int64_t per,
                   int64_t half) {
    const Weight weight[] = {{levels, scales, bias, totals}, {gate, gate_scales, gate_bias, gate_totals}};
    const int parts = gate ? 2 : 1;
    const int64_t count = tall * broad, quads = (channels + QUAD - 1) / QUAD, size = half ? sizeof(bf16) : sizeof(float);
    const Taps taps = {count, broad, right * x_pixel, down * x_row, quads};
    int64_t together = DEEP / (QUAD * quads) > 0 ? DEEP / (QUAD * quads) : 1, turns = (count + together - 1) / together;
    together = (count + turns - 1) / turns;
    int64_t rows = images * height * width, blocks = (rows + MANY - 1) / MANY, panels = (outputs + WIDE - 1) / WIDE;
    const int64_t whole = channels % LINE == 0;
    if (TILED && whole && count > 1 && width % TILE && width < NARROW) {
        uint8_t *q = unfold(x, &taps, images, height, width, channels, x_image, stride_y * x_row, stride_x * x_pixel);
        if (q) {
            const int64_t deep = count * channels;
            convolve_int8(q, scale, zero, levels, scales, totals, bias, gate, gate_scales, gate_totals, gate_bias, shift, add, y,
                          images, height, width, deep, outputs, height * width * deep, width * deep, deep, y_image, y_row,
                          y_pixel, 1, 1, 1, 1, 1, 1, per, half);
            free(q);
            return;
        }
    }
#pragma omp parallel if (rows * outputs * count * channels > 65536)
    {
        take_tiles();
#pragma omp for
        for (int64_t task = 0; task < blocks * panels; task++) {
            _Alignas(64) int32_t sums[2][MANY][WIDE];
            __mmask16 masks[VECTORS];
            Row row[MANY];
            int64_t start = task / panels * MANY, many = rows - start < MANY ? rows - start : MANY;
            int64_t panel = task % panels, column = panel * WIDE;
            Row now = {0, 0, start / width / height, start / per, 0};
            int64_t j = start % width, i = start / width % height, left = per - start % per;
            for (int64_t r = 0; r < many; r++) {
                now.from = now.image * x_image + i * stride_y * x_row + j * stride_x * x_pixel;
                now.to = now.image * y_image + i * y_row + j * y_pixel;
                now.even = r && now.from - row[r - 1].from == stride_x * x_pixel ? now.even + 1 : 0;
                row[r] = now;
                if (!--left) now.rounding++, left = per;
                if (++j == width) j = 0, i++;
                if (i == height) i = 0, now.image++;
            }
            for (int v = 0; v < VECTORS; v++) masks[v] = lanes(outputs - column - LANES * v);
            for (int64_t tap = 0; tap < count; tap += together) {
                int64_t next = tap + together < count ? tap + together : count;
                int64_t beside = tap % broad, place = tap / broad * taps.down + beside * taps.right;
                for (int64_t first = 0, high; first < many; first += high) {
                    const Row *these = row + first;
                    const int tiled = TILED && whole && many - first >= TILE && these[TILE - 1].even >= TILE - 1;
                    high = tiled ? TILE : (many - first < ROWS ? many - first : ROWS);
                    const uint8_t *at[ROWS];
                    int32_t(*tile)[MANY][WIDE] = (void *)sums[0][next - tap == count ? 0 : first];
                    for (int r = 0; r < ROWS; r++) at[r] = x + these[r < high ? r : 0].from;
                    for (int r = 0; r < high; r++)
                        for (int64_t byte = 0; add && next == count && byte < WIDE * size; byte += LINE) {
                            int64_t to = (these[r].to + column) * size + byte;  // there once the sums are
                            __builtin_prefetch((const char *)add + to);
                            __builtin_prefetch((char *)y + to, 1);
                        }
                    for (int part = 0; part < parts; part++) {
                        const int8_t *from = weight[part].levels + (panel * count + tap) * quads * QUAD * WIDE;
                        if (tiled) {
                            accumulate_tile(at[0], stride_x * x_pixel, &taps, tap, next, beside, place, from, tile[part]);
                            continue;
                        }
                        switch (high) {
#define CASE(n) case n: accumulate(n, at, &taps, tap, next, beside, place, from, tile[part]); break;
                            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
                        }
                    }
                    if (next < count) continue;
                    for (int r = 0; r < high; r++) {
                        const Row *now = these + r;
                        int64_t to = now->to + column;
                        int32_t level = zero[now->rounding];
                        float step = scale[now->rounding];
                        __m512 value[VECTORS];
                        widen_sums(weight, column, level, step, tile[0][r], masks, value);
                        if (gate) {
                            __m512 other[VECTORS];
                            widen_sums(weight + 1, column, level, step, tile[1][r], masks, other);
                            for (int v = 0; v < VECTORS; v++) value[v] *= gelus(other[v]);
                        }
#pragma GCC unroll 4
                        for (int v = 0; v < VECTORS; v++) {
                            const float *moved = shift + now->image * outputs + column + LANES * v;
                            if (shift) value[v] += _mm512_maskz_loadu_ps(masks[v], moved);
                            if (add) value[v] += load(add, to + LANES * v, half, masks[v]);
                            store(y, to + LANES * v, half, masks[v], value[v]);
                        }
                    }
                }
            }
        }
        return_tiles();
    }
}
#endif
