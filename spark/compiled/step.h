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

/* A part of the way up: layers low..high-1, with the last `rows` rows. */
struct leg {
    int low, high, rows;
};

struct head {
    const void *lens, *logits; /* (width, width) or NULL; (outputs, width) */
    const float *lens_bias, *gain;
    int width, outputs, narrow, threads;
    float eps;
};

struct draw {
    int columns, step; /* of a row; rows of logits lie `step` apart */
    int top_k;         /* 0 keeps all */
    float temperature, top_p;
    const int64_t *ids; /* of the columns, or NULL where column = id */
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

/* Ids, one a row of logits; scratch: 3 times `columns` floats. */
void spark_draw(const struct draw *d, int rows, const float *logits, const int64_t *keys,
                float *scratch, int64_t *tokens);

/* The largest probability of a row of logits, at temperature 1. */
float spark_sureness(const float *logits, int columns);
