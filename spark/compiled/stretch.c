/* Tokens one after the other, without a word to the caller in between.
 *
 * Between two calls a caller such as Python takes a good part of the time of a token. Knows what each
 * token is to be if nothing surprises, and stops where something does; knows no policies.
 */
#include "step.h"

#include <omp.h>
#include <time.h>

/* What is known of a token before it is drawn. */
struct plan {
    const struct head *head;
    const struct draw *draw;
    const struct leg *legs;
    int legs_n, slot; /* which the token fills, if the next one is to follow */
};

/* Tokens one after the other, as far as each fills its slot. */
struct stretch {
    const struct plan *plans;   /* `most` of them, */
    const int64_t *keys;        /* with the noise of each */
    const float *embedding;     /* (ids, width) */
    const uint8_t *slots;       /* of ids */
    int64_t *lengths;           /* rows that each layer's cache holds, kept up */
    float *logits;              /* of the last one: at least as many as any head has outputs */
    int64_t *ids;               /* `most`, as the next two */
    float *sureness;
    double *ms;
    int most, rows, draws, done; /* rows: before the first one's own; done is written */
};

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * now.tv_sec + 1e-6 * now.tv_nsec;
}

/* A thread's part of the way up of the row at `row`, beside those before it. */
static void rise(const struct shape *s, const struct layer *layers, const struct step *c,
                 const struct plan *plan, int row, const struct part *p) {
    for (int i = 0; i < plan->legs_n; i++) {
        const struct leg *leg = plan->legs + i;
        const int before = row + 1 - leg->rows;
        struct step own = *c;
        own.low = leg->low, own.high = leg->high, own.rows = leg->rows, own.lending = leg->lending;
        own.states += before * s->width, own.rotary += before * s->head_dim;
        spark_climb(s, layers, &own, p);
    }
}

/* What one thread does once a token's logits are surveyed: draws it, and makes it the next row. */
static void conclude(const struct shape *s, const struct step *c, struct stretch *t, int row,
                     const struct survey *found, float *scratch, double *since) {
    const int i = t->done;
    const struct plan *plan = t->plans + i;
    for (int k = 0; k < plan->legs_n; k++)
        for (int l = plan->legs[k].low; l < plan->legs[k].high; l++)
            t->lengths[l] += plan->legs[k].rows;
    t->sureness[i] = spark_sureness(found, plan->draw->columns);
    if (t->draws) {
        t->ids[i] = spark_choice(plan->draw, t->logits, found, t->keys[i], scratch);
        const int goes_on = i + 1 < t->most && t->slots[t->ids[i]] == plan->slot;
        if (goes_on)
            memcpy(c->states + (row + 1) * s->width, t->embedding + t->ids[i] * s->width,
                   s->width * sizeof *c->states);
        else t->most = i + 1;
    }
    const double now = now_ms();
    t->ms[i] = now - *since;
    *since = now;
    t->done++;
}

/* A thread's part of a token. */
static void say(const struct shape *s, const struct layer *layers, const struct step *c,
                struct stretch *t, int row, const struct part *p, double *since) {
    const struct plan *plan = t->plans + (row - t->rows);
    const int outputs = plan->head->outputs, columns = plan->draw->columns;
    const int from = spark_share(outputs, p->me, p->of), to = spark_share(outputs, p->me + 1, p->of);
    float *asked = c->scratch + spark_scratch(s, c->rows, c->capacity);
    float *scratch = asked + (1 + s->threads) * s->width;
    struct survey *found = (struct survey *)(scratch + 2 * columns);
    rise(s, layers, c, plan, row, p);
    spark_ask(plan->head, 1, c->states + row * s->width, p, asked, t->logits);
    spark_survey(t->logits, columns, from, to, found);
    meet(p);
    spark_weigh(t->logits, columns, from, to, plan->draw->temperature, found);
    meet(p);
    if (p->me == 0) conclude(s, c, t, row, found, scratch, since);
    meet(p);
}

/* A stretch of tokens, from the row after the first `t->rows` of `c`'s. Each goes up its legs with
 * rows before it, through a head and, if wanted, is drawn out of its logits; rows that a leg lacks
 * join the next one. `c`'s low, high and lending are not read, its rows are the most of any leg;
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
        for (int i = 0; spark_among(&p, s->parts) && i < t->most; i++)
            say(s, layers, c, t, t->rows + i, &p, &since);
    }
}
