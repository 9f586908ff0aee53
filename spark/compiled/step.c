/* One step of a decoder on a CPU: a few rows of one sequence through layers low..high-1, in float32.
 *
 * The arithmetic is that of `transformer.py`, in one call: there, a step of a small model is some
 * two hundred calls and its time is mostly theirs. Every row is computed in one fixed order of
 * operations, however many rows come along and however many threads share the work, so a row's
 * result is the same to the bit. Knows no Python, no policies and no token ids.
 *
 * Matrices lie in tiles: (outputs / TILE, inputs, TILE), float32, or bfloat16 where `narrow`. There
 * outputs 0, HALF, 1, HALF + 1... of a tile follow each other.
 */
#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#ifdef __AVX512F__
#define WIDE 16 /* lanes of a product */
#else
#define WIDE LANES
#endif
#define TILE 32
#define HALF (TILE / 2)
#define PAIRS (HALF / WIDE) /* of vectors, in a tile */
#define INLINE static inline __attribute__((always_inline))
/* Lanes of two vectors, by number; compilers disagree on its name. */
#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
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

struct head {
    const void *lens, *logits; /* (width, width) or NULL; (outputs, width) */
    const float *lens_bias, *gain;
    int width, outputs, narrow, threads;
    float eps;
};

/* A thread's part of the work: the `me`-th of `of`. */
struct part {
    int me, of;
};

INLINE lanes load(const float *from) {
    lanes v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float *to, lanes v) { memcpy(to, &v, sizeof v); }

INLINE float total(lanes v) {
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

/* The `k`-th pair of vectors of a tile's row of weights at `at`, as float32: outputs k WIDE.. and
 * HALF + k WIDE... A bfloat16 is the upper half of a float32, and two that lie in one word are a
 * shift and a mask away. */
INLINE void weights(const void *matrix, int narrow, int64_t at, int k, wide pair[2]) {
    if (narrow) {
        wide_words w;
        memcpy(&w, (const uint16_t *)matrix + at + 2 * k * WIDE, sizeof w);
        pair[0] = (wide)(w << 16);
        pair[1] = (wide)(w & 0xffff0000u);
    } else {
        memcpy(pair, (const float *)matrix + at + k * WIDE, sizeof *pair);
        memcpy(pair + 1, (const float *)matrix + at + HALF + k * WIDE, sizeof *pair);
    }
}

/* COUNT pairs of vectors of outputs, from the `first` of TILES tiles at `at` on, of ROWS rows. A
 * weight is read and widened once for all the rows. 2 TILES x COUNT x ROWS sums are in flight: some
 * eight keep the processor busy, and with more than twelve (of 32 registers: 28) it runs out of
 * registers. Each output adds up its inputs in their order, whatever these numbers are. */
INLINE void tiles(const void *matrix, int narrow, int TILES, int first, int COUNT, int ROWS,
                  int64_t at, int inputs, const float *x, int x_step, float *out, int out_step) {
    wide sums[4][4][2 * PAIRS] = {{{{0}}}};
    for (int i = 0; i < inputs; i++, at += TILE) {
#pragma GCC unroll 4
        for (int tile = 0; tile < TILES; tile++)
#pragma GCC unroll 2
            for (int k = 0; k < COUNT; k++) {
                wide w[2];
                weights(matrix, narrow, at + tile * TILE * inputs, first + k, w);
#pragma GCC unroll 4
                for (int t = 0; t < ROWS; t++) {
                    sums[tile][t][2 * k] += w[0] * x[t * x_step + i];
                    sums[tile][t][2 * k + 1] += w[1] * x[t * x_step + i];
                }
            }
    }
    out += first * WIDE;
#pragma GCC unroll 4
    for (int tile = 0; tile < TILES; tile++, out += TILE)
#pragma GCC unroll 4
        for (int t = 0; t < ROWS; t++)
#pragma GCC unroll 4
            for (int k = 0; k < 2 * COUNT; k++)
                memcpy(out + t * out_step + k % 2 * HALF + k / 2 * WIDE, &sums[tile][t][k],
                       sizeof(wide));
}

/* Outputs from..to-1, whole tiles, of ROWS rows that lie `x_step` and `out_step` apart. */
INLINE void rows_of(const void *matrix, int narrow, int ROWS, int from, int to, int inputs,
                    const float *x, int x_step, float *out, int out_step) {
    /* Tiles at once, whole ones; where a whole one takes too many registers, a pair at a time. */
    const int several = ROWS == 1 ? 4 / PAIRS : PAIRS == 1 ? 2 : 1;
    const int count = PAIRS * ROWS > 4 ? 1 : PAIRS;
    int r = from;
    for (; r + several * TILE <= to; r += several * TILE)
        for (int k = 0; k < PAIRS; k += count)
            tiles(matrix, narrow, several, k, count, ROWS, (int64_t)r * inputs, inputs, x, x_step,
                  out + r, out_step);
    for (; r < to; r += TILE)
        tiles(matrix, narrow, 1, 0, PAIRS, ROWS, (int64_t)r * inputs, inputs, x, x_step, out + r,
              out_step);
}

INLINE void product_of(const void *matrix, int narrow, int from, int to, int inputs, int rows,
                       const float *x, int x_step, float *out, int out_step) {
    for (; rows > 4; rows -= 4, x += 4 * x_step, out += 4 * out_step)
        rows_of(matrix, narrow, 4, from, to, inputs, x, x_step, out, out_step);
    switch (rows) {
    case 1: rows_of(matrix, narrow, 1, from, to, inputs, x, x_step, out, out_step); break;
    case 2: rows_of(matrix, narrow, 2, from, to, inputs, x, x_step, out, out_step); break;
    case 3: rows_of(matrix, narrow, 3, from, to, inputs, x, x_step, out, out_step); break;
    case 4: rows_of(matrix, narrow, 4, from, to, inputs, x, x_step, out, out_step); break;
    }
}

static void product(const void *matrix, int narrow, int from, int to, int inputs, int rows,
                    const float *x, int x_step, float *out, int out_step) {
    if (narrow) product_of(matrix, 1, from, to, inputs, rows, x, x_step, out, out_step);
    else product_of(matrix, 0, from, to, inputs, rows, x, x_step, out, out_step);
}

static void norm(const float *x, const float *gain, int width, float eps, float *out) {
    lanes sum = {0};
    for (int i = 0; i < width; i += LANES) sum += load(x + i) * load(x + i);
    float scale = 1.0f / sqrtf(total(sum) / width + eps);
    for (int i = 0; i < width; i++) out[i] = x[i] * scale * gain[i];
}

/* Where a thread's tiles of `outputs` begin; they end where the next one's begin. */
static int share(int outputs, int me, int of) {
    return (int)((int64_t)(outputs / TILE) * me / of) * TILE;
}

static void rotate(float *head, const float *turn, int size) {
    for (int i = 0; i < size; i += 2) {
        float a = head[i], b = head[i + 1], cosine = turn[i], sine = turn[i + 1];
        head[i] = a * cosine - b * sine;
        head[i + 1] = a * sine + b * cosine;
    }
}

/* The sums of LANES vectors: of the first in the first place, and so on. */
INLINE lanes totals(const lanes v[LANES]) {
    lanes twos[4], fours[2];
    for (int i = 0; i < 4; i++) {
        const lanes a = v[2 * i], b = v[2 * i + 1];
        twos[i] = PICK(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + PICK(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 2; i++) {
        const lanes a = twos[2 * i], b = twos[2 * i + 1];
        fours[i] = PICK(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + PICK(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return PICK(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           PICK(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* Products of a query with KEYS keys, in the first places. */
INLINE lanes likeness(const float *query, const float *keys, int size, int KEYS) {
    lanes dots[LANES] = {{0}};
    for (int i = 0; i < size; i += LANES) {
        const lanes q = load(query + i);
#pragma GCC unroll 8
        for (int j = 0; j < KEYS; j++) dots[j] += q * load(keys + j * size + i);
    }
    return totals(dots);
}

/* VECTORS vectors of the sum of `count` rows of values, each as many times as its score says. */
INLINE void mix(const float *scores, const float *values, int count, int size, float scale,
                int VECTORS, float *out) {
    lanes mixed[LANES] = {{0}};
    for (int j = 0; j < count; j++) {
#pragma GCC unroll 8
        for (int k = 0; k < VECTORS; k++)
            mixed[k] += scores[j] * load(values + (int64_t)j * size + k * LANES);
    }
#pragma GCC unroll 8
    for (int k = 0; k < VECTORS; k++) store(out + k * LANES, mixed[k] * scale);
}

/* Softmax attention of one query over `count` rows of keys and values. */
static void attend(const float *query, const float *keys, const float *values, int count, int size,
                   float *scores, float *out) {
    float most = -FLT_MAX, scale = 1.0f / sqrtf((float)size), sum = 0;
    int j = 0, i = 0;
    for (; j + LANES <= count; j += LANES)
        store(scores + j, likeness(query, keys + (int64_t)j * size, size, LANES) * scale);
    for (; j < count; j++)
        scores[j] = likeness(query, keys + (int64_t)j * size, size, 1)[0] * scale;
    for (j = 0; j < count; j++) most = scores[j] > most ? scores[j] : most;
    for (j = 0; j < count; j++) scores[j] = expf(scores[j] - most);
    for (j = 0; j < count; j++) sum += scores[j];
    for (; i + LANES * LANES <= size; i += LANES * LANES)
        mix(scores, values + i, count, size, 1 / sum, LANES, out + i);
    for (; i < size; i += LANES) mix(scores, values + i, count, size, 1 / sum, 1, out + i);
}

/* One key head and the queries that share it: rotated, appended to the cache, attended. */
static void attend_group(const struct shape *s, const struct step *c, int layer, int group,
                         float *qkv, float *scores, float *mixed) {
    const int size = s->head_dim, heads = s->heads, keys_n = s->kv_heads;
    const int across = (heads + 2 * keys_n) * size, shared = heads / keys_n;
    const int64_t old = c->lengths[layer], block = (int64_t)c->capacity * size;
    float *keys = c->cache + ((int64_t)layer * 2 * keys_n + group) * block;
    float *values = keys + keys_n * block;
    for (int t = 0; t < c->rows; t++) {
        float *row = qkv + t * across;
        const float *turn = c->rotary + t * size;
        rotate(row + (heads + group) * size, turn, size);
        memcpy(keys + (old + t) * size, row + (heads + group) * size, size * sizeof *row);
        memcpy(values + (old + t) * size, row + (heads + keys_n + group) * size, size * sizeof *row);
        for (int h = group * shared; h < (group + 1) * shared; h++) {
            rotate(row + h * size, turn, size);
            attend(row + h * size, keys, values, (int)old + t + 1, size, scores,
                   mixed + (t * heads + h) * size);
        }
    }
}

/* states += rows of x times a matrix, the thread's outputs of it. */
static void add_product(const struct shape *s, const struct step *c, struct part p,
                        const void *matrix, int inputs, const float *x, float *sums) {
    const int width = s->width, from = share(width, p.me, p.of), to = share(width, p.me + 1, p.of);
    product(matrix, s->narrow, from, to, inputs, c->rows, x, inputs, sums, width);
    for (int t = 0; t < c->rows; t++)
        for (int r = from; r < to; r++) c->states[t * width + r] += sums[t * width + r];
}

static void project(const struct shape *s, const struct step *c, struct part p,
                    const struct layer *w, float *normed, float *qkv) {
    const int width = s->width, across = (s->heads + 2 * s->kv_heads) * s->head_dim;
    const int from = share(across, p.me, p.of), to = share(across, p.me + 1, p.of);
    for (int t = 0; t < c->rows; t++)
        norm(c->states + t * width, w->attention_gain, width, s->eps, normed + t * width);
    product(w->qkv, s->narrow, from, to, width, c->rows, normed, width, qkv, across);
    for (int t = 0; w->bias && t < c->rows; t++)
        for (int r = from; r < to; r++) qkv[t * across + r] += w->bias[r];
}

/* silu(gate) * up, of the thread's outputs. */
static void gate(const struct shape *s, const struct step *c, struct part p, const struct layer *w,
                 float *normed, float *pair, float *active) {
    const int width = s->width, inner = s->inner;
    const int from = share(inner, p.me, p.of), to = share(inner, p.me + 1, p.of);
    for (int t = 0; t < c->rows; t++)
        norm(c->states + t * width, w->mlp_gain, width, s->eps, normed + t * width);
    product(w->gate_up, s->narrow, from, to, width, c->rows, normed, width, pair, 2 * inner);
    product(w->gate_up, s->narrow, inner + from, inner + to, width, c->rows, normed, width, pair,
            2 * inner);
    for (int t = 0; t < c->rows; t++) {
        const float *z = pair + t * 2 * inner;
        for (int r = from; r < to; r++)
            active[t * inner + r] = z[r] / (1.0f + expf(-z[r])) * z[inner + r];
    }
}

/* What one thread needs for itself, in floats. */
static int64_t own_scratch(const struct shape *s, int rows, int capacity) {
    return (int64_t)rows * 2 * (s->width + s->inner) + capacity;
}

/* Floats of `scratch` that a step needs. */
int64_t spark_scratch(const struct shape *s, int rows, int capacity) {
    int64_t heads = (2 * s->heads + 2 * s->kv_heads) * (int64_t)s->head_dim;
    return rows * (heads + s->inner) + s->threads * own_scratch(s, rows, capacity);
}

void spark_step(const struct shape *s, const struct layer *layers, const struct step *c) {
    const int width = s->width, rows = c->rows, groups = s->kv_heads;
    float *qkv = c->scratch;
    float *mixed = qkv + rows * (s->heads + 2 * s->kv_heads) * s->head_dim;
    float *active = mixed + rows * s->heads * s->head_dim;
#pragma omp parallel num_threads(s->threads)
    {
        const struct part p = {omp_get_thread_num(), omp_get_num_threads()};
        float *own = active + rows * s->inner + p.me * own_scratch(s, rows, c->capacity);
        float *normed = own, *sums = normed + rows * width;
        float *pair = sums + rows * width, *scores = pair + rows * 2 * s->inner;
        for (int l = c->low; l < c->high; l++) {
            const struct layer *w = layers + l;
            project(s, c, p, w, normed, qkv);
#pragma omp barrier
            for (int g = groups * p.me / p.of; g < groups * (p.me + 1) / p.of; g++)
                attend_group(s, c, l, g, qkv, scores, mixed);
#pragma omp barrier
            add_product(s, c, p, w->output, s->heads * s->head_dim, mixed, sums);
#pragma omp barrier
            gate(s, c, p, w, normed, pair, active);
#pragma omp barrier
            add_product(s, c, p, w->down, s->inner, active, sums);
#pragma omp barrier
        }
    }
}

/* Logits (rows, outputs) of states (rows, width); scratch: 2 rows width floats. */
void spark_head(const struct head *h, int rows, const float *states, float *scratch, float *out) {
    const int width = h->width;
    float *lensed = scratch, *normed = scratch + rows * width;
#pragma omp parallel num_threads(h->threads)
    {
        const struct part p = {omp_get_thread_num(), omp_get_num_threads()};
        int from = share(width, p.me, p.of), to = share(width, p.me + 1, p.of);
        if (h->lens)
            product(h->lens, h->narrow, from, to, width, rows, states, width, lensed, width);
        for (int t = 0; t < rows; t++)
            for (int r = from; r < to; r++)
                lensed[t * width + r] = h->lens
                    ? lensed[t * width + r] + h->lens_bias[r] + states[t * width + r]
                    : states[t * width + r];
#pragma omp barrier
        if (p.me == 0)
            for (int t = 0; t < rows; t++)
                norm(lensed + t * width, h->gain, width, h->eps, normed + t * width);
#pragma omp barrier
        from = share(h->outputs, p.me, p.of), to = share(h->outputs, p.me + 1, p.of);
        product(h->logits, h->narrow, from, to, width, rows, normed, width, out, h->outputs);
    }
}
