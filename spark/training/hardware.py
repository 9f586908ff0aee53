"""Where training runs: the first GPU where there is one, else the CPU."""

from __future__ import annotations

import torch


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_bf16(where: torch.device) -> bool:
    """Whether the hardware multiplies bf16; elsewhere it is far slower than fp32."""
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
