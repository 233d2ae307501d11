/* Plain attention in C, held against golden vectors.
 *
 *     python -c "import refattn.testing as rt; rt.export_vectors('vectors', format='bin')"
 *     include=$(python -c "from refattn.testing.vectors import INCLUDE; print(INCLUDE)")
 *     cc -std=c99 -I "$include" attention.c -o check -lm
 *     ./check vectors/vectors.bin                     # a line per entry; 1 if one is beyond its bound
 *     ./check vectors/vectors.bin vectors/outputs     # and leave what was computed for check_vectors
 *
 * Compile with -DWRONG_SCALE or -DWRONG_HEAD to see a mistake caught.
 */
#include "refattn_vectors.h"

typedef struct {
    const rv_array *q, *k, *v, *mask, *bias, *sinks, *keep;
    int64_t B, H, Hk, Tq, Tk, D, Dv;
    double scale, softcap, dropout;
} problem;

static problem problem_of(const rv_vector *entry) {
    problem p;
    p.q = rv_find(entry, "q"), p.k = rv_find(entry, "k"), p.v = rv_find(entry, "v");
    p.mask = rv_find(entry, "mask"), p.bias = rv_find(entry, "bias");
    p.sinks = rv_find(entry, "sinks"), p.keep = rv_find(entry, "dropout_mask");
    p.B = 1;
    for (int axis = -(int)p.q->ndim; axis < -3; axis++) p.B *= rv_dim(p.q, axis);
    p.H = rv_dim(p.q, -3), p.Hk = rv_dim(p.k, -3);
    p.Tq = rv_dim(p.q, -2), p.Tk = rv_dim(p.k, -2), p.D = rv_dim(p.q, -1), p.Dv = rv_dim(p.v, -1);
    p.scale = rv_scalar(entry, "scale", 1 / sqrt((double)p.D));
#ifdef WRONG_SCALE
    p.scale *= 1.001;
#endif
    p.softcap = rv_scalar(entry, "softcap", 0);
    p.dropout = rv_scalar(entry, "dropout_p", 0);
    return p;
}

/* Write where (b, h, i, j) lies in the axes of the scores, and return their number: a batch may have any, or none. */
static int place_of(const problem *p, int64_t b, int64_t h, int64_t i, int64_t j, int64_t *place) {
    int ndim = (int)p->q->ndim;
    int64_t last[3];
    last[0] = h, last[1] = i, last[2] = j;
    for (int n = 0; n < 3 && n < ndim; n++) place[ndim - 1 - n] = last[2 - n];
    for (int axis = ndim - 4; axis >= 0; axis--) {
        place[axis] = b % p->q->dims[axis];
        b /= p->q->dims[axis];
    }
    return ndim;
}

/* One query: the scores of its keys, -inf where it may not look, then the softmax, then the mean of the values. */
static void one_row(const problem *p, const float *q, const float *k, const float *v, int64_t b, int64_t h, int64_t i,
                    float *s, float *o, float *lse) {
    int64_t place[RV_MAX_DIMS];
    float m = p->sinks ? (float)rv_get(p->sinks, h) : -INFINITY, l;
    for (int64_t j = 0; j < p->Tk; j++) {
        int ndim = place_of(p, b, h, i, j, place);
        double dot = 0;
        s[j] = -INFINITY;
        if (p->mask && rv_at(p->mask, place, ndim) == 0) continue;
        for (int64_t d = 0; d < p->D; d++) dot += (double)q[d] * (double)k[j * p->D + d];
        dot *= p->scale;
        if (p->softcap > 0) dot = p->softcap * tanh(dot / p->softcap);
        if (p->bias) dot += rv_at(p->bias, place, ndim);
        s[j] = (float)dot;
        if (s[j] > m || isnan(s[j])) m = s[j];
    }
    l = p->sinks && m > -INFINITY ? expf((float)rv_get(p->sinks, h) - m) : 0;
    for (int64_t j = 0; j < p->Tk; j++) {
        s[j] = s[j] == -INFINITY ? 0 : expf(s[j] - m);
        l += s[j];
    }
    *lse = l == 0 ? -INFINITY : m + logf(l);
    for (int64_t c = 0; c < p->Dv; c++) o[c] = 0;
    for (int64_t j = 0; j < p->Tk; j++) {
        int ndim = place_of(p, b, h, i, j, place);
        float keep = 1;
        if (p->mask && rv_at(p->mask, place, ndim) == 0) continue; /* 0 times a NaN that nobody may see is NaN */
        if (p->keep) keep = rv_at(p->keep, place, ndim) != 0 ? (float)(1 / (1 - p->dropout)) : 0;
        for (int64_t c = 0; c < p->Dv; c++) o[c] += l == 0 ? 0 : s[j] / l * keep * v[j * p->Dv + c];
    }
}

static void attention(const problem *p, float *o, float *lse) {
    float *q = rv_floats(p->q), *k = rv_floats(p->k), *v = rv_floats(p->v);
    float *s = (float *)malloc((size_t)p->Tk * sizeof(float) + 1);
    for (int64_t b = 0; b < p->B; b++)
        for (int64_t h = 0; h < p->H; h++)
            for (int64_t i = 0; i < p->Tq; i++) {
#ifdef WRONG_HEAD
                int64_t head = b * p->Hk + h % p->Hk;
#else
                int64_t head = b * p->Hk + h / (p->H / p->Hk);
#endif
                int64_t row = (b * p->H + h) * p->Tq + i;
                one_row(p, q + row * p->D, k + head * p->Tk * p->D, v + head * p->Tk * p->Dv, b, h, i, s,
                        o + row * p->Dv, lse + row);
            }
    free(q), free(k), free(v), free(s);
}

/* Hold one result against the vectors, leave it for check_vectors if there is a folder; return whether it is wrong. */
static int judged(const rv_vector *entry, const char *name, const float *got, int64_t n, const char *folder) {
    rv_worst worst = rv_compare(entry, name, got, n);
    printf("%-4s %s %s: %.3g of the bound", worst.share > 1 ? "FAIL" : "ok", entry->id, name, worst.share);
    if (worst.share > 1)
        printf(" at %lld: %.9g, wanted %.9g to %.2g", (long long)worst.index, worst.got, worst.want, worst.bound);
    printf("\n");
    if (folder && rv_dump(folder, entry, name, got, (size_t)n * sizeof(float))) {
        printf("FAIL %s: nothing can be written to %s\n", entry->id, folder);
        return 1;
    }
    return worst.share > 1;
}

int main(int argc, char **argv) {
    const char *why, *folder = argc > 2 ? argv[2] : NULL;
    int wrong = 0, tried = 0;
    rv_file *file = rv_open(argc > 1 ? argv[1] : "vectors/vectors.bin", &why);
    if (!file) {
        fprintf(stderr, "%s: %s\n", argc > 1 ? argv[1] : "vectors/vectors.bin", why);
        return 2;
    }
    for (uint32_t n = 0; n < rv_count(file); n++) {
        const rv_vector *entry = rv_entry(file, n);
        if (strcmp(entry->operation, "attention") && strcmp(entry->operation, "flash_attention")
            && strcmp(entry->operation, "attention_split_kv"))
            continue;
        problem p = problem_of(entry);
        int64_t rows = p.B * p.H * p.Tq;
        float *o = (float *)malloc((size_t)(rows * p.Dv) * sizeof(float) + 1);
        float *lse = (float *)malloc((size_t)rows * sizeof(float) + 1);
        attention(&p, o, lse);
        wrong |= judged(entry, "o", o, rows * p.Dv, folder);
        if (rv_find(entry, "bound_lse")) wrong |= judged(entry, "lse", lse, rows, folder);
        free(o), free(lse);
        tried++;
    }
    printf("%d entries, %s\n", tried, wrong ? "not all within their bounds" : "all within their bounds");
    rv_close(file);
    return wrong || tried == 0;
}
