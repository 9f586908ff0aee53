"""What a reply did, token by token, and the figures that follow from it.

Holds results only: it runs nothing and knows no model beyond its name and the bytes it read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any

import pandas as pd

from spark.acceptance import AcceptanceMode
from spark.metrics.cost import traffic_ratio
from spark.modality import Modality, Slot, Vocabulary
from spark.sampling import SamplingSettings
from spark.schedule import KVPolicy


@dataclass(slots=True)  # not frozen: to make one would take a hundredth of a small model's token
class Step:
    """One emitted token. The first fourteen fields are the columns of trace.csv, in order.

    Attributes:
        index: of the token in the reply, from 0.
        chunk: number of the layout's group.
        slot: what the layout expected.
        modality: what was emitted.
        token_id: the token.
        text: its words where it is text, else empty.
        time_s: audio time before the token, in seconds; nan where the frame rate is unknown.
        depth: layers run for the token before its head.
        refresh: whether the step also ran the upper layers of pending rows, to the top.
        pending: rows that wait after the step.
        head: name of the head that decided.
        confidence: that head's measure (the policy's, or else its largest probability).
        elapsed_ms: wall-clock of the step, catch-up included, until the token was drawn; with that
            of the tokens that were rejected for it. Of tokens that were drawn in one call, with an
            equal share of what the call took besides.
        drift: distance between the exit's and full depth's distributions at the token's place,
            total variation, 0 to 1; nan where no exit was drawn there or nobody measured. Known at
            the refresh: a step handed out before it has none, the trace's copy has.
        heads: every head evaluated, in order, the one that decided last; none where the token came
            out of a flush, which is charged by itself.
        full_head: the head that full depth is charged with.
        outside_mass: full-vocabulary probability of the ids a speech-row head leaves out; nan
            where not measured. Measuring it is not part of elapsed_ms.
        kl: divergence of the same two distributions, KL(full || exit), nats; nan as for `drift`.
        k: of a schedule that follows the drift, after the step; None for others.
    """

    index: int
    chunk: int
    slot: Slot
    modality: Modality
    token_id: int
    text: str
    time_s: float
    depth: int
    refresh: bool
    pending: int
    head: str
    confidence: float
    elapsed_ms: float
    drift: float = math.nan
    heads: tuple[str, ...] = ()
    full_head: str = "full"
    outside_mass: float = math.nan
    kl: float = math.nan
    k: int | None = None


CONTRACT_COLUMNS = tuple(f.name for f in fields(Step))[:14]


@dataclass(frozen=True)
class WeightBytes:
    """Bytes that one evaluation of each part reads.

    Attributes:
        layers: of each block.
        projections: of each block's attention projections (KV policy `propagate`).
        heads: by head name.
    """

    layers: tuple[int, ...]
    projections: tuple[int, ...]
    heads: dict[str, int]


@dataclass(frozen=True)
class Flush:
    """A catch-up of its own: layers low..high-1 over pending rows, and the heads asked then."""

    low: int
    high: int
    heads: tuple[str, ...] = ()


@dataclass
class Trace:
    """A reply's steps with what is needed to read them.

    Attributes:
        steps: in order.
        model: its name.
        policy: its name.
        kv_policy: what became of the layers above exits.
        sampling: how tokens were drawn.
        vocabulary: of the model.
        weights: bytes by part.
        prompt_tokens: in the cache before the first step.
        prefill_ms: wall-clock of the prefill, shared by all policies of a prompt.
        frame_rate: speech codes a second, None where unknown.
        finish: "stop", "length", "interrupted", or "running".
        acceptance: whether full depth was asked about tokens drawn at exits, and how strictly.
        verified: tokens it was asked about.
        corrected: those of them that it replaced.
        rejected: steps whose tokens are no part of the reply: replaced, drawn after one that was,
            or begun on a guess that did not hold.
        ahead: steps drawn ahead of where the reply was interrupted, which nobody will hear.
        flushes: catch-ups of their own: after the last step, or before an end could be believed.
        flush_ms: wall-clock of those after the last step.
        batch: the most replies that were decoded together, this one included. Above 1 the times
            are wall-clock that all of them shared.
        compiled: whether steps were run by the model's compiled step, or in the fixed shapes of its
            graphs.
    """

    steps: list[Step]
    model: str
    policy: str
    kv_policy: KVPolicy
    sampling: SamplingSettings
    vocabulary: Vocabulary
    weights: WeightBytes
    prompt_tokens: int
    prefill_ms: float
    frame_rate: float | None = None
    finish: str = "running"
    acceptance: AcceptanceMode = "always"
    verified: int = 0
    corrected: int = 0
    rejected: list[Step] = field(default_factory=list)
    flushes: list[Flush] = field(default_factory=list)
    flush_ms: float = 0.0
    ahead: list[Step] = field(default_factory=list)
    batch: int = 1
    compiled: bool = False

    def frame(self) -> pd.DataFrame:
        """One row a token, exactly the contract's columns; refresh as 0 or 1."""
        rows = [[getattr(step, name) for name in CONTRACT_COLUMNS] for step in self.steps]
        table = pd.DataFrame(rows, columns=list(CONTRACT_COLUMNS))
        table["slot"] = [step.slot.value for step in self.steps]
        table["modality"] = [step.modality.value for step in self.steps]
        table["refresh"] = [int(step.refresh) for step in self.steps]
        return table

    def drifted(self) -> list[Step]:
        """Steps at whose places an exit's distribution was held against full depth's."""
        return [step for step in self.steps if not math.isnan(step.drift)]

    def drift_frame(self) -> pd.DataFrame:
        """One row for each of those steps: overlap, KL (nats), K after the step where it moves."""
        steps = self.drifted()
        return pd.DataFrame(
            {
                "index": [step.index for step in steps],
                "time_s": [step.time_s for step in steps],
                "depth": [step.depth for step in steps],
                "overlap": [1 - step.drift for step in steps],
                "kl": [step.kl for step in steps],
                "k": pd.array([step.k for step in steps], dtype="Int64"),
            }
        )

    @property
    def ahead_ms(self) -> float:
        """Wall-clock of steps drawn ahead of an interrupt."""
        return sum(step.elapsed_ms for step in self.ahead)

    def ids(self) -> list[int]:
        """Every emitted id."""
        return [step.token_id for step in self.steps]

    def codes(self) -> list[int]:
        """Speech codes, without filler."""
        return [self.vocabulary.code(step.token_id) for step in self._of(Modality.SPEECH)]

    def text_ids(self) -> list[int]:
        """Ids of the words, without pads and control tokens."""
        return [step.token_id for step in self._of(Modality.TEXT)]

    def _of(self, modality: Modality) -> Sequence[Step]:
        return [step for step in self.steps if step.modality is modality]

    def mean_depth(self, modality: Modality) -> float | None:
        """Mean layers over emitted ids of a modality, None where there are none."""
        depths = [step.depth for step in self._of(modality)]
        return sum(depths) / len(depths) if depths else None

    def audio_s(self) -> float | None:
        """Seconds of speech, None where the frame rate is unknown."""
        return len(self._of(Modality.SPEECH)) / self.frame_rate if self.frame_rate else None

    def summary(self) -> dict[str, Any]:
        """The reply's figures under the contract's names; None where there is no figure.

        `ms_per_token` is the mean over all tokens drawn for the reply, those ahead of a stop
        included, prefill apart; `decode_ms` is the time of all of them. `max_outside_mass`, and the
        means `drift` and `kl`, are over the steps where they were measured.
        """
        outside = [s.outside_mass for s in self.steps if not math.isnan(s.outside_mass)]
        drifted = self.drifted()
        elapsed = sum(step.elapsed_ms for step in self.steps) + self.ahead_ms
        made = len(self.steps) + len(self.ahead)
        return {
            "name": self.policy,
            "kv_policy": self.kv_policy,
            "n_tokens": len(self.steps),
            "n_text": len(self._of(Modality.TEXT)),
            "n_speech": len(self._of(Modality.SPEECH)),
            "n_control": len(self._of(Modality.CONTROL)),
            "mean_depth_text": self.mean_depth(Modality.TEXT),
            "mean_depth_speech": self.mean_depth(Modality.SPEECH),
            "layers": len(self.weights.layers),
            "traffic_ratio": traffic_ratio(self) if self.steps else None,
            "ms_per_token": elapsed / made if made else None,
            "decode_ms": elapsed,
            "prefill_ms": self.prefill_ms,
            "prompt_tokens": self.prompt_tokens,
            "audio_s": self.audio_s(),
            "max_outside_mass": max(outside) if outside else None,
            "acceptance": self.acceptance,
            "acceptance_rate": 1 - self.corrected / self.verified if self.verified else None,
            "n_rejected": len(self.rejected),
            "drift": fmean(s.drift for s in drifted) if drifted else None,
            "kl": fmean(s.kl for s in drifted) if drifted else None,
            "finish": self.finish,
            "batch": self.batch,
        }


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Index of the first element that is not the other's, or is missing there; None if equal."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))
