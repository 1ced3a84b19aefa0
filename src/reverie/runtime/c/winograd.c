// Convolution of 3x3 kernels by F(4x4, 3x3): a quarter of the multiplications (Winograd 1980; Lavin and Gray
// 1509.09308). Tiles d of 6x6 pixels, 4 apart, and kernels g are transformed, multiplied number by number over all
// channels, and the sums transformed back: y = A'[(G g G') * (B' d B)]A, with the matrices of Toom and Cook for the
// points 0, P, -P, Q, -Q and infinity. P and Q are chosen for the least error (Barabasz et al. 1803.10986); what G
// divides by, A' multiplies with here. Images, kernels and what is added may be bfloat16: all between them is float.
#include "gemm.h"
#include <immintrin.h>
#include <omp.h>
#include <string.h>

enum {
    MADE = 4,
    SEEN = 6,
    NUMBERS = SEEN * SEEN,
    TAPS = 9,
    LINE = 64,          // bytes of a line of a cache
    DEEP = 64,          // channels of a kernel that are transformed at a time, which stay in the second cache
    MOST = 9 * ROWS,    // tiles of a block at most, whose sums for COLUMNS channels stay there too
    ROOM = 1 << 22,     // numbers of a block's transformed tiles at most, which stay in the third
    ALL = 1 << 24,      // numbers of all threads' at most
    APART = LANES,      // numbers between two of the 36 matrices, lest they share the same lines of a cache
};
#define P 0.625f
#define Q 1.5f
#define PP (P * P)
#define QQ (Q * Q)
#define BY_P (1 / (2 * PP * (PP - QQ)))  // what G divides by at P and -P, at Q and -Q, and at 0
#define BY_Q (1 / (2 * QQ * (QQ - PP)))
#define BY_0 (1 / (PP * QQ))

typedef struct {
    const void *x, *weight, *bias, *add;
    void *y;
} Operands;

typedef struct {                                // given:
    int64_t images, height, width, channels;    // of x
    int64_t made, above, left, doubled;         // channels of y, padding, whether every pixel of x counts as 2 x 2
    int64_t one_pixel, relu, threads;           // whether one pixel is added to all of an image
    int64_t high, wide, down, across;           // found: pixels and tiles of an image of y
    int64_t blocks, each, apart, room;          // blocks of tiles, whether each is one thread's, and the room for all
} Convolution;

typedef struct {
    int64_t first, count, panels, high;  // tiles, and how they are cut into panels of rows
    int64_t chunks, apart;               // of LANES channels; numbers between two of the 36 matrices
    float *tiles;
} Block;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The numbers from `at` on, `count` of which are there at least, or all LANES; zeros for the others.
INLINE vec load(const int halves, const void *from, int64_t at, int64_t count) {
#ifdef __AVX512BF16__
    if (halves) {
        __mmask16 some = count < LANES ? (1u << count) - 1 : 0xffff;
        return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, (const uint16_t *)from + at)), 16);
    }
#endif
    (void)halves;
    vec all = {0};
    if (count >= LANES) return *(const vec *)((const float *)from + at);
    memcpy(&all, (const float *)from + at, 4 * count);
    return all;
}

INLINE void store(const int halves, void *to, int64_t at, vec all, int64_t count) {
#ifdef __AVX512BF16__
    if (halves) {
        __mmask16 some = count < LANES ? (1u << count) - 1 : 0xffff;
        _mm256_mask_storeu_epi16((uint16_t *)to + at, some, (__m256i)_mm512_cvtneps_pbh((__m512)all));
        return;
    }
#endif
    (void)halves;
    if (count >= LANES)
        *(vec *)((float *)to + at) = all;
    else
        memcpy((float *)to + at, &all, 4 * count);
}

INLINE void transform_input(const vec d[SEEN], int64_t step, vec *v, int64_t apart) {
#define D(n) d[n * step]
    vec even = D(4) - QQ * D(2), odd = D(3) - QQ * D(1);
    v[1 * apart] = even + P * odd;
    v[2 * apart] = even - P * odd;
    even = D(4) - PP * D(2), odd = D(3) - PP * D(1);
    v[3 * apart] = even + Q * odd;
    v[4 * apart] = even - Q * odd;
    v[0 * apart] = PP * QQ * D(0) - (PP + QQ) * D(2) + D(4);
    v[5 * apart] = PP * QQ * D(1) - (PP + QQ) * D(3) + D(5);
#undef D
}

INLINE void transform_kernel(vec first, vec second, vec third, vec *u, int64_t apart) {
    vec even = first + PP * third;
    u[0 * apart] = first;
    u[1 * apart] = even + P * second;
    u[2 * apart] = even - P * second;
    even = first + QQ * third;
    u[3 * apart] = even + Q * second;
    u[4 * apart] = even - Q * second;
    u[5 * apart] = third;
}

INLINE void transform_output(const vec *m, int64_t apart, vec y[MADE], int64_t step) {
#define M(n) m[n * apart]
    vec even_p = M(1) + M(2), odd_p = M(1) - M(2), even_q = M(3) + M(4), odd_q = M(3) - M(4);
    y[0 * step] = BY_0 * M(0) + BY_P * even_p + BY_Q * even_q;
    y[1 * step] = BY_P * P * odd_p + BY_Q * Q * odd_q;
    y[2 * step] = BY_P * PP * even_p + BY_Q * QQ * even_q;
    y[3 * step] = BY_P * P * PP * odd_p + BY_Q * Q * QQ * odd_q + M(5);
#undef M
}

// Where a tile lies: its image, and its first pixel of y.
INLINE void find(const Convolution *task, int64_t tile, int64_t *image, int64_t *top, int64_t *left) {
    *image = tile / (task->down * task->across);
    tile %= task->down * task->across;
    *top = MADE * (tile / task->across);
    *left = MADE * (tile % task->across);
}

INLINE void transform_tile(const int halves, const Convolution *task, const Operands *of, const Block *block,
                           int64_t number) {
    int64_t image, top, left, panel = number / block->high, row = number % block->high;
    find(task, block->first + number, &image, &top, &left);
    int64_t pixels[NUMBERS];
    for (int i = 0; i < SEEN; i++)
        for (int j = 0; j < SEEN; j++) {
            int64_t y = top + i - task->above, x = left + j - task->left;
            int inside = y >= 0 && x >= 0 && y < task->height << task->doubled && x < task->width << task->doubled;
            y >>= task->doubled, x >>= task->doubled;
            int64_t pixel = (image * task->height + y) * task->width + x;
            pixels[SEEN * i + j] = inside ? pixel * task->channels : -1;
        }
    float *to = block->tiles + (panel * block->chunks * block->high + row) * LANES;
    for (int64_t chunk = 0; chunk < block->chunks; chunk++, to += block->high * LANES) {
        vec seen[SEEN], half[NUMBERS], whole[SEEN];
        int64_t at = chunk * LANES, count = task->channels - at;
#pragma GCC unroll 6
        for (int i = 0; i < SEEN; i++) {
#pragma GCC unroll 6
            for (int j = 0; j < SEEN; j++) {
                int64_t pixel = pixels[SEEN * i + j];
                seen[j] = pixel < 0 ? (vec){0} : load(halves, of->x, pixel + at, count);
            }
            transform_input(seen, 1, half + SEEN * i, 1);
        }
#pragma GCC unroll 6
        for (int j = 0; j < SEEN; j++) {
            transform_input(half + j, SEEN, whole, 1);
#pragma GCC unroll 6
            for (int i = 0; i < SEEN; i++) *(vec *)(to + (SEEN * i + j) * block->apart) = whole[i];
        }
    }
}

// Exchange rows and columns: in each step, numbers whose places differ by s in both change places.
#define EACH8(f, s) f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s)
#define LOWER(i, s) ((i) & (s) ? LANES + (i) - (s) : (i))
#define UPPER(i, s) ((i) & (s) ? LANES + (i) : (i) + (s))
#ifdef __AVX512F__
#define EACH(f, s) EACH8(f, s), f(8, s), f(9, s), f(10, s), f(11, s), f(12, s), f(13, s), f(14, s), f(15, s)
#else
#define EACH(f, s) EACH8(f, s)
#endif
typedef int32_t lanes __attribute__((vector_size(4 * LANES)));
#define EXCHANGE(s)                                                                                                    \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) if (!(i & (s))) {                                         \
        vec lower = rows[i], upper = rows[i + (s)];                                                                    \
        rows[i] = __builtin_shuffle(lower, upper, (lanes){EACH(LOWER, s)});                                            \
        rows[i + (s)] = __builtin_shuffle(lower, upper, (lanes){EACH(UPPER, s)});                                      \
    }

INLINE void transpose(vec rows[LANES]) {
    EXCHANGE(1)
    EXCHANGE(2)
    EXCHANGE(4)
#ifdef __AVX512F__
    EXCHANGE(8)
#endif
}

// Transform the kernels of COLUMNS channels of y, from `column` on, for LANES channels of x, from `at` on. They go to
// to[number][channel][column].
INLINE void transform_kernels(const int halves, const Convolution *task, const void *weight, int64_t column, int64_t at,
                              float *to, int64_t apart) {
    float taps[TAPS * LANES][COLUMNS] __attribute__((aligned(64)));
    int64_t count = TAPS * (task->channels - at);
    for (int64_t side = 0; side < COLUMNS; side += LANES)
        for (int64_t tap = 0; tap < TAPS * LANES; tap += LANES) {
            vec rows[LANES];
#pragma GCC unroll 16
            for (int64_t i = 0; i < LANES; i++) {
                int64_t out = column + side + i;
                int64_t from = (out * task->channels + at) * TAPS + tap;
                rows[i] = out < task->made && tap < count ? load(halves, weight, from, count - tap) : (vec){0};
            }
            transpose(rows);
#pragma GCC unroll 16
            for (int64_t i = 0; i < LANES; i++) *(vec *)(taps[tap + i] + side) = rows[i];
        }
    for (int64_t channel = 0; channel < LANES; channel++)
        for (int64_t side = 0; side < COLUMNS; side += LANES) {
            vec half[3 * SEEN], whole[SEEN];
#define TAP(n) (*(vec *)(taps[TAPS * channel + n] + side))
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++) transform_kernel(TAP(j), TAP(3 + j), TAP(6 + j), half + j, 3);
#undef TAP
#pragma GCC unroll 6
            for (int i = 0; i < SEEN; i++) {
                transform_kernel(half[3 * i], half[3 * i + 1], half[3 * i + 2], whole, 1);
#pragma GCC unroll 6
                for (int j = 0; j < SEEN; j++)
                    *(vec *)(to + (SEEN * i + j) * apart + channel * COLUMNS + side) = whole[j];
            }
        }
}

// Transform back the sums of COLUMNS channels of a tile of y, from `column` on.
INLINE void write_tile(const int halves, const Convolution *task, const Operands *of, int64_t tile, int64_t column,
                       const float *sums, int64_t apart) {
    int64_t image, top, left;
    find(task, tile, &image, &top, &left);
    for (int64_t side = 0; side < COLUMNS && column + side < task->made; side += LANES) {
        int64_t at = column + side, count = task->made - at;
        vec half[MADE * SEEN], made[MADE], seen[SEEN], bias = {0};
        if (of->bias) bias = load(halves, of->bias, at, count);
#pragma GCC unroll 6
        for (int j = 0; j < SEEN; j++) {
#pragma GCC unroll 6
            for (int i = 0; i < SEEN; i++) seen[i] = *(const vec *)(sums + (SEEN * i + j) * apart + side);
            transform_output(seen, 1, half + j, SEEN);
        }
#pragma GCC unroll 4
        for (int i = 0; i < MADE; i++) {
            transform_output(half + SEEN * i, 1, made, 1);
            int64_t row = top + i;
            if (row >= task->high) break;
            int64_t place = ((image * task->high + row) * task->wide + left) * task->made + at;
            int64_t add = task->one_pixel ? image * task->made + at : place, step = task->one_pixel ? 0 : task->made;
#pragma GCC unroll 4
            for (int j = 0; j < MADE; j++)
                if (left + j < task->wide) {
                    vec pixel = made[j] + bias;
                    if (of->add) pixel += load(halves, of->add, add + j * step, count);
                    if (task->relu) {  // what is no number stays none
                        lanes bits = (lanes)pixel;
                        pixel = (vec)(bits & (~(bits >> 31) | ((bits & 0x7fffffff) > 0x7f800000)));
                    }
                    store(halves, of->y, place + j * task->made, pixel, count);
                }
        }
    }
}

// What a block of tiles gives for COLUMNS channels of y.
INLINE void convolve_column(const int halves, const Convolution *task, const Operands *of, const Block *block,
                            int64_t column, float *room) {
    int64_t deep = DEEP * COLUMNS + APART, wide = block->count * COLUMNS + APART;
    float *kernels = room, *sums = room + NUMBERS * deep;
    for (int64_t chunk = 0; chunk < block->chunks; chunk += DEEP / LANES) {
        int64_t chunks = block->chunks - chunk < DEEP / LANES ? block->chunks - chunk : DEEP / LANES;
        for (int64_t one = 0; one < chunks; one++)
            transform_kernels(halves, task, of->weight, column, (chunk + one) * LANES, kernels + one * LANES * COLUMNS,
                              deep);
        int64_t ahead = chunk + chunks, size = halves ? 2 : 4, bytes = task->channels * TAPS * size;
        const char *soon = (const char *)of->weight + ahead * LANES * TAPS * size;  // DEEP * TAPS numbers
        for (int64_t number = 0; number < NUMBERS; number++) {
            int some = ahead < block->chunks && number * LINE < DEEP * TAPS * size;
            for (int64_t i = 0; i < COLUMNS && column + i < task->made && some; i++)
                __builtin_prefetch(soon + (column + i) * bytes + number * LINE, 0, 2);
            for (int64_t panel = 0; panel < block->panels; panel++) {
                int64_t row = panel * block->high, rows = least(block->high, block->count - row);
                const float *tiles = block->tiles + number * block->apart;
                multiply(rows, tiles + (panel * block->chunks + chunk) * block->high * LANES, block->high,
                         kernels + number * deep, chunks, sums + number * wide + row * COLUMNS, COLUMNS, chunk > 0);
            }
        }
    }
    for (int64_t tile = 0; tile < block->count; tile++)
        write_tile(halves, task, of, block->first + tile, column, sums + tile * COLUMNS, wide);
}

static int64_t panels_of(int64_t count) { return (count + ROWS - 1) / ROWS; }

static int64_t high_of(int64_t count) { return (count + panels_of(count) - 1) / panels_of(count); }

static int64_t room_of_tiles(int64_t count, int64_t chunks) {
    return NUMBERS * (panels_of(count) * high_of(count) * chunks * LANES + APART);
}

static int64_t room_of_column(int64_t count) { return NUMBERS * ((DEEP + count) * COLUMNS + 2 * APART); }

// Fill in, once for all convolutions of a shape, how tiles are cut into blocks and how many numbers of room it takes.
void winograd_plan(Convolution *task) {
    task->high = (task->height << task->doubled) + 2 * task->above - 2;
    task->wide = (task->width << task->doubled) + 2 * task->left - 2;
    task->down = (task->high + MADE - 1) / MADE;
    task->across = (task->wide + MADE - 1) / MADE;
    int64_t tiles = task->images * task->down * task->across, chunks = (task->channels + LANES - 1) / LANES;
    int64_t most = least(MOST, ROOM / (NUMBERS * chunks * LANES) / ROWS * ROWS);
    most = most < 2 * ROWS ? 2 * ROWS : most;
    task->blocks = (tiles + most - 1) / most;
    task->each = task->blocks ? (tiles + task->blocks - 1) / task->blocks : 0;  // no images, no blocks
    int64_t room = room_of_tiles(task->each, chunks), column = room_of_column(task->each);
    task->apart = task->threads > 1 && task->blocks >= task->threads && task->threads * room < ALL;
    task->room = task->apart ? task->threads * (room + column) : room + task->threads * column;
}

static void convolve_block(int halves, const Convolution *task, const Operands *of, int64_t number, int64_t threads,
                           float *room) {
    int64_t tiles = task->images * task->down * task->across, first = number * task->each;
    int64_t count = least(task->each, tiles - first), chunks = (task->channels + LANES - 1) / LANES;
    Block block = {.first = first, .count = count, .panels = panels_of(count), .high = high_of(count), .chunks = chunks,
                   .tiles = room};
    block.apart = room_of_tiles(count, chunks) / NUMBERS;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < count; tile++)
            if (halves) transform_tile(1, task, of, &block, tile);
            else transform_tile(0, task, of, &block, tile);
#pragma omp for schedule(static)
        for (int64_t column = 0; column < task->made; column += COLUMNS) {
            int64_t own = threads > 1 ? omp_get_thread_num() : 0;
            float *at = room + NUMBERS * block.apart + own * room_of_column(count);
            if (halves) convolve_column(1, task, of, &block, column, at);
            else convolve_column(0, task, of, &block, column, at);
        }
    }
}

static void convolve(int halves, const Convolution *task, const Operands *of, float *room) {
    int64_t alone = task->apart ? 1 : task->threads, own = task->room / task->threads;
#pragma omp parallel for num_threads(task->threads) if (task->apart) schedule(static)
    for (int64_t number = 0; number < task->blocks; number++)
        convolve_block(halves, task, of, number, alone, task->apart ? room + omp_get_thread_num() * own : room);
}

// Shapes: x (images, height, width, channels), weight (made, channels, 3, 3), bias (made) or none, y (images, high,
// wide, made), to which add is added where there is one: an image as large, or a pixel for each image.
#define WINOGRAD(name, number, halves)                                                                                 \
    void name(const Convolution *task, const number *x, const number *weight, const number *bias, const number *add,   \
              number *y, float *room) {                                                                                \
        Operands of = {x, weight, bias, add, y};                                                                       \
        convolve(halves, task, &of, room);                                                                             \
    }
WINOGRAD(winograd, float, 0)
#if defined __AVX512BF16__ && !defined __AMX_BF16__  // with AMX, oneDNN's direct way takes a third of the time
WINOGRAD(winograd_bfloat16, uint16_t, 1)
#endif
