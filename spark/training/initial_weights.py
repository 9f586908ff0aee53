"""Initial weights of the language model: random, except for what copying needs.

Reading aloud is copying: the next text token is the one that followed the last text token in the
prompt. A network finds this by itself only after millions of tokens (induction heads, Olsson et
al. 2022, arXiv 2209.11895); here its two attention patterns are laid into the first two layers
through rotary positions and orthogonal subspaces, and training goes on from there. Sublayers write
nothing else at first, so that a token's own embedding is not drowned in noise.
Knows nothing of data or losses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

EMBEDDING = 0.2  # standard deviation
_HEAD = 0.1  # of the embedding: logits of an untrained network are small
_KIND = 0.5  # length of the direction all text tokens share, relative to the embedding's
_WRITE = 0.4  # how strongly layer 0 writes what it found
_MATCH = 1.5  # how sharply layer 1 compares
_OFFSET = 14.0  # squared length, per rotary pair, of the biases that prefer a distance
_RECENT = 8.0  # the same for the latest text token
_FAST, _RECENCY, _SLOW = slice(0, 12), slice(4, 12), slice(10, None)  # rotary pairs used


def relate_codes(points: Tensor, width: int) -> Tensor:
    """Embedding rows (codes, width) where near codebook points (codes, d) are near, plus noise."""
    scaled = (points - points.mean(0)) / points.std(0).clamp_min(0.2 * points.std())
    rows = scaled @ torch.randn(points.shape[1], width) / points.shape[1] ** 0.5
    return EMBEDDING * (0.9 * rows + 0.45 * torch.randn(len(points), width))


def _pairs(size: int, chosen: slice) -> Tensor:
    """Mask (size,) of the rotary pairs `chosen`: dimension i goes with i + size / 2."""
    half = torch.zeros(size // 2)
    half[chosen] = 1.0
    return torch.cat([half, half])


def _distance(
    attention: Qwen2Attention, head: int, group: int, distance: int, theta: float
) -> None:
    """Biases with which `head` (of key-value head `group`) prefers the token `distance` back.

    After rotation by position p the dot product of the biases is the sum of cos(f (p - q - d)).
    """
    size = attention.head_dim
    angle = distance * theta ** (-torch.arange(size // 2) / (size // 2))
    mask = _pairs(size, _FAST) * _OFFSET**0.5
    attention.q_proj.bias.view(-1, size)[head] = mask * torch.cat([angle.cos(), -angle.sin()])
    key = torch.cat([torch.ones(size // 2), torch.zeros(size // 2)])
    attention.k_proj.bias.view(-1, size)[group] = mask * key


@torch.no_grad()
def lay_copying(model: Qwen2ForCausalLM, text: int, theta: float) -> None:
    """Sets embeddings, head, and the first two layers' attention; `text` ids stand first.

    Layer 0 brings two tokens into subspaces of their own: the previous one (head 0), and the
    latest text token, over speech and pads (head 2). Layer 1 looks for the place whose previous
    token is this one (head 0) or the latest text token (head 1) and brings the token there.
    """
    width = model.config.hidden_size
    table = model.model.embed_tokens.weight
    directions, _ = torch.linalg.qr(torch.randn(width, width))
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    size = first.head_dim
    token, previous, latest = (directions[:, i * size : (i + 1) * size] for i in range(3))
    kind = directions[:, -1]  # what tells text tokens from others
    length = EMBEDDING * width**0.5
    table[:text] += _KIND * length * kind
    model.lm_head.weight.copy_(_HEAD * table)
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)

    _distance(first, head=0, group=0, distance=1, theta=theta)
    recent = _pairs(size, _RECENCY)
    recent[size // 2 :] = 0.0
    first.q_proj.bias.view(-1, size)[2] = recent * _RECENT**0.5
    normed = width**0.5 * _KIND / (1 + _KIND**2) ** 0.5  # a text token's share of `kind`
    first.k_proj.weight[size : 2 * size] = torch.outer(recent * _RECENT**0.5 / normed, kind)
    for group in range(2):
        first.v_proj.weight[group * size : (group + 1) * size] = token.T
    for head, place in ((0, previous), (2, latest)):
        first.o_proj.weight[:, head * size : (head + 1) * size] = _WRITE * place

    slow = _MATCH * _pairs(size, _SLOW)[:, None]
    second.k_proj.weight[:size] = slow * previous.T
    second.v_proj.weight[:size] = token.T
    for head, place in ((0, token), (1, latest)):
        rows = slice(head * size, (head + 1) * size)
        second.q_proj.weight[rows] = slow * place.T
        second.o_proj.weight[:, rows] = token
