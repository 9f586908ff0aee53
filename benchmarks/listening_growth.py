"""Does a rating take longer the more there are? `python -m benchmarks.listening_growth`.

One study's store is filled with 100,000 ratings. At the start, and at 10,000, 50,000 and 100,000
of them, some hundred ratings are given one after the other and timed, from handing one over to its
commit on disk, while what a live study does goes on: open Listen pages ask for the counts twice a
second, and one rater withdraws. Raters are functions here and time is only told, so that nothing
but the store is measured; HTTP is `listening_load.py`'s. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.listening_load import prepared
from listening_test import enrolment, trials
from listening_test.hosting import Hosted, Studies
from listening_test.rows import Answer, Heard

MARKS = (0, 10_000, 50_000, 100_000)
TRIALS = 24
CROWD = 200  # raters at once while the store is filled
LOOKS_S = 0.5
AFTER_CLIP_S = 1.0


class Rater:
    """One session after the other, told what time it is."""

    def __init__(self, hosted: Hosted) -> None:
        self._hosted = hosted
        self.key = ""
        self.state: dict[str, Any] = {"state": "done"}

    def _run(self, operation: Any) -> Future[Any]:
        return self._hosted.store.run(operation)

    def _begin(self, now: float) -> Future[Any]:
        self.key = uuid.uuid4().hex
        study, key = self._hosted.study, self.key

        def operation(db: Any) -> dict[str, Any]:
            enrolment.start_session(db, study, key, {}, now)
            return trials.current_trial(db, study, key, now)

        return self._run(operation)

    def hear(self, now: float) -> Future[Any]:
        """Fetch the trial's clip; a session that is over gives way to the next one's first."""
        if self.state["state"] == "done":
            self.state = self._begin(now).result()
        token = self.state["clips"][0]
        return self._run(lambda db: trials.serve_clip(db, token, now))

    def rate(self, now: float) -> Future[Any]:
        """Give the trial's answer."""
        heard = Heard(self.state["clips"][0], 1, 450)
        answer = Answer(
            rating_id=str(uuid.uuid4()), trial_index=self.state["trial_index"], clips=(heard,),
            answers=(1 + self.state["trial_index"] % 5,), rt_ms=5000, first_play_to_submit_ms=4000,
            hidden_ms=0, changed_n=0, comment="", client_utc="2026-01-01T00:00:00.000Z",
            ui_lang="en",
        )  # fmt: skip
        study, key = self._hosted.study, self.key
        return self._run(lambda db: trials.save_rating(db, study, key, answer, now))


class Growth:
    """A study's store that is filled, and measured now and then."""

    def __init__(self, studies: Studies, hosted: Hosted) -> None:
        self._studies, self._hosted = studies, hosted
        self._crowd = [Rater(hosted) for _ in range(CROWD)]
        self._now = time.time()
        self.ratings = 0

    def fill(self, upto: int) -> None:
        """Ratings by a crowd at once, in shared commits, up to a number of them."""
        while self.ratings < upto:
            raters = self._crowd[: upto - self.ratings]
            for future in [rater.hear(self._now) for rater in raters]:
                future.result()
            self._now += AFTER_CLIP_S
            for rater, future in [(rater, rater.rate(self._now)) for rater in raters]:
                rater.state = future.result()
            self.ratings += len(raters)

    def timed(self, n: int) -> list[float]:
        """Milliseconds of `n` ratings by one rater after the other, in the midst of other work."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(LOOKS_S):
                self._studies.states()

        leaves = Rater(self._hosted)
        leaves.hear(self._now).result()
        watcher = threading.Thread(target=look)
        watcher.start()
        times = []
        for number in range(n):
            rater = self._crowd[number % CROWD]
            rater.hear(self._now).result()
            self._now += AFTER_CLIP_S
            if number == n // 2:
                self._hosted.store.run(lambda db: trials.withdraw(db, leaves.key, self._now))
            start = time.perf_counter()
            rater.state = rater.rate(self._now).result()
            times.append(1000 * (time.perf_counter() - start))
            self.ratings += 1
        stop.set()
        watcher.join()
        return times


def measure(marks: tuple[int, ...], n: int) -> dict[str, Any]:
    """Fill and time: the benchmark's JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        studies = Studies()
        growth = Growth(studies, studies.open(prepared(Path(folder), TRIALS)))
        growth.timed(n // 4)  # the first of all pays for imports and an empty disk cache
        rows = []
        for mark in marks:
            growth.fill(mark)
            before = growth.ratings
            median, p95 = np.percentile(times := growth.timed(n), [50, 95])
            rows.append(
                {
                    "ratings": before, "median_ms": round(float(median), 2),
                    "p95_ms": round(float(p95), 2), "max_ms": round(max(times), 2),
                }
            )  # fmt: skip
            print(
                f"at {before:>7,} ratings: median {median:.2f} ms, 95 % below {p95:.2f} ms, "
                f"longest {max(times):.0f} ms",
                flush=True,
            )
        studies.close()
    return {
        "rows": rows,
        "median_ratio": round(rows[-1]["median_ms"] / rows[0]["median_ms"], 2),
        "p95_ratio": round(rows[-1]["p95_ms"] / rows[0]["p95_ms"], 2),
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.listening_growth", description=__doc__)
    parser.add_argument("--ratings", type=int, default=MARKS[-1], help="fill up to so many")
    parser.add_argument("--timed", type=int, default=400, help="ratings timed at each mark")
    options = parser.parse_args(arguments)
    if options.ratings < 1 or options.timed < 4:
        parser.error("--ratings must be 1 or more, --timed 4 or more")
    marks = [mark for mark in MARKS if mark < options.ratings] + [options.ratings]
    print(json.dumps(measure(tuple(marks), options.timed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
