// Products of few rows with narrow matrices, and 3x3 convolutions of small images, in float32.
//
// Both are sums over a few `taps`, each a row of channels somewhere in x, times a matrix that lies in panels of
// columns. All sums of a tile of rows by a panel's columns stay in registers (Goto and van de Geijn 2008), and what
// follows (bias, addition, GELU, a gate's product) is done to them before they are written.
#include "common.h"
#ifdef __AVX512F__
enum { LANES = 16, VECTORS = 3, HIGH = 9 };  // of a tile: VECTORS x HIGH sums, of 32 registers
#else
enum { LANES = 8, VECTORS = 2, HIGH = 6 };  // of 16
#endif
enum { COLUMNS = LANES * VECTORS, TAPS = 9, ALONE = 1 << 25 };  // ALONE: multiplications that one thread does
enum { PLAIN, GELU, ADD, MULTIPLY };  // what follows a product
const int64_t panel_columns = COLUMNS;
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    const float *weight, *bias, *other;  // panels of [tap][channel][COLUMNS]; what is added, or multiplied by
    int64_t channels, made, count;       // numbers of a row of x and of y; taps
    int64_t taps[TAPS], then;            // from a row's place in x to what its taps see
} Layer;

typedef struct {
    const float *x, *other;
    float *y;
} Row;

INLINE void sum(int high, int wide, const Row *rows, const Layer *layer, const float *weight, float *sums) {
    vec all[HIGH][VECTORS];
    for (int row = 0; row < high; row++)
        for (int v = 0; v < wide; v++) all[row][v] = (vec){0};
    for (int64_t tap = 0; tap < layer->count; tap++) {
        const float *from[HIGH];
        for (int row = 0; row < high; row++) from[row] = rows[row].x + layer->taps[tap];
        for (int64_t c = 0; c < layer->channels; c++, weight += COLUMNS) {
            vec column[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < wide; v++) column[v] = *(const vec *)(weight + v * LANES);
#pragma GCC unroll 16
            for (int row = 0; row < high; row++)
#pragma GCC unroll 4
                for (int v = 0; v < wide; v++) all[row][v] += from[row][c] * column[v];
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < high; row++)
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++) *(vec *)(sums + row * COLUMNS + v * LANES) = all[row][v];
}

INLINE void sum_rows(int64_t high, int wide, const Row *rows, const Layer *layer, const float *weight, float *sums) {
#define CASE(n) case n: sum(n, wide, rows, layer, weight, sums); break;
    switch (high) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#ifdef __AVX512F__
        CASE(7) CASE(8) CASE(9)
#endif
    }
#undef CASE
}

static void sum_columns(int64_t high, int64_t width, const Row *rows, const Layer *layer, const float *weight,
                        float *sums) {
    if (width <= LANES)
        sum_rows(high, 1, rows, layer, weight, sums);
    else if (width <= 2 * LANES)
        sum_rows(high, 2, rows, layer, weight, sums);
    else
        sum_rows(high, VECTORS, rows, layer, weight, sums);
}

// x times the normal distribution function (Abramowitz and Stegun 7.1.26: to 1.5e-7).
static inline float gelu(float x) {
    float z = fabsf(x) * 0.70710678f, t = 1 / (1 + 0.3275911f * z);
    float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    float beyond = 0.5f * p * exponential(-z * z);
    return x * (x < 0 ? beyond : 1 - beyond);
}

static void compute(const Layer *layer, const Row *rows, int64_t count) {
    int64_t deep = layer->count * layer->channels, panels = (layer->made + COLUMNS - 1) / COLUMNS;
    int64_t parts = (count + HIGH - 1) / HIGH;
#pragma omp parallel for if (count * deep * layer->made > ALONE)
    for (int64_t column = 0; column < panels; column++) {
        int64_t first = column * COLUMNS, width = layer->made - first < COLUMNS ? layer->made - first : COLUMNS;
        const float *weight = layer->weight + first * deep;
        float bias[COLUMNS] = {0}, sums[HIGH * COLUMNS];
        if (layer->bias) memcpy(bias, layer->bias + first, width * sizeof *bias);
        for (int64_t part = 0; part < parts; part++) {  // of equal height, as near as can be
            int64_t begin = count * part / parts, high = count * (part + 1) / parts - begin;
            sum_columns(high, width, rows + begin, layer, weight, sums);
            for (int64_t row = 0; row < high; row++) {
                const float *from = sums + row * COLUMNS, *other = rows[begin + row].other + first;
                float *y = rows[begin + row].y + first;
                switch (layer->then) {
                    case PLAIN: for (int64_t c = 0; c < width; c++) y[c] = from[c] + bias[c]; break;
                    case GELU: for (int64_t c = 0; c < width; c++) y[c] = gelu(from[c] + bias[c]); break;
                    case ADD: for (int64_t c = 0; c < width; c++) y[c] = from[c] + bias[c] + other[c]; break;
                    default: for (int64_t c = 0; c < width; c++) y[c] = (from[c] + bias[c]) * other[c];
                }
            }
        }
    }
}

// y = x W' + bias, then its GELU, or plus `other`, or times it. x (rows, channels), y and `other` (rows, made).
int product(const float *x, const float *weight, const float *bias, const float *other, float *y, int64_t count,
            int64_t channels, int64_t made, int64_t then) {
    Layer layer = {weight, bias, other, channels, made, 1, {0}, then};
    Row *rows = malloc((count + 1) * sizeof *rows);
    if (!rows) return NO_MEMORY;
    for (int64_t row = 0; row < count; row++) {
        int64_t at = row * made;
        rows[row] = (Row){x + row * channels, other ? other + at : y, y + at};
    }
    compute(&layer, rows, count);
    free(rows);
    return DONE;
}

// Convolve channels-last images, padded by a pixel of zeros: by 3x3 kernels at every `stride`-th pixel, or (`corners`)
// by the four of 2x2 that see a doubled image from the corners of its pixels. `other`, of which each image has as many
// pixels as y or one, is added.
int convolve(const float *x, const float *weight, const float *bias, const float *other, float *y, int64_t images,
             int64_t height, int64_t width, int64_t channels, int64_t made, int64_t stride, int64_t corners,
             int64_t one_pixel) {
    int64_t line = (width + 2) * channels, image = (height + 2) * line, side = corners ? 2 : 3;
    int64_t down = (height - 1) / stride + 1, across = (width - 1) / stride + 1, scale = corners ? 2 : 1;
    float *padded = calloc(images * image + 1, sizeof *padded);
    Row *rows = malloc((images * down * across + 1) * sizeof *rows);
    if (!padded || !rows) {
        free(rows);
        free(padded);
        return NO_MEMORY;
    }
    for (int64_t n = 0; n < images; n++)
        for (int64_t i = 0; i < height; i++)
            memcpy(padded + n * image + (i + 1) * line + channels, x + (n * height + i) * width * channels,
                   width * channels * sizeof *x);
    int64_t size = (made + COLUMNS - 1) / COLUMNS * COLUMNS * channels * side * side;
    for (int64_t corner = 0; corner < scale * scale; corner++) {
        int64_t top = corner / 2, left = corner % 2, count = 0;
        Layer layer = {weight + corner * size, bias, other, channels, made, side * side, {0}, other ? ADD : PLAIN};
        for (int64_t tap = 0; tap < side * side; tap++)
            layer.taps[tap] = (top + tap / side) * line + (left + tap % side) * channels;
        for (int64_t n = 0; n < images; n++)
            for (int64_t i = 0; i < down; i++)
                for (int64_t j = 0; j < across; j++) {
                    int64_t pixel = (n * down * scale + i * scale + top) * across * scale + j * scale + left;
                    const float *added = other ? other + (one_pixel ? n : pixel) * made : y;
                    const float *from = padded + n * image + i * stride * line + j * stride * channels;
                    rows[count++] = (Row){from, added, y + pixel * made};
                }
        compute(&layer, rows, count);
    }
    free(rows);
    free(padded);
    return DONE;
}

// y = (x - mean) / sqrt(variance + eps) weight + bias for each row (Ba et al. 1607.06450).
void layer_norm(const float *x, float *y, const float *weight, const float *bias, int64_t rows, int64_t channels,
                float eps) {
    for (int64_t row = 0; row < rows; row++, x += channels, y += channels) {
        float sum = 0, square = 0;
        for (int64_t c = 0; c < channels; c++) sum += x[c];
        float mean = sum / channels;
        for (int64_t c = 0; c < channels; c++) square += (x[c] - mean) * (x[c] - mean);
        float scale = 1 / sqrtf(square / channels + eps);
        for (int64_t c = 0; c < channels; c++) y[c] = (x[c] - mean) * scale * weight[c] + bias[c];
    }
}

// The pixels of two images beside each other.
void join(const float *x, const float *other, float *y, int64_t pixels, int64_t channels, int64_t others) {
    for (int64_t pixel = 0; pixel < pixels; pixel++, y += channels + others) {
        memcpy(y, x + pixel * channels, channels * sizeof *y);
        memcpy(y + channels, other + pixel * others, others * sizeof *y);
    }
}

void activate(const float *x, float *y, int64_t count) {
    for (int64_t at = 0; at < count; at++) y[at] = silu(x[at]);
}
