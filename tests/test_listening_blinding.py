"""A study is blind; and each leak that there could be, planted on purpose, is caught.

The checker is `blinding.py`. A leak that nobody can plant so that it is found is a leak that
nobody would see.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fastapi import FastAPI

from listening_test import calls, resend
from listening_test.hosting import Hosted, Studies
from listening_test.server import attach
from listening_test.stimuli import prepare
from listening_test.study import load_study
from listening_test.targets import FolderTarget
from tests.blinding import folder_leaks, leaks
from tests.listening import RATE, SYSTEMS, Clock, InProcess, tone_bursts, write_study
from tests.plants import (
    Plant,
    Target,
    by_content,
    clips_by_id,
    coded,
    digest,
    feedback,
    folder_served,
    immortal,
    in_config,
    in_header,
    in_history,
    in_page,
    in_refusal,
    in_state,
    in_title,
    in_token,
    key_served,
    never_turned,
    padded,
    rated_twins,
    redirected,
    results_open,
    rewritten,
    same_order,
    side_by_side,
    slow,
    tagged,
    volume_of_a_system,
)
from tests.test_listening_export import key_of

CHECKS = """
traps: [{id: stop-sign, files: [checks/one.wav], answer: 2}]
gold: [{id: nugget, files: [checks/two.wav], answer: 5}]
repeats: 1
"""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared studies to copy: one clip a trial with checks, pairs, and one with equal sounds."""
    made = {}
    for name, extra in (
        ("acr", CHECKS), ("ab", "method: ab"), ("same", ""),
    ):  # fmt: skip
        folder = tmp_path_factory.mktemp(name)
        practice = "{id: text-p}" if name == "ab" else None
        path = write_study(folder / "source", extra=extra, practice=practice)
        (folder / "source" / "checks").mkdir()
        for seed, check in enumerate(("one", "two")):
            check_path = folder / "source" / "checks" / f"{check}.wav"
            soundfile.write(check_path, tone_bursts(900 + seed), RATE, subtype="PCM_16")
        if name == "same":
            shutil.copy(
                folder / "source" / SYSTEMS[0] / "text-1.wav",
                folder / "source" / SYSTEMS[1] / "text-1.wav",
            )
        prepare(load_study(path), folder / "study")
        made[name] = folder / "study"
    return made


def found_in(
    prepared: Path,
    folder: Path,
    patch: pytest.MonkeyPatch,
    plants: Sequence[Plant] = (),
    copied: bool = False,
) -> list[str]:
    """Leaks of a copy of a study, with leaks planted or without, its ratings `copied` or not."""
    study_dir, bucket = folder / "study", folder / "bucket"
    shutil.copytree(prepared, study_dir)
    bucket.mkdir()
    opened = Studies(FolderTarget(bucket) if copied else None)
    app, clock = FastAPI(openapi_url=None), Clock()
    for plant in plants:
        plant(Target(study_dir, app, patch))
    hosted: Hosted = opened.open(study_dir)
    attach(app, opened)
    patch.setattr(calls, "time", clock)
    client = InProcess(app)
    found = leaks(client, hosted, clock.wait)
    client.close()
    opened.close()
    return found + folder_leaks(study_dir)


@pytest.mark.parametrize("kind", ["acr", "ab", "same"])
def test_a_study_is_blind(
    studies: dict[str, Path], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found_in(studies[kind], tmp_path, monkeypatch) == []


def test_a_study_whose_ratings_are_copied_is_blind(
    studies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found_in(studies["acr"], tmp_path, monkeypatch, copied=True) == []
    copies = [path.read_text(encoding="utf-8") for path in tmp_path.glob("bucket/**/*.jsonl")]
    assert any('"table": "ratings"' in text for text in copies)


def test_a_ticket_that_tells_the_order_is_caught(
    studies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resend, "_FACTS", (*resend._FACTS, "trials"))
    found = found_in(studies["acr"], tmp_path, monkeypatch, copied=True)
    ids = key_of(tmp_path / "study")
    assert {f"a state holds {name}" for name in ids} & set(found), found


GOLD_IN_PAGE = '\nconst gold = { "nugget": 5 };\n'
# By study, then by crawl: what is planted together, and what the checker must say of each.
Group = dict[str, tuple[Plant, str]]
HEADERS: Group = {
    "system": (
        partial(in_header, name="X-Source", value=lambda system, _: system),
        f"a clip holds {SYSTEMS[1]}",
    ),
    "hash of the system": (
        partial(in_header, name="X-Trace", value=lambda system, _: digest(system)),
        f"a clip holds {digest(SYSTEMS[2])[:16]}",
    ),
    "which machine": (
        partial(in_header, name="Server", value=lambda system, _: f"node-{len(system)}"),
        "header server tells the system",
    ),
    "file name": (
        partial(in_header, name="Content-Disposition", value=lambda *_: 'filename="a.wav"'),
        "header content-disposition of a clip",
    ),
    "content hash": (
        partial(in_header, name="ETag", value=lambda _, data: hashlib.md5(data).hexdigest()),
        "header etag of a clip",
    ),
    "date of the file": (
        partial(in_header, name="Last-Modified", value=lambda *_: "Mon, 23 Nov 2026 06:00:00 GMT"),
        "header last-modified of a clip",
    ),
    "how long it took": (
        partial(in_header, name="Server-Timing", value=lambda *_: "decode;dur=53"),
        "header server-timing of a clip",
    ),
    "where it lies": (
        partial(in_header, name="X-Accel-Redirect", value=lambda *_: "/kept/a"),
        "header x-accel-redirect of a clip",
    ),
    "system, disguised": (
        partial(in_header, name="X-Key", value=lambda system, _: coded(system)),
        f"a clip holds {coded(SYSTEMS[1]).rstrip('=')}",
    ),
    "cookie": (
        partial(in_header, name="Set-Cookie", value=lambda system, _: f"v={digest(system)[:3]}"),
        "header set-cookie of a clip",
    ),
    "cache": (
        partial(in_header, name="Cache-Control", value=lambda *_: "max-age=3600"),
        "a clip may be cached",
    ),
}
STATE: Group = {
    "system": (
        partial(in_state, field=lambda _, system: {"label": system}),
        f"a rating holds {SYSTEMS[1]}",
    ),
    "number that goes with the system": (
        partial(in_state, field=lambda _, system: {"shade": len(system)}),
        "field .shade tells the system",
    ),
    "length": (
        partial(in_state, field=lambda *_: {"duration_s": 0.5}),
        "the state has a field .duration_s",
    ),
    "refusal": (in_refusal, f"a refusal holds {SYSTEMS[1]}"),
    "arm": (partial(in_state, field=lambda *_: {"arm": 1}), "the state has a field .arm"),
    "gold answer": (
        partial(in_state, field=lambda trial, _: {"expected": trial.answer}),
        "the state has a field .expected",
    ),
    "number that goes with gold": (
        partial(in_state, field=lambda t, _: {"k": 1} if t.trial_type == "gold" else {}),
        "field .k tells a gold trial",
    ),
    "feedback on a check": (feedback, "field .reply.next.hint tells a check"),
}
PAGE: Group = {
    "gold answers": (
        partial(in_page, name="page.js", text=GOLD_IN_PAGE),
        "the page speaks of gold",
    ),
    "system in the source": (
        partial(in_page, name="index.html", text=f"<!-- {SYSTEMS[2]} -->"),
        f"a page holds {SYSTEMS[2]}",
    ),
    "console": (
        partial(in_page, name="clips.js", text="\nconsole.log(1);\n"),
        "the page writes to the console",
    ),
    "player with a clock": (
        partial(in_page, name="clips.js", text="\naudio.controls = true;\n"),
        "the page shows how long a clip is",
    ),
    "system in the title": (in_title, f"a page holds {SYSTEMS[1]}"),
}
LEVEL: Group = {
    "loudness": (partial(rewritten, change=lambda x: 0.9 * x), "clips differ in loudness"),
    "tags": (tagged, "a clip's file holds ['fmt ', 'data', 'LIST']"),
    "padding": (padded, "a clip's file has bytes behind its end"),
}
FORMAT: Group = {
    "clipping": (partial(rewritten, change=lambda x: np.clip(9 * x, -1, 1)), "a clip is clipped"),
    "silence": (
        partial(rewritten, change=lambda x: np.concatenate([np.zeros(8000), x])),
        "a clip has silence at an edge",
    ),
    "rate": (partial(rewritten, change=lambda x: x, rate=22_050), "clips differ in sample rate"),
    "channels": (
        partial(rewritten, change=lambda x: np.stack([x, x], axis=1), rate=22_050),
        "clips differ in channels",
    ),
}
SERVED: Group = {
    "key in the served folder": (key_served, "serve/stimuli.csv is no file of a served study"),
    "a system sets the volume": (
        volume_of_a_system,
        "serve/volume.wav is not the sound that code makes",
    ),
    "key over HTTP": (folder_served, f"a probe of /key/stimuli.csv holds {SYSTEMS[0]}"),
    "open results": (results_open, f"a probe of /results holds {SYSTEMS[0]}"),
    "choices in the app's config": (in_config, f"a probe of /config holds {SYSTEMS[0]}"),
    "history of calls": (in_history, f"a probe of /gradio_api/runs holds {SYSTEMS[0]}"),
    "clips by their ids": (clips_by_id, "{base}/audio/{stimulus}.wav serves sound without a token"),
}
ADDRESS: Group = {
    "stimulus id": (
        partial(in_token, token=lambda old, clip, _: f"{clip}-{old}"),
        "a state holds ",
    ),
    "outlives its trial": (immortal, "a clip's address outlives its trial"),
}
SHORT: Group = {
    "short": (partial(in_token, token=lambda old, *_: old[:8]), "an address can be guessed"),
    "latency": (slow, "the time until a clip comes tells the system"),
}
GROUPS: dict[str, tuple[str, Group]] = {
    "headers": ("acr", HEADERS),
    "state": ("acr", STATE),
    "page": ("acr", PAGE),
    "level and tags": ("acr", LEVEL),
    "format": ("acr", FORMAT),
    "bit depth": (
        "acr",
        {"": (partial(rewritten, change=lambda x: x, coding="PCM_24"), "clips differ in coding")},
    ),
    "what is served": ("acr", SERVED),
    "address": ("acr", ADDRESS),
    "address and time": ("acr", SHORT),
    "system in the URL": ("acr", {"": (redirected, f"a clip holds {SYSTEMS[0]}")}),
    "content hash as address": ("acr", {"": (by_content, "a clip has the same address twice")}),
    "one order": ("acr", {"": (same_order, "the system before tells the system")}),
    "one order in pairs": ("ab", {"": (never_turned, "the place in a trial tells the system")}),
    "back to back": ("acr", {"": (side_by_side, "the same text comes twice in a row")}),
    "twins": ("same", {"": (rated_twins, "the same sound of two systems is rated as two")}),
}


@pytest.mark.parametrize("name", GROUPS)
def test_planted_leaks_are_caught(
    studies: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, group = GROUPS[name]
    plants = [plant for plant, _ in group.values()]
    found = found_in(studies[kind], tmp_path, monkeypatch, plants)
    missed = {leak for leak, (_, says) in group.items() if not any(says in f for f in found)}
    assert not missed, found


def test_nothing_that_could_decode_is_there_while_raters_listen() -> None:
    """Speech decoded while somebody waits would come at each system's own speed."""
    asked = (
        "import sys, listening_test.serve; "
        "print([name for name in ('spark', 'torch', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert (found.stdout.strip(), found.stderr) == ("[]", "")
