// RMSNorm, SwiGLU and log-probs with their gradients, each in one pass over memory.
//
// gradients.py says what they compute. Numbers in bf16 are widened when they are read, and rounded
// when they are written.

#include "numbers.h"

// out (N, d) = x r weight for x (N, d), and scales (N,) = r.
extern "C" void rms_norm(const Number* x, const float* weight, Number* out, float* scales,
                         int64_t N, int64_t d, float eps) {
    for (int64_t n = 0; n < N; n++, x += d, out += d) {
        float squares = 0;
        for (int64_t i = 0; i < d; i++) squares += wide(x[i]) * wide(x[i]);
        float r = 1 / std::sqrt(squares / d + eps);
        scales[n] = r;
        for (int64_t i = 0; i < d; i++) out[i] = narrow(wide(x[i]) * r * weight[i]);
    }
}

// grad (N, d) for x, and what is added to grad_weight (d,), from g (N, d).
extern "C" void rms_norm_gradient(const Number* x, const float* weight, const float* scales,
                                  const Number* g, Number* grad, float* grad_weight, int64_t N,
                                  int64_t d) {
    for (int64_t n = 0; n < N; n++, x += d, g += d, grad += d) {
        float r = scales[n], mean = 0;
        for (int64_t i = 0; i < d; i++) {
            float product = wide(g[i]) * wide(x[i]) * r;
            grad_weight[i] += product;
            mean += product * weight[i] / d;
        }
        for (int64_t i = 0; i < d; i++)
            grad[i] = narrow(r * (wide(g[i]) * weight[i] - wide(x[i]) * r * mean));
    }
}

// out (N, d) from gate and up, beside each other in x (N, 2d).
extern "C" FULL_WIDTH void swiglu(const Number* x, Number* out, int64_t N, int64_t d) {
    for (int64_t n = 0; n < N; n++, x += 2 * d, out += d)
        for (int64_t i = 0; i < d; i++) {
            float gate = wide(x[i]), up = wide(x[d + i]);
            out[i] = narrow(gate / (1 + exponential(-gate)) * up);
        }
}

// Turns x (N, 2d) into its own gradient, from g (N, d).
extern "C" FULL_WIDTH void swiglu_gradient(Number* x, const Number* g, int64_t N, int64_t d) {
    for (int64_t n = 0; n < N; n++, x += 2 * d, g += d)
        for (int64_t i = 0; i < d; i++) {
            float gate = wide(x[i]), up = wide(x[d + i]);
            float share = 1 / (1 + exponential(-gate));
            x[i] = narrow(wide(g[i]) * up * share * (1 + gate * (1 - share)));
            x[d + i] = narrow(wide(g[i]) * gate * share);
        }
}

// Of each row of logits (N, V): the log-prob of its id, the entropy, and the log of the sum of exp.
extern "C" FULL_WIDTH void log_probs(const Number* logits, const int64_t* ids, float* logps,
                                     float* entropies, float* lses, int64_t N, int64_t V,
                                     float temperature) {
    for (int64_t n = 0; n < N; n++, logits += V) {
        float largest = largest_of(logits, V), sum = 0, weighted = 0;
        for (int64_t i = 0; i < V; i++) {
            float x = (wide(logits[i]) - largest) / temperature;
            float bounded = x < -1e30f ? -1e30f : x;  // a banned id adds 0 times this
            float y = exponential(x);
            sum += y;
            weighted += y * bounded;
        }
        float lse = std::log(sum);
        logps[n] = (wide(logits[ids[n]]) - largest) / temperature - lse;
        entropies[n] = lse - weighted / sum;
        lses[n] = largest / temperature + lse;
    }
}

// Turns logits (N, V) into their own gradient. g and h (N,) are those for logps and entropies.
extern "C" FULL_WIDTH void log_probs_gradient(Number* logits, const int64_t* ids,
                                              const float* entropies, const float* lses,
                                              const float* g, const float* h, int64_t N, int64_t V,
                                              float temperature) {
    for (int64_t n = 0; n < N; n++, logits += V) {
        float slope = g ? g[n] / temperature : 0, bend = h ? h[n] / temperature : 0;
        float lse = lses[n], entropy = entropies[n];
        auto gradient = [=](float logit) {  // but for the 1 of the id that was chosen
            float logp = logit / temperature - lse;
            float bounded = logp < -1e30f ? -1e30f : logp;
            return -exponential(logp) * (slope + bend * (bounded + entropy));
        };
        float chosen = slope + gradient(wide(logits[ids[n]]));
        for (int64_t i = 0; i < V; i++) logits[i] = narrow(gradient(wide(logits[i])));
        logits[ids[n]] = narrow(chosen);
    }
}
