"""Whisper against a plain loop over its own parts; UTMOSv2 by a stand-in for the package."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from spark.evaluation import __main__ as evaluation
from spark.evaluation.scoring import word_errors
from spark.metrics import utmos, wer
from spark.metrics.recognisers import POCKETSPHINX, Whisper, recogniser
from spark.speech.audio import to_float
from tests.checkpoints import write_step

MARKS = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>",
         "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")  # fmt: skip
START = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
SPOKEN = 12  # tokens at most, or with those of the start, as transformers counts them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper of random weights that spells some letters; real config, files and tokens."""
    place = tmp_path_factory.mktemp("whisper") / "whisper-tiny"
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    ids = {mark: len(letters) + i for i, mark in enumerate(MARKS)}
    times = {f"<|{i / 50:.2f}|>": len(letters) + len(MARKS) + i for i in range(1501)}
    tokenizer: Any = WhisperTokenizer(vocab=letters | ids | times, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS[1:])})
    config = WhisperConfig(
        vocab_size=len(letters | ids | times), num_mel_bins=80, d_model=32, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, decoder_start_token_id=ids["<|startoftranscript|>"],
        eos_token_id=ids["<|endoftext|>"], pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"], suppress_tokens=[], begin_suppress_tokens=[],
        init_std=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = WhisperForConditionalGeneration(config)
    with torch.no_grad():  # marks and times are never the likeliest, so that something is said
        model.model.decoder.embed_tokens.weight[len(letters) :] = 0
    wanted = model.generation_config
    wanted.lang_to_id, wanted.is_multilingual = {"<|en|>": ids["<|en|>"]}, True
    wanted.task_to_id = {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]}
    wanted.no_timestamps_token_id = ids["<|notimestamps|>"]
    wanted.prev_sot_token_id = ids["<|startofprev|>"]
    wanted.max_length = SPOKEN
    wanted.suppress_tokens = None
    wanted.begin_suppress_tokens = None
    wanted._from_model_config = False  # else it is made anew from the model's when it is loaded
    model.save_pretrained(place)
    WhisperProcessor(WhisperFeatureExtractor(80), tokenizer).save_pretrained(place)
    return place


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (3000 * rng.standard_normal(int(16_000 * seconds))).astype(np.int16)


@torch.inference_mode()
def greedy(folder: Path, pcm: np.ndarray, count: int) -> list[int]:
    """So many tokens by a plain loop over the model's forward."""
    processor: Any = WhisperProcessor.from_pretrained(folder)
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    features = processor.feature_extractor(
        to_float(pcm), sampling_rate=16_000, return_tensors="pt"
    ).input_features
    ids = [processor.tokenizer.convert_tokens_to_ids(mark) for mark in START]
    for _ in range(count):
        logits = model(input_features=features, decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(START) :]


@pytest.mark.parametrize("seed", [0, 1])
def test_whisper_says_what_a_plain_greedy_loop_does(folder: Path, seed: int) -> None:
    made = recogniser(str(folder))
    assert isinstance(made, Whisper)
    assert made.name == "whisper-tiny"
    heard = made.transcribe(sound(1.5, seed), 16_000)
    said = greedy(folder, sound(1.5, seed), 2 * SPOKEN)
    spelled: Any = WhisperProcessor.from_pretrained(folder)
    texts = [spelled.tokenizer.decode(said[:n]).strip() for n in range(6, len(said))]
    assert heard in texts
    assert heard


def test_whisper_hears_any_rate_and_nothing_in_nothing(folder: Path) -> None:
    made = recogniser(str(folder))
    assert made.transcribe(sound(0.05), 16_000) == ""
    assert isinstance(made.transcribe(sound(1)[::2], 8_000), str)
    assert isinstance(made.transcribe(sound(31), 16_000), str)  # beyond one window


def test_an_english_only_whisper_is_not_told_its_language(folder: Path) -> None:
    made = Whisper(str(folder), torch.device("cpu"))
    made._model.generation_config.is_multilingual = False
    assert isinstance(made.transcribe(sound(1), 16_000), str)


def test_each_recogniser_has_its_own_words(folder: Path) -> None:
    whisper, plain = recogniser(str(folder)), recogniser(POCKETSPHINX)
    assert whisper.normalise("Twenty-one dollars, isn't it?") == "$21 is not it"
    assert plain.normalise("Twenty-one dollars!") == "twenty one dollars"
    said, heard = "It costs twenty-one dollars.", "it costs $21"
    assert word_errors(said, heard, whisper.normalise).edits == 0
    assert word_errors(said, heard).edits == 1  # "dollars" is missing


def test_pocketsphinx_is_the_recogniser_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    monkeypatch.setattr(wer, "transcribe", lambda pcm, rate: heard.append(rate) or "words")
    assert recogniser(POCKETSPHINX).transcribe(sound(1), 16_000) == "words"
    assert heard == [16_000]


def test_what_is_no_whisper_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path / "nowhere", write_step(tmp_path / "step", layers=2)):
        with pytest.raises(ValueError, match=r"no Whisper could be loaded.*pocketsphinx"):
            recogniser(str(place))
    command = ["--recogniser", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    assert evaluation.main([*command, "--limit", "1"]) == 2
    assert "no Whisper could be loaded" in capsys.readouterr().err


@dataclass
class FakePredictor:
    """Draws at random as the package does, and keeps what it was given."""

    seen: list[dict[str, Any]] = field(default_factory=list)

    def predict(self, **given: Any) -> np.ndarray:
        self.seen.append(given)
        return np.array(3 + np.random.random() + float(torch.rand(())))  # noqa: NPY002


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> FakePredictor:
    made, package = FakePredictor(), ModuleType("utmosv2")
    package.create_model = lambda pretrained: made if pretrained else None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "utmosv2", package)
    monkeypatch.setattr(utmos, "find_spec", lambda name: name == "utmosv2")
    utmos._model.cache_clear()
    yield made
    utmos._model.cache_clear()


def test_utmos_gets_16_khz_floats_and_a_clip_has_one_score(predictor: FakePredictor) -> None:
    state = torch.random.get_rng_state()
    first = utmos.predict(sound(2)[::2], 8_000)
    assert first is not None
    assert utmos.predict(sound(2)[::2], 8_000) == first
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's noise changes
    given = predictor.seen[0]
    assert given["data"].dtype == np.float32
    assert len(given["data"]) == pytest.approx(32_000, abs=10)
    assert np.abs(given["data"]).max() <= 1
    assert utmos.predict(sound(0.3), 16_000) is None
    assert utmos.predict(np.zeros(16_000, np.int16), 16_000) is None


def test_utmos_is_asked_for_and_told_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(utmos, "find_spec", lambda name: None)
    assert evaluation.main(["--utmos", "--limit", "1", "--out", str(tmp_path)]) == 2
    assert "UTMOSv2 is not installed: pip install git+" in capsys.readouterr().err
