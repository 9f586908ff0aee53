"""Everything a rater's browser can get, searched for what would tell a system or an answer.

    leaks(client, hosted, wait)       takes a study as several raters would, over HTTP
    folder_leaks(study_dir)           looks into the half of a study that the server reads

Each returns sentences, none for a blind study. The truth (which clip is whose, which trial is a
check) is read from the key and the database beside the server, never from what the server says.
A value that differs from trial to trial is no leak by itself; it is one if it goes together with
the system, or with the kind of trial, far more often than chance has it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyloudnorm
import soundfile
from scipy import stats

from listening_test import server
from listening_test.hosting import Hosted
from listening_test.levelling import EDGE_S
from listening_test.prepared import VOLUME_FILE
from listening_test.stimuli import volume_sound
from listening_test.study import Study
from tests.listening import Rater

SURE = 1e-6
PAGE_FILES = ("", *server._PAGE_FILES, "study")
# What no answer of the server may carry; its length cannot be hidden and is told in the report.
BANNED_HEADERS = ("etag", "last-modified", "content-disposition", "set-cookie", "server-timing",
                  "location", "x-accel-redirect")  # fmt: skip
UNTOLD_HEADERS = ("content-length", "content-range", "date")
# Names of fields that speak of what only the server should know.
TELLING = re.compile(
    r"expected|correct|right|passed|gold|trap|check|tolerance|system|^arm$|condition|policy|sound|"
    r"stimulus|file|lufs|duration|loudness", re.I)  # fmt: skip
_KINDS = {
    "trap trial": ("trap",), "gold trial": ("gold",), "check": ("trap", "gold"),
    "repeat": ("repeat",), "null pair": ("null_pair",),
}  # fmt: skip
PROBES = (
    "/openapi.json", "/docs", "/config", "/gradio_api/info", "/gradio_api/runs", "/results",
    "/admin",
    "/key/stimuli.csv", "/data/ratings.csv", "{base}/results", "{base}/ratings.csv",
    "{base}/data/ratings.csv", "{base}/design.json", "{base}/serve/design.json",
    "{base}/key/stimuli.csv", "{base}/clip/../design.json", "{base}/clip/..%2f..%2fdesign.json",
    "{base}/clip/..%2f..%2f..%2fkey%2fstimuli.csv", "{base}/clip/{stimulus}",
    "{base}/clip/{stimulus}.wav", "{base}/audio/{stimulus}.wav",
    "{base}/serve/audio/{stimulus}.wav",
)  # fmt: skip


@dataclass
class Clip:
    """One clip of a trial as it was served."""

    token: str
    stimulus: str
    system: str
    headers: dict[str, str]
    data: bytes
    seconds: float


@dataclass
class Seen:
    """One trial of one rater: the truth, and all that came from the server about it."""

    rater: int
    kind: str
    item: str
    place: int
    state: dict[str, Any]
    clips: list[Clip] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)


class Crawl:
    """All answers of a server to some raters, who do what the page lets them, and a bit more."""

    def __init__(
        self, client: Any, hosted: Hosted, wait: Callable[[float], None], base: str, raters: int
    ) -> None:
        self.client, self.hosted, self.wait, self.base = client, hosted, wait, base
        self.texts: list[tuple[str, str]] = []
        self.found: set[str] = set()
        with open(hosted.study_dir / "key" / "stimuli.csv", encoding="utf-8", newline="") as file:
            self.key = list(csv.DictReader(file))
        self.system = {row["stimulus_id"]: row["system"] for row in self.key}
        self.trials: list[Seen] = []
        for name in PAGE_FILES:
            self.get(f"{base}/{name}".rstrip("/"), "page")
        self.get(f"{base}/volume", "sound to set the volume by")
        for number in range(raters):
            self.take(number)
        for probe in PROBES:
            path = probe.format(base=base, stimulus=self.key[-1]["stimulus_id"])
            reply = self.get(path, f"probe of {probe}")
            if reply.status_code == 200 and reply.content[:4] == b"RIFF":
                self.found.add(f"{probe} serves sound without a token")

    def get(self, path: str, what: str, **headers: str) -> Any:
        """GET, noted."""
        reply = self.client.get(path, headers=headers, follow_redirects=False)
        self.note(reply, what)
        return reply

    def note(self, reply: Any, what: str) -> None:
        """Keep what a browser sees of an answer, and judge its headers."""
        headers = {name.lower(): value for name, value in reply.headers.items()}
        # A probe's address is the crawler's own guess.
        probe = what.startswith("probe")
        seen = json.dumps(headers) + ("" if probe else unquote(str(reply.url)))
        self.texts.append((what, (seen + reply.content.decode("latin-1")).lower()))
        if ticket := re.search(rb'"ticket":"([\w=-]+)\.', reply.content):
            facts = base64.urlsafe_b64decode(ticket[1]).decode("latin-1")
            self.texts.append((what, facts.lower()))
        banned = [name for name in BANNED_HEADERS if name in headers and not probe]
        self.found |= {f"header {name} of a {what}" for name in banned}
        if not probe and "no-store" not in headers.get("cache-control", ""):
            self.found.add(f"a {what} may be cached")

    def take(self, number: int) -> None:
        """One rater's whole session."""
        rater = Rater(self.client, self.base)
        first = self.client.get(f"{self.base}/study").json()["questions"][0]["options"][0][0]
        reply = rater.post("session", {"consent": True})
        self.note(reply, "state")
        state = reply.json()
        digest = hashlib.sha256(rater.headers["X-Session"].encode()).hexdigest()
        query = "SELECT trials FROM sessions WHERE key_sha256 = ?"
        truth = json.loads(
            self.hosted.store.run(lambda db: db.execute(query, (digest,)).fetchone()[0]).result()
        )
        place = 0
        for trial in truth:
            place += trial["trial_type"] in ("rating", "null_pair")
            seen = Seen(number, trial["trial_type"], trial["item_id"], place, state)
            self.note(rater.post("rating", rater.body(state, first)), "refusal")
            for token, stimulus in zip(state["clips"], trial["clips"], strict=True):
                seen.clips.append(self.clip(token, stimulus))
            lengths = [len(clip.data) for clip in seen.clips]
            seconds = [soundfile.info(io.BytesIO(clip.data)).duration for clip in seen.clips]
            assert lengths
            self.wait(max(seconds) + 0.01)
            body = rater.body(state, first)
            for heard, length in zip(body["clips"], seconds, strict=True):
                heard["listened_ms"] = round(1000 * length)
            answer = rater.post("rating", body)
            assert answer.status_code == 200, answer.text
            self.note(answer, "rating")
            for clip in seen.clips:
                if self.client.get(f"{self.base}/clip/{clip.token}").status_code == 200:
                    self.found.add("a clip's address outlives its trial")
            seen.reply = answer.json()
            state = seen.reply["next"]
            self.trials.append(seen)

    def clip(self, token: str, stimulus: str) -> Clip:
        """A clip, whole and in part."""
        start = time.perf_counter()
        reply = self.get(f"{self.base}/clip/{token}", "clip")
        seconds = time.perf_counter() - start
        if reply.is_redirect:
            self.found.add("a clip is a redirect")
            reply = self.client.get(reply.headers["location"])
            self.note(reply, "clip")
        self.get(f"{self.base}/clip/{token}", "clip", Range="bytes=0-9")
        headers = {name.lower(): value for name, value in reply.headers.items()}
        return Clip(token, stimulus, self.system[stimulus], headers, reply.content, seconds)


def leaks(
    client: Any,
    hosted: Hosted,
    wait: Callable[[float], None],
    base: str = "/listen/small",
    raters: int = 6,
) -> list[str]:
    """What tells systems or answers to those who take the study, as sentences.

    Args:
        client: speaks HTTP to the server, as httpx does.
        wait: lets so many seconds pass, by the server's clock.
        raters: enough for whole squares of the design.
    """
    crawl = Crawl(client, hosted, wait, base, raters)
    judges = (_words, _fields, _tokens, _telling_values, _order, _audio, _speed, _same_sound)
    found = {leak for judge in judges for leak in judge(crawl)}
    return sorted(crawl.found | found)


def folder_leaks(study_dir: Path) -> list[str]:
    """What in STUDY_DIR/serve would tell a system to whoever reads it."""
    with open(study_dir / "key" / "stimuli.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    secrets = _names(rows) | {row["audio_sha256"] for row in rows}
    found = []
    for path in sorted(path for path in (study_dir / "serve").rglob("*") if path.is_file()):
        name = path.relative_to(study_dir / "serve").as_posix()
        if name == VOLUME_FILE:
            if path.read_bytes() != _volume(study_dir, int(rows[0]["sample_rate"])):
                found.append(f"serve/{name} is not the sound that code makes")
        elif name != "design.json" and not re.fullmatch(r"audio/[0-9a-f]{16}\.wav", name):
            found.append(f"serve/{name} is no file of a served study")
        text = (name + path.read_bytes().decode("latin-1")).lower()
        found += [f"serve/{name} holds {secret}" for secret in secrets if secret.lower() in text]
    return found


def _volume(study_dir: Path, rate: int) -> bytes:
    """The sound to set the volume by: it follows from seed, rate and loudness, from no clip."""
    record = json.loads((study_dir / "key" / "study.json").read_text(encoding="utf-8"))
    return volume_sound(Study.model_validate(record["config"]), rate)


def _names(rows: list[dict[str, str]]) -> set[str]:
    """The systems' names, plain and as somebody might hide them."""
    names = {row["system"] for row in rows} - {""}
    coded = {base64.b64encode(name.encode()).decode().rstrip("=") for name in names}
    for kind in ("md5", "sha1", "sha256"):
        coded |= {hashlib.new(kind, name.encode()).hexdigest()[:16] for name in names}
    return names | coded


def _words(crawl: Crawl) -> Iterator[str]:
    """Names, ids, hashes and folders that no answer may hold."""
    words = _names(crawl.key) | {str(crawl.hosted.study_dir), "stimuli.csv"}
    for row in crawl.key:
        words |= {row["stimulus_id"], row["audio_sha256"][:16], row["item_id"]}
    for what, text in crawl.texts:
        for word in words:
            if word.lower() in text:
                yield f"a {what} holds {word}"
        if what == "page" and "console." in text:
            yield "the page writes to the console"
        if what == "page" and re.search(r"\bcontrols\b|<canvas|waveform", text):
            yield "the page shows how long a clip is"
    for name in ("gold", "trap"):
        if any(what == "page" and re.search(rf"\b{name}", text) for what, text in crawl.texts):
            yield f"the page speaks of {name}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, f"{path}[]")
    else:
        yield path, json.dumps(value)


def _fields(crawl: Crawl) -> Iterator[str]:
    """Fields of the JSON whose very names tell."""
    for seen in crawl.trials:
        for path, _ in _leaves(seen.reply | seen.state):
            if TELLING.search(path.rpartition(".")[2].replace("[]", "")):
                yield f"the state has a field {path}"


def _tokens(crawl: Crawl) -> Iterator[str]:
    """A token is of one rater, trial and place, and long enough not to be guessed."""
    tokens = [clip.token for seen in crawl.trials for clip in seen.clips]
    if len(set(tokens)) < len(tokens):
        yield "a clip has the same address twice"
    if min(map(len, tokens)) < 20:
        yield "an address can be guessed"


def _together(values: list[str], classes: list[str]) -> bool:
    """Whether a value goes together with a class far more often than chance has it.

    Either guessing each class from the others with the same value is right too often (binomial
    test), or one value stands with one class too often (Fisher's exact test), which finds rare
    classes.
    """
    if len(set(values)) < 2 or len(set(classes)) < 2:
        return False
    by_value: dict[str, Counter[str]] = defaultdict(Counter)
    for value, name in zip(values, classes, strict=True):
        by_value[value][name] += 1
    total = Counter(classes)
    right = tried = 0
    for value, name in zip(values, classes, strict=True):
        others = by_value[value] - Counter([name])
        if others:
            tried += 1
            right += max(others, key=lambda other: others[other]) == name
    base = max(total.values()) / len(classes)
    if tried and stats.binomtest(right, tried, base, "greater").pvalue < SURE:
        return True
    for own in by_value.values():
        for name, n in own.items():
            rest = own.total() - n
            table = [[n, rest], [total[name] - n, len(classes) - total[name] - rest]]
            if n > 3 and stats.fisher_exact(table, "greater").pvalue < SURE:
                return True
    return False


def _telling_values(crawl: Crawl) -> Iterator[str]:
    """Values of headers, tokens and fields that go together with the system or the kind."""
    rated = [seen for seen in crawl.trials if seen.kind != "practice"]
    clips = [(seen, clip) for seen in rated for clip in seen.clips if clip.system]
    features: dict[str, list[str]] = {}
    for name in sorted({name for _, clip in clips for name in clip.headers}):
        if name not in UNTOLD_HEADERS:
            features[f"header {name}"] = [clip.headers.get(name, "") for _, clip in clips]
    features["start of the address"] = [clip.token[:1] for _, clip in clips]
    features["end of the address"] = [clip.token[-1:] for _, clip in clips]
    features["length of the address"] = [str(len(clip.token)) for _, clip in clips]
    for path, values in _by_path(seen for seen, _ in clips).items():
        features[f"field {path}"] = values
    systems = [clip.system for _, clip in clips]
    yield from (f"{name} tells the system" for name, v in features.items() if _together(v, systems))
    for path, values in _by_path(rated).items():
        # Numbers of trials: a check that lies at one place for many raters goes with them.
        if path.rpartition(".")[2] not in ("trial_index", "number", "up", "safe"):
            for told, kinds in _KINDS.items():
                if _together(values, [str(seen.kind in kinds) for seen in rated]):
                    yield f"field {path} tells a {told}"


def _by_path(trials: Any) -> dict[str, list[str]]:
    """The values of each field over the trials, empty where a trial has none."""
    flat = [
        {p: v for p, v in [*_leaves(seen.state), *_leaves({"reply": seen.reply})] if "[]" not in p}
        for seen in trials
    ]
    paths = sorted({path for leaves in flat for path in leaves} - {".reply.saved"})
    return {path: [leaves.get(path, "") for leaves in flat] for path in paths}


def _order(crawl: Crawl) -> Iterator[str]:
    """Place in the session, place in the trial and the trial before must not tell the system."""
    rated = [seen for seen in crawl.trials if seen.kind in ("rating", "null_pair")]
    single = [seen for seen in rated if len(seen.clips) == 1]
    own = [seen.clips[0].system for seen in single]
    if _together([str(seen.place) for seen in single], own):
        yield "the place in the session tells the system"
    before = [
        own[i - 1] if i and single[i - 1].rater == seen.rater else ""
        for i, seen in enumerate(single)
    ]
    if _together(before, own):
        yield "the system before tells the system"
    placed = [(str(n), clip.system) for seen in rated for n, clip in enumerate(seen.clips)]
    if _together([n for n, _ in placed], [system for _, system in placed]):
        yield "the place in a trial tells the system"
    for one, two in zip(crawl.trials, crawl.trials[1:], strict=False):
        if one.rater == two.rater and one.item == two.item:
            yield "the same text comes twice in a row"


def _audio(crawl: Crawl) -> Iterator[str]:
    """One format without tags, one loudness, edges to the rule, nothing clipped."""
    sounds = {clip.stimulus: clip.data for seen in crawl.trials for clip in seen.clips}
    formats: list[tuple[str, set[Any]]] = [
        (name, set()) for name in ("sample rate", "channels", "coding")
    ]
    loudness = []
    for data in sounds.values():
        info = soundfile.info(io.BytesIO(data))
        for (_, known), value in zip(
            formats, (info.samplerate, info.channels, info.subtype), strict=True
        ):
            known.add(value)
        if _chunks(data) != ["fmt ", "data"]:
            yield f"a clip's file holds {_chunks(data)}"
        if len(data) != 8 + int.from_bytes(data[4:8], "little"):
            yield "a clip's file has bytes behind its end"
        samples, rate = soundfile.read(io.BytesIO(data), always_2d=True)
        loudness.append(pyloudnorm.Meter(rate).integrated_loudness(samples))
        loud = np.flatnonzero(np.abs(samples).max(axis=1) > 1e-3)
        if max(loud[0], len(samples) - 1 - loud[-1]) > (EDGE_S + 0.02) * rate:
            yield "a clip has silence at an edge"
        if np.abs(samples).max() > 0.9999:
            yield "a clip is clipped"
    yield from (f"clips differ in {name}" for name, known in formats if len(known) > 1)
    if np.ptp(loudness) > 0.3:
        yield "clips differ in loudness"


def _chunks(data: bytes) -> list[str]:
    """Names of a WAV file's chunks."""
    names, at = [], 12
    while at + 8 <= len(data):
        names.append(data[at : at + 4].decode("latin-1"))
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little") + at % 2
    return names


def _speed(crawl: Crawl) -> Iterator[str]:
    """How long a clip takes to come must not hang on its system."""
    by_system: dict[str, list[float]] = defaultdict(list)
    for seen in crawl.trials:
        for clip in seen.clips:
            if clip.system and seen.kind != "practice":
                by_system[clip.system].append(clip.seconds)
    medians = [float(np.median(seconds)) for seconds in by_system.values()]
    if np.ptp(medians) > 0.01 and stats.kruskal(*by_system.values()).pvalue < SURE:
        yield "the time until a clip comes tells the system"


def _same_sound(crawl: Crawl) -> Iterator[str]:
    """The very same sound under two systems must not be rated as if it could tell them apart."""
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in crawl.key:
        owners[row["item_id"], row["audio_sha256"]].add(row["system"])
    twice = {
        row["stimulus_id"]
        for row in crawl.key
        if len(owners[row["item_id"], row["audio_sha256"]]) > 1
    }
    for seen in crawl.trials:
        same = [clip.stimulus in twice for clip in seen.clips]
        if seen.kind == "rating" and all(same) and len({c.data for c in seen.clips}) == 1:
            yield "the same sound of two systems is rated as two"
