"""From logits to a token: temperature, top-k, top-p, repetition penalty, and keyed noise.

Knows logits and token ids only. Tokens are drawn by the Gumbel-max trick: the largest of
log p + noise. The noise is a hash of (seed, position, token id), so two runs that see the same
distribution at the same position draw the same token, however many rows were computed.
Order and meaning of the filters are those of transformers' logits processors.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST_LOOK = 128
_MASK64 = (1 << 64) - 1
# Increment and multipliers of SplitMix64 (Steele, Lea, Flood 2014).
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class SamplingSettings:
    """How a token is drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: smallest set of likeliest tokens with this mass; 1 keeps all.
        top_k: this many likeliest tokens; 0 keeps all.
        repetition_penalty: above 1 makes tokens of prompt and reply less likely.
        seed: of the noise.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise ValueError("the temperature must lie between 0 and 10")
        if not 0 < self.top_p <= 1:
            raise ValueError("top-p must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError("top-k must be 0 (keep all) or more")
        if not 0.1 <= self.repetition_penalty <= 10:
            raise ValueError("the repetition penalty must lie between 0.1 and 10")


def seed_for(seed: int, name: str) -> int:
    """A seed of its own for each named item of a run: items do not share their luck."""
    return zlib.crc32(f"{seed}:{name}".encode())


def _mix(value: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    value = ((value ^ (value >> 30)) * _MIX1) & _MASK64
    value = ((value ^ (value >> 27)) * _MIX2) & _MASK64
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    """The int64 with the same bits: torch has no arithmetic on unsigned 64-bit integers."""
    return value - (1 << 64) if value >> 63 else value


def gumbel(seed: int, position: int, ids: Tensor) -> Tensor:
    """Standard Gumbel noise keyed by (seed, position, token id).

    Args:
        seed: any integer.
        position: of the token to be drawn.
        ids: token ids, any shape, int64.

    Returns:
        float32, finite, the shape of `ids`; the same arguments always give the same noise, and
        one id has the same noise in whichever slice it comes.
    """
    return _noise(ids * _signed(_GOLDEN) + noise_key(seed, position))


def noise_key(seed: int, position: int) -> int:
    """What SplitMix64's state starts from for a seed and a position, as an int64."""
    return noise_keys(seed, (position,))[0]


def noise_keys(seed: int, positions: Iterable[int]) -> list[int]:
    """`noise_key` of several positions."""
    base = _mix((seed + _GOLDEN) & _MASK64)
    return [_signed(_mix(base + position * _GOLDEN & _MASK64)) for position in positions]


def _noise(word: Tensor) -> Tensor:
    """Gumbel noise of SplitMix64's states, int64 -> float32."""
    where = word.device
    if where.type == "mps":  # which has no double precision
        word = word.cpu()
    for shift, factor in ((30, _MIX1), (27, _MIX2)):
        # >> keeps the sign in int64: the mask makes the shift a logical one.
        word = (word ^ ((word >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    word = word ^ ((word >> 31) & ((1 << 33) - 1))
    # 52 bits and a half fit a double's 53 exactly, so that the result is never 0 nor 1; with 53
    # bits the largest word would round up to 1 and its noise would be infinite.
    uniform = (((word >> 12) & ((1 << 52) - 1)).double() + 0.5) * 2.0**-52
    return (-torch.log(-torch.log(uniform))).float().to(where)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits with those of seen tokens divided by the penalty, or multiplied where negative.

    Args:
        logits: (..., R).
        seen: (..., R) bool.
        penalty: CTRL's (arXiv 1909.05858), 1 changes nothing.
    """
    lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, lowered, logits)


def filtered(logits: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Temperature, top-k and top-p.

    Args:
        logits: (B, R) float32.
        settings: with a temperature above 0.

    Returns:
        Log-probabilities (B, M) of the tokens kept, not normalised anew, -inf where a row keeps
        fewer than M, and their columns in `logits`, (B, M) int64.
    """
    p, columns, enough = _candidates(logits, settings)
    if enough is not None and not bool(enough.all()):
        p, columns = (logits / settings.temperature).softmax(-1).sort(dim=-1, descending=True)
    if settings.top_p < 1:
        kept = _within(p, settings.top_p)
        width = int(kept.sum(dim=-1).max())
        p, kept, columns = p[..., :width], kept[..., :width], columns[..., :width]
        p = p.masked_fill(~kept, 0.0)
    return p.log(), columns


def _candidates(
    logits: Tensor, settings: SamplingSettings
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Probabilities (B, M) of tokens that top-p may keep, in falling order where it cuts any.

    A few rows nearly always hold its mass, and finding them takes a third of a sort's time.

    Returns:
        They, their columns, and whether each row holds the mass, (B,) bool; None where all do.
    """
    p = (logits / settings.temperature).softmax(dim=-1)
    if settings.top_k and settings.top_k < p.shape[-1]:
        p, columns = p.topk(settings.top_k, dim=-1)
        return p / p.sum(dim=-1, keepdim=True), columns, None
    if settings.top_p < 1:
        few = p.topk(min(_FIRST_LOOK, p.shape[-1]), dim=-1)
        enough = few.values.sum(dim=-1) > settings.top_p
        return few.values, few.indices, None if few.values.shape == p.shape else enough
    return p, torch.arange(p.shape[-1], device=p.device).expand_as(p), None


def _within(p: Tensor, mass: float) -> Tensor:
    """Which of falling probabilities (B, M) are among the fewest with this mass; the first is."""
    kept = p.cumsum(dim=-1) - p < mass  # mass before each token
    kept[..., 0] = True
    return kept


def draw(
    logits: Tensor,
    ids: Tensor | None,
    settings: SamplingSettings,
    positions: int | Sequence[int],
    seen: Tensor | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Draw one token a row.

    Args:
        logits: (B, R), any floating type.
        ids: (R,) token ids of the columns, None where column = id.
        settings: temperature 0 takes the likeliest.
        positions: of the tokens drawn, the key of the noise; one for all rows, or one a row.
        seen: (V,) or (B, V) bool, tokens of prompt and reply; needed for a repetition penalty.
        seeds: one a row, in place of the settings'.

    Returns:
        Token ids (B,), int64.
    """
    logits = logits.float()
    if seen is not None and settings.repetition_penalty != 1:
        before = seen if ids is None else seen[..., ids]
        logits = penalised(logits, before, settings.repetition_penalty)
    if settings.temperature == 0:
        column = logits.argmax(dim=-1)
        return column if ids is None else ids[column]
    log_p, columns = filtered(logits, settings)
    places = [positions] * len(logits) if isinstance(positions, int) else positions
    pairs = zip(seeds or [settings.seed] * len(logits), places, strict=True)
    return _loudest(log_p, columns, ids, [noise_key(*pair) for pair in pairs])


def draw_at_once(
    logits: Tensor,
    ids: Tensor | None,
    settings: SamplingSettings,
    keys: Sequence[int] | Tensor,
) -> tuple[Tensor, Tensor]:
    """As `draw`, without a repetition penalty and without waiting for the device on the way.

    Args:
        logits: (B, R), any floating type.
        ids: (R,) token ids of the columns, None where column = id.
        settings: how; their seed is not looked at.
        keys: B of `noise_key`, or a tensor (B,) of them.

    Returns:
        Token ids (B,), and whether they are those of `draw`, (B,) bool: not where top-p keeps more
        tokens than were looked at.
    """
    logits = logits.float()
    sure = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    if settings.temperature == 0:
        column = logits.argmax(dim=-1)
        return (column if ids is None else ids[column]), sure
    p, columns, enough = _candidates(logits, settings)
    if settings.top_p < 1:
        p = p.masked_fill(~_within(p, settings.top_p), 0.0)
    tokens = _loudest(p.log(), columns, ids, keys)
    return tokens, sure if enough is None else enough


def _loudest(
    log_p: Tensor, columns: Tensor, ids: Tensor | None, keys: Sequence[int] | Tensor
) -> Tensor:
    """Ids (B,) of the largest log p + noise a row, of columns (B, M), with a key of noise each."""
    tokens = columns if ids is None else ids[columns]
    words = tokens * _signed(_GOLDEN)
    if isinstance(keys, Tensor):
        words = words + keys[:, None]
    else:  # row by row: a copy of keys to a GPU would wait for all that it still has to do
        rows = zip(words.split(1), keys, strict=True)
        words = torch.cat([row + key for row, key in rows])
    scores = log_p + _noise(words)
    return tokens.gather(-1, scores.argmax(dim=-1, keepdim=True)).squeeze(-1)
