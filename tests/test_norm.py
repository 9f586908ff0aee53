"""RMSNorm's short form against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from spark.norm import Norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 1e4])
def test_norms_are_torchs(dtype: torch.dtype, size: float) -> None:
    make = torch.Generator().manual_seed(0)
    gain = torch.randn(48, generator=make).to(dtype)
    states = (size * torch.randn(2, 3, 48, generator=make)).to(dtype)
    before = states.clone()
    expected = F.rms_norm(states, (48,), gain, 1e-6)
    torch.testing.assert_close(Norm(gain, 1e-6)(states), expected)
    assert torch.equal(states, before)
