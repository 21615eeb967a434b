// Attention of whole rows on a CPU, with its gradient.
//
// Compiled for one shape: D numbers a head, GROUP query heads a key head. native.py says how.
//
// Rows of any lengths lie one behind the other: M = B * T positions in all. One row and one head at
// a time: its queries, keys and values are turned and widened into matrices that stay in the
// processor's caches. A block of queries at a time attends to all keys up to its last one. The
// backward pass computes the probabilities again. Matrices are padded with zeros: positions and
// heads to multiples of STEP.

#include "heads.h"
#include "matrix.h"

constexpr int BLOCK = 32;                            // queries
constexpr int WIDTH = (D + STEP - 1) / STEP * STEP;  // of a padded head

struct Row {
    int64_t first, T;  // its first position of all M, and how many it has

    int64_t padded() const { return (T + STEP - 1) / STEP * STEP; }
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
    NOT_INLINED void turned(Row row, int64_t head, Matrix y) const {
        for (int64_t t = 0; t < row.T; t++) {
            int64_t m = row.first + t;
            turn(data + at(m, head), weight(head), eps, cos + m * D, sin + m * D, factor(head),
                 y.data + t * WIDTH);
        }
        y.rows_from(row.T, row.padded() - row.T).clear();
    }

    // The head's gradient, (M, H+2K, D), and what is added to its norm's, from that of `turned`.
    void turned_back(Row row, int64_t head, Matrix g, Number* grad,
                                 float* grad_weight) const {
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
FULL_WIDTH static void probabilities(Left q, Right keys_t, Matrix p) {
    int64_t n = p.columns;
    set_product(q, keys_t, p);
    for (int64_t i = 0; i < p.rows; i++) {
        int64_t last = n - p.rows + i;
        float *row = p.data + i * p.next_row, largest = largest_of(row, last + 1), sum = 0;
        for (int64_t s = last + 1; s < n; s++) row[s] = -1e30f;
        for (int64_t s = 0; s < n; s++) {
            row[s] = exponential(row[s] - largest);
            sum += row[s];
        }
        for (int64_t s = 0; s < n; s++) row[s] *= 1 / sum;
    }
}

// p (m, n) becomes ds = p (dp - sum p dp).
FULL_WIDTH static void differentiate(Matrix p, Matrix dp) {
    for (int64_t i = 0; i < p.rows; i++) {
        float *row = p.data + i * p.next_row, *slope = dp.data + i * dp.next_row, mean = 0;
        for (int64_t s = 0; s < p.columns; s++) mean += row[s] * slope[s];
        for (int64_t s = 0; s < p.columns; s++) row[s] *= slope[s] - mean;
    }
}

// out (M, H, D): what each query of heads (M, H+2K, D) reads of its own row up to itself.
extern "C" void attention(const Number* data, const float* q_weight, const float* k_weight,
                          const float* cos, const float* sin, const int64_t* positions, Number* out,
                          int64_t B, int64_t T, int64_t K, float eps) {
    Heads heads = {data, q_weight, k_weight, cos, sin, K, eps};
    Products products;
    std::vector<Row> rows = rows_of(positions, B, T);
    int64_t H = K * GROUP, P = longest_of(rows);
    Array q(P, WIDTH), keys(P, WIDTH), values(P, WIDTH);
    Array space(BLOCK, P), mean(BLOCK, WIDTH);
    Buffer of_q, of_keys, of_values, of_p;
    Right right_keys, right_values;
    for (Row row : rows)
        for (int64_t h = 0; h < H; h++) {
            if (h % GROUP == 0) {
                heads.turned(row, H + h / GROUP, keys);
                widen(data + heads.at(row.first, H + K + h / GROUP), row, heads.next(), values);
                right_keys = as_right(keys.top(row.padded()).transposed(), of_keys, 3);
                right_values = as_right(values.top(row.padded()), of_values, 2);
            }
            heads.turned(row, h, q);
            Left queries = as_left(q.top(row.padded()), of_q, 3);
            for (int64_t i = 0; i < row.T; i += BLOCK) {
                int64_t n = std::min(i + BLOCK, row.padded()), m = n - i;
                Matrix p = space.top(m).left(n), read = mean.top(m);
                probabilities(queries.rows_from(i, m), right_keys, p);
                set_product(as_left(p, of_p, 2), right_values.top(n), read);
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
    Products products;
    std::vector<Row> rows = rows_of(positions, B, T);
    int64_t H = K * GROUP, P = longest_of(rows);
    Array q(P, WIDTH), keys(P, WIDTH), values(P, WIDTH), grad_out(P, WIDTH), grad_q(P, WIDTH);
    Array grad_keys_t(WIDTH, P), grad_values_t(WIDTH, P), space(BLOCK, P), grad_space(BLOCK, P);
    Buffer of_q, of_q_t, of_keys, of_keys_t, of_values_t, of_out, of_out_t, of_p;
    Right right_keys, right_keys_t, right_values_t;
    for (Row row : rows)
        for (int64_t h = 0; h < H; h++) {
            int64_t key = H + h / GROUP, value = key + K, padded = row.padded();
            if (h % GROUP == 0) {
                heads.turned(row, key, keys);
                widen(data + heads.at(row.first, value), row, heads.next(), values);
                right_keys = as_right(keys.top(padded), of_keys, 1);
                right_keys_t = as_right(keys.top(padded).transposed(), of_keys_t, 3);
                right_values_t = as_right(values.top(padded).transposed(), of_values_t, 1);
                grad_keys_t.left(padded).clear();
                grad_values_t.left(padded).clear();
            }
            heads.turned(row, h, q);
            widen(g + (row.first * H + h) * D, row, H * D, grad_out);
            Left queries = as_left(q.top(padded), of_q, 3);
            Left queries_t = as_left(q.top(padded).transposed(), of_q_t, 1);
            Left slopes = as_left(grad_out.top(padded), of_out, 1);
            Left slopes_t = as_left(grad_out.top(padded).transposed(), of_out_t, 1);
            for (int64_t i = 0; i < row.T; i += BLOCK) {
                int64_t n = std::min(i + BLOCK, padded), m = n - i;
                Matrix p = space.top(m).left(n), dp = grad_space.top(m).left(n);
                Matrix grad_k = grad_keys_t.left(n), grad_v = grad_values_t.left(n);
                probabilities(queries.rows_from(i, m), right_keys_t, p);
                add_product(slopes_t.columns_from(i, m), as_right(p, of_p, 1), grad_v);
                set_product(slopes.rows_from(i, m), right_values_t, dp);
                differentiate(p, dp);  // from here on, p is ds
                set_product(as_left(p, of_p, 1), right_keys.top(n), grad_q.rows_from(i, m));
                add_product(queries_t.columns_from(i, m), as_right(p, of_p, 1), grad_k);
            }
            heads.turned_back(row, h, grad_q, grad, grad_q_weight);
            if (h % GROUP < GROUP - 1) continue;
            Matrix grad_keys = in_rows(grad_keys_t.left(padded).transposed(), of_keys);
            heads.turned_back(row, key, grad_keys, grad, grad_k_weight);
            for (int64_t t = 0; t < row.T; t++)
                for (int d = 0; d < D; d++)
                    grad[heads.at(row.first + t, value) + d] =
                        narrow(grad_values_t.data[d * P + t]);
        }
}
