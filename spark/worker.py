"""Doing what replies ask for (`work.py`): by the model's compiled step, its graphs, or plain calls.

What several replies ask at the same time of the same weights is done at once. Knows weights, heads
and noise; knows no policy, no layout and no reply.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spark import hardware
from spark.cache import Leg
from spark.compiled.draw import draw as compiled_draw
from spark.compiled.heads import CompiledHeads
from spark.compiled.step import MOST_ROWS
from spark.compiled.tokens import CompiledTokens
from spark.confidence import confidence
from spark.heads import Head, HeadBank
from spark.sampling import SamplingSettings, draw, draw_at_once, noise_key
from spark.transformer import Transformer
from spark.work import (
    Ask,
    Draw,
    Drawn,
    How,
    Look,
    Part,
    Run,
    Seen,
    Stretch,
    Sure,
    T,
    Task,
    Token,
    by_parts,
    unfolded,
)


@dataclass(frozen=True)
class Ended:
    """A head asked about a state, and a token drawn: what ends a record of the graphs.

    Attributes:
        head: to be asked.
        sampling: how a token is drawn; the seed counts for nothing.
        key: equal for the same weights and the same way to draw.
    """

    head: Head = field(compare=False)
    sampling: SamplingSettings = field(compare=False)
    key: tuple[object, ...]

    @classmethod
    def of(cls, head: Head, how: SamplingSettings) -> Ended:
        """That of a head."""
        parts = (head.gain, head.rows, head.row_ids, head.lens, head.lens_bias)
        places = [None if part is None else part.data_ptr() for part in parts]
        shape = (head.rows.shape, head.rows.dtype, head.eps)
        return cls(head, how, (*places, *shape, how.temperature, how.top_p, how.top_k))

    def __call__(self, state: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (1, R), and (3,) float64: the token, whether it is certain, their maximum."""
        logits = self.head.logits(state)
        ids, certain = draw_at_once(logits, self.head.row_ids, self.sampling, key)
        told = (ids, certain, confidence("max_prob", logits))
        return logits, torch.cat([part.double() for part in told])


class Worker:
    """Does work on one model's weights.

    Args:
        body: the transformer.
        bank: its heads, which keep their names.
        compiled: whether to use the compiled step and the graphs that the transformer has now;
            what it gets later is for later workers, so that a reply is decoded in one way.
    """

    def __init__(self, body: Transformer, bank: HeadBank, compiled: bool = True) -> None:
        self._body, self._bank = body, bank
        self.step = body.compiled if compiled else None
        self.graphs = body.graphs if compiled else None
        # To be held around work on caches that are not one's own alone.
        held = body.graphs.turn if body.graphs else nullcontext()
        self.turn: AbstractContextManager[object] = held
        self._compiled_heads = (
            CompiledHeads(self.step.library, bank.heads) if self.step else None
        )
        self._compiled_tokens = (
            CompiledTokens(self.step, self._compiled_heads, bank.heads, body.embedding)
            if self.step and self._compiled_heads
            else None
        )
        self._endings: dict[tuple[str, float, float, int], Ended] = {}
        self._positions = torch.arange(body.config.max_position_embeddings, device=body.device)

    @property
    def is_compiled(self) -> bool:
        """Whether steps run by the compiled step or in the graphs' fixed shapes."""
        return self.step is not None or (self.graphs is not None and self.graphs.trouble is None)

    @property
    def has_stretches(self) -> bool:
        """Whether it can do a `Stretch`."""
        return self._compiled_tokens is not None

    @torch.inference_mode()
    def alone(self, task: Task[T]) -> T:
        """Run a task to its end; returns what it returns."""
        with self.turn:
            return self._finished(task)

    def _finished(self, task: Task[T]) -> T:
        try:
            wanted = next(task)
            while True:
                if isinstance(wanted, Token):
                    wanted = task.send(self._token(wanted))
                elif isinstance(wanted, Look):
                    wanted = task.send(self._look(wanted))
                elif isinstance(wanted, Stretch):
                    assert self._compiled_tokens is not None
                    wanted = task.send(self._compiled_tokens.stretch(wanted))
                else:
                    wanted = task.send(self._do(wanted))
        except StopIteration as end:
            return end.value

    @torch.inference_mode()
    def together(self, tasks: Sequence[Task[T]]) -> list[T]:
        """Run tasks to their ends, each as if alone; returns what they return, in order.

        In each round every task that is not over has its piece of work done, those of one kind as
        one. Results are those of `alone` to rounding: products of several rows add up otherwise.
        """
        if len(tasks) == 1:
            return [self.alone(tasks[0])]
        with self.turn:
            return self._together(tasks)

    def _together(self, whole: Sequence[Task[T]]) -> list[T]:
        tasks = [unfolded(task) for task in whole]
        results: dict[int, T] = {}
        answers: dict[int, Tensor | None] = dict.fromkeys(range(len(tasks)))
        while answers:
            wanted: dict[int, Part] = {}
            for number, answer in answers.items():
                try:
                    # A generator that has not begun takes None, as `next` would send.
                    wanted[number] = tasks[number].send(answer)  # type: ignore[assignment]
                except StopIteration as end:
                    results[number] = end.value
            groups: dict[Hashable, list[int]] = {}
            for number, work in wanted.items():
                groups.setdefault(_kind(work), []).append(number)
            answers = {}
            for members in groups.values():
                done = self._do_together([wanted[number] for number in members])
                answers |= zip(members, done, strict=True)
        return [results[number] for number in range(len(tasks))]

    def head_bytes(self) -> dict[str, int]:
        """Bytes read by one evaluation of each head."""
        compiled = self._compiled_heads
        if compiled is None:
            return self._bank.nbytes()
        return {name: compiled.nbytes(name) for name in self._bank.heads}

    def run(self, work: Run) -> Tensor:
        """Layers over rows, whose keys and values join the cache."""
        if self.graphs and work.cache.batch == 1:
            rows = work.rows
            leg = Leg(work.low, work.high, rows.end - rows.start)
            made = self.graphs.run((leg,), rows, work.cache)
            if made is not None:
                return made[0]
        return self.run_once(work)

    def run_once(self, work: Run) -> Tensor:
        """As `run`, of what is not worth moving the cache to the graphs' slots."""
        rows = work.rows
        if self.step and rows.end - rows.start <= MOST_ROWS:
            return self.step.run_layers(work.low, work.high, rows.states, rows.start, work.cache)
        positions = self._positions[rows.start : rows.end]
        return self._body.run_layers(work.low, work.high, rows.states, positions, work.cache)

    def _run_together(self, alike: Sequence[Run]) -> list[Tensor]:
        """The same layers over rows of several sequences."""
        counts = [work.rows.end - work.rows.start for work in alike]
        positions = [self._positions[work.rows.start : work.rows.end] for work in alike]
        states = self._body.run_ragged(
            alike[0].low,
            alike[0].high,
            torch.cat([work.rows.states for work in alike], dim=1)[0],
            torch.cat(positions),
            [work.cache for work in alike],
            counts,
        )
        return [part[None] for part in states.split(counts)]

    def _token(self, work: Token) -> Drawn:
        how, fast = work.how, self._compiled_tokens
        if how.seen is None:
            (seed,), (position,) = how.seeds, how.positions
            if fast is not None and work.legs[-1].count <= MOST_ROWS:
                states, logits, token, sureness = fast.draw(
                    work.legs, work.rows, work.cache, work.head, how.sampling, seed, position
                )
                return Drawn(states, logits, lambda: (token, sureness, True))
            made = self._replayed(work, noise_key(seed, position))
            if made is not None:
                return made
        drawn = self._finished(by_parts(work))
        assert isinstance(drawn, Drawn)
        return drawn

    def _look(self, work: Look) -> Seen:
        fast = self._compiled_tokens
        if fast is not None and work.legs[-1].count <= MOST_ROWS:
            states, logits, sureness = fast.look(work.legs, work.rows, work.cache, work.head)
            if work.measure != "max_prob":
                sureness = float(confidence(work.measure, logits))
            return Seen(states, logits, sureness)
        seen = self._finished(by_parts(work))
        assert isinstance(seen, Seen)
        return seen

    def _replayed(self, work: Token, key: int) -> Drawn | None:
        """A token of the graphs, read when it is asked for; None where they cannot."""
        if self.graphs is None:
            return None
        sampling = work.how.sampling
        kind = work.head, sampling.temperature, sampling.top_p, sampling.top_k
        if kind not in self._endings:
            self._endings[kind] = Ended.of(self._bank.heads[work.head], sampling)
        made = self.graphs.run(work.legs, work.rows, work.cache, self._endings[kind], key)
        if made is None:
            return None
        states, logits, told = made
        waited_for = hardware.fetched(told)

        def read() -> tuple[int, float, bool]:
            token, certain, sureness = waited_for().tolist()
            if not certain:
                how = work.how
                token = float(draw(logits, how.ids, how.sampling, how.positions, None, how.seeds))
            return int(token), sureness, bool(certain)

        return Drawn(states, logits, read, told[:1].long())

    def _do(self, work: Part) -> Tensor:
        match work:
            case Run():
                return self.run(work)
            case Ask(name, states):
                if self._compiled_heads and len(states) <= MOST_ROWS:
                    return self._compiled_heads.logits(name, states)
                return self._bank.heads[name].logits(states)
            case Sure(measure, logits):
                return confidence(measure, logits)
            case Draw(logits, How(ids, sampling, positions, seen, seeds)):
                if self.step and seen is None:
                    library = self.step.library
                    return compiled_draw(library, logits, ids, sampling, positions, seeds)
                if self.graphs and seen is None:
                    keys = [noise_key(*pair) for pair in zip(seeds, positions, strict=True)]
                    tokens, sure = draw_at_once(logits, ids, sampling, keys)
                    told = torch.stack((tokens, sure.long())).cpu()  # waits once
                    if bool(told[1].all()):
                        return told[0]
                return draw(logits, ids, sampling, positions, seen, seeds)

    def _do_together(self, alike: Sequence[Part]) -> list[Tensor]:
        """The results of pieces of one kind."""
        runs = [work for work in alike if isinstance(work, Run)]
        if runs:
            return self._run_together(runs) if len(runs) > 1 else [self.run_once(runs[0])]
        if len(alike) == 1:
            return [self._do(alike[0])]
        rest = [work for work in alike if not isinstance(work, Run)]
        return list(self._do(_joined(rest)).split([len(_rows(work)) for work in rest]))


def _kind(work: Part) -> Hashable:
    """Equal for pieces that can be done as one."""
    match work:
        case Run(low, high):
            return Run, low, high
        case Ask(head):
            return Ask, head
        case Sure(measure, logits):
            return Sure, measure, logits.shape[-1]
        case Draw(logits, How(ids, sampling)):
            return Draw, logits.shape[-1], id(ids), replace(sampling, seed=0)


def _rows(work: Ask | Sure | Draw) -> Tensor:
    return work.states if isinstance(work, Ask) else work.logits


def _joined(alike: Sequence[Ask | Sure | Draw]) -> Ask | Sure | Draw:
    """Pieces of one kind as one piece, with the rows of the first on top."""
    first, rows = alike[0], torch.cat([_rows(work) for work in alike])
    match first:
        case Ask(head):
            return Ask(head, rows)
        case Sure(measure):
            return Sure(measure, rows)
        case Draw(_, How(ids, sampling)):
            hows = [work.how for work in alike if isinstance(work, Draw)]
            positions = tuple(place for how in hows for place in how.positions)
            seeds = tuple(seed for how in hows for seed in how.seeds)
            seen = [how.seen for how in hows if how.seen is not None]
            every = torch.cat(seen) if seen else None
            return Draw(rows, How(ids, sampling, positions, every, seeds))
