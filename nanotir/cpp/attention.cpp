// Attention of whole rows on a CPU, with its gradient.
//
// Compiled for one shape: D numbers a head, GROUP query heads a key head. native.py says how.
//
// Rows of any lengths lie one behind the other: M = B * T positions in all. One row and one head at
// a time: its queries, keys and values are turned and widened into matrices that stay in the
// processor's caches. A block of queries at a time attends to all keys up to its last one. The
// backward pass computes the probabilities again. Matrices are padded with zeros: positions and
// heads to whole vectors.

#include <algorithm>
#include <vector>

#include "heads.h"

constexpr int TALL = LANES / 2;                         // rows of a tile
constexpr int BLOCK = 32;                               // queries
constexpr int WIDTH = (D + LANES - 1) / LANES * LANES;  // of a padded head

struct Matrix {  // a view
    float* data;
    int64_t rows, columns, next_row, next_column = 1;

    Matrix transposed() const { return {data, columns, rows, next_column, next_row}; }
    Matrix rows_from(int64_t first, int64_t n) const {
        return {data + first * next_row, n, columns, next_row, next_column};
    }
    Matrix top(int64_t n) const { return rows_from(0, n); }
    Matrix left(int64_t n) const { return {data, rows, n, next_row, next_column}; }
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

// c (TALL, V * LANES) += a b, which stays in registers.
template <int V>
static void add_tile(Matrix a, Matrix b, Matrix c) {
    Vector sums[TALL][V];
    for (int r = 0; r < TALL; r++)
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

// c (m, n) += a (m, k) b (k, n). m is a multiple of TALL and n of LANES; a may be transposed.
static void add_product(Matrix a, Matrix b, Matrix c) {
    for (int64_t i = 0; i < c.rows; i += TALL) {
        Matrix left = a.rows_from(i, TALL), out = c.rows_from(i, TALL), right = b;
        int64_t j = 0;
        for (; j + 2 * LANES <= c.columns; j += 2 * LANES) {
            add_tile<2>(left, right, out);
            right.data += 2 * LANES;
            out.data += 2 * LANES;
        }
        if (j < c.columns) add_tile<1>(left, right, out);
    }
}

static void transpose(Matrix x, Matrix y) {
    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t j = 0; j < x.columns; j++)
            y.data[j * y.next_row + i] = x.data[i * x.next_row + j];
}

struct Row {
    int64_t first, T;  // its first position of all M, and how many it has

    int64_t padded() const { return (T + LANES - 1) / LANES * LANES; }
};

// The rows of positions (B, T): one begins where positions do not grow, or with the next T.
static std::vector<Row> rows_of(const int64_t* positions, int64_t B, int64_t T) {
    std::vector<Row> rows;
    for (int64_t m = 0; m < B * T; m++) {
        if (m % T == 0 || positions[m] <= positions[m - 1]) rows.push_back({m, 0});
        rows.back().T++;
    }
    return rows;
}

static int64_t longest_of(const std::vector<Row>& rows) {
    int64_t longest = 0;
    for (Row row : rows) longest = std::max(longest, row.padded());
    return longest;
}

// y (padded, WIDTH): one head of a row, widened. x is its first number, `next` from the second.
static void widen(const Number* x, Row row, int64_t next, Matrix y) {
    for (int64_t t = 0; t < row.T; t++)
        for (int d = 0; d < D; d++) y.data[t * WIDTH + d] = wide(x[t * next + d]);
    y.rows_from(row.T, row.padded() - row.T).clear();
}

struct Heads {  // of all rows, (M, H+2K, D): queries, keys and values
    const Number* data;
    const float *q_weight, *k_weight;  // (D,), or null
    const float *cos, *sin;            // (M, D)
    int64_t K;
    float eps;

    int64_t next() const { return (GROUP + 2) * K * D; }
    int64_t at(int64_t m, int64_t head) const { return m * next() + head * D; }
    const float* weight(int64_t head) const { return head < GROUP * K ? q_weight : k_weight; }
    float factor(int64_t head) const { return head < GROUP * K ? 1 / std::sqrt(float(D)) : 1; }

    // y (padded, WIDTH): a query or key head of a row, turned. Queries are divided by sqrt(D).
    void turned(Row row, int64_t head, Matrix y) const {
        for (int64_t t = 0; t < row.T; t++) {
            int64_t m = row.first + t;
            turn(data + at(m, head), weight(head), eps, cos + m * D, sin + m * D, factor(head),
                 y.data + t * WIDTH);
        }
        y.rows_from(row.T, row.padded() - row.T).clear();
    }

    // The head's gradient, (M, H+2K, D), and what is added to its norm's, from that of `turned`.
    void turned_back(Row row, int64_t head, Matrix g, Number* grad, float* grad_weight) const {
        for (int64_t t = 0; t < row.T; t++) {
            int64_t m = row.first + t, place = at(m, head);
            const float *c = cos + m * D, *s = sin + m * D, *w = weight(head);
            float back[D], y[D], mean = 0, *own = g.data + t * WIDTH;
            for (int d = 0; d < D / 2; d++) {
                int pair = d + D / 2;
                back[d] = factor(head) * (own[d] * c[d] + own[pair] * s[pair]);
                back[pair] = factor(head) * (own[pair] * c[pair] + own[d] * s[d]);
            }
            if (w) {  // gradients.py says how a norm is differentiated
                float r = normalise(data + place, eps, y);
                for (int d = 0; d < D; d++) grad_weight[d] += back[d] * y[d];
                for (int d = 0; d < D; d++) back[d] *= w[d];
                for (int d = 0; d < D; d++) mean += back[d] * y[d] / D;
                for (int d = 0; d < D; d++) back[d] = r * (back[d] - y[d] * mean);
            }
            for (int d = 0; d < D; d++) grad[place + d] = narrow(back[d]);
        }
    }
};

// p (m, n): the softmax of q (m, WIDTH) keys_t (WIDTH, n), each query up to itself. The first of
// them is number n - m of its row.
FULL_WIDTH static void probabilities(Matrix q, Matrix keys_t, Matrix p) {
    int64_t n = p.columns;
    p.clear();
    add_product(q, keys_t, p);
    for (int64_t i = 0; i < p.rows; i++) {
        int64_t last = n - p.rows + i;
        float *row = p.data + i * p.next_row, largest = largest_of(row, last + 1), sum = 0;
        for (int64_t s = last + 1; s < n; s++) row[s] = -1e30f;
        for (int64_t s = 0; s < n; s++) row[s] = exponential(row[s] - largest);
        for (int64_t s = 0; s < n; s++) sum += row[s];
        for (int64_t s = 0; s < n; s++) row[s] /= sum;
    }
}

// out (M, H, D): what each query of heads (M, H+2K, D) reads of its own row up to itself.
extern "C" void attention(const Number* data, const float* q_weight, const float* k_weight,
                          const float* cos, const float* sin, const int64_t* positions, Number* out,
                          int64_t B, int64_t T, int64_t K, float eps) {
    Heads heads = {data, q_weight, k_weight, cos, sin, K, eps};
    std::vector<Row> rows = rows_of(positions, B, T);
    int64_t H = K * GROUP, P = longest_of(rows);
    Array q(P, WIDTH), keys(P, WIDTH), keys_t(WIDTH, P), values(P, WIDTH);
    Array space(BLOCK, P), mean(BLOCK, WIDTH);
    for (Row row : rows)
        for (int64_t h = 0; h < H; h++) {
            if (h % GROUP == 0) {
                heads.turned(row, H + h / GROUP, keys);
                transpose(keys.top(row.padded()), keys_t);
                widen(data + heads.at(row.first, H + K + h / GROUP), row, heads.next(), values);
            }
            heads.turned(row, h, q);
            for (int64_t i = 0; i < row.T; i += BLOCK) {
                int64_t n = std::min(i + BLOCK, row.padded()), m = n - i;
                Matrix p = space.top(m).left(n), read = mean.top(m);
                probabilities(q.rows_from(i, m), keys_t, p);
                read.clear();
                add_product(p, values.top(n), read);
                for (int64_t t = i; t < std::min(row.T, n); t++)
                    for (int d = 0; d < D; d++)
                        out[((row.first + t) * H + h) * D + d] =
                            narrow(mean.data[(t - i) * WIDTH + d]);
            }
        }
}

// grad (M, H+2K, D) for heads, and what is added to the norms' (D,), from g (M, H, D).
// With p = softmax(s), s = q k^T and out = p v:  dp = g v^T,  ds = p (dp - sum p dp),  dv = p^T g,
// dq = ds k,  dk = ds^T q.
extern "C" void attention_gradient(const Number* data, const float* q_weight, const float* k_weight,
                                   const float* cos, const float* sin, const int64_t* positions,
                                   const Number* g, Number* grad, float* grad_q_weight,
                                   float* grad_k_weight, int64_t B, int64_t T, int64_t K,
                                   float eps) {
    Heads heads = {data, q_weight, k_weight, cos, sin, K, eps};
    std::vector<Row> rows = rows_of(positions, B, T);
    int64_t H = K * GROUP, P = longest_of(rows);
    Array q(P, WIDTH), keys(P, WIDTH), keys_t(WIDTH, P), values(P, WIDTH), values_t(WIDTH, P);
    Array grad_q(P, WIDTH), grad_keys(P, WIDTH), grad_values(P, WIDTH), grad_out(P, WIDTH);
    Array space(BLOCK, P), grad_space(BLOCK, P);
    for (Row row : rows)
        for (int64_t h = 0; h < H; h++) {
            int64_t key = H + h / GROUP, value = key + K, padded = row.padded();
            if (h % GROUP == 0) {
                heads.turned(row, key, keys);
                transpose(keys.top(padded), keys_t);
                widen(data + heads.at(row.first, value), row, heads.next(), values);
                transpose(values.top(padded), values_t);
                grad_keys.top(padded).clear();
                grad_values.top(padded).clear();
            }
            heads.turned(row, h, q);
            widen(g + (row.first * H + h) * D, row, H * D, grad_out);
            grad_q.top(padded).clear();
            for (int64_t i = 0; i < row.T; i += BLOCK) {
                int64_t n = std::min(i + BLOCK, padded), m = n - i;
                Matrix p = space.top(m).left(n), dp = grad_space.top(m).left(n);
                Matrix queries = q.rows_from(i, m), own = grad_out.rows_from(i, m);
                probabilities(queries, keys_t, p);
                add_product(p.transposed(), own, grad_values.top(n));
                dp.clear();
                add_product(own, values_t, dp);
                for (int64_t r = 0; r < m; r++) {  // from here on, p is ds
                    float *own_p = p.data + r * P, *slope = dp.data + r * P, mean = 0;
                    for (int64_t s = 0; s < n; s++) mean += own_p[s] * slope[s];
                    for (int64_t s = 0; s < n; s++) own_p[s] *= slope[s] - mean;
                }
                add_product(p, keys.top(n), grad_q.rows_from(i, m));
                add_product(p.transposed(), queries, grad_keys.top(n));
            }
            heads.turned_back(row, h, grad_q, grad, grad_q_weight);
            if (h % GROUP < GROUP - 1) continue;
            heads.turned_back(row, key, grad_keys, grad, grad_k_weight);
            for (int64_t t = 0; t < row.T; t++)
                for (int d = 0; d < D; d++)
                    grad[heads.at(row.first + t, value) + d] =
                        narrow(grad_values.data[t * WIDTH + d]);
        }
}
