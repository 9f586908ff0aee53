"""Where a large model goes, whether it fits, 8-bit layers, and files that are not there."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from spark import compare, hardware, models
from spark.models import (
    fits,
    glm4_voice,
    glm_vocoder,
    hub,
    large,
    step_audio_2,
    step_vocoder,
    vocoding,
)
from spark.models.__main__ import main
from spark.models.checkpoint import Checkpoint, CheckpointError
from spark.models.loading import Progress
from spark.quantised import Int8Layer, Int8Matrix
from spark.transformer import Transformer
from tests.checkpoints import write_glm, write_step
from tests.test_hearing import glm_folder
from tests.tiny import random_state, tiny_config

GIB = 2**30
FAMILY = step_audio_2.FAMILY


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch):
    """A CPU without fast bf16 and with a given number of GiB free."""

    def free(gib: float | None, bf16: bool = False) -> None:
        size = None if gib is None else int(gib * GIB)
        monkeypatch.setattr(hardware, "best_device", lambda: torch.device("cpu"))
        monkeypatch.setattr(hardware, "fast_bf16", lambda where: bf16)
        monkeypatch.setattr(hardware, "free_memory", lambda where: size)

    return free


def place(bits: fits.Bits = 16) -> fits.Placement:
    need = fits.Need(FAMILY.title, FAMILY.shape, FAMILY.tokens, FAMILY.speech_rows)
    return fits.place(need, bits=bits)


def test_parameters_are_counted_as_the_weights_are() -> None:
    assert sum(fits.parameters(FAMILY.shape)) == pytest.approx(7_663_326_720, rel=1e-6)


def test_precision_follows_memory_and_processor(memory) -> None:
    memory(64)
    assert (place().dtype, place().bits) == (torch.float32, 16)
    assert "no fast bf16" in place().reason
    memory(20)
    assert place().dtype == torch.bfloat16
    assert "fp32 would not fit" in place().reason
    memory(64, bf16=True)
    assert place().dtype == torch.bfloat16
    memory(None)
    assert place().dtype == torch.float32


def test_what_does_not_fit_is_refused_with_what_helps(memory) -> None:
    memory(12)
    with pytest.raises(fits.TooLarge, match=r"needs 1\d\.\d GiB .* 12\.0 GiB.*--bits 8"):
        place()
    assert place(8).bits == 8
    memory(4)
    with pytest.raises(fits.TooLarge, match="use a machine with a larger GPU"):
        place(8)
    assert "4.0 GiB are free" in step_audio_2.unavailable()
    info = {i.name: i for i in models.available()}["step-audio-2-mini"]
    assert not info.runnable
    assert "4.0 GiB are free" in info.reason
    with pytest.raises(ValueError, match="'step-audio-2-mini' cannot run here"):
        models.load("step-audio-2-mini")


def test_what_hears_and_speaks_is_counted_as_published(memory) -> None:
    """Sizes of the published files: 652 M values that hear, flow.pt and hift.pt of 706 MB; GLM's
    1.46 GB (of which 84 MB are of training) and 527 MB."""
    step, glm = FAMILY.beside(torch.bfloat16), glm4_voice.FAMILY.beside(torch.bfloat16)
    assert step == pytest.approx(2 * 651_852_544 + 706e6, rel=0.02)
    assert FAMILY.beside(torch.float32) - step == 2 * 651_852_544
    assert glm == glm4_voice.FAMILY.beside(torch.float32)
    assert glm == pytest.approx(1.458e9 - 86e6 + 527e6, rel=0.02)
    plain = fits.Need(FAMILY.title, FAMILY.shape, FAMILY.tokens, FAMILY.speech_rows)
    whole = replace(plain, beside=FAMILY.beside)
    needs = [need.nbytes(torch.bfloat16, 8) / GIB for need in (plain, whole)]
    assert needs[1] - needs[0] == pytest.approx(1.05 * step / GIB, abs=0.01)
    memory(sum(needs) / 2)
    assert place(8).bits == 8
    assert "use a machine with a larger GPU" in step_audio_2.unavailable()


@pytest.mark.parametrize("write", [write_step, write_glm])
def test_a_models_own_ears_and_voice_are_counted_before_it_is_read(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[fits.Need] = []

    def refuse(need: fits.Need, *_: object) -> None:
        asked.append(need)
        raise fits.TooLarge("too large")

    folder = write(tmp_path / "model")
    if write is write_glm:
        (tmp_path / "glm-4-voice-tokenizer").mkdir()
        glm_folder(tmp_path / "glm-4-voice-tokenizer")
    monkeypatch.setattr(fits, "place", refuse)
    with pytest.raises(fits.TooLarge):
        models.load(str(folder), device="cpu")
    kept = {}
    for shard in (tmp_path / "glm-4-voice-tokenizer" if write is write_glm else folder).glob(
        "*.safetensors"
    ):
        kept |= load_file(shard)
    beside = ("ema_", "embed_positions2")
    names = [name for name in kept if not name.startswith(beside)] if write is write_glm else [
        name for name in kept if name.startswith(("encoder.", "adapter."))]  # fmt: skip
    values = sum(kept[name].numel() for name in names)
    small, large = (asked[0].beside(dtype) for dtype in (torch.bfloat16, torch.float32))
    assert large == 4 * values
    assert small == (large if write is write_glm else 2 * values)


@pytest.mark.parametrize("write", [write_step, write_glm])
def test_nothing_is_read_before_memory_is_counted(
    write, tmp_path: Path, memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what hears nor what speaks: their weights, kept by name, would tell."""
    folder = write(tmp_path / "model")
    parts = glm_vocoder.PARTS if write is write_glm else step_vocoder.PARTS
    voice = tmp_path / "glm-4-voice-decoder" if write is write_glm else folder
    for name in (*parts.files, *step_vocoder.VOICE.files):
        (voice / name).parent.mkdir(parents=True, exist_ok=True)
        (voice / name).write_bytes(b"no vocoder, which only reading it shows")
    if write is write_glm:
        (tmp_path / "glm-4-voice-tokenizer").mkdir()
        glm_folder(tmp_path / "glm-4-voice-tokenizer")
    read: list[str] = []
    real = Checkpoint.tensor
    monkeypatch.setattr(
        Checkpoint, "tensor", lambda held, name: (read.append(name), real(held, name))[1]
    )
    memory(0.3)  # for the small transformer alone it would do; the published voice is 0.5 or 0.7
    with pytest.raises(fits.TooLarge, match=r"needs 0\.\d GiB on the CPU and 0\.3 GiB are free"):
        models.load(str(folder), device="cpu", dtype=torch.bfloat16)
    last = ("bias", "norm.weight", "layernorm.weight")  # looked into to see whether they are whole
    assert [name for name in read if not name.endswith(last)] == []
    assert not any(name.startswith(("encoder.", "adapter.")) for name in read)
    memory(4)
    with pytest.raises(CheckpointError, match=r"flow\.pt|25hz\.onnx"):
        models.load(str(folder), device="cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("write", "says"),
    [(write_step, "run `hf download stepfun-ai/Step-Audio-2-mini token2wav/flow.pt"),
     (write_glm, "run `hf download zai-org/glm-4-voice-decoder flow.pt hift.pt`")],
)  # fmt: skip
def test_a_missing_voice_is_told_before_the_model_is_read(
    write, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, when = write(tmp_path / "model", layers=2), list[str]()
    real = large.read_body

    def read(*given: object, **more: object) -> Transformer:
        when.append(capsys.readouterr().err)
        return real(*given, **more)

    monkeypatch.setattr(large, "read_body", read)
    asked = ["--model", str(folder), "--prompt", "hello", "--device", "cpu", "--max-tokens", "20",
             "--out", str(tmp_path / "out")]  # fmt: skip
    assert compare.main(asked) == 0
    (before,) = when
    assert says in before
    assert "On the CPU, in " in before
    after = capsys.readouterr().err
    assert says not in after  # once is enough
    assert "Exit heads: none are fitted" in after
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [p["mos_predicted"] for p in summary["policies"]] == [None] * 3


def test_a_missing_package_is_told_with_its_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(vocoding, "find_spec", lambda name: None)
    reason = step_vocoder.PARTS.reason(tmp_path)
    assert "campplus.onnx, onnxruntime): run `hf download stepfun-ai" in reason
    assert reason.endswith("and `python -m pip install onnxruntime` and start again")
    for name in step_vocoder.PARTS.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    reason = step_vocoder.PARTS.reason(tmp_path)
    assert "is not here (onnxruntime): run `python -m pip install onnxruntime`" in reason
    assert step_vocoder.offered(tmp_path, None) == (None, reason)


def test_a_device_that_is_not_here() -> None:
    for name in ("cuda", "warp"):
        if name == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(ValueError, match="device"):
            fits.place(fits.Need("M", FAMILY.shape, 10, 10), device=name)


@pytest.mark.parametrize("name", ["meta", "xpu", "hpu", "vulkan"])
def test_a_device_that_torch_knows_and_the_lab_does_not(name: str) -> None:
    with pytest.raises(ValueError, match="use cuda, mps or cpu"):
        fits.place(fits.Need("M", FAMILY.shape, 10, 10), device=name)


def test_a_gpu_by_a_number_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="no GPU 2: this machine has 2"):
        fits.place(fits.Need("M", FAMILY.shape, 10, 10), device="cuda:2")


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2500\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 400\n")
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    assert hardware.free_memory(torch.device("cpu")) == 900
    (tmp_path / "memory.max").write_text("max\n")
    assert (hardware.free_memory(torch.device("cpu")) or 0) > 900


def test_eight_bits_keep_each_value_within_half_a_step() -> None:
    make = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 24, generator=make)
    matrix[:, 3] = 0
    packed = Int8Matrix.of(matrix)
    step = matrix.abs().amax(0) / 127
    assert ((packed.wide() - matrix).abs() <= step / 2 + 1e-7).all()
    assert packed.values.dtype == torch.int8
    assert packed.nbytes < matrix.nbytes / 3


@torch.inference_mode()
def test_an_eight_bit_model_is_one_of_the_widened_weights() -> None:
    config = tiny_config("qwen2", 3)
    small = Transformer.from_state_dict(random_state(config), config, torch.float64, bits=8)
    assert all(isinstance(layer, Int8Layer) for layer in small.layers)
    wide = Transformer.from_state_dict(small.state_dict(), config, torch.float64)
    exact = Transformer.from_state_dict(random_state(config), config, torch.float64)
    assert small.layer_bytes(0) < exact.layer_bytes(0) / 3
    ids = torch.tensor([[1, 5, 9, 20]])

    def states(body: Transformer) -> torch.Tensor:
        return body.run_layers(0, 3, body.embed(ids), torch.arange(4), body.new_cache(4))

    torch.testing.assert_close(states(small), states(wide), rtol=1e-12, atol=1e-12)
    error = (states(small) - states(exact)).norm() / states(exact).norm()
    assert 0 < float(error) < 0.05


# Files that are not there


def test_no_network_is_said_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"could not be fetched .* goes on where"):
        hub.fetch("owner/name", ("config.json",))
    with pytest.raises(CheckpointError, match=r"needs 9000000\.0 GB more on the disk"):
        hub.fetch("owner/name", ("config.json",), size=9 * 10**15)
    monkeypatch.setattr(hub, "_look_for_room", lambda *_: None)
    assert main(["step-audio-2-mini"]) == 2
    assert "stepfun-ai/Step-Audio-2-mini could not be fetched" in capsys.readouterr().err


def lay(cache: Path, repo: str, files: dict[str, bytes]) -> Path:
    """A repository in the hub's cache."""
    home = cache / ("models--" + repo.replace("/", "--"))
    folder = home / "snapshots" / "abc"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text("abc")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty; downloads are noted in `asked.txt` and bring nothing."""

    def note(repo: str, repo_type: str, allow_patterns: list[str]) -> str:
        assert repo_type == "model"
        with (tmp_path / "asked.txt").open("a") as file:
            file.write(f"{repo} {' '.join(allow_patterns)}\n")
        return str(lay(tmp_path, repo, {}))

    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "snapshot_download", note)
    monkeypatch.setattr(hub, "_look_for_room", lambda *_: None)
    for module in (hub, vocoding):
        look = partial(module.try_to_load_from_cache, cache_dir=tmp_path)
        monkeypatch.setattr(module, "try_to_load_from_cache", look)
    return tmp_path


def test_every_repository_and_file_is_named_with_its_command(cache, capsys) -> None:
    assert main([]) == 0
    told = capsys.readouterr().out
    assert "not here: zai-org/glm-4-voice-9b, 19.1 GB: config.json tokenizer.model" in told
    assert "zai-org/glm-4-voice-tokenizer, 1.5 GB: config.json model.safetensors" in told
    assert "hf download zai-org/glm-4-voice-decoder flow.pt hift.pt" in told
    assert "stepfun-ai/Step-Audio-2-mini, of these: token2wav/flow.pt" in told
    assert "Built with glm-4" in told
    lay(cache, "zai-org/glm-4-voice-decoder", {"flow.pt": b"", "hift.pt": b""})
    assert main([]) == 0
    assert "  here: GLM-4-Voice's voice" in capsys.readouterr().out


def test_the_repositories_beside_a_model_are_fetched_too(cache, capsys) -> None:
    folder = write_glm(cache / "made")
    lay(cache, "zai-org/glm-4-voice-9b", {p.name: p.read_bytes() for p in folder.iterdir()})
    assert main(["glm-4-voice-9b"]) == 0
    assert (cache / "asked.txt").read_text().splitlines() == [
        "zai-org/glm-4-voice-tokenizer config.json model.safetensors",
        "zai-org/glm-4-voice-decoder flow.pt hift.pt",
    ]
    told = capsys.readouterr()
    assert "voice is not here (flow.pt, hift.pt)" in told.err  # the fake brought nothing
    assert told.out.strip().endswith("models--zai-org--glm-4-voice-9b/snapshots/abc")


def test_a_download_tells_its_bytes_while_they_come(cache, monkeypatch) -> None:
    """What an earlier one left counts from the start; the stand-in waits until it was seen."""
    blobs = cache / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "a").write_bytes(bytes(2 * 10**6))
    told, half = list[Progress](), threading.Event()

    def bring(*_: object, **__: object) -> str:
        (blobs / "b.incomplete").write_bytes(bytes(4 * 10**6))
        assert half.wait(60)
        (blobs / "b.incomplete").rename(blobs / "b")
        with (blobs / "b").open("ab") as file:
            file.write(bytes(4 * 10**6))
        return str(cache)

    def watch(progress: Progress) -> None:
        told.append(progress)
        if progress.done == 6 * 10**6:
            half.set()

    monkeypatch.setattr(hub, "snapshot_download", bring)
    hub.download("owner/name", ["*"], 10**7, watch=watch)
    assert [told[0].done, told[-1].done] == [2 * 10**6, 10**7]
    assert Progress("Fetching owner/name", 6 * 10**6, 10**7) in told
    assert told[-1].words == "Fetching owner/name: 0.01 of 0.01 GB (100 %)"
    assert Progress("Fetching x", 3 * 10**9, 18 * 10**9).words.endswith("3.00 of 18.00 GB (16 %)")
    assert Progress("Fetching x", 3 * 10**9, 0).words == "Fetching x: 3.00 GB so far"
    count = threading.active_count()

    def fail(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="could not be fetched"):
        hub.download("owner/name", ["*"], 10**7, watch=told.append)
    assert threading.active_count() == count  # nobody looks any more


def test_reading_a_model_tells_its_bytes(tmp_path: Path) -> None:
    told: list[Progress] = []
    lm = models.load(str(write_step(tmp_path / "model")), watch=told.append, device="cpu",
                     dtype=torch.float32)  # fmt: skip
    assert [p.done for p in told] == sorted(p.done for p in told)
    stored = sum(t.nbytes for t in lm.transformer.state_dict().values())
    assert told[-1].done == stored // 2  # bf16 in the files, fp32 here
    assert told[-1].total == pytest.approx(told[-1].done, rel=1e-4)
    assert told[-1].words.startswith("Loading Step-Audio-2-mini: ")
    assert told[-1].words.endswith("(100 %)")


@pytest.mark.parametrize("index", [b'{"weight_map": {"a": 3}}', b"[1]", b'{"a":' * 100_000, b""])
def test_a_damaged_index_in_the_cache_stops_no_start(cache, memory, index: bytes) -> None:
    memory(64)
    lay(cache, FAMILY.repo, {"config.json": b"{}", "model.safetensors.index.json": index})
    infos = {info.name: info for info in models.available()}
    assert "are not on this machine" in infos["step-audio-2-mini"].reason


def test_what_a_page_could_fetch_is_told_with_its_size(cache, memory) -> None:
    memory(64)
    infos = {info.name: info for info in models.available()}
    assert infos["glm-4-voice-9b"].to_fetch == 19_090_000_000 + 1_460_000_000 + 527_000_000
    assert infos["step-audio-2-mini"].to_fetch == 17_870_000_000
    assert infos["embedded"].to_fetch == 0
    memory(4)
    assert {info.to_fetch for info in models.available()} == {0}  # fetching would not help


def test_a_model_without_a_voice_of_its_own_is_not_fetched_at_every_start(cache) -> None:
    folder = write_step(cache / "made")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    lay(cache, FAMILY.repo, {**files, "added_tokens.json": b"{}"})
    assert large.fetched(FAMILY, FAMILY.repo).name == "abc"
    assert not (cache / "asked.txt").exists()
    lay(cache, "other/fork", {"config.json": b"{}"})
    large.fetched(FAMILY, "other/fork")
    (line,) = (cache / "asked.txt").read_text().splitlines()
    assert line.startswith("other/fork config.json tokenizer.json")
    assert line.endswith("token2wav/campplus.onnx assets/default_female.wav")


def test_a_folder_is_looked_over_without_reading_its_weights(cache, capsys, monkeypatch) -> None:
    monkeypatch.setattr("spark.models.large.read_body", lambda *_: pytest.fail("was read"))
    folder = write_step(cache / "mine")
    assert main([str(folder), "--check"]) == 0
    told = capsys.readouterr()
    assert "run `hf download stepfun-ai/Step-Audio-2-mini token2wav/flow.pt" in told.err
    assert told.out.strip() == str(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert main([str(folder)]) == 2
    assert "model-00002-of-00003.safetensors missing" in capsys.readouterr().err
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert main([str(folder)]) == 2
    assert "of type 'bert'; known: Step-Audio-2-mini ('step_audio_2')" in capsys.readouterr().err
    assert main(["glm-4-voice-9b", "--check"]) == 2
    assert "19 GB" in capsys.readouterr().err
    assert main(["nix"]) == 2
    assert "no model or folder nix" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("write", "changes", "name"),
    [(write_step, {"vocab_size": 151936}, "<audio_6561>, id 158257"),
     (write_glm, {"padded_vocab_size": 151552}, "<|audio_16383|>, id 168736")],
)  # fmt: skip
def test_an_embedding_without_speech_rows_is_refused_with_a_remedy(
    write, changes, name: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "earlier")
    config = json.loads((folder / "config.json").read_text())
    (config.get("text_config") or config).update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=re.escape(name)) as caught:
        models.load(str(folder), device="cpu")
    assert "take " in str(caught.value)


def test_places_that_are_none() -> None:
    with pytest.raises(ValueError, match="a folder with a checkpoint, or OWNER/NAME of the hub"):
        models.load("no-such-model")
    assert not hub.is_repo("../secret/x")
    assert not hub.is_repo("a/..")
