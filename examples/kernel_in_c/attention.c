/* Attention with an online softmax, one query at a time: float arrays (B, H, T, D), causal from the bottom right. */
#include <math.h>
#include <stdint.h>

int attention(
    const float *q, const float *k, const float *v, float *o, float *lse, int64_t B, int64_t H, int64_t Hk, int64_t Tq,
    int64_t Tk, int64_t D, int64_t Dv, float scale, int causal
) {
    for (int64_t row = 0; row < B * H * Tq; row++) {
        int64_t b = row / (H * Tq), h = row / Tq % H, i = row % Tq;
        int64_t kv = (b * Hk + h / (H / Hk)) * Tk;        /* query head h reads key head h / (H / Hk) */
        int64_t seen = causal ? i + Tk - Tq + 1 : Tk;     /* j <= i + Tk - Tq */
        const float *qi = q + row * D;
        float *oi = o + row * Dv, m = -INFINITY, l = 0;
        for (int64_t c = 0; c < Dv; c++) oi[c] = 0;
        for (int64_t j = 0; j < seen; j++) {
            const float *kj = k + (kv + j) * D, *vj = v + (kv + j) * Dv;
            float s = 0;
            for (int64_t c = 0; c < D; c++) s += qi[c] * kj[c];
            s *= scale;
            float top = s > m ? s : m, rescale = expf(m - top), p = expf(s - top);
            for (int64_t c = 0; c < Dv; c++) oi[c] = oi[c] * rescale + p * vj[c];
            l = l * rescale + p;
            m = top;
        }
        for (int64_t c = 0; c < Dv; c++) oi[c] = seen > 0 ? oi[c] / l : 0;
        lse[row] = seen > 0 ? m + logf(l) : -INFINITY;    /* a query that sees nothing */
    }
    return 0;
}
