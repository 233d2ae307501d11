/* Read requests of refattn.testing and write answers, in C99 or C++. The bytes are described in protocol.py.
 *
 *     rf_message m;
 *     while (rf_read(stdin, &m)) {
 *         const rf_entry *q = rf_find(&m, "q");             // q->dims[0..3], (const float *)q->data
 *         double scale = rf_number(&m, "scale", 0.125);     // or this, if the case has none
 *         ...
 *         rf_begin(stdout, 1);                              // one entry follows
 *         rf_put(stdout, "o", RF_FLOAT32, 4, dims, o);
 *         rf_end(stdout);
 *         rf_free(&m);
 *     }
 *
 * It takes a little-endian machine. On Windows, set stdin and stdout to binary first. Print nothing else to stdout.
 */
#ifndef REFATTN_RUNNER_H
#define REFATTN_RUNNER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    RF_FLOAT32 = 1, RF_FLOAT64, RF_FLOAT16, RF_BFLOAT16, RF_INT32, RF_INT64, RF_UINT8, RF_BOOL, RF_UINT32
};

typedef struct {
    char name[16];
    uint32_t dtype, ndim;
    int64_t dims[6];
    uint64_t nbytes;
    void *data;
} rf_entry;

typedef struct {
    uint32_t count;
    rf_entry *entries;
} rf_message;

static inline size_t rf_size(uint32_t dtype) {
    static const size_t sizes[] = {0, 4, 8, 2, 2, 4, 8, 1, 1, 4};
    return dtype < sizeof sizes / sizeof *sizes ? sizes[dtype] : 0;
}

static inline void rf_take(FILE *in, void *to, size_t n) {
    if (n && fread(to, 1, n, in) != n) {
        fprintf(stderr, "refattn_runner: the request ends too early\n");
        exit(2);
    }
}

/* Read a request; 0 at the end of the input. */
static inline int rf_read(FILE *in, rf_message *m) {
    uint32_t head[4];
    size_t got = fread(head, 1, sizeof head, in);
    if (got == 0) return 0;
    if (got != sizeof head || memcmp(head, "RFAT", 4) != 0 || head[1] != 1) {
        fprintf(stderr, "refattn_runner: this is no request of version 1\n");
        exit(2);
    }
    m->count = head[2];
    m->entries = (rf_entry *)calloc(m->count ? m->count : 1, sizeof(rf_entry));
    for (uint32_t i = 0; i < m->count; i++) {
        rf_entry *e = &m->entries[i];
        rf_take(in, e->name, 16);
        rf_take(in, &e->dtype, 4);
        rf_take(in, &e->ndim, 4);
        rf_take(in, e->dims, 48);
        rf_take(in, &e->nbytes, 8);
        size_t padded = (size_t)(e->nbytes + 7) / 8 * 8;
        e->data = malloc(padded ? padded : 8);
        rf_take(in, e->data, padded);
    }
    return 1;
}

/* Return an entry of the request, or NULL if the case has none of that name. */
static inline const rf_entry *rf_find(const rf_message *m, const char *name) {
    for (uint32_t i = 0; i < m->count; i++)
        if (strncmp(m->entries[i].name, name, 16) == 0) return &m->entries[i];
    return NULL;
}

/* Return an option that is a number, or what it is if the case has none. */
static inline double rf_number(const rf_message *m, const char *name, double otherwise) {
    const rf_entry *e = rf_find(m, name);
    if (!e) return otherwise;
    return e->dtype == RF_FLOAT64 ? *(const double *)e->data : (double)*(const int64_t *)e->data;
}

static inline void rf_free(rf_message *m) {
    for (uint32_t i = 0; i < m->count; i++) free(m->entries[i].data);
    free(m->entries);
}

/* Begin an answer of that many entries. */
static inline void rf_begin(FILE *out, uint32_t count) {
    uint32_t head[4] = {0, 1, count, 0};
    memcpy(head, "RFAT", 4);
    fwrite(head, 1, sizeof head, out);
}

/* Write an entry, its data in C order. */
static inline void rf_put(
    FILE *out, const char *name, uint32_t dtype, uint32_t ndim, const int64_t *dims, const void *data
) {
    char label[16] = {0};
    int64_t all[6] = {0};
    uint64_t nbytes = rf_size(dtype), zero = 0;
    strncpy(label, name, 15);
    for (uint32_t i = 0; i < ndim && i < 6; i++) {
        all[i] = dims[i];
        nbytes *= (uint64_t)dims[i];
    }
    fwrite(label, 1, 16, out);
    fwrite(&dtype, 4, 1, out);
    fwrite(&ndim, 4, 1, out);
    fwrite(all, 8, 6, out);
    fwrite(&nbytes, 8, 1, out);
    if (nbytes) fwrite(data, 1, (size_t)nbytes, out);
    if (nbytes % 8) fwrite(&zero, 1, (size_t)(8 - nbytes % 8), out);
}

/* Finish an answer. */
static inline void rf_end(FILE *out) {
    fflush(out);
}

/* Answer that the request cannot be met, and why. */
static inline void rf_error(FILE *out, const char *sentence) {
    int64_t n = (int64_t)strlen(sentence);
    rf_begin(out, 1);
    rf_put(out, "error", RF_UINT8, 1, &n, sentence);
    rf_end(out);
}

#endif
