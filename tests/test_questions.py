"""What is asked, what is held out, and that the two never mix."""

from __future__ import annotations

import random
from collections import Counter

from spark.evaluation.suite import builtin, limited
from spark.training import questions
from spark.training.questions import LARGEST, facts, is_held_out_phrasing, templates


def test_number_facts_are_right_and_complete() -> None:
    import inflect

    spell = inflect.engine().number_to_words
    words = {str(spell(n)).replace("-", " "): n for n in range(101)}
    sums = [f for f in facts() if f.kind == "sum"]
    assert len(sums) == (LARGEST + 1) ** 2
    for fact in sums:
        assert words[fact.key] == words[fact.slots[0]] + words[fact.slots[1]]
    for fact in (f for f in facts() if f.kind == "difference"):
        gap = words[fact.slots[0]] - words[fact.slots[1]]
        assert fact.key == ("minus " if gap < 0 else "") + str(spell(abs(gap))).replace("-", " ")
    for fact in (f for f in facts() if f.kind in ("larger", "smaller")):
        pick = max if fact.kind == "larger" else min
        assert words[fact.key] == pick(words[slot] for slot in fact.slots)


def test_there_are_enough_facts_of_each_family() -> None:
    count = Counter(fact.family for fact in facts())
    assert count["factual"] >= 300
    assert count["dialogue"] >= 10
    assert len({fact.kind for fact in facts() if fact.family == "factual"}) >= 5


def test_every_answer_says_its_key() -> None:
    assert all(f" {fact.key} " in f" {fact.answer} " for fact in facts())


def test_unseen_phrasings_are_not_trained_on() -> None:
    for fact in facts():
        assert not set(templates(fact, unseen=True)) & set(templates(fact, unseen=False))


def test_a_held_out_phrasing_is_known_among_other_words() -> None:
    fact = next(f for f in facts() if f.kind == "opposite" and f.slots == ("hot",))
    assert is_held_out_phrasing("so tell me the opposite of hot please", fact)
    assert not is_held_out_phrasing("so give me the opposite of hot please", fact)
    assert not is_held_out_phrasing("tell me the opposite of hotter", fact)


def test_pairs_are_held_out_both_ways_round() -> None:
    out = {(f.kind, f.slots) for f in facts() if f.held_out}
    assert {kind for kind, _ in out} == {"sum", "difference", "larger", "smaller"}
    assert out == {(kind, (b, a)) for kind, (a, b) in out}


def test_training_prompts_never_show_a_suite_prompt() -> None:
    """Held-out prompts cannot be drawn: not with a carrier, not by another kind."""
    suite = {item.prompt for item in builtin() if item.split == "unseen_phrasing"}
    rng = random.Random(3)
    known = [fact for fact in facts() if not fact.held_out]
    drawn = {questions.ask(rng.choice(known), rng) for _ in range(20_000)}
    assert not suite & drawn


def test_suite_has_enough_of_everything() -> None:
    items = builtin()
    assert len(items) >= 300
    assert len({item.item_id for item in items}) == len(items)
    assert sum(item.family == "read_aloud" for item in items) == 100
    assert builtin() == items


def test_a_limit_is_stratified_by_family() -> None:
    items = builtin()
    whole = Counter(item.family for item in items)
    for limit in (5, 40, 173):
        part = limited(items, limit)
        assert len(part) == limit
        for family, count in Counter(item.family for item in part).items():
            assert abs(count - limit * whole[family] / len(items)) <= 1
    assert limited(items, 10_000) == items


def test_a_loosened_prompt_keeps_what_it_is_about() -> None:
    rng = random.Random(3)
    changed = 0
    for fact in rng.sample(questions.facts(), 200):
        prompt = questions.ask(fact, rng)
        loose = questions.loosen(prompt, fact.slots, ["perhaps", "tidy"], rng)
        changed += loose != prompt
        for slot in fact.slots:
            assert loose.count(slot) >= prompt.count(slot)
        assert set(loose.split()) <= {*prompt.split(), "perhaps", "tidy"}
    assert 60 < changed < 200
