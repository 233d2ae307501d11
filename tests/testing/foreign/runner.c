/* A kernel that is a program: reads requests of refattn.testing, answers with o and lse. Takes causal, window, scale.
 * Its argument makes it err: "exit" ends with status 3, "crash" aborts, "hang" never answers, "print" writes a greeting to
 * standard output, "shape" answers half of o, "half" stops within the answer, "refuse" answers with an error, "late" writes
 * after the answer. */
#include <math.h>
#include <unistd.h>

#include "refattn_runner.h"

static const float *floats(const rf_entry *e) { return (const float *)e->data; }

static void answer(const rf_message *m, const char *how) {
    const rf_entry *q = rf_find(m, "q"), *k = rf_find(m, "k"), *v = rf_find(m, "v");
    int64_t B = q->dims[0], H = q->dims[1], Tq = q->dims[2], D = q->dims[3], Hk = k->dims[1], Tk = k->dims[2];
    int64_t Dv = v->dims[3], dims[4] = {B, H, Tq, Dv};
    double scale = rf_number(m, "scale", 1 / sqrt((double)D));
    int64_t left = (int64_t)rf_number(m, "window_left", -1), right = (int64_t)rf_number(m, "window_right", -1);
    if (rf_number(m, "causal", 0) != 0) right = right < 0 || right > 0 ? 0 : right;
    float *o = (float *)calloc((size_t)(B * H * Tq * Dv + 1), sizeof(float));
    float *lse = (float *)calloc((size_t)(B * H * Tq + 1), sizeof(float));
    double *p = (double *)calloc((size_t)Tk + 1, sizeof(double));
    for (int64_t row = 0; row < B * H * Tq; row++) {
        int64_t b = row / (H * Tq), h = row / Tq % H, here = row % Tq + Tk - Tq, kv = (b * Hk + h / (H / Hk)) * Tk;
        int64_t first = left >= 0 && here > left ? here - left : 0;
        int64_t end = right >= 0 && here + right + 1 < Tk ? here + right + 1 : Tk;
        double top = -INFINITY, sum = 0;
        for (int64_t j = first; j < end; j++) {
            double s = 0;
            for (int64_t c = 0; c < D; c++) s += (double)floats(q)[row * D + c] * floats(k)[(kv + j) * D + c];
            p[j] = scale * s;
            if (p[j] > top) top = p[j];
        }
        for (int64_t j = first; j < end; j++) sum += p[j] = exp(p[j] - top);
        for (int64_t c = 0; c < Dv && first < end; c++) {
            double x = 0;
            for (int64_t j = first; j < end; j++) x += p[j] / sum * floats(v)[(kv + j) * Dv + c];
            o[row * Dv + c] = (float)x;
        }
        lse[row] = (float)(first < end ? top + log(sum) : -INFINITY);
    }
    if (strcmp(how, "shape") == 0) dims[2] /= 2;
    rf_begin(stdout, 2);
    rf_put(stdout, "o", RF_FLOAT32, 4, dims, o);
    if (strcmp(how, "half") == 0) {
        fflush(stdout);
        exit(0);
    }
    rf_put(stdout, "lse", RF_FLOAT32, 3, dims, lse);
    if (strcmp(how, "late") == 0) printf("thank you");
    rf_end(stdout);
    free(o), free(lse), free(p);
}

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "";
    rf_message m;
    while (rf_read(stdin, &m)) {
        if (strcmp(how, "exit") == 0) return fprintf(stderr, "no such device\n"), 3;
        if (strcmp(how, "crash") == 0) abort();
        if (strcmp(how, "hang") == 0) pause();
        if (strcmp(how, "print") == 0) printf("hello, world\n");
        if (strcmp(how, "refuse") == 0)
            rf_error(stdout, "D must be a multiple of 8");
        else
            answer(&m, how);
        rf_free(&m);
    }
    return 0;
}
