/* Tokens one after the other, without a word to the caller in between.
 *
 * Between two calls a caller such as Python takes a good part of the time of a token. Knows what each
 * token is to be if nothing surprises, and stops where something does; knows no policies.
 */
#include "step.h"

#include <omp.h>
#include <time.h>

#define ROOM 16 /* levels at which rows wait, at most */

/* Where a token may stop: after a layer, with a head and a way to draw. */
struct way {
    const struct head *head;
    const struct draw *draw;
    int64_t layer;
};

/* What is known of a token before it is drawn: where it may stop, the last one in any case. */
struct plan {
    const struct way *ways;
    int ways_n, slot; /* which the token fills, if the next one is to follow */
};

/* Rows that wait at a layer for a later one to take them along. */
struct level {
    int layer, rows;
};

/* Tokens one after the other, as far as each fills its slot. */
struct stretch {
    const struct plan *plans;   /* `most` of them, */
    const int64_t *keys;        /* with the noise of each, */
    const double *thresholds;   /* and how sure each must be to stop earlier */
    const float *embedding;     /* (ids, width) */
    const uint8_t *slots;       /* of ids */
    int64_t *lengths;           /* rows that each layer's cache holds, kept up */
    float *logits;              /* `far` from one token's to the next one's: as many as any head has
                                 * outputs, or 0 */
    float *last;                /* (most, width) states that each was drawn from, or NULL */
    struct level *waiting;      /* ROOM, oldest first, kept up */
    int64_t *ids;               /* `most`, as the next four */
    float *sureness;
    double *ms;
    int *stops, *pending;       /* the way that each took, the rows that waited then */
    int most, far, draws;
    int defers, lends;          /* whether what stops waits, and what comes along to the top ends there */
    int top, most_pending;      /* layers of the model; with so many waiting it goes there */
    int low, rows, waiting_n;   /* of the first: layers it has run, rows before its own */
    int done;
};

/* As a thread sees them; all see the same. */
struct levels {
    struct level at[ROOM];
    int n;
};

static int rows_of(const struct levels *w) {
    int rows = 0;
    for (int i = 0; i < w->n; i++) rows += w->at[i].rows;
    return rows;
}

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * now.tv_sec + 1e-6 * now.tv_nsec;
}

/* A thread's part of the way of `count` rows, the last at `row`, from one layer to another; rows that
 * wait on the way come along. Gives how many they are then. */
static int rise(const struct shape *s, const struct layer *layers, const struct step *c,
                struct stretch *t, struct levels *w, int row, int count, int low, int high,
                const struct part *p) {
    while (low < high) {
        if (w->n && w->at[w->n - 1].layer == low) count += w->at[--w->n].rows;
        const int next = w->n ? w->at[w->n - 1].layer : high, before = row + 1 - count;
        struct step own = *c;
        own.low = low, own.high = next < high ? next : high, own.rows = count;
        own.lending = t->lends && own.high == t->top ? count - 1 : 0;
        own.states += before * s->width, own.rotary += before * s->head_dim;
        spark_climb(s, layers, &own, p);
        for (int l = low; p->me == 0 && l < own.high; l++) t->lengths[l] += count;
        low = own.high;
    }
    return count;
}

/* A thread's part of a head's logits about a row; gives how sure they are. */
static float look(const struct shape *s, const struct step *c, const struct way *way, int row,
                  const struct part *p, float *scratch, float *logits) {
    const int outputs = way->head->outputs, columns = way->draw->columns;
    const int from = spark_share(outputs, p->me, p->of), to = spark_share(outputs, p->me + 1, p->of);
    float *asked = scratch + 3 * columns + LOGITS;
    struct survey *found = (struct survey *)(scratch + 2 * columns);
    spark_ask(way->head, 1, c->states + row * s->width, p, asked, logits);
    spark_survey(logits, columns, from, to, found);
    meet(p);
    spark_weigh(logits, columns, from, to, way->draw->temperature, found);
    meet(p);
    return spark_sureness(found, columns);
}

/* What one thread does once logits were looked at: draws a token, and makes it the next row. */
static void conclude(const struct shape *s, const struct step *c, struct stretch *t, int row,
                     const struct way *way, const float *logits, float *scratch) {
    const int i = t->done, columns = way->draw->columns;
    const struct survey *found = (struct survey *)(scratch + 2 * columns);
    t->ids[i] = spark_choice(way->draw, logits, found, t->keys[i], scratch);
    if (i + 1 < t->most && t->slots[t->ids[i]] == t->plans[i].slot)
        memcpy(c->states + (row + 1) * s->width, t->embedding + t->ids[i] * s->width,
               s->width * sizeof *c->states);
    else t->most = i + 1;
}

/* A thread's part of a token. */
static void say(const struct shape *s, const struct layer *layers, const struct step *c,
                struct stretch *t, struct levels *w, const struct part *p, double *since) {
    const int i = t->done, row = t->rows + i;
    const struct plan *plan = t->plans + i;
    float *scratch = c->scratch + spark_scratch(s, c->rows, c->capacity), sure;
    float *logits = t->logits + (int64_t)i * t->far;
    int k = rows_of(w) < t->most_pending ? 0 : plan->ways_n - 1, count = 1, low = i ? 0 : t->low;
    for (;; k++) {
        const int layer = (int)plan->ways[k].layer;
        count = rise(s, layers, c, t, w, row, count, low, layer, p);
        sure = look(s, c, plan->ways + k, row, p, scratch, logits);
        low = layer;
        if (k + 1 == plan->ways_n || sure >= t->thresholds[i]) break;
    }
    if (low < t->top && t->defers) {
        if (!w->n || w->at[w->n - 1].layer != low) w->at[w->n++] = (struct level){low, 0};
        w->at[w->n - 1].rows += count;
    }
    if (p->me == 0) {
        if (t->last)
            memcpy(t->last + i * s->width, c->states + row * s->width, s->width * sizeof *t->last);
        if (t->draws) conclude(s, c, t, row, plan->ways + k, logits, scratch);
        const double now = now_ms();
        t->sureness[i] = sure, t->stops[i] = k, t->pending[i] = rows_of(w);
        t->ms[i] = now - *since;
        *since = now;
        t->done++;
    }
    meet(p);
}

/* A stretch of tokens, from the row after the first `t->rows` of `c`'s. Each goes up with those that
 * wait on its way, through a head and, if wanted, is drawn out of its logits. `c`'s low, high and
 * lending are not read; its rows are the most that come along, and no more than that may wait;
 * `scratch` has room for its step, then for a head and a draw. */
void spark_stretch(const struct shape *s, const struct layer *layers, const struct step *c,
                   struct stretch *t) {
    struct seat seats[2 * s->threads];
    memset(seats, 0, sizeof seats);
    double since = now_ms();
    t->done = 0;
#pragma omp parallel num_threads(s->threads)
    {
        struct part p = {.seats = seats};
        struct levels w = {.n = t->waiting_n};
        memcpy(w.at, t->waiting, sizeof w.at);
        if (spark_among(&p, s->parts)) {
            for (int more = 1; more; more = t->done < t->most && rows_of(&w) < c->rows)
                say(s, layers, c, t, &w, &p, &since);
            if (p.me == 0) memcpy(t->waiting, w.at, sizeof w.at), t->waiting_n = w.n;
        }
    }
}
