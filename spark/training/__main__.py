"""`make train`: the embedded model from nothing, stage by stage.

Stopped, it goes on where it was: recordings, decoder and language model from their last checkpoint,
codebook, codes and heads from their beginning.

`python -m spark.training --work DIR --hours H [--workers N]` needs Debian's flite, wordnet-base and
scowl, and the development packages. The result is written to assets/embedded only at the end.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

from spark import hardware
from spark.models.embedded import FOLDER

# Shares of the time: the codec's three, then text alone, with speech, full depth twice, exit heads.
_SHARES = {"codebook": 0.10, "decoder": 0.15, "critics": 0.10, "written": 0.05, "shallow": 0.30,
           "deep": 0.15, "again": 0.10, "heads": 0.05}  # fmt: skip
_TOKENS = 768  # a step and worker
_EARLY_EXIT = 0.3  # weight of the early-exit loss at full depth
_SHALLOW = 5  # layers of the first stages: a step costs a third of full depth's


def stages(work: Path, hours: float, sentences: int, workers: int) -> list[list[str]]:
    """The commands, in order, each `python -m` of a module of this package and its arguments."""
    minutes = {name: str(60 * hours * share) for name, share in _SHARES.items()}
    said, codec = work / "said", work / "codec.safetensors"
    codebook, plain = work / "codebook.safetensors", work / "plain.safetensors"
    data, written, shallow = (work / part for part in ("data", "written", "shallow"))
    deep, again, average = (work / part for part in ("deep", "again", "average"))
    common = ["--data", data, "--workers", workers, "--tokens", _TOKENS]
    rows = [
        ["recordings", "--out", said, "--count", sentences],
        ["codebook", "--said", said, "--out", codebook, "--minutes", minutes["codebook"]],
        ["decoder", "--said", said, "--codebook", codebook, "--out", plain,
         "--minutes", minutes["decoder"]],
        ["decoder", "--said", said, "--codebook", plain, "--out", codec, "--critics",
         "--minutes", minutes["critics"]],
        ["codes", "--said", said, "--codebook", codebook, "--out", data],
        ["language_model", *common, "--out", written, "--layers", _SHALLOW, "--written",
         "--minutes", minutes["written"]],
        ["language_model", *common, "--out", shallow, "--layers", _SHALLOW, "--start", written,
         "--minutes", minutes["shallow"]],
        ["language_model", *common, "--out", deep, "--start", shallow,
         "--minutes", minutes["deep"], "--early-exit-loss", _EARLY_EXIT],
        ["language_model", *common, "--out", again, "--start", deep,
         "--minutes", minutes["again"], "--early-exit-loss", _EARLY_EXIT],
        ["average", "--first", deep, "--second", again, "--out", average],
    ]  # fmt: skip
    return [[str(part) for part in row] for row in rows]


def finished(stage: list[str], work: Path) -> bool:
    """Whether a stage that cannot resume has left its result; the others find their own place.

    Codes are finished where they are those of the present codebook.
    """
    codebook, used = work / "codebook.safetensors", work / "data" / "codebook.safetensors"
    if stage[0] == "codebook":
        return codebook.exists()
    if stage[0] == "codes" and used.exists() and (work / "data" / "aloud.npz").exists():
        return filecmp.cmp(codebook, used, shallow=False)
    return False


def assemble(work: Path) -> Path:
    """Gathers weights, tokenizer and codec in one folder, without anything of an earlier run."""
    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    average = work / "average"
    for path in [*average.glob("model*.safetensors*"), average / "config.json"]:
        shutil.copy(path, folder)
    shutil.copy(work / "data" / "tokenizer.json", folder)
    shutil.copy(work / "codec.safetensors", folder)
    return folder


def publish(model: Path, folder: Path) -> None:
    """Puts a finished model where the app reads it, in place of the old one."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    for path in model.iterdir():
        shutil.copy(path, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--hours", type=float, default=6.0, help="of training, data apart")
    parser.add_argument("--sentences", type=int, default=21_000, help="read by the teacher")
    cpu = hardware.device().type == "cpu"
    parser.add_argument(
        "--workers", type=int, default=2 if cpu else 1, help="processes of one thread; 1 on a GPU"
    )
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for stage in stages(given.work, given.hours, given.sentences, given.workers):
        if finished(stage, given.work):
            continue
        print("==", *stage, flush=True)
        subprocess.run([sys.executable, "-m", f"spark.training.{stage[0]}", *stage[1:]], check=True)
    model = assemble(given.work)
    minutes = str(60 * given.hours * _SHARES["heads"])
    heads = ["--data", str(given.work / "data"), "--model", str(model), "--minutes", minutes]
    subprocess.run([sys.executable, "-m", "spark.training.recorded_heads", *heads], check=True)
    publish(model, FOLDER)


if __name__ == "__main__":
    main()
