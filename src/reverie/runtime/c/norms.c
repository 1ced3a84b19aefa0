// GroupNorm (Wu and He 1803.08494, eq. 7) of channels-last images, with the SiLU that follows, in one pass over what the
// statistics' pass left in the cache.
#include "common.h"
#include <stdlib.h>

enum { ROWS = 64, WIDTH = 32 };  // pixels that are summed in float before double takes over; channels in registers

static inline void sum_rows(const float *x, int64_t rows, int64_t channels, int64_t width, double *sum, double *square) {
    float sums[WIDTH] = {0}, squares[WIDTH] = {0};
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < width; c++) {
            float at = x[row * channels + c];
            sums[c] += at;
            squares[c] += at * at;
        }
    for (int64_t c = 0; c < width; c++) {
        sum[c] += sums[c];
        square[c] += squares[c];
    }
}

static void statistics(const float *x, int64_t pixels, int64_t channels, double *sum, double *square) {
    for (int64_t first = 0; first < pixels; first += ROWS) {
        int64_t rows = first + ROWS < pixels ? ROWS : pixels - first, c = 0;
        const float *at = x + first * channels;
        for (; c + WIDTH <= channels; c += WIDTH) sum_rows(at + c, rows, channels, WIDTH, sum + c, square + c);
        for (; c + WIDTH / 2 <= channels; c += WIDTH / 2) sum_rows(at + c, rows, channels, WIDTH / 2, sum + c, square + c);
        if (c < channels) sum_rows(at + c, rows, channels, channels - c, sum + c, square + c);
    }
}

// y = silu(norm(x) * weight + bias), or without the SiLU; y may be x. Shapes (images, pixels, channels).
void group_norm(const float *x, float *y, const float *weight, const float *bias, int64_t images, int64_t pixels,
                int64_t channels, int64_t groups, float eps, int64_t with_silu) {
    int64_t chunks = pixels < 256 ? 1 : (pixels < 64 * 256 ? 4 : 64), wide = channels / groups;
    double *sums = calloc(2 * images * chunks * channels, sizeof *sums);
    float *affine = malloc(2 * images * channels * sizeof *affine);
#pragma omp parallel for collapse(2) if (images * pixels * channels > 32768)
    for (int64_t image = 0; image < images; image++)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            int64_t first = pixels * chunk / chunks, last = pixels * (chunk + 1) / chunks;
            double *sum = sums + 2 * (image * chunks + chunk) * channels;
            statistics(x + (image * pixels + first) * channels, last - first, channels, sum, sum + channels);
        }
    for (int64_t image = 0; image < images; image++)
        for (int64_t group = 0; group < groups; group++) {
            double sum = 0, square = 0, count = (double)pixels * wide;
            for (int64_t chunk = 0; chunk < chunks; chunk++)
                for (int64_t c = group * wide; c < (group + 1) * wide; c++) {
                    const double *at = sums + 2 * (image * chunks + chunk) * channels + c;
                    sum += at[0];
                    square += at[channels];
                }
            double mean = sum / count, variance = square / count - mean * mean;
            double scale = 1 / sqrt((variance > 0 ? variance : 0) + eps);
            for (int64_t c = group * wide; c < (group + 1) * wide; c++) {
                float *at = affine + 2 * image * channels + c;
                at[0] = (float)(scale * weight[c]);
                at[channels] = (float)(bias[c] - mean * scale * weight[c]);
            }
        }
#pragma omp parallel for collapse(2) if (images * pixels * channels > 32768)
    for (int64_t image = 0; image < images; image++)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const float *scale = affine + 2 * image * channels, *shift = scale + channels;
            for (int64_t row = pixels * chunk / chunks; row < pixels * (chunk + 1) / chunks; row++) {
                const float *from = x + (image * pixels + row) * channels;
                float *to = y + (image * pixels + row) * channels;
                if (with_silu)
                    for (int64_t c = 0; c < channels; c++) to[c] = silu(from[c] * scale[c] + shift[c]);
                else
                    for (int64_t c = 0; c < channels; c++) to[c] = from[c] * scale[c] + shift[c];
            }
        }
    free(affine);
    free(sums);
}
