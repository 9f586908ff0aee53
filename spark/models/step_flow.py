"""Speech codes to mel in Step-Audio-2-mini's token2wav: names and numbers of its `flow.pt`.

A conformer reads the codes at 25 Hz with three codes of look-ahead and doubles their rate; a flow
(`spark.speech.dit`) paints the mel in a prompt's voice. Codes come all at once or in pieces.
Knows no waveform.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spark.speech.conformer import ConformerLayer, InputLayer, Past
from spark.speech.dit import Dit, Memory
from spark.speech.flow import STEPS, noise_table, solve

LOOK_AHEAD = 3  # codes
UP = 2  # mel frames a code
SPEAKER = 192  # values of a voice
_KEPT = 100  # frames that the flow's attention remembers beside the prompt's
_MOST_FRAMES = 30_000  # 10 minutes


@dataclass(frozen=True)
class StepFlowShape:
    """Numbers of the published `flow.yaml`."""

    codes: int = 6561
    width: int = 512
    heads: int = 8
    inner: int = 2048
    layers: int = 6
    up_layers: int = 4
    bins: int = 80
    depth: int = 16
    head_dim: int = 64


@dataclass
class Voice:
    """Whom the sound is like.

    Attributes:
        codes: of the prompt recording.
        mel: of it, (2 len(codes), 80).
        speaker: (192,).
    """

    codes: list[int]
    mel: Tensor
    speaker: Tensor


@dataclass
class FlowState:
    """What has been heard so far, as the networks remember it."""

    look_tail: Tensor | None = None  # (1, D, 2)
    up_tail: Tensor | None = None  # (1, D, 4)
    lower: list[Past] = field(default_factory=list)
    upper: list[Past] = field(default_factory=list)
    memories: list[list[Memory]] = field(default_factory=list)  # by Euler step and block

    def copy(self) -> FlowState:
        """A state that goes on from here on its own; tensors are never changed in place."""
        lower, upper = list(self.lower), list(self.upper)
        return FlowState(self.look_tail, self.up_tail, lower, upper, list(self.memories))


class _LookAhead(nn.Module):
    """Each code's state sees the three that follow, and two before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, LOOK_AHEAD + 1)
        self.conv2 = nn.Conv1d(width, width, 3)

    def forward(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """States (1, T + 3, D) -> (1, T, D)."""
        seen = F.leaky_relu(self.conv1(x.transpose(1, 2)))
        tail = seen.new_zeros(1, seen.shape[1], 2) if tail is None else tail
        seen = torch.cat((tail, seen), dim=2)
        return self.conv2(seen).transpose(1, 2) + x[:, :-LOOK_AHEAD], seen[:, :, -2:]


class _Doubled(nn.Module):
    """Each state twice, smoothed by a causal convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2 * UP + 1)

    def forward(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """States (1, T, D) -> (1, 2 T, D)."""
        twice = x.transpose(1, 2).repeat_interleave(UP, dim=2)
        tail = twice.new_zeros(1, twice.shape[1], 2 * UP) if tail is None else tail
        twice = torch.cat((tail, twice), dim=2)
        return self.conv(twice).transpose(1, 2), twice[:, :, -2 * UP :]


class _Encoder(nn.Module):
    def __init__(self, shape: StepFlowShape) -> None:
        super().__init__()
        width = shape.width

        def layers(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                ConformerLayer(width, shape.heads, shape.inner, eps=1e-12) for _ in range(count)
            )

        self.embed, self.up_embed = InputLayer(width), InputLayer(width)
        self.pre_lookahead_layer, self.up_layer = _LookAhead(width), _Doubled(width)
        self.encoders, self.up_encoders = layers(shape.layers), layers(shape.up_layers)
        self.after_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, state: FlowState, last: bool) -> Tensor:
        """Embedded codes (1, T, D), of which the last three only look ahead unless `last`."""
        x = self.embed(x)
        if last:
            x = F.pad(x, (0, 0, 0, LOOK_AHEAD))
        x, state.look_tail = self.pre_lookahead_layer(x, state.look_tail)
        x, state.lower = _through(self.encoders, x, state.lower)
        x, state.up_tail = self.up_layer(x, state.up_tail)
        x, state.upper = _through(self.up_encoders, self.up_embed(x), state.upper)
        return self.after_norm(x)


def _through(layers: nn.ModuleList, x: Tensor, pasts: list[Past]) -> tuple[Tensor, list[Past]]:
    new = []
    for index, layer in enumerate(layers):
        x, past = layer(x, pasts[index] if pasts else None)
        new.append(past)
    return x, new


class _Decoder(nn.Module):
    def __init__(self, shape: StepFlowShape) -> None:
        super().__init__()
        self.estimator = Dit(shape.bins, shape.width, shape.depth, shape.heads, shape.head_dim)


class StepFlow(nn.Module):
    """Codes to mel, under the names of `flow.pt`."""

    noise: Tensor  # (80, 30000)

    def __init__(self, shape: StepFlowShape = StepFlowShape()) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(shape.codes, shape.width)
        self.spk_embed_affine_layer = nn.Linear(SPEAKER, shape.bins)
        self.encoder = _Encoder(shape)
        self.encoder_proj = nn.Linear(shape.width, shape.bins)
        self.decoder = _Decoder(shape)
        noise = noise_table(_MOST_FRAMES, shape.bins)
        self.register_buffer("noise", noise, persistent=False)

    def begin(self, voice: Voice) -> FlowState:
        """The state after a prompt recording, whose first codes stand in for its look-ahead."""
        state = FlowState()
        self._paint([*voice.codes, *voice.codes[:LOOK_AHEAD]], voice, voice.mel, state, last=False)
        return state

    def piece(self, codes: list[int], voice: Voice, state: FlowState, last: bool) -> Tensor:
        """Mel (1, 80, T) of the next codes; the state moves on.

        Args:
            codes: the last three only look ahead, unless these are the `last`.
            voice: as of `begin`.
            state: from `begin`, or as the piece before left it.
            last: whether no more will come.
        """
        mel = self._paint(codes, voice, None, state, last)
        prompt = len(voice.mel)
        state.memories = [[m.kept(prompt, _KEPT) for m in step] for step in state.memories]
        return mel

    def whole(self, codes: list[int], voice: Voice) -> Tensor:
        """Mel (1, 80, 2 len(codes)) of all codes in one pass: each frame sees every other."""
        mel = self._paint([*voice.codes, *codes], voice, voice.mel, FlowState(), last=True)
        return mel[:, :, len(voice.mel) :]

    def _paint(
        self, codes: list[int], voice: Voice, known: Tensor | None, state: FlowState, last: bool
    ) -> Tensor:
        """Mel of the next codes, of which `known` (T, 80) is the beginning."""
        ids = torch.tensor([codes], device=self.noise.device)
        states = self.encoder_proj(self.encoder(self.input_embedding(ids), state, last))
        mu = states.transpose(1, 2)  # (1, 80, T)
        frames, begin = mu.shape[2], state.memories[0][0].keys.shape[2] if state.memories else 0
        speaker = self.spk_embed_affine_layer(F.normalize(voice.speaker[None], dim=1))
        told = mu.new_zeros(2, 3 * mu.shape[1], frames)  # the second row stays without
        voice_rows = speaker[0, :, None].expand(-1, frames)
        told[0] = torch.cat((mu[0], voice_rows, torch.zeros_like(mu[0])))
        if known is not None:
            told[0, -known.shape[1] :, : len(known)] = known.t()
        memories: list[list[Memory]] = []

        def velocity(step: int, x: Tensor, time: Tensor) -> Tensor:
            past = state.memories[step] if state.memories else None
            found, memory = self.decoder.estimator(torch.cat((x, told), dim=1), time, past)
            memories.append(memory)
            return found

        mel = solve(velocity, self.noise[None, :, begin : begin + frames])
        assert len(memories) == STEPS
        state.memories = memories
        return mel
