"""A script that asks out of order, replays, does not listen or uses another's tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.listening import Rater
from tests.site import SECONDS, Site, refused_well, served


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    yield from served(tmp_path_factory.mktemp("plain"), "acr")


@dataclass
class Mirror:
    """What one rater may do, by the rules as they are told to raters."""

    rater: Rater
    state: dict[str, Any]
    served: dict[str, float] = field(default_factory=dict)
    sent: list[dict[str, Any]] = field(default_factory=list)
    old: list[str] = field(default_factory=list)

    def heard(self, now: float, claimed_ms: int) -> bool:
        first = self.served.get(self.state["clips"][0])
        length = 1000 * SECONDS
        return (
            first is not None
            and 1000 * (now - first) >= length
            and length - 150 <= claimed_ms <= 1000 * (now - first) + 150
        )


STEPS = st.lists(
    st.fixed_dictionaries({
        "who": st.integers(0, 1), "fetch": st.booleans(), "wait": st.sampled_from([0.0, 0.2, 0.6]),
        "index": st.sampled_from([0, 0, 0, -1, 1, 90]),
        "clips": st.sampled_from(["own", "own", "own", "theirs", "old", "guessed", "two", "none"]),
        "id": st.sampled_from(["new", "new", "own", "theirs"]),
        "plays": st.sampled_from([1, 1, 1, 0]),
        "claim": st.sampled_from([420, 420, 420, 0, 100, 10**6]),
    }),
    min_size=5, max_size=25,
)  # fmt: skip


@settings(max_examples=50)
@given(STEPS)
def test_a_script_gets_no_further_than_the_rules_let_it(
    plain: Site, steps: list[dict[str, Any]]
) -> None:
    """Out of order, replayed, unheard, with another's tokens: as a plain model of the rules."""
    both = [Mirror(rater, rater.start()) for rater in (Rater(plain.client), Rater(plain.client))]
    for step in steps:
        me, other = both[step["who"]], both[1 - step["who"]]
        if me.state["state"] == "done":
            continue
        if step["fetch"]:
            me.rater.fetch(me.state)
            me.served.setdefault(me.state["clips"][0], plain.clock.now)
        plain.clock.wait(step["wait"])
        take(plain, me, other, step)
    for mirror in both:
        assert mirror.state == mirror.rater.trial()


def take(site: Site, me: Mirror, other: Mirror, step: dict[str, Any]) -> None:
    """One POST, and what must come of it."""
    replayed = {"own": me.sent, "theirs": other.sent}.get(step["id"])
    before, index = site.kept()["ratings"], me.state["trial_index"]
    if replayed:
        body, good = replayed[-1], step["id"] == "own"
    else:
        own = me.state["clips"][0]
        clips = {
            "own": [own], "theirs": other.state.get("clips", ["x"]), "old": me.old[-1:] or ["x"],
            "guessed": ["A" * 24], "two": [own, own], "none": [],
        }[step["clips"]]  # fmt: skip
        body = me.rater.body(
            {"trial_index": index + step["index"], "clips": clips}, 3, listened_ms=step["claim"]
        )
        for clip in body["clips"]:
            clip["plays"] = step["plays"]
        in_turn = step["index"] == 0 and clips == [own]
        good = in_turn and step["plays"] > 0 and me.heard(site.clock.now, step["claim"])
    site.log.clear()
    reply = me.rater.post("rating", body)
    after = site.kept()["ratings"]
    if not good:
        refused_well(reply, site.log)
        assert after == before
        return
    assert reply.status_code == 200, reply.text
    assert len(after) == len(before) + (not replayed)
    if not replayed:
        me.sent.append(body)
        me.old.append(me.state["clips"][0])
        me.state = reply.json()["next"]
