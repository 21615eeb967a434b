// Products of matrices by the tiles of a processor with AMX: bf16 in, fp32 out.
//
// A tile has 16 rows of 64 bytes. One instruction adds the product of two to a third: 16 x 32
// numbers in bf16 by 32 x 16, of which two that lie one below the other share a word.

#include <immintrin.h>

// In a function with tiles, loops over 16 numbers that are inlined take gcc 16 s to compile.
#define NOT_INLINED __attribute__((noinline))

constexpr int STEP = 32;  // the sides of matrices are multiples of this

struct Left {  // a view of numbers in bf16, tile by tile: 16 rows of 32 numbers
    uint16_t* data;
    int64_t tiles, parts;  // from one row of tiles to the next; of a number

    uint16_t* tile(int64_t i, int64_t k) const { return data + (i / 16 * tiles + k / 32) * 512; }
    Left rows_from(int64_t first, int64_t) const { return {tile(first, 0), tiles, parts}; }
    Left columns_from(int64_t first, int64_t) const {
        return {tile(0, first * parts), tiles, parts};
    }
};

struct Right {  // 16 rows of 16 words, each of two numbers one below the other
    uint32_t* data;
    int64_t rows, tiles, parts;

    uint32_t* tile(int64_t k, int64_t j) const { return data + (k / 32 * tiles + j / 16) * 256; }
    Right top(int64_t n) const { return {data, n * parts, tiles, parts}; }
};

static inline __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
static inline __m512i words(__m512 x) { return _mm512_cvtepu16_epi32(rounded(x)); }

// 16 numbers, or what is lost of them in bf16.
static inline __m512 numbers_at(const float* x, bool lost) {
    __m512 own = _mm512_loadu_ps(x);
    return lost ? own - (__m512)_mm512_slli_epi32(words(own), 16) : own;
}

// The square of x from row i and column j on, copied if its rows are not beside each other.
static inline Matrix square_of(Matrix x, int64_t i, int64_t j, float* copy) {
    if (x.next_column == 1) return x.rows_from(i, LANES).columns_from(j, LANES);
    copy_square(x, i, j, copy, LANES);
    return {copy, LANES, LANES, LANES};
}

// Factors of a product that is the sum of so many `parts`. With a' for what a loses in bf16, these
// are a b, a' b and a b'. Two are good for 17 bits where b loses nothing, and three where it does.
static Left as_left(Matrix x, Buffer& buffer, int64_t parts) {
    int64_t width = parts * x.columns;
    Left y = {(uint16_t*)buffer.of(x.rows * width / 2), width / 32, parts};
    float copy[LANES * LANES];
    for (int64_t i = 0; i < x.rows; i += LANES)
        for (int64_t j = 0; j < x.columns; j += LANES) {
            Matrix own = square_of(x, i, j, copy);
            for (int64_t part = 0; part < parts; part++) {
                uint16_t* to = y.tile(i, (j / 32 * parts + part) * 32) + j % 32;
                for (int r = 0; r < LANES; r++) {
                    __m512 numbers = numbers_at(own.data + r * own.next_row, part == 1);
                    _mm256_storeu_si256((__m256i*)(to + r * 32), rounded(numbers));
                }
            }
        }
    return y;
}

static Right as_right(Matrix x, Buffer& buffer, int64_t parts) {
    int64_t rows = parts * x.rows;
    Right y = {(uint32_t*)buffer.of(rows * x.columns / 2), rows, x.columns / 16, parts};
    float copy[LANES * LANES];
    for (int64_t i = 0; i < x.rows; i += LANES)
        for (int64_t j = 0; j < x.columns; j += LANES) {
            Matrix own = square_of(x, i, j, copy);
            for (int64_t part = 0; part < parts; part++) {
                uint32_t* to = y.tile((i / 32 * parts + part) * 32, j) + i % 32 / 2 * 16;
                for (int r = 0; r < LANES; r += 2) {
                    const float* row = own.data + r * own.next_row;
                    __m512i upper = words(numbers_at(row, part == 2));
                    __m512i lower = words(numbers_at(row + own.next_row, part == 2));
                    __m512i pairs = _mm512_or_si512(upper, _mm512_slli_epi32(lower, 16));
                    _mm512_storeu_si512(to + r / 2 * 16, pairs);
                }
            }
        }
    return y;
}

// As long as there is one, this thread may compute products. Afterwards its tiles are shaped as
// before, perhaps by oneDNN. The lines of asm do nothing but tell the compiler that these arrays
// are read and written, which its functions for tiles do not.
class Products {
    alignas(64) uint8_t before[64], own[64] = {1};  // palette 1

   public:
    Products() {
        for (int tile = 0; tile < 8; tile++) {
            own[16 + 2 * tile] = 64;  // bytes of a row
            own[48 + tile] = 16;      // rows
        }
        _tile_storeconfig(before);
        asm volatile("" : "+m"(before) : "m"(own));
        _tile_loadconfig(own);
    }
    ~Products() {
        asm volatile("" : : "m"(before));
        _tile_loadconfig(before);
    }
};

// c (m, n) = a (m, k) b (k, n), or += with ADDED. m, n and k are multiples of STEP.
template <bool ADDED>
static void product(Left a, Right b, Matrix c) {
    int64_t next_c = 4 * c.next_row;  // bytes
    asm volatile("" : : : "memory");  // the factors are written before they are loaded
    for (int64_t j = 0; j < c.columns; j += 32)
        for (int64_t i = 0; i < c.rows; i += 32) {
            float *upper = c.data + i * c.next_row + j, *lower = upper + 16 * c.next_row;
            if (ADDED) {
                _tile_loadd(0, upper, next_c);
                _tile_loadd(1, upper + 16, next_c);
                _tile_loadd(2, lower, next_c);
                _tile_loadd(3, lower + 16, next_c);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t k = 0; k < b.rows; k += 32) {
                _tile_loadd(4, a.tile(i, k), 64);
                _tile_loadd(5, a.tile(i + 16, k), 64);
                _tile_loadd(6, b.tile(k, j), 64);
                _tile_loadd(7, b.tile(k, j + 16), 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, upper, next_c);
            _tile_stored(1, upper + 16, next_c);
            _tile_stored(2, lower, next_c);
            _tile_stored(3, lower + 16, next_c);
        }
}
