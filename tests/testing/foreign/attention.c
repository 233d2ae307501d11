/* Plain attention on contiguous float arrays: causal (bottom right), grouped heads, lse. Built with a macro it errs:
 * PAST_END writes 3 elements behind o, BEFORE_START one in front of it, TOUCH_Q changes q, CRASH aborts, STATUS returns 3,
 * READS_PAST reads one key too many. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef DOUBLE
typedef double real;
#else
typedef float real;
#endif

int attention(
    const real *q, const real *k, const real *v, real *o, real *lse, int64_t B, int64_t H, int64_t Hk, int64_t Tq,
    int64_t Tk, int64_t D, int64_t Dv, float scale, int causal
) {
    int64_t keys = Tk;
#ifdef CRASH
    abort();
#endif
#ifdef READS_PAST
    keys = Tk + 1;
#endif
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t i = 0; i < Tq; i++) {
                const real *qi = q + ((b * H + h) * Tq + i) * D;
                int64_t kv = (b * Hk + h / (H / Hk)) * Tk;
                int64_t seen = causal && i + Tk - Tq + 1 < keys ? i + Tk - Tq + 1 : keys;
                double m = -INFINITY, l = 0;
                real *oi = o + ((b * H + h) * Tq + i) * Dv;
                for (int64_t c = 0; c < Dv; c++) oi[c] = 0;
                for (int64_t j = 0; j < seen; j++) {
                    double s = 0;
                    for (int64_t c = 0; c < D; c++) s += (double)qi[c] * k[(kv + j) * D + c];
                    s *= scale;
                    double top = s > m ? s : m, old = exp(m - top), p = exp(s - top);
                    l = l * old + p;
                    for (int64_t c = 0; c < Dv; c++) oi[c] = (real)(oi[c] * old + p * v[(kv + j) * Dv + c]);
                    m = top;
                }
                for (int64_t c = 0; c < Dv && seen > 0; c++) oi[c] = (real)(oi[c] / l);
                lse[(b * H + h) * Tq + i] = (real)(seen > 0 ? m + log(l) : -INFINITY);
            }
#ifdef PAST_END
    for (int n = 0; n < 3; n++) o[B * H * Tq * Dv + n] = 1;
#endif
#ifdef BEFORE_START
    o[-1] = 1;
#endif
#ifdef TOUCH_Q
    ((real *)q)[0] += 1;
#endif
#ifdef STATUS
    return 3;
#endif
    return 0;
}

/* o = the mean of v over all keys, on arrays of any strides; with INTO_GAPS it writes a row that is one too long. */
void mean(
    const float *q, const float *k, const float *v, float *o, int64_t B, int64_t H, int64_t Hk, int64_t Tq, int64_t Tk,
    int64_t Dv, const int64_t *vs, const int64_t *os
) {
    (void)q, (void)k;
#ifdef INTO_GAPS
    const int64_t wide = Dv + 1;
#else
    const int64_t wide = Dv;
#endif
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t i = 0; i < Tq; i++)
                for (int64_t c = 0; c < wide; c++) {
                    double sum = 0;
                    for (int64_t j = 0; j < Tk && c < Dv; j++)
                        sum += v[b * vs[0] + h / (H / Hk) * vs[1] + j * vs[2] + c * vs[3]];
                    o[b * os[0] + h * os[1] + i * os[2] + c * os[3]] = (float)(sum / Tk);
                }
}

/* The first query's number of the arguments that a case may lack, as it arrives. */
void probe(
    const float *q, const float *k, const float *v, float *o, const float *bias, const uint8_t *mask, const float *sinks,
    const int64_t *seqlens_k, const int *q_offset, int64_t B, int H, int Tq, int Tk, double scale, float softcap,
    int causal, int left, int right, int splits
) {
    (void)q, (void)k, (void)v;
    double seen[16] = {bias ? bias[B * H * Tq * Tk - 1] : -99, mask ? mask[B * H * Tq * Tk - 1] : -99,
                       sinks ? sinks[H - 1] : -99, seqlens_k ? (double)seqlens_k[B - 1] : -99,
                       q_offset ? q_offset[B - 1] : -99, scale, softcap, causal, left, right, splits};
    for (int n = 0; n < 16; n++) o[n] = (float)seen[n];
}

/* Derivative for one key: p = 1, so dv is the sum of do and dq, dk are zero; dbias is 1 everywhere, dsinks 2. */
void backward(
    const float *dout, const float *q, const float *k, const float *v, const float *o, const float *lse, float *dq,
    float *dk, float *dv, float *dbias, float *dsinks, const float *bias, const float *sinks, int64_t B, int64_t H,
    int64_t Hk, int64_t Tq, int64_t Tk, int64_t D, int64_t Dv
) {
    (void)q, (void)k, (void)v, (void)bias, (void)sinks, (void)lse;
    for (int64_t n = 0; n < B * H * Tq * D; n++) dq[n] = 0;
    for (int64_t n = 0; n < B * Hk * Tk * D; n++) dk[n] = 0;
    for (int64_t n = 0; n < B * Hk * Tk * Dv; n++) dv[n] = 0;
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t i = 0; i < Tq; i++)
                for (int64_t c = 0; c < Dv; c++) {
                    int64_t at = ((b * H + h) * Tq + i) * Dv + c;
                    dv[(b * Hk + h / (H / Hk)) * Tk * Dv + c] += dout[at] + 0 * o[at];
                }
    for (int64_t n = 0; dbias && n < B * H * Tq * Tk; n++) dbias[n] = 1;
    for (int64_t n = 0; dsinks && n < H; n++) dsinks[n] = 2;
}
