// Matrices in fp32, and their products by vectors, in registers.

#include <algorithm>
#include <vector>

#include "numbers.h"

struct Matrix {  // a view
    float* data;
    int64_t rows, columns, next_row, next_column = 1;

    Matrix transposed() const { return {data, columns, rows, next_column, next_row}; }
    Matrix rows_from(int64_t first, int64_t n) const {
        return {data + first * next_row, n, columns, next_row, next_column};
    }
    Matrix columns_from(int64_t first, int64_t n) const {
        return {data + first * next_column, rows, n, next_row, next_column};
    }
    Matrix top(int64_t n) const { return rows_from(0, n); }
    Matrix left(int64_t n) const { return columns_from(0, n); }
    void clear() const {
        for (int64_t i = 0; i < rows; i++) std::fill_n(data + i * next_row, columns, 0.0f);
    }
};

struct Array : Matrix {  // and what is viewed
    std::vector<float> numbers;
    Array(int64_t rows, int64_t columns)
        : Matrix{nullptr, rows, columns, columns}, numbers(rows * columns) {
        data = numbers.data();
    }
};

struct Buffer {  // for numbers that are arranged anew, again and again
    std::vector<float> numbers;
    float* of(int64_t n) {
        if (int64_t(numbers.size()) < n) numbers.resize(n);
        return numbers.data();
    }
};

// The LANES by LANES numbers of x from row i and column j on.
static inline void copy_square(Matrix x, int64_t i, int64_t j, float* y, int64_t next) {
    const float* from = x.data + i * x.next_row + j * x.next_column;
    for (int r = 0; r < LANES; r++)
        for (int c = 0; c < LANES; c++)
            y[r * next + c] = from[r * x.next_row + c * x.next_column];
}

// x, with the numbers of a row beside each other.
static Matrix in_rows(Matrix x, Buffer& buffer) {
    if (x.next_column == 1) return x;
    Matrix y = {buffer.of(x.rows * x.columns), x.rows, x.columns, x.columns};
    for (int64_t i = 0; i < x.rows; i += LANES)
        for (int64_t j = 0; j < x.columns; j += LANES)
            copy_square(x, i, j, y.data + i * y.next_row + j, y.next_row);
    return y;
}

#if defined(TILES) && defined(BF16) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include "tiles.h"
#else
#define NOT_INLINED

constexpr int STEP = LANES;      // the sides of matrices are multiples of this
constexpr int TALL = LANES / 2;  // rows of a block of sums in registers

// The factors of a product. tiles.h has others.
using Left = Matrix;
using Right = Matrix;

static Left as_left(Matrix x, Buffer&, int64_t) { return x; }
static Right as_right(Matrix x, Buffer& buffer, int64_t) { return in_rows(x, buffer); }

struct Products {  // as long as there is one, products may be computed
    ~Products() {}
};

// c (TALL, V * LANES) = a b, or += a b, which stays in registers.
template <bool ADDED, int V>
static void block_product(Matrix a, Matrix b, Matrix c) {
    Vector sums[TALL][V] = {};
    for (int r = 0; r < TALL && ADDED; r++)
        for (int v = 0; v < V; v++) sums[r][v] = load(c.data + r * c.next_row + v * LANES);
    for (int64_t i = 0; i < b.rows; i++)
        for (int v = 0; v < V; v++) {
            Vector x = load(b.data + i * b.next_row + v * LANES);
            for (int r = 0; r < TALL; r++)
                sums[r][v] += a.data[r * a.next_row + i * a.next_column] * x;
        }
    for (int r = 0; r < TALL; r++)
        for (int v = 0; v < V; v++) *(Vector*)(c.data + r * c.next_row + v * LANES) = sums[r][v];
}

// c (m, n) = a (m, k) b (k, n), or += with ADDED. m and n are multiples of STEP.
template <bool ADDED>
static void product(Left a, Right b, Matrix c) {
    for (int64_t i = 0; i < c.rows; i += TALL) {
        Matrix left = a.rows_from(i, TALL), out = c.rows_from(i, TALL), right = b;
        int64_t j = 0;
        for (; j + 2 * LANES <= c.columns; j += 2 * LANES) {
            block_product<ADDED, 2>(left, right, out);
            right.data += 2 * LANES;
            out.data += 2 * LANES;
        }
        if (j < c.columns) block_product<ADDED, 1>(left, right, out);
    }
}
#endif

static void set_product(Left a, Right b, Matrix c) { product<false>(a, b, c); }
static void add_product(Left a, Right b, Matrix c) { product<true>(a, b, c); }
