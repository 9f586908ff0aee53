/* What the parts of the compiled step share: the structures that Python fills, and vectors. */
#pragma once

#include <stdint.h>
#include <string.h>

#define LANES 8
#ifdef __AVX512F__
#define WIDE 16
#else
#define WIDE LANES
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float wide __attribute__((vector_size(4 * WIDE)));
typedef uint32_t wide_words __attribute__((vector_size(4 * WIDE)));

struct shape {
    int width, inner, heads, kv_heads, head_dim, narrow, threads;
    float eps;
};

struct layer {
    const void *qkv, *output, *gate_up, *down;
    const float *bias; /* of qkv, or NULL */
    const float *attention_gain, *mlp_gain;
};

struct step {
    int low, high, rows, capacity;
    const int64_t *lengths; /* rows that each layer's cache holds */
    float *states;          /* (rows, width), updated in place */
    const float *rotary;    /* (rows, head_dim / 2, 2): cosine and sine */
    float *cache;           /* (layers, 2 kv_heads, capacity, head_dim), keys first */
    float *scratch;         /* `spark_scratch` floats */
};

INLINE lanes load(const float *from) {
    lanes v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE float total(lanes v) {
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

INLINE wide load_wide(const float *from) {
    wide v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store_wide(float *to, wide v) { memcpy(to, &v, sizeof v); }

/* `count` and what it lacks to whole vectors. */
INLINE int whole(int count) { return (count + WIDE - 1) / WIDE * WIDE; }

/* Softmax attention of the queries that share one key head, of all rows: `qkv` (rows, heads and
 * twice kv_heads, head_dim) is rotated, keys and values join the cache, and what was attended to
 * is written to `mixed` (rows, heads, head_dim). `scores`: `spark_scores` floats. */
void spark_attend(const struct shape *s, const struct step *c, int layer, int group, float *qkv,
                  float *scores, float *mixed);

/* Floats of scores that so many rows take. */
int64_t spark_scores(const struct shape *s, int rows, int capacity);
