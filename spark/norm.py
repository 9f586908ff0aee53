"""RMSNorm in as few calls as the device allows: on a CPU, decoding one token is bound by calls."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Norm:
    """gain * x / sqrt(mean(x^2) + eps) over the last dimension.

    torch composes F.rms_norm of nine calls on the CPU. With D values,
    sqrt(mean(x^2) + eps) = hypot(|x|, sqrt(D eps)) / sqrt(D), which takes four.

    Args:
        gain: (D,).
        eps: added to the mean square.
    """

    def __init__(self, gain: Tensor, eps: float) -> None:
        width = gain.shape[0]
        self.gain = gain
        self.eps = eps
        # 16-bit types would lose the sum of squares; on a GPU the fused kernel is one call.
        self._direct = gain.device.type == "cpu" and gain.dtype in (torch.float32, torch.float64)
        self._scaled = gain * math.sqrt(width)
        self._floor = gain.new_tensor(math.sqrt(width * eps))

    def __call__(self, states: Tensor) -> Tensor:
        """Normed states, (..., D)."""
        if not self._direct:
            return F.rms_norm(states, self.gain.shape, self.gain, self.eps)
        size = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        return states.div(torch.hypot(size, self._floor)).mul_(self._scaled)
