// The tiles of AMX: eight registers of 16 rows of 64 bytes, which a thread takes before it multiplies and gives back after.
#pragma once
#include <stdint.h>

enum { TILE = 16 };  // rows of a tile, and the words of 32 bits in each

#ifdef __AMX_TILE__
#include <immintrin.h>

// All eight, whole (Intel's Software Developer's Manual, volume 1, section 18.2: palette 1).
static inline void take_tiles(void) {
    static const struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1, .bytes = {[0 ... 7] = 4 * TILE}, .rows = {[0 ... 7] = TILE}};
    _tile_loadconfig(&shape);
}

static inline void return_tiles(void) { _tile_release(); }
#else
static inline void take_tiles(void) {}
static inline void return_tiles(void) {}
#endif
