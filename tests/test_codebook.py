"""The codebook's training: gradients, targets' places, points that follow, what is kept of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spark.speech import codec
from spark.speech.codec import LOOK_AHEAD
from spark.training import codebook, teacher


@pytest.fixture
def heard() -> codebook.Heard:
    torch.manual_seed(0)
    spectra = torch.randn(200, 8) @ torch.randn(8, codec.FRAMES * codec.N_MELS) - 3.0
    pitches = torch.where(torch.rand(200, codec.FRAMES) < 0.5, 170.0, -170.0)
    phones = torch.randint(len(teacher.PHONES), (200, codec.FRAMES))
    return codebook.Heard(spectra, pitches, phones)


def test_the_codebook_s_gradient_reaches_the_encoder(heard: codebook.Heard) -> None:
    model = codec.Codec()
    codebook.fit_components(model.encoder, heard.spectra, heard.signed_f0)
    measures = model.encoder.measures(heard.spectra, heard.signed_f0)[None]
    auto = codebook.Autoencoder(model)
    target = codebook.Heard(*(part[None] for part in heard))
    losses, *_ = auto.through_codes(measures, target)
    for loss in (auto.through_channel(measures, target).sum(), losses.sum()):
        model.encoder.outward.weight.grad = None
        loss.backward()
        assert model.encoder.outward.weight.grad is not None
        assert model.encoder.outward.weight.grad.abs().sum() > 0


def test_a_settled_codec_gives_the_codes_and_the_embeddings_of_training(
    heard: codebook.Heard,
) -> None:
    model = codec.Codec()
    codebook.fit_components(model.encoder, heard.spectra, heard.signed_f0)
    measures = model.encoder.measures(heard.spectra, heard.signed_f0)[None]
    auto = codebook.Autoencoder(model)
    torch.nn.init.normal_(model.decoder.inward.weight)
    auto.latents(measures)  # moves the running statistics
    auto.eval()
    with torch.no_grad():
        codes = codec.nearest(auto.latents(measures)[0], model.encoder.points)
        meant = auto.into(model.encoder.points[codes]) + model.decoder.inward(codes)
        auto.settle()
        assert torch.equal(model.encoder(measures)[0], codes)
        torch.testing.assert_close(model.decoder.inward(codes), meant)


def test_points_follow_the_latents_they_own_and_forsaken_ones_move() -> None:
    torch.manual_seed(0)
    auto = codebook.Autoencoder(codec.Codec())
    points = auto.codec.encoder.points.requires_grad_(False)
    latents = torch.randn(3000, codec.DIMENSIONS)
    followers = codebook.Followers(auto, latents)
    far = torch.full((1000, codec.DIMENSIONS), 40.0)
    owner = codec.nearest(far, points)
    for _ in range(1000):
        followers.follow(far, owner)
    torch.testing.assert_close(points[owner[0]], far[0], rtol=0.01, atol=0.1)
    alone = [i for i in range(codec.N_CODES) if i != int(owner[0])][: codebook._REVIVED]
    followers.revive(far)
    assert torch.equal(points[alone], far[: len(alone)])
    before = points.clone()
    followers.counts.zero_()
    followers.follow(latents[:0], owner[:0])
    assert torch.equal(points, before)  # nobody's points stay
    assert (auto.codec.decoder.inward.weight[alone] == 0).all()


def test_codes_are_asked_for_what_is_spoken_look_ahead_earlier(heard: codebook.Heard) -> None:
    auto = codebook.Autoencoder(codec.Codec())
    auto.codec.decoder.coarse, auto.norm, auto.outward = (
        nn.ModuleList(),
        nn.Identity(),
        nn.Identity(),
    )
    target = codebook.Heard(*(part[None] for part in heard))
    named = 60.0 * nn.functional.one_hot(heard.phones, len(teacher.PHONES)).flatten(1)
    pitched = torch.log2(heard.signed_f0.abs()) - codebook._CENTRE
    told = torch.cat([heard.spectra, named, pitched, 60.0 * heard.signed_f0.sign()], dim=1)[None]
    assert auto.losses(told.roll(LOOK_AHEAD, 1), target).max() < 1e-4
    for late in (LOOK_AHEAD - 1, LOOK_AHEAD + 1):
        mel, phones, _, voicing = auto.losses(told.roll(late, 1), target).tolist()
        assert min(mel, phones, voicing) > 0.1
