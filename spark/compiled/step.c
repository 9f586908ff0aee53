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

#define HALF (TILE / 2)
#define PAIRS (HALF / WIDE) /* of vectors, in a tile */
#define AHEAD 40            /* inputs whose weights are on their way: saves a twentieth of a step */
#define LINE 64             /* bytes of the cache that come at once */

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

/* Four sums at once: one alone would wait for itself at every step. */
static void norm(const float *x, const float *gain, int width, float eps, float *out) {
    lanes sums[4] = {{0}};
    for (int i = 0; i < width; i += 4 * LANES)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) sums[k] += load(x + i + k * LANES) * load(x + i + k * LANES);
    float scale = 1.0f / sqrtf(total((sums[0] + sums[1]) + (sums[2] + sums[3])) / width + eps);
    for (int i = 0; i < width; i++) out[i] = x[i] * scale * gain[i];
}

int spark_share(int outputs, int me, int of) {
    return (int)((int64_t)(outputs / TILE) * me / of) * TILE;
}

/* What threads do with a part of a layer; its shape and its weights. */
struct work {
    struct shape s;
    struct part team; /* the thread among those of the part */
    int part;         /* number */
    float *qkv, *mixed, *active; /* of the part */
    float *normed, *pair, *scores; /* of the thread */
};

/* The weights of a part: so many numbers of a matrix are a part's. */
static const void *part_of(const struct work *k, const void *matrix, int64_t numbers) {
    return (const char *)matrix + k->part * numbers * (k->s.narrow ? 2 : 4);
}

/* What a part's heads add to the states: its `sums` (parts, rows, width). */
static void attend(const struct work *k, const struct step *c, const struct layer *w, int l,
                   float *sums) {
    const struct shape *s = &k->s;
    const struct part *p = &k->team;
    const int width = s->width, asking = s->heads * s->head_dim, lend = c->lending;
    const int told = 2 * s->kv_heads * s->head_dim, across = asking + told;
    const void *qkv = part_of(k, w->qkv, (int64_t)across * width);
    const int q = spark_share(asking, p->me, p->of), q_end = spark_share(asking, p->me + 1, p->of);
    const int kv = asking + spark_share(told, p->me, p->of);
    const int kv_end = asking + spark_share(told, p->me + 1, p->of);
    product(qkv, s->narrow, q, q_end, width, c->rows - lend, k->normed + lend * width, width,
            k->qkv + lend * across, across);
    product(qkv, s->narrow, kv, kv_end, width, c->rows, k->normed, width, k->qkv, across);
    const float *bias = w->bias ? w->bias + k->part * across : NULL;
    for (int t = 0; bias && t < c->rows; t++) {
        for (int r = q; r < q_end; r++) k->qkv[t * across + r] += bias[r];
        for (int r = kv; r < kv_end; r++) k->qkv[t * across + r] += bias[r];
    }
    meet(p);
    for (int g = s->kv_heads * p->me / p->of; g < s->kv_heads * (p->me + 1) / p->of; g++)
        spark_attend(s, c, l, k->part, g, k->qkv, k->scores, k->mixed);
    meet(p);
    product(part_of(k, w->output, (int64_t)width * asking), s->narrow,
            spark_share(width, p->me, p->of), spark_share(width, p->me + 1, p->of), asking,
            c->rows - lend, k->mixed + lend * asking, asking,
            sums + (k->part * c->rows + lend) * width, width);
}

/* What a part's share of the feed-forward adds: silu(gate) * up, and down again. */
static void feed(const struct work *k, const struct step *c, const struct layer *w, float *sums) {
    const struct shape *s = &k->s;
    const struct part *p = &k->team;
    const int width = s->width, inner = s->inner, lend = c->lending, rows = c->rows - lend;
    const int from = spark_share(inner, p->me, p->of), to = spark_share(inner, p->me + 1, p->of);
    const void *gate_up = part_of(k, w->gate_up, (int64_t)2 * inner * width);
    const float *normed = k->normed + lend * width;
    product(gate_up, s->narrow, from, to, width, rows, normed, width, k->pair, 2 * inner);
    product(gate_up, s->narrow, inner + from, inner + to, width, rows, normed, width, k->pair,
            2 * inner);
    for (int t = 0; t < rows; t++) {
        const float *z = k->pair + t * 2 * inner;
        for (int r = from; r < to; r++)
            k->active[t * inner + r] = z[r] / (1.0f + expf(-z[r])) * z[inner + r];
    }
    meet(p);
    product(part_of(k, w->down, (int64_t)width * inner), s->narrow,
            spark_share(width, p->me, p->of), spark_share(width, p->me + 1, p->of), inner, rows,
            k->active, inner, sums + (k->part * c->rows + lend) * width, width);
}

/* Of the rows that go on: states += sums of all parts, in their order, and normed by the next gain. */
static void add(const struct shape *s, const struct step *c, const float *sums, const float *gain,
                float *restrict states, float *normed) {
    const int width = s->width, far = c->rows * width;
    for (int t = c->lending; t < c->rows; t++) {
        const float *own = sums + t * width;
        float *row = states + t * width;
        if (s->parts == 2)
            for (int r = 0; r < width; r++) row[r] = row[r] + own[r] + own[far + r];
        else
            for (int part = 0; part < s->parts; part++)
                for (int r = 0; r < width; r++) row[r] += own[part * far + r];
        if (gain) norm(row, gain, width, s->eps, normed + t * width);
    }
}

/* What a part needs for all of its threads, and a thread for itself, in floats. */
static int64_t part_scratch(const struct shape *s, int rows) {
    return rows * ((2 * s->heads + 2 * s->kv_heads) * (int64_t)s->head_dim + s->inner) / s->parts;
}

static int64_t own_scratch(const struct shape *s, int rows, int capacity) {
    return (int64_t)rows * 2 * (s->width + s->inner) + spark_scores(s, rows, capacity);
}

/* Floats of `scratch` that a step needs. */
int64_t spark_scratch(const struct shape *s, int rows, int capacity) {
    return s->parts * (2LL * rows * s->width + part_scratch(s, rows)) +
           s->threads * own_scratch(s, rows, capacity);
}

/* Where a thread works on a part; `own` is its scratch. */
static struct work laid_out(const struct shape *s, const struct step *c, const struct part *p,
                            int part, float *own) {
    const int size = p->of < s->parts ? 1 : p->of / s->parts, rows = c->rows;
    struct work k = {.s = *s, .part = part};
    k.s.heads /= s->parts, k.s.kv_heads /= s->parts, k.s.inner /= s->parts;
    k.team = (struct part){p->me % size, size, p->seats + p->of + p->me / size * size};
    k.qkv = c->scratch + 2 * s->parts * rows * s->width + part * part_scratch(s, rows);
    k.mixed = k.qkv + rows * (k.s.heads + 2 * k.s.kv_heads) * s->head_dim;
    k.active = k.mixed + rows * k.s.heads * s->head_dim;
    k.normed = own + rows * s->width, k.pair = k.normed + rows * s->width;
    k.scores = k.pair + rows * 2 * s->inner;
    return k;
}

void spark_climb(const struct shape *s, const struct layer *layers, const struct step *c,
                 const struct part *p) {
    const int width = s->width, parts = s->parts, rows = c->rows, own_parts = p->of < parts;
    const int first = own_parts ? 0 : p->me / (p->of / parts);
    const int end = own_parts ? parts : first + 1;
    float *sums = c->scratch, *others = sums + parts * rows * width; /* in turns */
    float *states = others + parts * (rows * width + part_scratch(s, rows)) +
                    p->me * own_scratch(s, rows, c->capacity);
    float *normed = states + rows * width;
    struct work k[parts];
    for (int i = first; i < end; i++) k[i] = laid_out(s, c, p, i, states);
    memcpy(states, c->states, rows * width * sizeof *states);
    for (int t = 0; t < rows; t++)
        norm(states + t * width, layers[c->low].attention_gain, width, s->eps, normed + t * width);
    for (int l = c->low; l < c->high; l++) {
        struct step on = *c;
        on.lending = l + 1 < c->high ? 0 : c->lending;
        for (int i = first; i < end; i++) attend(k + i, &on, layers + l, l, sums);
        meet(p);
        add(s, &on, sums, layers[l].mlp_gain, states, normed);
        for (int i = first; i < end; i++) feed(k + i, &on, layers + l, others);
        meet(p);
        add(s, &on, others, l + 1 < c->high ? layers[l + 1].attention_gain : NULL, states, normed);
    }
    const int from = c->lending * width;
    if (p->me == 0) memcpy(c->states + from, states + from, (rows * width - from) * sizeof *states);
    meet(p);
}

void spark_ask(const struct head *h, int rows, const float *states, const struct part *p,
               float *scratch, float *out) {
    const int width = h->width, from = spark_share(width, p->me, p->of);
    const int to = spark_share(width, p->me + 1, p->of), first = spark_share(h->outputs, p->me, p->of);
    float *lensed = scratch, *normed = lensed + (1 + p->me) * rows * width;
    if (h->lens) {
        product(h->lens, h->narrow, from, to, width, rows, states, width, lensed, width);
        for (int t = 0; t < rows; t++)
            for (int r = from; r < to; r++)
                lensed[t * width + r] += h->lens_bias[r] + states[t * width + r];
        meet(p);
    }
    for (int t = 0; t < rows; t++)
        norm((h->lens ? lensed : states) + t * width, h->gain, width, h->eps, normed + t * width);
    product(h->logits, h->narrow, first, spark_share(h->outputs, p->me + 1, p->of), width, rows,
            normed, width, out, h->outputs);
}

int spark_among(struct part *p, int parts) {
    p->me = omp_get_thread_num(), p->of = omp_get_num_threads();
    if (p->of > parts) p->of -= p->of % parts;
    else if (p->of < parts) p->of = 1;
    return p->me < p->of;
}

void spark_step(const struct shape *s, const struct layer *layers, const struct step *c) {
    struct seat seats[2 * s->threads];
    memset(seats, 0, sizeof seats);
#pragma omp parallel num_threads(s->threads)
    {
        struct part p = {.seats = seats};
        if (spark_among(&p, s->parts)) spark_climb(s, layers, c, &p);
    }
}

/* scratch: rows width floats, and as many for each thread. */
void spark_head(const struct head *h, int rows, const float *states, float *scratch, float *out) {
    struct seat seats[h->threads];
    memset(seats, 0, sizeof seats);
#pragma omp parallel num_threads(h->threads)
    {
        struct part p = {.seats = seats};
        if (spark_among(&p, 1)) spark_ask(h, rows, states, &p, scratch, out);
    }
}
