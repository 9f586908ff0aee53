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
#define FEW 64     /* columns that are sorted by insertion */

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

INLINE int is_before(struct column a, struct column b) {
    return a.p != b.p ? a.p > b.p : a.at < b.at;
}

static int falling(const void *left, const void *right) {
    const struct column *a = left, *b = right;
    return is_before(*b, *a) - is_before(*a, *b);
}

/* In falling order. Mostly some ten of them, for which qsort takes longer than all the rest. */
static void sort(struct column *columns, int count) {
    if (count > FEW) {
        qsort(columns, count, sizeof *columns, falling);
        return;
    }
    for (int i = 1; i < count; i++) {
        const struct column moved = columns[i];
        int j = i;
        for (; j > 0 && is_before(moved, columns[j - 1]); j--) columns[j] = columns[j - 1];
        columns[j] = moved;
    }
}

static float largest(const float *x, int n) {
    float most = x[0];
    for (int i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

INLINE int block_end(int from, int columns) {
    return from + LOGITS < columns ? from + LOGITS : columns;
}

void spark_survey(const float *logits, int columns, int from, int to, struct survey *found) {
    for (; from < to && from < columns; from += LOGITS)
        found[from / LOGITS].most = largest(logits + from, block_end(from, columns) - from);
}

static float most_of(const struct survey *found, int columns) {
    float most = found[0].most;
    for (int i = 1; i * LOGITS < columns; i++)
        most = found[i].most > most ? found[i].most : most;
    return most;
}

/* e to the power of logits over the temperature, beside the largest of all. */
INLINE void powers(const float *logits, int n, float most, float temperature, float *p) {
    for (int i = 0; i < n; i++) p[i] = expf((logits[i] - most) / temperature);
}

void spark_weigh(const float *logits, int columns, int from, int to, float temperature,
                 struct survey *found) {
    const float most = most_of(found, columns);
    for (; from < to && from < columns; from += LOGITS) {
        const int n = block_end(from, columns) - from;
        struct survey *own = found + from / LOGITS;
        float p[LOGITS];
        powers(logits + from, n, most, 1, p);
        own->cold = 0;
        for (int i = 0; i < n; i++) own->cold += p[i];
        powers(logits + from, n, most, temperature, p);
        own->hot = 0;
        for (int i = 0; i < n; i++) own->hot += p[i];
    }
}

float spark_sureness(const struct survey *found, int columns) {
    float sum = 0;
    for (int i = 0; i * LOGITS < columns; i++) sum += found[i].cold;
    return 1 / sum;
}

/* The likeliest columns in falling order: `few` of them, or where that is 0 more than top-p's mass;
 * all, in their own order, where neither leaves any out. Those above a bound are gathered, and the
 * bound falls until they suffice: nearly always at once. Blocks without one are passed over. */
static int gathered(const struct draw *d, const float *logits, const struct survey *found,
                    int few, struct column *to) {
    const int all = !few && d->top_p >= 1;
    const float most = most_of(found, d->columns);
    float sum = 0;
    for (int i = 0; i * LOGITS < d->columns; i++) sum += found[i].hot;
    int count = 0;
    for (float bound = all ? 0 : 1 / sum / 16; ; bound = bound > 1e-30f ? bound / 64 : 0) {
        double gone = 0;
        count = 0;
        for (int from = 0; from < d->columns; from += LOGITS) {
            const float peak = found[from / LOGITS].most;
            if (expf((peak - most) / d->temperature) / sum < bound) continue;
            const int n = block_end(from, d->columns) - from;
            float p[LOGITS];
            powers(logits + from, n, most, d->temperature, p);
            for (int i = 0; i < n; i++) {
                const float share = p[i] / sum;
                if (share < bound) continue;
                to[count++] = (struct column){share, from + i};
                gone += share;
            }
        }
        if (bound == 0 || (few ? count >= few : gone > d->top_p + SLACK)) break;
    }
    if (!all) sort(to, count);
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

static int likeliest(const float *logits, int columns, const struct survey *found) {
    const float most = most_of(found, columns);
    int block = 0;
    while ((block + 1) * LOGITS < columns && found[block].most < most) block++;
    const int from = block * LOGITS, end = block_end(from, columns);
    for (int i = from; i < end; i++)
        if (logits[i] == most) return i;
    return from; /* logits that are no numbers */
}

static int drawn(const struct draw *d, const float *logits, const struct survey *found,
                 int64_t key, struct column *kept) {
    const int n = d->columns, top = likeliest(logits, n, found);
    if (d->temperature == 0) return top;
    const int few = d->top_k < n ? d->top_k : 0;
    int count = gathered(d, logits, found, few, kept);
    if (count < 1) return top; /* logits that are no numbers */
    float whole = 0;
    for (int i = 0; few && i < count; i++) whole += kept[i].p;
    for (int i = 0; few && i < count; i++) kept[i].p /= whole;
    if (d->top_p < 1) count = within(kept, count, d->top_p);
    int best = 0;
    float best_score = 0;
    for (int i = 0; i < count; i++) {
        const int64_t id = d->ids ? d->ids[kept[i].at] : kept[i].at;
        const float score = logf(kept[i].p) + (float)noise(id, key);
        if (i == 0 || score > best_score) best = i, best_score = score;
    }
    return kept[best].at;
}

int64_t spark_choice(const struct draw *d, const float *logits, const struct survey *found,
                     int64_t key, float *scratch) {
    const int at = drawn(d, logits, found, key, (struct column *)scratch);
    return d->ids ? d->ids[at] : at;
}

/* Ids, one a row of logits; scratch: 2 floats a column and 3 a block of them. */
void spark_draw(const struct draw *d, int rows, const float *logits, const int64_t *keys,
                float *scratch, int64_t *tokens) {
    const int n = d->columns;
    struct survey *found = (struct survey *)(scratch + 2 * n);
    for (int t = 0; t < rows; t++, logits += d->step) {
        spark_survey(logits, n, 0, n, found);
        spark_weigh(logits, n, 0, n, d->temperature, found);
        tokens[t] = spark_choice(d, logits, found, keys[t], scratch);
    }
}
