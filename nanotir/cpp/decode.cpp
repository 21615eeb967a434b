// Attention of a decoding step on a CPU, as kernels.decode_kernel computes it on a GPU.
//
// Compiled for one shape: D numbers a head, GROUP query heads a key head. native.py says how.

#include <algorithm>

#include "heads.h"

constexpr int SCORES = 64;  // of slots, held at a time
constexpr int AHEAD = 8;    // slots between the one that is read and the one that is fetched
constexpr int LINE = 64 / sizeof(Number);  // numbers that memory hands over at a time

// mean (GROUP, D): of the values in `slots` slots, by the softmax of q (GROUP, D) . keys.
static void attend(const float (*q)[D], const Number* keys, const Number* values, int64_t slots,
                   float (*mean)[D]) {
    float scores[GROUP][SCORES], largest[GROUP], total[GROUP];
    for (int g = 0; g < GROUP; g++) {
        largest[g] = -1e30f;
        total[g] = 0;
        for (int d = 0; d < D; d++) mean[g][d] = 0;
    }
    for (int64_t start = 0; start < slots; start += SCORES) {
        int n = slots - start < SCORES ? slots - start : SCORES;
        const Number *key = keys + start * D, *value = values + start * D;
        for (int s = 0; s < n; s++) {
            for (int d = 0; d < D; d += LINE) {  // memory is slow to answer: it is asked early
                __builtin_prefetch(&key[(s + AHEAD) * D + d]);
                __builtin_prefetch(&value[s * D + d]);
            }
            for (int g = 0; g < GROUP; g++) {
                float dot = 0;
                for (int d = 0; d < D; d++) dot += q[g][d] * wide(key[s * D + d]);
                scores[g][s] = dot;
            }
        }
        for (int g = 0; g < GROUP; g++) {  // what is there so far is relative to the largest score
            float before = largest[g];
            largest[g] = std::max(before, largest_of(scores[g], n));
            float shrink = exponential(before - largest[g]);
            total[g] *= shrink;
            for (int d = 0; d < D; d++) mean[g][d] *= shrink;
            for (int s = 0; s < n; s++) scores[g][s] = exponential(scores[g][s] - largest[g]);
            for (int s = 0; s < n; s++) total[g] += scores[g][s];
        }
        for (int s = 0; s < n; s++)
            for (int g = 0; g < GROUP; g++)
                for (int d = 0; d < D; d++) mean[g][d] += scores[g][s] * wide(value[s * D + d]);
    }
    for (int g = 0; g < GROUP; g++)
        for (int d = 0; d < D; d++) mean[g][d] /= total[g];
}

// heads (B, H+2K, D); cos, sin (B, D); positions (B,); keys, values (B, K, S, D); out (B, H, D).
// Padding, at position -1, goes to the spare slot S - 1 and attends to itself.
extern "C" void decode_attention(const Number* heads, const float* q_weight, const float* k_weight,
                                 const float* cos, const float* sin, const int64_t* positions,
                                 Number* keys, Number* values, Number* out, int64_t B, int64_t K,
                                 int64_t S, float eps) {
    int64_t H = K * GROUP;
    for (int64_t b = 0; b < B; b++)
        for (int64_t k = 0; k < K; k++) {
            const Number* own = heads + b * (H + 2 * K) * D;  // the row's heads
            Number *key = keys + (b * K + k) * S * D, *value = values + (b * K + k) * S * D;
            int64_t at = positions[b] < 0 ? S - 1 : positions[b];
            int64_t first = positions[b] < 0 ? S - 1 : 0;
            float q[GROUP][D], turned[D], mean[GROUP][D];
            turn(own + (H + k) * D, k_weight, eps, cos + b * D, sin + b * D, 1, turned);
            for (int d = 0; d < D; d++) key[at * D + d] = narrow(turned[d]);
            for (int d = 0; d < D; d++) value[at * D + d] = own[(H + K + k) * D + d];
            for (int g = 0; g < GROUP; g++)
                turn(own + (k * GROUP + g) * D, q_weight, eps, cos + b * D, sin + b * D,
                     1 / std::sqrt(float(D)), q[g]);
            attend(q, key + first * D, value + first * D, at - first + 1, mean);
            for (int g = 0; g < GROUP; g++)
                for (int d = 0; d < D; d++)
                    out[(b * H + k * GROUP + g) * D + d] = narrow(mean[g][d]);
        }
}
