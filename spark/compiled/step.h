/* What the parts of the compiled step share: structures that Python fills, vectors, and threads. */
#pragma once

#include <sched.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define TILE 32        /* outputs of a matrix that lie together */
#define LOGITS 32 /* logits that are looked at together; whole tiles have whole blocks */
#ifdef __AVX512F__
#define WIDE 16
#else
#define WIDE LANES
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float wide __attribute__((vector_size(4 * WIDE)));
typedef uint32_t wide_words __attribute__((vector_size(4 * WIDE)));

/* A model's. Layers fall into `parts` that need nothing of each other but their sums: each has its
 * heads, its share of `inner`, and its part of every matrix, one after the other. */
struct shape {
    int width, inner, heads, kv_heads, head_dim, narrow, threads, parts;
    float eps;
};

struct layer {
    const void *qkv, *output, *gate_up, *down;
    const float *bias; /* of qkv, or NULL */
    const float *attention_gain, *mlp_gain;
};

struct step {
    int low, high, rows, capacity;
    int lending;            /* of the rows, the first: to the last layer they lend keys and values,
                             * and go no further */
    const int64_t *lengths; /* rows that each layer's cache holds */
    float *states;          /* (rows, width), updated in place */
    const float *rotary;    /* (rows, head_dim / 2, 2): cosine and sine */
    float *cache;           /* (layers, 2 kv_heads, capacity, head_dim), keys first */
    float *scratch;         /* `spark_scratch` floats */
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

#define PATIENCE 20000 /* looks at a thread that is late, a fraction of a millisecond */

/* How often a thread has come to a meeting; a line of the cache of its own. */
struct seat {
    _Alignas(64) int met;
};

/* A thread among others: the `me`-th of `of`. */
struct part {
    int me, of;
    struct seat *seats; /* one a thread, 0 at first; of all threads: then one more each */
};

/* Until all threads are here. OpenMP's barrier takes four times as long, twice a layer and more. */
INLINE void meet(const struct part *p) {
    const int met = p->seats[p->me].met + 1;
    __atomic_store_n(&p->seats[p->me].met, met, __ATOMIC_RELEASE);
    for (int i = 0; i < p->of; i++)
        for (int looks = 0; __atomic_load_n(&p->seats[i].met, __ATOMIC_ACQUIRE) - met < 0; looks++)
            if (looks > PATIENCE) sched_yield(); /* it may wait for this one's processor */
}

/* Make a thread of a parallel region one of as many as the parts can share; 0 if it is left over. */
int spark_among(struct part *p, int parts);

/* Where a thread's tiles of `outputs` begin; they end where the next one's begin. */
int spark_share(int outputs, int me, int of);

/* A thread's part of a step; `p` is it among all. */
void spark_climb(const struct shape *s, const struct layer *layers, const struct step *c,
                 const struct part *p);

/* A thread's part of the logits (rows, outputs) of states (rows, width), of which it gives its
 * share; scratch: rows width floats for all threads, and as many for each. */
void spark_ask(const struct head *h, int rows, const float *states, const struct part *p,
               float *scratch, float *out);

/* Floats of `scratch` that a step needs. */
int64_t spark_scratch(const struct shape *s, int rows, int capacity);

/* Softmax attention of the queries of a part that share one key head, of all rows but the `lending`
 * first: `qkv` (rows, heads and twice kv_heads, head_dim) is rotated, keys and values of all rows join
 * the cache, and what was attended to is written to `mixed` (rows, heads, head_dim). `s` is the part's
 * shape, `scores` has `spark_scores` floats. */
void spark_attend(const struct shape *s, const struct step *c, int layer, int part, int group,
                  float *qkv, float *scores, float *mixed);

/* Floats of scores that so many rows take. */
int64_t spark_scores(const struct shape *s, int rows, int capacity);

/* What threads find out about a block of logits, each about its own, before one of them draws. */
struct survey {
    float most, cold, hot; /* the largest; sums of e^ beside the largest of all, the second of
                            * logits over the temperature */
};

/* Of columns from..to-1, `from` a multiple of a block, their `most`. */
void spark_survey(const float *logits, int columns, int from, int to, struct survey *found);

/* And once that is known of all, the rest; without a temperature `hot` means nothing. */
void spark_weigh(const float *logits, int columns, int from, int to, float temperature,
                 struct survey *found);

/* The largest probability at temperature 1. */
float spark_sureness(const struct survey *found, int columns);

/* The id that is drawn; scratch: 2 floats a column. */
int64_t spark_choice(const struct draw *d, const float *logits, const struct survey *found,
                     int64_t key, float *scratch);
