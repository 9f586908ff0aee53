"""A reply of which several tokens are drawn without a word in between.

They are drawn as far as each fills its slot, so nothing is begun that has to be taken back. What a
program takes between two tokens, a third of a small model's time, is taken once for all of them.
"""

from __future__ import annotations

import math
import time
from typing import Any

from spark.cache import Rows
from spark.decoding import Decoding
from spark.foresight import Course, Foresight
from spark.modality import Modality
from spark.trace import Step
from spark.work import Said, Stretch, Task

_FIRST = 16  # tokens


class StretchDecoding(Decoding):
    """A reply that is foreseen, on the compiled step.

    Args:
        foresight: of its policy.
        arguments: those of `Decoding`.
    """

    def __init__(self, foresight: Foresight, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._foresight = foresight

    def advance(self, most: int = 1) -> Task[None]:
        """Draw up to so many tokens: as many as the stretch has, and none after a surprise."""
        start = time.perf_counter()
        course = self._foresight.course(self._layout, self._pending.levels)
        # Few at first, since somebody waits for the first sound.
        most = min(most, self._limit - self._count, len(course.steps), _FIRST + 2 * self._count)
        if most < 2:
            yield from super().advance()
            return
        position, waiting = len(self.ids) - 1, self._pending.all()
        own = Rows(self._lm.transformer.embed_one(self.ids[-1]), position)
        rows = own if waiting is None else waiting.then(own)
        slots, sampling = self._lm.vocabulary.slots, self.trace.sampling
        said: Said = yield Stretch(rows, course, most, slots, self.cache, sampling)
        self._wait(course, said, position)
        around_ms = (self._spent(start) - sum(said.ms)) / len(said.tokens)
        self._record(course, said, around_ms)

    def _wait(self, course: Course, said: Said, position: int) -> None:
        """Leave waiting what waits after the last token; `position` is of the first one's row."""
        done = len(said.tokens)
        last, rows = course.steps[done - 1], said.states.shape[1]
        after, left = last.after.fork(), last.pending
        self._pending.hold(after, Rows(said.states[:, rows - left :], position + done - left))

    def _record(self, course: Course, said: Said, around_ms: float) -> None:
        """Make what was drawn the reply's; `around_ms` is what each token took besides."""
        words, rate, chunk = self._lm.vocabulary, self.trace.frame_rate, self._layout.chunk
        told = zip(course.steps, said.tokens, said.sureness, said.ms, strict=False)
        for index, (step, token, sureness, ms) in enumerate(told, self._count):
            modality = words.modality(token)
            self._drawn.append(
                Step(
                    index=index,
                    chunk=chunk + step.chunk,
                    slot=step.slot,
                    modality=modality,
                    token_id=token,
                    text=self._lm.decode_text([token]) if modality is Modality.TEXT else "",
                    time_s=self._codes / rate if rate else math.nan,
                    depth=step.depth,
                    refresh=step.refresh,
                    pending=step.pending,
                    head=step.heads[0],
                    confidence=sureness,
                    elapsed_ms=ms + around_ms,
                    heads=step.heads,
                    full_head=step.full_head,
                )
            )
            self._codes += modality is Modality.SPEECH
        self.ids += said.tokens
        last = course.steps[len(said.tokens) - 1].layout
        self._layout = last.in_chunk(chunk + last.chunk)
        self._layout.advance(said.tokens[-1])
