"""Training steps: alignment of targets, resuming, early-exit loss, exit heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from spark.speech import codec
from spark.speech.codec import CODE_SAMPLES, FRAMES, LOOK_AHEAD, N_BINS
from spark.training import decoder, exit_fitting, hints, language_model, recorded_heads, recordings
from spark.training.sequences import Exchange, Writer
from tests.teaching import a_writer, spoken
from tests.tiny import tiny_lm


@pytest.fixture(scope="module")
def writer() -> Writer:
    return a_writer()


def test_the_decoder_is_asked_for_a_frame_look_ahead_later(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trainee = decoder.Trainee(codec.Codec())
    waves, f0 = 0.1 * torch.randn(2, 12 * CODE_SAMPLES), 100 + 200 * torch.rand(2, 12 * FRAMES)
    told = trainee.codec.encoder.log_mel(waves)
    trainee.mel = nn.Identity()

    def losses(late: int) -> torch.Tensor:
        part = trainee.codec.decoder
        features, pitch = told.roll(late, 1), f0.roll(late, 1)
        filters = torch.full((*pitch.shape, N_BINS), -3.0)
        monkeypatch.setattr(part, "features", lambda codes: (features, []))
        monkeypatch.setattr(part, "controls", lambda features: (pitch, filters, filters))
        found, _, _ = trainee.losses(waves, f0, torch.zeros(2, 12, dtype=torch.long), noise=0)
        return found[1:3]

    assert losses(LOOK_AHEAD * FRAMES).tolist() == [0.0, 0.0]
    for late in (LOOK_AHEAD * FRAMES - 1, LOOK_AHEAD * FRAMES + 1):
        assert (losses(late) > 0.05).all()


def trainer(out: Path, writer: Writer, seed: int) -> language_model.Trainer:
    torch.manual_seed(seed)
    settings = language_model.Settings(
        data=out, out=out, minutes=1.0, tokens=100, workers=1, peak_rate=1e-2, layers=2,
        start=None, written=False, early_exit_loss=0.0,
    )  # fmt: skip
    size = writer.tokenizer.get_vocab_size()
    model = Qwen2ForCausalLM(language_model.configuration(size, layers=2))
    words = hints.Hints(language_model.WIDTH, writer, {"noon": [3, 4, 3]})
    return language_model.Trainer(settings, model, words)


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, writer: Writer
) -> None:
    batch: list[Exchange] = [writer.spoken("say noon", spoken("the tide turns at noon"))]
    first = trainer(tmp_path, writer, seed=0)
    first.train_on(batch, 0.1)
    first.checkpoint(12.5)
    again = trainer(tmp_path, writer, seed=1)
    again.resume()
    assert (again.step, again.spent, again.seen) == (1, 12.5, first.seen)
    for one in (first, again):
        one.train_on(batch, 0.2)
    for a, b in zip(first.trained.parameters(), again.trained.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_early_exit_loss_is_that_of_the_model_cut_short() -> None:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(language_model.configuration(300, layers=3)).eval()
    cut = Qwen2ForCausalLM(language_model.configuration(300, layers=2)).eval()
    cut.load_state_dict(model.state_dict(), strict=False)
    ids = torch.randint(300, (2, 11))
    with torch.no_grad():
        plain, early = (language_model.loss_of(m, ids, ids, 150) for m in (model, cut))
        both = language_model.loss_of(model, ids, ids, 150, exit_layer=2, weight=0.3)
    torch.testing.assert_close(both, plain + 0.3 * early)


def test_exit_heads_come_nearer_to_full_depth() -> None:
    torch.manual_seed(0)
    lm = tiny_lm()
    speech = lm.vocabulary.speech_rows()
    ids = speech[torch.randint(len(speech), (4, 24))]
    fitting = exit_fitting.Fitting(lm)
    keep = recorded_heads.speech_slots(lm, ids)
    states = exit_fitting.slot_states(lm, ids, keep, lm.candidate_exits)
    full = fitting.full(states[lm.transformer.num_layers])

    @torch.no_grad()
    def distance() -> float:
        layer = lm.candidate_exits[0]
        logs = fitting.heads[layer](states[layer]).log_softmax(-1)
        return float((full * (full.log() - logs)).sum(-1).mean())

    before = distance()
    for _ in range(30):
        fitting.step(states, 1e-2)
    assert distance() < 0.5 * before


def test_a_shard_that_was_cut_short_is_recorded_anew(tmp_path: Path) -> None:
    path = tmp_path / "shard-000000.npz"
    assert recordings._asked(path) == 0
    recordings.record(["the tide turns", "noon"], path)
    assert recordings._asked(path) == 2
    assert [text for text, _ in recordings.read(tmp_path)] == ["the tide turns", "noon"]
    with np.load(path) as shard:
        assert shard["ends"][-1] == len(shard["samples"])
