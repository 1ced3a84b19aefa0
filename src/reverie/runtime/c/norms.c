// GroupNorm (Wu and He 1803.08494, eq. 7) of channels-last images, with the SiLU that follows, in one pass over what the
// statistics' pass left in the cache. Sums are of the differences from each channel's first pixel, which leaves no large
// mean to cancel (Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", section 3).
#include "common.h"

enum { ROWS = 64, WIDTH = 32 };  // pixels that are summed in float before double takes over; channels in registers

#define INLINE static inline __attribute__((always_inline))

INLINE float at(const void *x, int64_t index, const int halves) {
    return halves ? widen(((const bf16 *)x)[index]) : ((const float *)x)[index];
}

INLINE void sum_rows(const int halves, const void *x, int64_t first, int64_t from, int64_t rows, int64_t channels,
                     int64_t width, double *sum, double *square) {
    float sums[WIDTH] = {0}, squares[WIDTH] = {0}, firsts[WIDTH];
    for (int64_t c = 0; c < width; c++) firsts[c] = at(x, first + c, halves);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < width; c++) {
            float number = at(x, from + row * channels + c, halves) - firsts[c];
            sums[c] += number;
            squares[c] += number * number;
        }
    for (int64_t c = 0; c < width; c++) {
        sum[c] += sums[c];
        square[c] += squares[c];
    }
}

INLINE void statistics(const int halves, const void *x, int64_t first, int64_t from, int64_t pixels, int64_t channels,
                       double *sum, double *square) {
    for (int64_t done = 0; done < pixels; done += ROWS, from += ROWS * channels) {
        int64_t rows = done + ROWS < pixels ? ROWS : pixels - done, c = 0;
        for (; c + WIDTH <= channels; c += WIDTH)
            sum_rows(halves, x, first + c, from + c, rows, channels, WIDTH, sum + c, square + c);
        for (; c + WIDTH / 2 <= channels; c += WIDTH / 2)
            sum_rows(halves, x, first + c, from + c, rows, channels, WIDTH / 2, sum + c, square + c);
        if (c < channels) sum_rows(halves, x, first + c, from + c, rows, channels, channels - c, sum + c, square + c);
    }
}

INLINE void apply(const int halves, const int with_silu, const void *x, void *y, int64_t from, int64_t pixels,
                  int64_t channels, const float *scale, const float *shift) {
    for (int64_t row = 0; row < pixels; row++, from += channels)
        for (int64_t c = 0; c < channels; c++) {
            float normal = at(x, from + c, halves) * scale[c] + shift[c], number = with_silu ? silu(normal) : normal;
            if (halves) ((bf16 *)y)[from + c] = narrow(number);
            else ((float *)y)[from + c] = number;
        }
}

static int normalise(int halves, const void *x, void *y, const void *weight, const void *bias, int64_t images,
                     int64_t pixels, int64_t channels, int64_t groups, float eps, int64_t with_silu) {
    int64_t chunks = pixels < 256 ? 1 : (pixels < 64 * 256 ? 4 : 64), wide = channels / groups;
    double *sums = calloc(2 * images * chunks * channels + 1, sizeof *sums);
    float *affine = malloc((2 * images * channels + 1) * sizeof *affine);
    if (!sums || !affine) {
        free(affine);
        free(sums);
        return NO_MEMORY;
    }
#pragma omp parallel for collapse(2) if (images * pixels * channels > 32768)
    for (int64_t image = 0; image < images; image++)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            int64_t begin = pixels * chunk / chunks, count = pixels * (chunk + 1) / chunks - begin;
            int64_t first = image * pixels * channels, from = first + begin * channels;
            double *sum = sums + 2 * (image * chunks + chunk) * channels;
            if (halves) statistics(1, x, first, from, count, channels, sum, sum + channels);
            else statistics(0, x, first, from, count, channels, sum, sum + channels);
        }
    for (int64_t image = 0; image < images; image++)
        for (int64_t group = 0; group < groups; group++) {
            double sum = 0, square = 0, count = (double)pixels * wide;
            for (int64_t c = group * wide; c < (group + 1) * wide; c++) {
                double first = at(x, image * pixels * channels + c, halves), apart = 0;
                for (int64_t chunk = 0; chunk < chunks; chunk++) {
                    const double *of = sums + 2 * (image * chunks + chunk) * channels + c;
                    apart += of[0];
                    square += of[channels];
                }
                sum += apart + pixels * first;
                square += first * (2 * apart + pixels * first);
            }
            double mean = sum / count, variance = square / count - mean * mean;
            double scale = 1 / sqrt((variance > 0 ? variance : 0) + eps);
            for (int64_t c = group * wide; c < (group + 1) * wide; c++) {
                float *to = affine + 2 * image * channels + c;
                double factor = scale * at(weight, c, halves);
                to[0] = (float)factor;
                to[channels] = (float)(at(bias, c, halves) - mean * factor);
            }
        }
#pragma omp parallel for collapse(2) if (images * pixels * channels > 32768)
    for (int64_t image = 0; image < images; image++)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const float *scale = affine + 2 * image * channels, *shift = scale + channels;
            int64_t first = pixels * chunk / chunks, count = pixels * (chunk + 1) / chunks - first;
            int64_t from = (image * pixels + first) * channels;
            switch (2 * halves + !!with_silu) {
                case 0: apply(0, 0, x, y, from, count, channels, scale, shift); break;
                case 1: apply(0, 1, x, y, from, count, channels, scale, shift); break;
                case 2: apply(1, 0, x, y, from, count, channels, scale, shift); break;
                case 3: apply(1, 1, x, y, from, count, channels, scale, shift); break;
            }
        }
    free(affine);
    free(sums);
    return DONE;
}

// y = silu(norm(x) * weight + bias), or without the SiLU; y may be x. Shapes (images, pixels, channels).
int group_norm(const float *x, float *y, const float *weight, const float *bias, int64_t images, int64_t pixels,
               int64_t channels, int64_t groups, float eps, int64_t with_silu) {
    return normalise(0, x, y, weight, bias, images, pixels, channels, groups, eps, with_silu);
}

// The same in bfloat16, with all sums in float and double.
int group_norm_bfloat16(const bf16 *x, bf16 *y, const bf16 *weight, const bf16 *bias, int64_t images, int64_t pixels,
                        int64_t channels, int64_t groups, float eps, int64_t with_silu) {
    return normalise(1, x, y, weight, bias, images, pixels, channels, groups, eps, with_silu);
}
