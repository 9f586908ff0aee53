"""A reply of which several tokens are drawn without a word in between.

They are drawn as far as each fills its slot, so nothing is begun that has to be taken back. What a
program takes between two tokens, a third of a small model's time, is taken once for all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from spark.cache import Rows
from spark.compiled.step import MOST_ROWS
from spark.decoding import Decoding
from spark.foresight import Course, Foresight, asks
from spark.modality import Modality
from spark.trace import Step
from spark.verification import Draft, Spot
from spark.watch import CaughtUp
from spark.work import Said, Stretch, Task

_FIRST = 16  # tokens
_UNNOTICED_MS = 50.0


class StretchDecoding(Decoding):
    """A reply that is foreseen, on the compiled step.

    Args:
        foresight: of its policy.
        arguments: those of `Decoding`.
    """

    def __init__(self, foresight: Foresight, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._foresight = foresight
        self._most_pending = self._policy.max_pending if asks(self._policy) else 1 + MOST_ROWS

    def advance(self, most: int = 1) -> Task[None]:
        """Draw up to so many tokens: as many as the stretch has, and none after a surprise."""
        start, waited = time.perf_counter(), len(self._pending)
        course = self._foresight.course(self._layout, waited)
        most = min(most, self._limit - self._count, len(course.steps), self._patience)
        if most < 2 or waited >= course.rows:
            yield from super().advance()
            return
        position, waiting = len(self.ids) - 1, self._pending.all()
        own = Rows(self._lm.transformer.embed_one(self.ids[-1]), position)
        said: Said = yield Stretch(
            rows=own if waiting is None else waiting.then(own),
            levels=self._pending.levels,
            course=course,
            most=most,
            thresholds=self._thresholds(most),
            most_pending=self._most_pending,
            defers=self._foresight.defers,
            watched=self._outside_mass or self._watch.wants,
            lends=not self._watch.wants,
            slots=self._lm.vocabulary.slots,
            cache=self.cache,
            sampling=self.trace.sampling,
        )
        left, end = len(said.levels), position + len(said.tokens)
        waiting_now = said.states[:, said.states.shape[1] - left :]
        self._pending.hold(said.levels, Rows(waiting_now, end - left))
        around_ms = (self._spent(start) - sum(said.ms)) / len(said.tokens)
        self._record(course, said, waited, around_ms)
        steps = self._drawn[-len(said.tokens) :]
        if self._outside_mass:
            yield from self._weigh_outside(steps, said)
        if self._watch.wants:
            yield from self._meter(course, steps, said)

    @property
    def _patience(self) -> int:
        """Tokens at once: few while somebody waits for the first sound, and as nobody notices."""
        if not self._count:
            return _FIRST
        return min(2 * self._count + _FIRST, 2 + int(_UNNOTICED_MS * self._count / self.spent_ms))

    def _weigh_outside(self, steps: Sequence[Step], said: Said) -> Task[None]:
        """Log what speech-row heads left out, some rows at a time."""
        for first in range(0, len(steps), MOST_ROWS):
            some = steps[first : first + MOST_ROWS]
            states = said.last[first : first + len(some)]
            masses = yield from self._outside([step.head for step in some], states)
            for step, mass in zip(some, masses, strict=True):
                step.outside_mass = mass

    def _meter(self, course: Course, steps: Sequence[Step], said: Said) -> Task[None]:
        """Read the drift of what has caught up, and keep what has not."""
        position = len(self.ids) - 1 - len(steps)  # of the row that the first was drawn from
        first = len(self.ids) - 1 - said.states.shape[1]  # of all rows
        for number, (step, foreseen) in enumerate(zip(steps, course.steps, strict=False)):
            if step.depth < self._top:
                spot = Spot(step.index, position + number, foreseen.layout, codes=0)
                columns = len(self._bank.heads[step.head].rows)
                logits = said.logits[number : number + 1, :columns]
                self._drafts.append(Draft(spot, step.token_id, step.head, logits))
            elif self._drafts:
                drafts, self._drafts = self._drafts, []
                rows = [draft.spot.position - first for draft in drafts]
                yield from self._watch.read(CaughtUp(drafts, said.states[0, rows], ()))
                self._watch.note(self.trace.steps, self._drawn)

    def _thresholds(self, count: int) -> list[float]:
        """How sure each of the next tokens must be to stop at an exit."""
        if not asks(self._policy):
            return []
        begun = range(self._count, self._count + count)
        return [self._policy.threshold_at(index / self._limit) for index in begun]

    def _record(self, course: Course, said: Said, waited: int, around_ms: float) -> None:
        """Make what was drawn the reply's.

        Args:
            course: that was followed.
            said: what came of it.
            waited: rows, before the first token.
            around_ms: what each token took besides.
        """
        words, rate, chunk = self._lm.vocabulary, self.trace.frame_rate, self._layout.chunk
        told = zip(
            course.steps, said.tokens, said.sureness, said.ms, said.stops, said.pending,
            strict=False,
        )  # fmt: skip
        for index, (step, token, sureness, ms, stop, pending) in enumerate(told, self._count):
            modality, way = words.modality(token), step.ways[stop]
            self._drawn.append(
                Step(
                    index=index,
                    chunk=chunk + step.chunk,
                    slot=step.slot,
                    modality=modality,
                    token_id=token,
                    text=self._lm.decode_text([token]) if modality is Modality.TEXT else "",
                    time_s=self._codes / rate if rate else math.nan,
                    depth=way.depth,
                    refresh=waited > 0 and way.depth == self._top,
                    pending=pending,
                    head=way.head,
                    confidence=sureness,
                    elapsed_ms=ms + around_ms,
                    heads=way.heads if waited < self._most_pending else (way.head,),
                    full_head=way.full_head,
                )
            )
            waited = pending
            self._codes += modality is Modality.SPEECH
        self.ids += said.tokens
        last = course.steps[len(said.tokens) - 1].layout
        self._layout = last.in_chunk(chunk + last.chunk)
        self._layout.advance(said.tokens[-1])
