/* One step of a decoder on a CPU: a few rows of one sequence through layers, in float32.
 *
 * The arithmetic is that of `transformer.py`, in one call: there, a step of a small model is some
 * two hundred calls and its time is mostly theirs. Every row is computed in one fixed order of
 * operations, however many rows come along and however many threads share the work, so a row's
 * result is the same to the bit. Knows no Python, no policies and no token ids.
 *
 * Matrices lie in tiles: (outputs / TILE, inputs, TILE), float32, or bfloat16 where `narrow`. There
 * outputs 0, HALF, 1, HALF + 1... of a tile follow each other.
 */
#include "step.h"

#include <math.h>
#include <omp.h>
#include <sched.h>

#define TILE 32
#define HALF (TILE / 2)
#define PAIRS (HALF / WIDE) /* of vectors, in a tile */
#define AHEAD 40            /* inputs whose weights are on their way: saves a twentieth of a step */
#define LINE 64             /* bytes of the cache that come at once */

struct token {
    struct head head;
    struct draw draw;
    const struct leg *legs;
    int64_t legs_n, draws, key; /* whether it draws, and by which noise */
    int64_t id; /* this, the logits and the sureness are written */
    float *logits; /* `outputs` of the head */
    float sureness;
};

#define PATIENCE 20000 /* looks at a thread that is late, a fraction of a millisecond */

/* How often a thread has come to a meeting; a line of the cache of its own. */
struct seat {
    _Alignas(64) int met;
};

/* A thread's part of the work: the `me`-th of `of`. */
struct part {
    int me, of;
    struct seat *seats; /* one a thread, 0 at first */
};

/* Until all threads are here. OpenMP's barrier takes four times as long, five times a layer. */
static void meet(const struct part *p) {
    const int met = p->seats[p->me].met + 1;
    __atomic_store_n(&p->seats[p->me].met, met, __ATOMIC_RELEASE);
    for (int i = 0; i < p->of; i++)
        for (int looks = 0; __atomic_load_n(&p->seats[i].met, __ATOMIC_ACQUIRE) - met < 0; looks++)
            if (looks > PATIENCE) sched_yield(); /* it may wait for this one's processor */
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

/* Ask for a tile's weights of an input some way ahead. They are read once a step. */
INLINE void announce(const void *matrix, int narrow, int64_t at) {
    const int size = narrow ? sizeof(uint16_t) : sizeof(float);
    const char *row = (const char *)matrix + (at + AHEAD * TILE) * size;
#pragma GCC unroll 2
    for (int i = 0; i < TILE * size; i += LINE) __builtin_prefetch(row + i, 0, 0);
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
        for (int tile = 0; tile < TILES; tile++) {
            announce(matrix, narrow, at + tile * TILE * inputs);
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
    }
    out += first * WIDE;
#pragma GCC unroll 4
    for (int tile = 0; tile < TILES; tile++, out += TILE)
#pragma GCC unroll 4
        for (int t = 0; t < ROWS; t++)
#pragma GCC unroll 4
            for (int k = 0; k < 2 * COUNT; k++)
                store_wide(out + t * out_step + k % 2 * HALF + k / 2 * WIDE, sums[tile][t][k]);
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

/* states += rows of x times a matrix, the thread's outputs of it. */
static void add_product(const struct shape *s, const struct step *c, const struct part *p,
                        const void *matrix, int inputs, const float *x, float *sums) {
    const int width = s->width;
    const int from = share(width, p->me, p->of), to = share(width, p->me + 1, p->of);
    product(matrix, s->narrow, from, to, inputs, c->rows, x, inputs, sums, width);
    for (int t = 0; t < c->rows; t++)
        for (int r = from; r < to; r++) c->states[t * width + r] += sums[t * width + r];
}

static void project(const struct shape *s, const struct step *c, const struct part *p,
                    const struct layer *w, float *normed, float *qkv) {
    const int width = s->width, across = (s->heads + 2 * s->kv_heads) * s->head_dim;
    const int from = share(across, p->me, p->of), to = share(across, p->me + 1, p->of);
    for (int t = 0; t < c->rows; t++)
        norm(c->states + t * width, w->attention_gain, width, s->eps, normed + t * width);
    product(w->qkv, s->narrow, from, to, width, c->rows, normed, width, qkv, across);
    for (int t = 0; w->bias && t < c->rows; t++)
        for (int r = from; r < to; r++) qkv[t * across + r] += w->bias[r];
}

/* silu(gate) * up, of the thread's outputs. */
static void gate(const struct shape *s, const struct step *c, const struct part *p,
                 const struct layer *w, float *normed, float *pair, float *active) {
    const int width = s->width, inner = s->inner;
    const int from = share(inner, p->me, p->of), to = share(inner, p->me + 1, p->of);
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
    return (int64_t)rows * 2 * (s->width + s->inner) + spark_scores(s, rows, capacity);
}

/* Floats of `scratch` that a step needs. */
int64_t spark_scratch(const struct shape *s, int rows, int capacity) {
    int64_t heads = (2 * s->heads + 2 * s->kv_heads) * (int64_t)s->head_dim;
    return rows * (heads + s->inner) + s->threads * own_scratch(s, rows, capacity);
}

/* A thread's part of a step. */
static void climb(const struct shape *s, const struct layer *layers, const struct step *c,
                  const struct part *p) {
    const int width = s->width, rows = c->rows, groups = s->kv_heads;
    float *qkv = c->scratch;
    float *mixed = qkv + rows * (s->heads + 2 * s->kv_heads) * s->head_dim;
    float *active = mixed + rows * s->heads * s->head_dim;
    float *own = active + rows * s->inner + p->me * own_scratch(s, rows, c->capacity);
    float *normed = own, *sums = normed + rows * width;
    float *pair = sums + rows * width, *scores = pair + rows * 2 * s->inner;
    for (int l = c->low; l < c->high; l++) {
        const struct layer *w = layers + l;
        project(s, c, p, w, normed, qkv);
        meet(p);
        for (int g = groups * p->me / p->of; g < groups * (p->me + 1) / p->of; g++)
            spark_attend(s, c, l, g, qkv, scores, mixed);
        meet(p);
        add_product(s, c, p, w->output, s->heads * s->head_dim, mixed, sums);
        meet(p);
        gate(s, c, p, w, normed, pair, active);
        meet(p);
        add_product(s, c, p, w->down, s->inner, active, sums);
        meet(p);
    }
}

/* A thread's part of the logits (rows, outputs) of states (rows, width). */
static void ask(const struct head *h, int rows, const float *states, const struct part *p,
                float *scratch, float *out) {
    const int width = h->width;
    float *lensed = scratch, *normed = scratch + rows * width;
    int from = share(width, p->me, p->of), to = share(width, p->me + 1, p->of);
    if (h->lens) product(h->lens, h->narrow, from, to, width, rows, states, width, lensed, width);
    for (int t = 0; t < rows; t++)
        for (int r = from; r < to; r++)
            lensed[t * width + r] = h->lens
                ? lensed[t * width + r] + h->lens_bias[r] + states[t * width + r]
                : states[t * width + r];
    meet(p);
    if (p->me == 0)
        for (int t = 0; t < rows; t++)
            norm(lensed + t * width, h->gain, width, h->eps, normed + t * width);
    meet(p);
    from = share(h->outputs, p->me, p->of), to = share(h->outputs, p->me + 1, p->of);
    product(h->logits, h->narrow, from, to, width, rows, normed, width, out, h->outputs);
}

void spark_step(const struct shape *s, const struct layer *layers, const struct step *c) {
    struct seat seats[s->threads];
    memset(seats, 0, sizeof seats);
#pragma omp parallel num_threads(s->threads)
    {
        const struct part p = {omp_get_thread_num(), omp_get_num_threads(), seats};
        climb(s, layers, c, &p);
    }
}

/* scratch: 2 rows width floats. */
void spark_head(const struct head *h, int rows, const float *states, float *scratch, float *out) {
    struct seat seats[h->threads];
    memset(seats, 0, sizeof seats);
#pragma omp parallel num_threads(h->threads)
    {
        const struct part p = {omp_get_thread_num(), omp_get_num_threads(), seats};
        ask(h, rows, states, &p, scratch, out);
    }
}

/* A token from the last of `c`'s rows: up the legs, through a head and, if wanted, out of its
 * logits. Rows that a leg lacks join the next one. `c`'s low and high are not read; `scratch` has
 * room for its step, then for the head and the draw. */
void spark_token(const struct shape *s, const struct layer *layers, const struct step *c,
                 struct token *t) {
    float *scratch = c->scratch + spark_scratch(s, c->rows, c->capacity), *logits = t->logits;
    struct seat seats[s->threads];
    memset(seats, 0, sizeof seats);
#pragma omp parallel num_threads(s->threads)
    {
        const struct part p = {omp_get_thread_num(), omp_get_num_threads(), seats};
        for (int i = 0; i < t->legs_n; i++) {
            const struct leg *leg = t->legs + i;
            const int before = c->rows - leg->rows;
            struct step own = *c;
            own.low = leg->low, own.high = leg->high, own.rows = leg->rows;
            own.states += before * s->width, own.rotary += before * s->head_dim;
            climb(s, layers, &own, &p);
        }
        ask(&t->head, 1, c->states + (c->rows - 1) * s->width, &p, scratch, logits);
    }
    t->sureness = spark_sureness(logits, t->draw.columns);
    if (t->draws) spark_draw(&t->draw, 1, logits, &t->key, scratch + 2 * s->width, &t->id);
}
