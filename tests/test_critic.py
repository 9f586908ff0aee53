"""Critics learn to tell two sounds apart, and what they say pulls one towards the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spark.speech.codec import CODE_SAMPLES, FRAMES, Codec
from spark.training import decoder
from spark.training.critic import Critics


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    return Codec()


def test_critics_tell_noise_from_its_blurred_copy(codec: Codec) -> None:
    torch.manual_seed(0)
    critics = Critics(codec.encoder.log_mel)
    source = torch.Generator().manual_seed(1)

    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        real = 0.1 * torch.randn(4, 4800, generator=source)
        return torch.nn.functional.avg_pool1d(real[:, None], 5, 1, 2)[:, 0], real

    losses = [critics.learn(*pair(), falling=1.0) for _ in range(25)]
    assert losses[-1] < 0.2 < 0.5 * losses[0]
    made, real = pair()
    assert critics.deceived(made, real) > 3 * critics.deceived(real, real)


def test_critics_pull_the_sound_and_stay_as_they_are(codec: Codec) -> None:
    critics = Critics(codec.encoder.log_mel)
    before = [p.clone() for p in critics.parameters()]
    made = (0.01 * torch.randn(2, 4800)).requires_grad_()
    critics.deceived(made, 0.1 * torch.randn(2, 4800)).backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    for now, then in zip(critics.parameters(), before, strict=True):
        assert now.grad is None
        assert torch.equal(now, then)
        assert now.requires_grad


def test_a_decoder_under_critics_resumes_and_minds_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_ALONE", 0)
    torch.manual_seed(0)
    training = decoder.Training(Codec(), critics=True)
    waves = 0.1 * torch.randn(2, 16 * CODE_SAMPLES)
    batch = waves, torch.full((2, 16 * FRAMES), 180.0), torch.zeros(2, 16, dtype=torch.long)
    for _ in range(2):
        training.step(batch, noise=0, falling=1.0)
    training.checkpoint(tmp_path / "a.state", elapsed=3.0)
    codec = Codec()
    codec.load_state_dict(training.trainee.codec.state_dict())
    again = decoder.Training(codec, critics=True)
    assert not again.resume(tmp_path / "absent.state")
    assert again.resume(tmp_path / "a.state")
    assert (again.progress.step, again.progress.spent) == (2, 3.0)
    for one in (training, again):
        one.step(batch, noise=1, falling=0.5)
    for name, value in training.average.items():
        assert torch.equal(again.average[name], value), name
    with pytest.raises(ValueError, match="other critics"):
        decoder.Training(codec, critics=False).resume(tmp_path / "a.state")


def test_what_is_saved_is_the_average_and_training_goes_on_from_the_latest(tmp_path: Path) -> None:
    training = decoder.Training(Codec(), critics=False)
    training.average = {k: torch.zeros_like(v) for k, v in training.average.items()}
    latest = training.trainee.codec.decoder.inward.weight.clone()
    training.save(tmp_path / "codec.safetensors")
    assert torch.equal(training.trainee.codec.decoder.inward.weight, latest)
    assert not Codec.load(tmp_path / "codec.safetensors").decoder.inward.weight.any()
