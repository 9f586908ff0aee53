"""Which tokens drawn at an exit may stand once full depth has been asked about them.

A refresh runs the layers that exited tokens left out, so what full depth would have drawn at
their places is known then, with the same noise, for the price of a few more rows in its head.
`always` does not look: SPAR-K. `exact` keeps full depth's token wherever it differs; the reply is
full depth's. `relaxed` lets near misses stand. Knows logits, ids and the points of a codec; the
engine does the rolling back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from spark.models.base import SpokenLM

AcceptanceMode = Literal["always", "exact", "relaxed"]
ACCEPTANCE_MODES: tuple[AcceptanceMode, ...] = get_args(AcceptanceMode)


@dataclass(frozen=True, eq=False)
class Acceptance:
    """A rule.

    Attributes:
        mode: see above.
        tolerance: nats, of `relaxed`: a token stands if full depth would have drawn it, had its
            logit been higher by this much. Larger is looser; the filters (top-k, top-p) and the
            noise count as they do for any draw.
        groups: (V,) int64, of `relaxed`: a token stands if it is in the group of the one that full
            depth draws. The group is then full depth's own draw among groups, as in coarse-grained
            acceptance (arXiv 2511.13732). None: no token sounds like another.
    """

    mode: AcceptanceMode = "always"
    tolerance: float = 0.0
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mode not in ACCEPTANCE_MODES:
            known = ", ".join(ACCEPTANCE_MODES)
            raise ValueError(f"unknown acceptance {self.mode!r}: use one of {known}")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError("the tolerance must be 0 nats or more, and finite")
        lenient = self.tolerance > 0 or self.groups is not None
        if self.mode == "relaxed" and not lenient:
            raise ValueError("relaxed acceptance needs a tolerance or groups: without, use exact")
        if self.mode != "relaxed" and lenient:
            raise ValueError(f"{self.mode} acceptance takes no tolerance and no groups")

    @property
    def verifies(self) -> bool:
        """Whether full depth is asked at all."""
        return self.mode != "always"

    def alike(self, token: int, other: int) -> bool:
        """Whether two ids are in one group."""
        if token == other or self.groups is None:
            return token == other
        return bool(self.groups[token] == self.groups[other])

    def raised(self, logits: Tensor, ids: Tensor | None, token: int) -> Tensor | None:
        """Logits (n, R) with the token's raised by the tolerance; None where that is no chance.

        Args:
            logits: full depth's.
            ids: (R,) of the columns, None where column = id.
            token: the one in question.
        """
        if not self.tolerance:
            return None
        at_token = torch.arange(logits.shape[-1], device=logits.device) if ids is None else ids
        return logits + self.tolerance * (at_token == token).to(logits.dtype)


ALWAYS, EXACT = Acceptance(), Acceptance("exact")


@runtime_checkable
class Sounding(Protocol):
    """A vocoder that can say which of its codes sound alike."""

    @property
    def code_points(self) -> Tensor:
        """(codes, d): near points sound alike."""
        ...


def sound_groups(lm: SpokenLM, spread: float) -> Tensor:
    """A group number for every token id, (V,) int64; only speech codes share theirs.

    Groups are those of complete linkage over the codec's points: no two codes of a group lie
    further apart than `spread` times the median distance between a code and its nearest.

    Raises:
        ValueError: no spread, or a model whose codec has no points.
    """
    if not spread > 0:
        raise ValueError("the spread of a group must be above 0")
    if not isinstance(lm.vocoder, Sounding):
        raise ValueError(
            f"{lm.title} does not say which of its codes sound alike: use a tolerance instead"
        )
    points = lm.vocoder.code_points.double().cpu()
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = apart.fill_diagonal_(float("inf")).min(dim=1).values.median()
    found = fcluster(linkage(points.numpy(), "complete"), spread * float(nearest), "distance")
    groups = torch.arange(lm.vocabulary.size) + len(points) + 1
    groups[lm.vocabulary.speech_start : lm.vocabulary.speech_end] = torch.tensor(found).long()
    return groups.to(lm.transformer.device)
