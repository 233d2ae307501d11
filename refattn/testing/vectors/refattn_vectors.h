/* Read the golden vectors of refattn.testing in C99 or C++11: export_vectors(dir, format="bin") writes vectors.bin.
 *
 *     const char *why;
 *     rv_file *file = rv_open("vectors/vectors.bin", &why);          // NULL, and why points at a sentence
 *     for (uint32_t n = 0; n < rv_count(file); n++) {
 *         const rv_vector *v = rv_entry(file, n);                     // v->id, v->operation, v->dtype
 *         const rv_array *q = rv_find(v, "q");                        // NULL if there is none; q->ndim, q->dims
 *         float *values = rv_floats(q);                               // whatever its dtype; free it
 *         double scale = rv_scalar(v, "scale", 0.125);                // or this, if the call has none
 *         ...
 *         rv_worst worst = rv_compare(v, "o", got, n_got);            // worst.share > 1 is beyond the bound
 *         rv_dump("vectors/outputs", v, "o", got, bytes);             // for check_vectors, which looks closer
 *     }
 *     rv_close(file);
 *
 * The file, little-endian: "RFVC", uint32 version = 1, uint64 bytes of the file, uint32 entries; then for each entry
 * its id, operation and dtype, uint32 normal, uint32 scalars, for each a name and a float64, uint32 arrays, and for
 * each a name, uint32 role, dtype, dtype of results, ndim, int64 dims[ndim], uint64 offset, uint64 bytes. A text is a
 * uint32, the number of its bytes with the 0 at the end, and the bytes. The numbers lie at their offsets, in C order,
 * at multiples of 16. Each result o is there in float64, beside bound_o and sigma_o in float32.
 */
#ifndef REFATTN_VECTORS_H
#define REFATTN_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RV_FLOAT32 = 1, RV_FLOAT64 = 2, RV_FLOAT16 = 3, RV_BFLOAT16 = 4, RV_INT64 = 6, RV_BOOL = 8 };
enum { RV_INPUT = 1, RV_OUTPUT = 2, RV_BOUND = 3, RV_SIGMA = 4 };
enum { RV_MAX_DIMS = 8 };

typedef struct {
    const char *name;
    uint32_t role, dtype, result, ndim; /* result: the dtype in which a kernel returns an output */
    int64_t dims[RV_MAX_DIMS], count;
    const void *data;
} rv_array;

typedef struct {
    const char *name;
    double value;
} rv_number;

typedef struct {
    const char *id, *operation, *dtype;
    uint32_t normal, n_numbers, n_arrays; /* normal: inputs are, so that sigma means something */
    rv_number *numbers;
    rv_array *arrays;
} rv_vector;

typedef struct {
    unsigned char *bytes;
    uint64_t size, at;
    int bad; /* it ended too early */
    uint32_t count;
    rv_vector *vectors;
} rv_file;

typedef struct {
    double share; /* the largest |got - want| / bound; inf for a NaN, a wrong length, an unknown name */
    int64_t index; /* where, or -1 */
    double got, want, bound;
} rv_worst;

static inline float rv_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

static inline float rv_fp16(uint16_t bits) {
    int sign = bits >> 15, exponent = bits >> 10 & 31, fraction = bits & 1023;
    double x = exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY)
             : exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return (float)(sign ? -x : x);
}

static inline size_t rv_width(uint32_t dtype) {
    return dtype == RV_FLOAT64 || dtype == RV_INT64 ? 8 : dtype == RV_FLOAT32 ? 4 : dtype == RV_BOOL ? 1
         : dtype == RV_FLOAT16 || dtype == RV_BFLOAT16 ? 2 : 0;
}

/* Return number i of an array of any dtype. */
static inline double rv_value(const void *data, uint32_t dtype, int64_t i) {
    switch (dtype) {
    case RV_FLOAT64: return ((const double *)data)[i];
    case RV_FLOAT32: return (double)((const float *)data)[i];
    case RV_BFLOAT16: return (double)rv_bf16(((const uint16_t *)data)[i]);
    case RV_FLOAT16: return (double)rv_fp16(((const uint16_t *)data)[i]);
    case RV_INT64: return (double)((const int64_t *)data)[i];
    default: return (double)((const unsigned char *)data)[i];
    }
}

static inline double rv_get(const rv_array *x, int64_t i) { return rv_value(x->data, x->dtype, i); }

/* Return the numbers of an array as floats, to be freed. */
static inline float *rv_floats(const rv_array *x) {
    float *out = (float *)malloc((size_t)x->count * sizeof(float) + 1);
    for (int64_t i = 0; out && i < x->count; i++) out[i] = (float)rv_get(x, i);
    return out;
}

/* Return the size of an axis counted from the end, -1 being the last; 1 where there is none. */
static inline int64_t rv_dim(const rv_array *x, int axis) {
    return (int64_t)x->ndim + axis < 0 ? 1 : x->dims[(int)x->ndim + axis];
}

/* Return the number at a place of an array that broadcasts to ndim axes, such as a mask or a bias. */
static inline double rv_at(const rv_array *x, const int64_t *place, int ndim) {
    int64_t i = 0;
    for (int axis = -(int)x->ndim; axis < 0; axis++)
        i = i * rv_dim(x, axis) + (rv_dim(x, axis) == 1 ? 0 : place[ndim + axis]);
    return rv_get(x, i);
}

static inline void rv_take(rv_file *f, void *to, uint64_t n) {
    if (f->bad || n > f->size - f->at) {
        f->bad = 1;
        memset(to, 0, (size_t)n);
        return;
    }
    memcpy(to, f->bytes + f->at, (size_t)n);
    f->at += n;
}

static inline uint32_t rv_u32(rv_file *f) {
    uint32_t x;
    rv_take(f, &x, 4);
    return x;
}

static inline const char *rv_text(rv_file *f) {
    uint32_t n = rv_u32(f);
    const char *text = (const char *)f->bytes + f->at;
    if (f->bad || n == 0 || n > f->size - f->at || text[n - 1]) {
        f->bad = 1;
        return "";
    }
    f->at += n;
    return text;
}

/* Return room for n things, of which each took so many bytes of the file at least. */
static inline void *rv_room(rv_file *f, uint32_t n, size_t size, uint64_t least) {
    void *room = f->bad || (uint64_t)n * least > f->size - f->at ? NULL : calloc((size_t)n + 1, size);
    if (!room) f->bad = 1;
    return room;
}

static inline void rv_read_array(rv_file *f, rv_array *x) {
    uint64_t offset, bytes;
    x->name = rv_text(f);
    x->role = rv_u32(f), x->dtype = rv_u32(f), x->result = rv_u32(f), x->ndim = rv_u32(f);
    if (x->ndim > RV_MAX_DIMS) f->bad = 1;
    x->count = 1;
    for (uint32_t d = 0; !f->bad && d < x->ndim; d++) {
        rv_take(f, &x->dims[d], 8);
        if (x->dims[d] < 0 || (x->dims[d] && x->count > (int64_t)f->size / x->dims[d])) f->bad = 1;
        else x->count *= x->dims[d];
    }
    rv_take(f, &offset, 8), rv_take(f, &bytes, 8);
    if (f->bad || !rv_width(x->dtype) || bytes != (uint64_t)x->count * rv_width(x->dtype) || offset > f->size
        || bytes > f->size - offset || offset % 8)
        f->bad = 1;
    else x->data = f->bytes + offset;
}

static inline void rv_read_vector(rv_file *f, rv_vector *v) {
    v->id = rv_text(f), v->operation = rv_text(f), v->dtype = rv_text(f);
    v->normal = rv_u32(f), v->n_numbers = rv_u32(f);
    v->numbers = (rv_number *)rv_room(f, v->n_numbers, sizeof(rv_number), 13);
    for (uint32_t n = 0; !f->bad && n < v->n_numbers; n++) {
        v->numbers[n].name = rv_text(f);
        rv_take(f, &v->numbers[n].value, 8);
    }
    v->n_arrays = rv_u32(f);
    v->arrays = (rv_array *)rv_room(f, v->n_arrays, sizeof(rv_array), 37);
    for (uint32_t n = 0; !f->bad && n < v->n_arrays; n++) rv_read_array(f, &v->arrays[n]);
}

static inline void rv_close(rv_file *f) {
    if (!f) return;
    for (uint32_t n = 0; f->vectors && n < f->count; n++) free(f->vectors[n].numbers), free(f->vectors[n].arrays);
    free(f->vectors), free(f->bytes), free(f);
}

static inline const char *rv_parse(rv_file *f) {
    const uint16_t one = 1;
    uint64_t size;
    char magic[4];
    rv_take(f, magic, 4);
    if (f->bad || memcmp(magic, "RFVC", 4)) return "it is no file of vectors: it does not begin with RFVC";
    if (*(const unsigned char *)&one != 1) return "this reader takes a little-endian machine";
    if (rv_u32(f) != 1) return "it has a version that this header does not know";
    rv_take(f, &size, 8);
    if (f->bad || size != f->size) return "it is cut off: its length is not what it says";
    f->count = rv_u32(f);
    f->vectors = (rv_vector *)rv_room(f, f->count, sizeof(rv_vector), 27);
    for (uint32_t n = 0; !f->bad && n < f->count; n++) rv_read_vector(f, &f->vectors[n]);
    return f->bad ? "it is damaged" : NULL;
}

/* Return the file at a path, read whole; NULL where that cannot be, and the reason in *why. */
static inline rv_file *rv_open(const char *path, const char **why) {
    rv_file *f = (rv_file *)calloc(1, sizeof(rv_file));
    FILE *in = fopen(path, "rb");
    long size = -1;
    *why = f && in ? NULL : "it cannot be opened";
    if (!*why && (fseek(in, 0, SEEK_END) || (size = ftell(in)) < 0 || fseek(in, 0, SEEK_SET)))
        *why = "it cannot be read";
    if (!*why) {
        f->size = (uint64_t)size;
        f->bytes = (unsigned char *)malloc((size_t)size + 1);
        if (!f->bytes || fread(f->bytes, 1, (size_t)size, in) != (size_t)size) *why = "it cannot be read";
        else *why = rv_parse(f);
    }
    if (in) fclose(in);
    if (!*why) return f;
    rv_close(f);
    return NULL;
}

static inline uint32_t rv_count(const rv_file *f) { return f->count; }

static inline const rv_vector *rv_entry(const rv_file *f, uint32_t n) { return n < f->count ? &f->vectors[n] : NULL; }

/* Return an array of an entry by name, NULL if there is none. */
static inline const rv_array *rv_find(const rv_vector *v, const char *name) {
    for (uint32_t n = 0; n < v->n_arrays; n++)
        if (strcmp(v->arrays[n].name, name) == 0) return &v->arrays[n];
    return NULL;
}

/* Return an option that is a number or a bool, or what it is if the call has none. */
static inline double rv_scalar(const rv_vector *v, const char *name, double otherwise) {
    for (uint32_t n = 0; n < v->n_numbers; n++)
        if (strcmp(v->numbers[n].name, name) == 0) return v->numbers[n].value;
    return otherwise;
}

/* Return bound_NAME, sigma_NAME. */
static inline const rv_array *rv_beside(const rv_vector *v, const char *what, const char *name) {
    char label[80];
    return snprintf(label, sizeof label, "%s_%s", what, name) < (int)sizeof label ? rv_find(v, label) : NULL;
}

/* Hold n numbers of any dtype against a result: where is the error the largest part of its bound? */
static inline rv_worst rv_compare_as(const rv_vector *v, const char *name, const void *got, uint32_t dtype, int64_t n) {
    const rv_array *want = rv_find(v, name), *bound = rv_beside(v, "bound", name);
    rv_worst worst = {0, -1, 0, 0, 0};
    int fits = want && bound && want->role == RV_OUTPUT && bound->count == want->count && n == want->count;
    if (!fits || !rv_width(dtype)) {
        worst.share = (double)INFINITY;
        return worst;
    }
    for (int64_t i = 0; i < n; i++) {
        double x = rv_value(got, dtype, i), y = rv_get(want, i), b = rv_get(bound, i), share;
        if (x == y || (isnan(x) && isnan(y))) share = 0;
        else if (isinf(b) && !isnan(x)) share = 0; /* it may overflow */
        else if (!isfinite(x) || !isfinite(y) || b == 0) share = (double)INFINITY;
        else share = fabs(x - y) / b;
        if (share > worst.share || worst.index < 0) {
            worst.share = share, worst.index = i;
            worst.got = x, worst.want = y, worst.bound = b;
        }
    }
    return worst;
}

static inline rv_worst rv_compare(const rv_vector *v, const char *name, const float *got, int64_t n) {
    return rv_compare_as(v, name, got, RV_FLOAT32, n);
}

/* Write a result as check_vectors reads it; return 0 if that worked. Float32, float64, or the dtype of the result. */
static inline int rv_dump(const char *folder, const rv_vector *v, const char *name, const void *data, size_t bytes) {
    char path[1024], id[256];
    size_t at = 0;
    for (const char *c = v->id; *c && at < sizeof id - 2; c++) {
        id[at++] = *c == '/' ? '_' : *c;
        if (*c == '/') id[at++] = '_';
    }
    id[at] = 0;
    if (snprintf(path, sizeof path, "%s/%s.%s.bin", folder, id, name) >= (int)sizeof path) return 1;
    FILE *out = fopen(path, "wb");
    if (!out) return 1;
    at = bytes ? fwrite(data, 1, bytes, out) : 0;
    return (fclose(out) != 0) | (at != bytes);
}

#endif
