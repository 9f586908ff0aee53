"""`make train`: the embedded model from nothing, stage by stage; each stage resumes by itself.

`python -m spark.training --work DIR --hours H [--workers N]` needs Debian's flite, wordnet-base and
scowl, and the development packages. The result is written to assets/embedded only at the end.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from spark.models.embedded import FOLDER

# Shares of the time: decoder, shallow stage, full depth, exit heads.
_SHARES = {"decoder": 0.20, "shallow": 0.25, "deep": 0.48, "heads": 0.07}
_SHALLOW = 5  # layers of the first stage: early steps cost a third of full depth's


def stages(work: Path, hours: float, sentences: int, workers: int) -> list[list[str]]:
    """The commands, in order, each `python -m` of a module of this package and its arguments."""
    minutes = {name: str(60 * hours * share) for name, share in _SHARES.items()}
    said, codebook, codec = work / "said", work / "codebook.safetensors", work / "codec.safetensors"
    data, shallow, deep = work / "data", work / "shallow", work / "deep"
    common = ["--data", data, "--workers", workers]
    rows = [
        ["recordings", "--out", said, "--count", sentences],
        ["codebook", "--said", said, "--out", codebook],
        ["decoder", "--said", said, "--codebook", codebook, "--out", codec,
         "--minutes", minutes["decoder"]],
        ["codes", "--said", said, "--codebook", codebook, "--out", data],
        ["language_model", *common, "--out", shallow, "--layers", _SHALLOW,
         "--minutes", minutes["shallow"], "--peak-rate", "3e-3"],
        ["language_model", *common, "--out", deep, "--start", shallow,
         "--minutes", minutes["deep"]],
    ]  # fmt: skip
    return [[str(part) for part in row] for row in rows]


def publish(work: Path, folder: Path) -> None:
    """Copies weights, tokenizer and codec to where the app reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    for path in (work / "deep").glob("model*.safetensors*"):
        shutil.copy(path, folder)
    shutil.copy(work / "deep" / "config.json", folder)
    shutil.copy(work / "data" / "tokenizer.json", folder)
    shutil.copy(work / "codec.safetensors", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--hours", type=float, default=6.0, help="of training, data apart")
    parser.add_argument("--sentences", type=int, default=14_000, help="read by the teacher")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for stage in stages(given.work, given.hours, given.sentences, given.workers):
        print("==", *stage, flush=True)
        subprocess.run([sys.executable, "-m", f"spark.training.{stage[0]}", *stage[1:]], check=True)
    publish(given.work, FOLDER)
    minutes = str(60 * given.hours * _SHARES["heads"])
    heads = ["--data", str(given.work / "data"), "--minutes", minutes]
    subprocess.run([sys.executable, "-m", "spark.training.exit_heads", *heads], check=True)


if __name__ == "__main__":
    main()
