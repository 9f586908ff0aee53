"""A reply whose ids are read one step late, so that a GPU does not wait for the program.

What a step draws stays on the device and is what the next one begins with; it is begun where the
layout says that it stands if the token is of the kind expected. Only then is the token read. Where
it is of another kind, the step that was begun on the guess is taken back and made anew from what
the layout is now, which for a token out of place is full depth. Tokens and depths are the same as
without.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from spark.cache import Rows
from spark.decoding import Begun, Decoding
from spark.modality import Slot
from spark.positions import PositionSchedule
from spark.schedule import Policy, Spark
from spark.trace import Step, Trace
from spark.verification import Spot
from spark.work import Task


def can_take_back(policy: Policy, trace: Trace) -> bool:
    """Whether a reply that is foreseen comes to the same after a step that was taken back.

    Rows that came along with it stay where they are: not where their number decides something, nor
    where what they lack is never made good. Nor where a token has to be seen to know its depth.

    Args:
        policy: how deep each token goes.
        trace: of the reply, with what it is made by.
    """
    counts = isinstance(policy, PositionSchedule) or (isinstance(policy, Spark) and policy.text)
    counts = counts or policy.measure is not None
    return trace.kv_policy == "deferred" and not counts


class LateDecoding(Decoding):
    """A reply that is foreseen, and where it can be taken back what was begun."""

    _ahead: Begun | None = None
    _repaired = False  # by a step that was taken back: the one in its place is the refresh

    def advance(self, most: int = 1) -> Task[None]:
        """Begin the step after the next, and read the next one's token."""
        start = time.perf_counter()
        begun, self._ahead = self._ahead, None
        if begun is None:
            here = self._here()
            rows = Rows(self._lm.transformer.embed_one(self.ids[-1]), here.position)
            begun = yield from self._begin(here, self._exits(here), rows)
            if self._repaired and begun.depth == self._top:
                begun = replace(begun, refresh=True)
        self._repaired = False
        then, ahead = self._expected(begun.spot), None
        if begun.made.ids is not None and then.index < self._limit:
            rows = Rows(self._lm.transformer.embed(begun.made.ids[None]), then.position)
            ahead = yield from self._begin(then, self._exits(then), rows)
        token, sureness, same = begun.made.read()
        choice = self._chosen(begun, token, sureness)
        step = self._recorded(choice, begun.refresh, begun.pending, 0.0, math.nan)
        self._follow(token)
        if ahead is None or (same and self._is_at(then, token)):
            self._ahead = ahead
        else:
            self.trace.rejected.append(self._taken_back(ahead))
        self._drawn.append(replace(step, elapsed_ms=self._spent(start)))

    def interrupt(self) -> None:
        """End the reply with the last step handed out."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self.trace.ahead.append(self._taken_back(ahead))
        super().interrupt()

    @staticmethod
    def _expected(spot: Spot) -> Spot:
        """The spot after one, if its token fills its slot."""
        speech = spot.layout.slot is Slot.SPEECH
        return Spot(spot.index + 1, spot.position + 1, spot.layout.filled(), spot.codes + speech)

    def _is_at(self, spot: Spot, token: int) -> bool:
        """Whether the reply, with its last token, stands there and goes on."""
        stops = token in self._lm.vocabulary.stop_ids
        return not stops and self._codes == spot.codes and self._layout.stands_at(spot.layout)

    def _taken_back(self, ahead: Begun) -> Step:
        """Undo a step that was begun on a guess; rows that came along with it stay where they are.

        Its weights were read, so it is told of, with a token that nobody will hear; its time is
        part of the step's that it followed.
        """
        token, sureness, _ = ahead.made.read()
        choice = self._chosen(ahead, token, sureness)
        self._repaired = ahead.refresh
        self._pending.truncate(ahead.spot.position)
        self.cache.truncate(ahead.spot.position)
        return self._recorded(choice, ahead.refresh, ahead.pending, 0.0, math.nan)
