/* A token from each row of logits: the sampling of `sampling.py` in one call, in its order.
 *
 * Temperature, top-k, top-p, then the largest of log p + Gumbel noise keyed by seed, position and
 * token id. Knows logits and ids; which seed and position a key stands for is the caller's business.
 */
#include "step.h"

#include <math.h>
#include <stdlib.h>

/* Increment and multipliers of SplitMix64 (Steele, Lea, Flood 2014). */
#define GOLDEN 0x9E3779B97F4A7C15u
#define MIX1 0xBF58476D1CE4E5B9u
#define MIX2 0x94D049BB133111EBu
#define SLACK 1e-5 /* of a sum of float32 probabilities */

struct column {
    float p;
    int32_t at;
};

static double noise(int64_t id, int64_t key) {
    uint64_t word = (uint64_t)id * GOLDEN + (uint64_t)key;
    word = (word ^ (word >> 30)) * MIX1;
    word = (word ^ (word >> 27)) * MIX2;
    word = word ^ (word >> 31);
    return -log(-log(((double)(word >> 12) + 0.5) * 0x1p-52));
}

static int likeliest(const float *logits, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static int falling(const void *left, const void *right) {
    const struct column *a = left, *b = right;
    return a->p != b->p ? (a->p < b->p ? 1 : -1) : a->at - b->at;
}

/* The likeliest columns in falling order: `few` of them, or where that is 0 more than `mass`. Those
 * above a bound are gathered, and the bound falls until they suffice: nearly always at once. */
static int gathered(const float *p, float most, int n, int few, double mass, struct column *to) {
    int count = 0;
    for (float bound = most / 16; ; bound = bound > 1e-30f ? bound / 64 : 0) {
        double sum = 0;
        count = 0;
        for (int i = 0; i < n; i++)
            if (p[i] >= bound) {
                to[count++] = (struct column){p[i], i};
                sum += p[i];
            }
        if (bound == 0 || (few ? count >= few : sum > mass + SLACK)) break;
    }
    qsort(to, count, sizeof *to, falling);
    return few && few < count ? few : count;
}

/* Of `count` columns in falling order, those before which less than `top_p` lies; at least one. */
static int within(const struct column *from, int count, float top_p) {
    double sum = 0;
    for (int i = 0; i < count; i++) {
        sum += from[i].p;
        if (i && (float)sum - from[i].p >= top_p) return i;
    }
    return count;
}

static int drawn(const struct draw *d, const float *logits, int64_t key, float *p,
                 struct column *kept) {
    const int n = d->columns, top = likeliest(logits, n);
    if (d->temperature == 0) return top;
    float sum = 0, most = logits[top] / d->temperature;
    for (int i = 0; i < n; i++) p[i] = expf(logits[i] / d->temperature - most);
    for (int i = 0; i < n; i++) sum += p[i];
    for (int i = 0; i < n; i++) p[i] /= sum;
    const int few = d->top_k < n ? d->top_k : 0;
    int count = n;
    if (few || d->top_p < 1) {
        count = gathered(p, p[top], n, few, d->top_p, kept);
        float whole = 0;
        for (int i = 0; few && i < count; i++) whole += kept[i].p;
        for (int i = 0; few && i < count; i++) kept[i].p /= whole;
        if (count < 1) return top; /* logits that are no numbers */
        if (d->top_p < 1) count = within(kept, count, d->top_p);
    } else {
        for (int i = 0; i < n; i++) kept[i] = (struct column){p[i], i};
    }
    int best = 0;
    float best_score = 0;
    for (int i = 0; i < count; i++) {
        const int64_t id = d->ids ? d->ids[kept[i].at] : kept[i].at;
        const float score = logf(kept[i].p) + (float)noise(id, key);
        if (i == 0 || score > best_score) best = i, best_score = score;
    }
    return kept[best].at;
}

void spark_draw(const struct draw *d, int rows, const float *logits, const int64_t *keys,
                float *scratch, int64_t *tokens) {
    for (int t = 0; t < rows; t++) {
        struct column *kept = (struct column *)(scratch + d->columns);
        const int at = drawn(d, logits + (int64_t)t * d->step, keys[t], scratch, kept);
        tokens[t] = d->ids ? d->ids[at] : at;
    }
}

float spark_sureness(const float *logits, int columns) {
    const float most = logits[likeliest(logits, columns)];
    float sum = 0;
    for (int i = 0; i < columns; i++) sum += expf(logits[i] - most);
    return 1 / sum;
}
