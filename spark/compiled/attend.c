/* Attention of the compiled step: the queries that share one key head beside all of its keys.
 *
 * Keys and values come from far: a block of them is read once and serves the queries of all rows.
 * Every row is computed in one fixed order of operations, however many come along.
 */
#include "step.h"

#include <float.h>
#include <math.h>

#define BLOCK 32            /* keys or values that the queries take in turns: they stay near */
#define MIXED (64 / WIDE)   /* vectors of a sum in flight, */
#define TOGETHER (WIDE / 8) /* of so many queries: eight keep the processor busy */
/* Lanes of two vectors, by number; compilers disagree on its name. */
#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (wide_words){__VA_ARGS__})
#endif
/* Numbers a..d of every four lanes; SECOND gives those of the second vector. */
#define FROM(o, a, b, c, d) (o) + (a), (o) + (b), (o) + (c), (o) + (d)
#define SECOND(a) (WIDE + (a))
#if WIDE == 16
#define EACH(a, b, c, d) \
    FROM(0, a, b, c, d), FROM(4, a, b, c, d), FROM(8, a, b, c, d), FROM(12, a, b, c, d)
#define EVENS(o) \
    FROM(o, 0, 1, 2, 3), FROM(o, 8, 9, 10, 11), FROM(o, 16, 17, 18, 19), FROM(o, 24, 25, 26, 27)
#else
#define EACH(a, b, c, d) FROM(0, a, b, c, d), FROM(4, a, b, c, d)
#define EVENS(o) FROM(o, 0, 1, 2, 3), FROM(o, 8, 9, 10, 11)
#endif

INLINE int lesser(int a, int b) { return a < b ? a : b; }

static void rotate(float *head, const float *turn, int size) {
    for (int i = 0; i < size; i += 2) {
        float a = head[i], b = head[i + 1], cosine = turn[i], sine = turn[i + 1];
        head[i] = a * cosine - b * sine;
        head[i + 1] = a * sine + b * cosine;
    }
}

/* The sums of WIDE vectors: of the first in the first place, and so on. */
INLINE wide totals(wide v[WIDE]) {
#pragma GCC unroll 8
    for (int i = 0; i < WIDE / 2; i++)
        v[i] = PICK(v[2 * i], v[2 * i + 1], EACH(0, SECOND(0), 1, SECOND(1))) +
               PICK(v[2 * i], v[2 * i + 1], EACH(2, SECOND(2), 3, SECOND(3)));
#pragma GCC unroll 4
    for (int i = 0; i < WIDE / 4; i++)
        v[i] = PICK(v[2 * i], v[2 * i + 1], EACH(0, 1, SECOND(0), SECOND(1))) +
               PICK(v[2 * i], v[2 * i + 1], EACH(2, 3, SECOND(2), SECOND(3)));
#pragma GCC unroll 2
    for (int left = WIDE / 8; left; left /= 2)
#pragma GCC unroll 2
        for (int i = 0; i < left; i++)
            v[i] = PICK(v[2 * i], v[2 * i + 1], EVENS(0)) + PICK(v[2 * i], v[2 * i + 1], EVENS(4));
    return v[0];
}

/* Products of a query with WIDE keys; from the `last` of them on with that one. */
INLINE wide likeness(const float *query, const float *keys, int size, int last) {
    wide dots[WIDE] = {{0}};
    for (int i = 0; i < size; i += WIDE) {
        const wide q = load_wide(query + i);
#pragma GCC unroll 16
        for (int j = 0; j < WIDE; j++) dots[j] += q * load_wide(keys + lesser(j, last) * size + i);
    }
    return totals(dots);
}

/* Scores of a query beside keys from..to-1, `from` a multiple of WIDE, and up to a whole vector. */
static void score(const float *query, const float *keys, int from, int to, int size,
                  float *scores) {
    const float scale = 1.0f / sqrtf((float)size);
    for (int j = from; j < to; j += WIDE) {
        const float *first = keys + (int64_t)j * size;
        const int last = to - j - 1;
        const wide found = last + 1 < WIDE ? likeness(query, first, size, last)
                                           : likeness(query, first, size, WIDE - 1);
        store_wide(scores + j, found * scale);
    }
}

/* Softmax of `count` scores. The places up to a whole vector are written too, so that each score's
 * way is the same wherever it lies. */
static void soften(float *scores, int count) {
    float most = -FLT_MAX;
    lanes sum = {0};
    for (int j = 0; j < count; j++) most = scores[j] > most ? scores[j] : most;
    for (int j = count; j < whole(count); j++) scores[j] = most - 80; /* 2e-35 of the largest */
    for (int j = 0; j < whole(count); j++) scores[j] = expf(scores[j] - most);
    for (int j = 0; j < whole(count); j += LANES) sum += load(scores + j);
    const float scale = 1 / total(sum);
    for (int j = 0; j < whole(count); j++) scores[j] *= scale;
}

/* VECTORS vectors of the sums of values from..to-1, each as many times as the score of it says, of
 * QUERIES queries, added to `out`. Scores lie `far`, sums `size` apart. */
INLINE void mix(const float *scores, int far, const float *values, int from, int to, int size,
                int QUERIES, int VECTORS, float *out) {
    wide mixed[2][MIXED];
#pragma GCC unroll 2
    for (int q = 0; q < QUERIES; q++)
#pragma GCC unroll 8
        for (int k = 0; k < VECTORS; k++) mixed[q][k] = load_wide(out + q * size + k * WIDE);
    for (int j = from; j < to; j++)
#pragma GCC unroll 8
        for (int k = 0; k < VECTORS; k++) {
            const wide value = load_wide(values + (int64_t)j * size + k * WIDE);
#pragma GCC unroll 2
            for (int q = 0; q < QUERIES; q++) mixed[q][k] += scores[q * far + j] * value;
        }
#pragma GCC unroll 2
    for (int q = 0; q < QUERIES; q++)
#pragma GCC unroll 8
        for (int k = 0; k < VECTORS; k++)
            store_wide(out + q * size + k * WIDE, mixed[q][k]);
}

/* The same for whole queries, QUERIES at once. */
INLINE void mix_all(const float *scores, int far, const float *values, int from, int to, int size,
                    int QUERIES, float *out) {
    int i = 0;
    for (; i + MIXED * WIDE <= size; i += MIXED * WIDE)
        mix(scores, far, values + i, from, to, size, QUERIES, MIXED, out + i);
    for (; i < size; i += WIDE) mix(scores, far, values + i, from, to, size, QUERIES, 1, out + i);
}

/* One key head and the queries that share it, of all rows: rotated and appended to the cache. */
static void append_group(const struct shape *s, const struct step *c, int group, int64_t old,
                         float *keys, float *values, float *qkv) {
    const int size = s->head_dim, shared = s->heads / s->kv_heads;
    for (int t = 0; t < c->rows; t++) {
        float *row = qkv + t * (s->heads + 2 * s->kv_heads) * size;
        float *key = row + (s->heads + group) * size;
        for (int h = 0; t >= c->lending && h < shared; h++)
            rotate(row + (group * shared + h) * size, c->rotary + t * size, size);
        rotate(key, c->rotary + t * size, size);
        memcpy(keys + (old + t) * size, key, size * sizeof *key);
        memcpy(values + (old + t) * size, key + s->kv_heads * size, size * sizeof *key);
    }
}

void spark_attend(const struct shape *s, const struct step *c, int layer, int part, int group,
                  float *qkv, float *scores, float *mixed) {
    const int size = s->head_dim, heads = s->heads, shared = heads / s->kv_heads;
    const int across = (heads + 2 * s->kv_heads) * size, far = whole(c->capacity);
    const int old = (int)c->lengths[layer], rows = c->rows, first = group * shared;
    const int64_t block = (int64_t)c->capacity * size;
    const int all = s->parts * s->kv_heads; /* key heads of the model */
    float *keys = c->cache + ((int64_t)layer * 2 * all + part * s->kv_heads + group) * block;
    float *values = keys + all * block;
    append_group(s, c, group, old, keys, values, qkv);
    for (int from = 0; from < old + rows; from += BLOCK)
        for (int n = c->lending * shared; n < rows * shared; n++) {
            const int t = n / shared, count = old + t + 1, h = first + n % shared;
            score(qkv + t * across + h * size, keys, from, lesser(from + BLOCK, count), size,
                  scores + (int64_t)n * far);
        }
    for (int t = c->lending; t < rows; t++)
        memset(mixed + (t * heads + first) * size, 0, shared * size * sizeof *mixed);
    for (int n = c->lending * shared; n < rows * shared; n++)
        soften(scores + (int64_t)n * far, old + n / shared + 1);
    for (int from = 0; from < old + rows; from += BLOCK)
        for (int t = c->lending; t < rows; t++) {
            const int to = lesser(from + BLOCK, old + t + 1);
            const float *own = scores + (int64_t)t * shared * far;
            float *out = mixed + (t * heads + first) * size;
            int h = 0;
            for (; h + TOGETHER <= shared; h += TOGETHER)
                mix_all(own + h * far, far, values, from, to, size, TOGETHER, out + h * size);
            for (; h < shared; h++)
                mix_all(own + h * far, far, values, from, to, size, 1, out + h * size);
        }
}

int64_t spark_scores(const struct shape *s, int rows, int capacity) {
    return (int64_t)rows * (s->heads / s->kv_heads) * whole(capacity);
}
