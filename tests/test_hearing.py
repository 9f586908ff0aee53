"""How the large models hear, against transformers' feature extractor and encoder blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

from spark.models import glm_listener, recordings, step_listener
from spark.models.base import PromptError
from spark.models.checkpoint import Checkpoint, CheckpointError
from spark.models.recordings import LONGEST_S, heard_samples, read_recording
from spark.speech.mel import kaldi_fbank, spoken_mel, whisper_mel
from spark.speech.whisper import Block

CONFIG: dict[str, Any] = {
    "audio_encoder_config": {
        "n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 16, "n_audio_head": 2,
        "n_audio_layer": 2, "n_codebook_size": 4096, "llm_dim": 24, "kernel_size": 3,
        "adapter_stride": 2,
    }
}  # fmt: skip
MARKS = (151688, 151690, 151689)
GLM_CONFIG: dict[str, Any] = {
    "model_type": "whisper", "d_model": 16, "encoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "quantize_position": 2, "num_mel_bins": 128, "max_source_positions": 1500,
    "quantize_vocab_size": 64, "quantize_causal_block_size": 200, "pooling_kernel_size": 4,
    "pooling_type": "avg", "encoder_causal_convolution": True,
}  # fmt: skip


def noise(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(0, 2000, round(seconds * rate))
    return made.astype(np.int16)


def random_state(module: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(seed)
    return {
        name: 0.2 * torch.randn(tensor.shape, generator=make)
        for name, tensor in module.state_dict().items()
    }


# Spectra


@given(st.integers(400, 30_000))
@settings(max_examples=15, deadline=None)
def test_whisper_mel_equals_the_feature_extractor(length: int) -> None:
    samples = noise(length / 16_000, seed=length).astype(np.float32) / 32768
    padded = F.pad(torch.from_numpy(samples), (0, -length % 1280))
    extractor = WhisperFeatureExtractor(feature_size=128)
    theirs = extractor(
        samples, sampling_rate=16_000, padding="longest", pad_to_multiple_of=1280,
        return_tensors="pt", return_attention_mask=True,
    )  # fmt: skip
    assert torch.allclose(whisper_mel(padded), theirs.input_features[0], atol=2e-4)
    assert int(theirs.attention_mask.sum()) == -(-length // 160)


def test_spoken_mel_equals_librosas() -> None:
    samples = noise(0.5, 24_000).astype(np.float32) / 32768
    pad = np.pad(samples, 720, mode="reflect")
    magnitude = np.abs(librosa.stft(pad, n_fft=1920, hop_length=480, center=False))
    filters = librosa.filters.mel(sr=24_000, n_fft=1920, n_mels=80, fmin=0, fmax=8000)
    theirs = np.log(np.maximum(filters @ np.sqrt(magnitude**2 + 1e-9), 1e-5))
    ours = spoken_mel(torch.from_numpy(samples)).numpy()
    assert ours.shape == (80, 25)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_kaldi_fbank_equals_a_slow_loop() -> None:
    samples = noise(0.2).astype(np.float64) / 32768
    edges = np.linspace(*(1127 * np.log1p(np.array([20.0, 8000.0]) / 700)), 82)
    mels = 1127 * np.log1p(np.arange(257) * 16_000 / 512 / 700)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    rows = []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400]
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate((frame[:1], frame[:-1]))
        power = np.abs(np.fft.rfft(frame * window, 512)) ** 2
        row = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            up, down = (mels - low) / (middle - low), (high - mels) / (high - middle)
            row.append(np.log(max((np.maximum(0, np.minimum(up, down)) * power).sum(), 1.19e-7)))
        rows.append(row)
    ours = kaldi_fbank(torch.from_numpy(samples.astype(np.float32)))
    assert ours.shape == (len(rows), 80)
    np.testing.assert_allclose(ours.numpy(), np.array(rows), atol=2e-3)


# Recordings


@pytest.mark.parametrize(
    ("pcm", "rate", "words"),
    [
        (np.zeros(0, np.int16), 16_000, "no recording yet"),
        (noise(0.05), 16_000, "0.05 s"),
        (np.zeros(16_000, np.int16), 16_000, "silent"),
        (noise(1), 100, "100 Hz"),
        (np.ones(int(LONGEST_S * 4000) + 4000, np.int16), 4000, "121 s"),
    ],
)
def test_impossible_recordings_get_a_sentence(pcm: np.ndarray, rate: int, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        heard_samples(pcm, rate)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_any_rate_becomes_16_khz(rate: int) -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.int16)
    heard = heard_samples(tone, rate).numpy()
    assert abs(len(heard) - 16_000) <= 1
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert abs(int(spectrum.argmax()) - 440) <= 1


def test_a_long_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(130 * 4000), 4000, subtype="PCM_U8")
    monkeypatch.setattr(recordings, "read_wav", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(PromptError, match="lasts 130 s, a prompt may last 120 s"):
        read_recording(tmp_path / "long.wav")


def test_of_a_stereo_file_the_first_channel_is_heard(tmp_path: Path) -> None:
    """As both vendors do."""
    left, right = noise(0.5), noise(0.5, seed=1)
    soundfile.write(tmp_path / "both.wav", np.stack((left, right), axis=1), 16_000)
    pcm, rate = read_recording(tmp_path / "both.wav")
    assert rate == 16_000
    np.testing.assert_array_equal(pcm, left)


# Step-Audio-2-mini


def hf_block(block: Block, width: int, heads: int, inner: int) -> WhisperEncoderLayer:
    """transformers' layer with the same weights."""
    config = WhisperConfig(d_model=width, encoder_attention_heads=heads, encoder_ffn_dim=inner)
    config._attn_implementation = "eager"
    layer = WhisperEncoderLayer(config).eval()
    names = {
        "self_attn.q_proj": "attn.query", "self_attn.k_proj": "attn.key",
        "self_attn.v_proj": "attn.value", "self_attn.out_proj": "attn.out",
        "self_attn_layer_norm": "attn_ln", "fc1": "mlp.0", "fc2": "mlp.2",
        "final_layer_norm": "mlp_ln",
    }  # fmt: skip
    ours = block.state_dict()
    layer.load_state_dict(
        {
            f"{theirs}.{kind}": ours[f"{mine}.{kind}"]
            for theirs, mine in names.items()
            for kind in ("weight", "bias")
            if f"{mine}.{kind}" in ours
        }
    )
    return layer


def test_a_block_equals_transformers() -> None:
    block = Block(16, 2, 64).eval()
    block.load_state_dict(random_state(block))
    states = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    seen = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(2)) > 0.3
    seen |= torch.eye(9, dtype=torch.bool)
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    theirs = hf_block(block, 16, 2, 64)(states, bias)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert torch.allclose(block(states, seen), theirs, atol=1e-5)


def test_the_encoders_front_equals_whispers() -> None:
    """With no mask and before pooling, it is Whisper's encoder."""
    shape = step_listener.Shape.read(CONFIG)
    ours = step_listener.Encoder(shape).eval()
    ours.load_state_dict(random_state(ours))
    config = WhisperConfig(
        d_model=16, encoder_attention_heads=2, encoder_ffn_dim=64, encoder_layers=2,
        num_mel_bins=128, max_source_positions=1500,
    )  # fmt: skip
    theirs = WhisperEncoder(config).eval()
    state = theirs.state_dict()
    state["embed_positions.weight"] = ours.positional_embedding.weight
    for name in ("conv1", "conv2"):
        state[f"{name}.weight"] = getattr(ours, name).weight
        state[f"{name}.bias"] = getattr(ours, name).bias
    for index, block in enumerate(ours.blocks):
        for name, tensor in hf_block(block, 16, 2, 64).state_dict().items():
            state[f"layers.{index}.{name}"] = tensor
    state["layer_norm.weight"], state["layer_norm.bias"] = torch.ones(16), torch.zeros(16)
    theirs.load_state_dict(state)
    mel = torch.randn(1, 128, 3000, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = []
        theirs.layer_norm.register_forward_pre_hook(lambda _, given: expected.append(given[0]))
        theirs(mel)
        states, lengths = ours(mel, torch.tensor([3000]))
        pooled = ours.after_norm((expected[0][:, ::2] + expected[0][:, 1::2]) / 2)
    assert lengths.tolist() == [750]
    assert torch.allclose(states, pooled, atol=2e-4)


def step_folder(folder: Path, change: Any = None) -> Checkpoint:
    ears = step_listener.Ears(step_listener.Shape.read(CONFIG))
    state = {name: tensor.to(torch.bfloat16) for name, tensor in random_state(ears).items()}
    state["model.norm.weight"] = torch.ones(24, dtype=torch.bfloat16)
    if change:
        change(state)
    save_file(state, folder / "model.safetensors")
    return Checkpoint.open(folder)


def step_ears(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32
) -> step_listener.StepListener:
    heard = step_listener.offered(checkpoint, CONFIG, 24, MARKS)
    ears = heard.read(torch.device("cpu"), dtype)
    assert isinstance(ears, step_listener.StepListener)
    return ears


def test_true_names_and_size_of_the_published_checkpoint() -> None:
    published = {"audio_encoder_config": {
        "n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 1280, "n_audio_head": 20,
        "n_audio_layer": 32, "llm_dim": 3584, "kernel_size": 3, "adapter_stride": 2,
    }}  # fmt: skip
    with torch.device("meta"):
        ears = step_listener.Ears(step_listener.Shape.read(published))
    sizes = {name: tensor.numel() for name, tensor in ears.state_dict().items()}
    encoder = [size for name, size in sizes.items() if name.startswith("encoder.")]
    assert (len(encoder), sum(encoder)) == (487, 636_968_960)
    assert sum(sizes.values()) - sum(encoder) == 14_883_584
    assert {"encoder.blocks.31.attn.key.weight", "encoder.blocks.0.mlp.2.bias",
            "encoder.positional_embedding.weight", "encoder.after_norm.bias",
            "adapter.conv.weight", "adapter.linear2.bias"} <= sizes.keys()  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "patches"), [(1, [13]), (2, [25]), (5, [63]), (10, [125]), (25, [313]),
                             (27, [313, 25])],
)  # fmt: skip
def test_patches_by_length(tmp_path: Path, seconds: float, patches: list[int]) -> None:
    heard = step_ears(step_folder(tmp_path)).hear(noise(seconds), 16_000)
    assert [len(part.ids) - 2 for part in heard] == patches
    for part, count in zip(heard, patches, strict=True):
        assert part.ids == (MARKS[0], *[MARKS[1]] * count, MARKS[2])
        assert part.offset == 1
        assert part.features is not None
        assert part.features.shape == (count, 24)
        assert torch.isfinite(part.features).all()


def patches_of(samples: int) -> int:
    """By the published code's own lengths, step by step."""
    frames = (samples + 479) // 160 - 2
    states = (frames + 1) // 2 // 2
    return (states - 1) // 2 + 1


@given(st.one_of(st.integers(1600, 60_000), st.integers(-700, 700).map(lambda n: 400_000 + n)))
@settings(max_examples=12, deadline=None)
def test_any_length_gives_the_published_number_of_patches(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    """Also where the last part is a few samples, which give no patch or one."""
    listener = step_ears(step_folder(tmp_path_factory.mktemp("step")), torch.bfloat16)
    heard = listener.hear(noise(length / 16_000), 16_000)
    sizes = [400_000] * (length // 400_000) + ([rest] if (rest := length % 400_000) else [])
    expected = [count for size in sizes if (count := patches_of(size)) > 0]
    assert [len(part.ids) - 2 for part in heard] == expected
    for part in heard:
        assert part.features is not None
        assert part.features.dtype == torch.bfloat16
        assert torch.isfinite(part.features).all()


def test_parts_of_a_long_recording_are_heard_as_alone(tmp_path: Path) -> None:
    """But for the last patch of the shorter part, which sees past the end of its sound."""
    listener, pcm = step_ears(step_folder(tmp_path)), noise(27.13)
    both = listener.hear(pcm, 16_000)
    alone = listener.hear(pcm[400_000:], 16_000)
    assert both[1].ids == alone[0].ids
    assert both[1].features is not None
    assert alone[0].features is not None
    assert torch.allclose(both[1].features[:-1], alone[0].features[:-1], atol=1e-4)


def drop(state: dict[str, Tensor]) -> None:
    del state["encoder.blocks.1.mlp_ln.bias"]


def surplus(state: dict[str, Tensor]) -> None:
    state["adapter.linear3.weight"] = torch.zeros(2, 2)


def reshape(state: dict[str, Tensor]) -> None:
    state["adapter.linear1.weight"] = torch.zeros(4, 16)


def spoil(state: dict[str, Tensor]) -> None:
    state["encoder.conv1.bias"] = torch.full((16,), torch.nan)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, r"lacks encoder.blocks.\{1\}.mlp_ln.bias"),
        (surplus, "holds adapter.linear3.weight"),
        (reshape, r"\(4, 16\)"),
        (spoil, "encoder.conv1.bias of the checkpoint holds no numbers"),
    ],
)
def test_damaged_ears_get_one_sentence(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        step_ears(step_folder(tmp_path, change))


def test_ears_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="different models"):
        step_listener.offered(step_folder(tmp_path), CONFIG, 32, MARKS)
    for name, value in (("n_audio_layer", 10**12), ("n_audio_state", -1), ("n_audio_head", 7),
                        ("n_mels", True), ("n_mels", 80), ("kernel_size", "3")):  # fmt: skip
        config = {"audio_encoder_config": CONFIG["audio_encoder_config"] | {name: value}}
        with pytest.raises(CheckpointError, match=f"no usable {name}"):
            step_listener.Shape.read(config)
    with pytest.raises(CheckpointError, match="no usable n_mels"):
        step_listener.Shape.read({"audio_encoder_config": [1]})
    with pytest.raises(CheckpointError, match="n_audio_head"):
        step_listener.Shape.read({"audio_encoder_config": {"n_mels": 128}})


# GLM-4-Voice


def glm_folder(folder: Path, config: dict[str, Any] = GLM_CONFIG, change: Any = None) -> Path:
    """The published names: transformers' for the layers, buffers of training beside them."""
    tokenizer = glm_listener.SpeechTokenizer(config)
    back = {ours: re_name for re_name, ours in {
        "self_attn.q_proj": "attn.query", "self_attn.k_proj": "attn.key",
        "self_attn.v_proj": "attn.value", "self_attn.out_proj": "attn.out",
        "self_attn_layer_norm": "attn_ln", "fc1": "mlp.0", "fc2": "mlp.2",
        "final_layer_norm": "mlp_ln",
    }.items()}  # fmt: skip
    state = {}
    for name, tensor in random_state(tokenizer, 5).items():
        for ours, theirs in back.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        state[name] = tensor
    state |= {
        "embed_positions2.weight": torch.zeros(375, 16),
        "ema_count": torch.ones(64),
        "ema_weight": torch.zeros(64, 16),
    }
    if change:
        change(state)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_published_size_of_the_speech_tokenizer() -> None:
    published = GLM_CONFIG | {
        "d_model": 1280, "encoder_ffn_dim": 5120, "encoder_attention_heads": 20,
        "quantize_position": 16, "quantize_vocab_size": 16384,
    }  # fmt: skip
    with torch.device("meta"):
        tokenizer = glm_listener.SpeechTokenizer(published)
    ours = sum(tensor.numel() for tensor in tokenizer.state_dict().values())
    beside = 375 * 1280 + 16384 + 16384 * 1280  # second positions, EMA counts and sums
    assert ours + beside == 364_587_264


@pytest.mark.parametrize("frames", [8, 200, 1000])
def test_states_equal_transformers_layers_under_a_slow_mask(tmp_path: Path, frames: int) -> None:
    tokenizer = glm_listener.open_tokenizer(glm_folder(tmp_path)).read()
    mel = torch.randn(128, frames, generator=torch.Generator().manual_seed(6))
    valid = frames - 5
    with torch.inference_mode():
        hidden = F.gelu(F.conv1d(F.pad(mel[None], (2, 0)), tokenizer.conv1.weight,
                                 tokenizer.conv1.bias))  # fmt: skip
        hidden = F.gelu(F.conv1d(F.pad(hidden, (2, 0)), tokenizer.conv2.weight,
                                 tokenizer.conv2.bias, stride=2)).transpose(1, 2)  # fmt: skip
        count = hidden.shape[1]
        hidden = hidden + tokenizer.embed_positions.weight[:count]
        sound = [2 * key < valid for key in range(count)]
        mask = torch.full((count, count), torch.finfo(torch.float32).min)
        for query in range(count):
            for key in range(count):
                if sound[key] and (key <= query or key // 200 == query // 200):
                    mask[query, key] = 0
        for block in tokenizer.layers:
            hidden = hf_block(block, 16, 2, 32)(hidden, mask[None, None])
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        hidden = hidden.reshape(1, count, 16)
        ours = tokenizer.states(mel, valid)
        assert torch.allclose(ours, hidden[0], atol=1e-4)
        pooled = hidden[0].reshape(-1, 4, 16).mean(1)
        rows = tokenizer.codebook.weight
        nearest = [int(((row - rows) ** 2).sum(1).argmin()) for row in pooled]
        assert tokenizer.quantize(mel, valid).tolist() == nearest


@given(st.integers(1600, 1_000_000))
@settings(max_examples=10, deadline=None)
def test_one_code_for_each_80_ms(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    folder = glm_folder(tmp_path_factory.mktemp("glm"))
    tokenizer = glm_listener.open_tokenizer(folder).read()
    listener = glm_listener.GlmListener(tokenizer, 151343, 151344, 152353)
    (heard,) = listener.hear(noise(length / 16_000), 16_000)
    whole, rest = divmod(length, 480_000)
    assert len(heard.ids) - 2 == whole * 375 + -(-rest // 1280)
    assert heard.ids[0] == 151343
    assert heard.ids[-1] == 151344
    assert heard.features is None
    assert all(152353 <= code < 152353 + 64 for code in heard.ids[1:-1])


def test_a_speech_tokenizer_that_is_none_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pooling_type"):
        glm_listener.open_tokenizer(glm_folder(tmp_path, GLM_CONFIG | {"pooling_type": "max"}))
    for name, value in (("quantize_position", 10**12), ("d_model", -1), ("num_mel_bins", 80)):
        (tmp_path / "config.json").write_text(json.dumps(GLM_CONFIG | {name: value}))
        with pytest.raises(CheckpointError, match=f"speech tokenizer has no usable {name}"):
            glm_listener.open_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(GLM_CONFIG | {"encoder_attention_heads": 3}))
    with pytest.raises(CheckpointError, match="no usable encoder_attention_heads"):
        glm_listener.open_tokenizer(tmp_path)

    def lose(state: dict[str, Tensor]) -> None:
        del state["codebook.weight"]

    with pytest.raises(CheckpointError, match=r"lacks codebook\.weight"):
        glm_listener.open_tokenizer(glm_folder(tmp_path, change=lose))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        glm_listener.open_tokenizer(tmp_path)
