// One query or key head of one position, of D numbers: normalised and rotated.

#include "numbers.h"

// y (D,): the head x over the root of its mean square. Returns 1 / that.
static float normalise(const Number* x, float eps, float* y) {
    float squares = 0;
    for (int d = 0; d < D; d++) y[d] = wide(x[d]);
    for (int d = 0; d < D; d++) squares += y[d] * y[d];
    float scale = 1 / std::sqrt(squares / D + eps);
    for (int d = 0; d < D; d++) y[d] *= scale;
    return scale;
}

// y (D,): the head x, normalised if there is a weight, rotated, and multiplied.
static void turn(const Number* x, const float* weight, float eps, const float* cos,
                 const float* sin, float factor, float* y) {
    float head[D];
    for (int d = 0; d < D; d++) head[d] = wide(x[d]);
    if (weight) {
        normalise(x, eps, head);
        for (int d = 0; d < D; d++) head[d] *= weight[d];
    }
    for (int d = 0; d < D / 2; d++) {
        int pair = d + D / 2;
        y[d] = factor * (head[d] * cos[d] + head[pair] * sin[d]);
        y[pair] = factor * (head[pair] * cos[pair] + head[d] * sin[pair]);
    }
}
