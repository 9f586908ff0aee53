"""The P.808 toolkit's `votes_per_worker` and `votes_per_clip`.

A question is called MOS, DMOS or CMOS there, with a scale's name behind it where there are several.
A vote is of one clip. That of a comparison is of the clip under test against its reference,
whichever was heard first; the reference has no name, and here it is the system `reference`. Not
known: which votes the toolkit's cleaning left out.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable

import pandas as pd

from listening_test.formats.base import (
    REFERENCE,
    FormatError,
    Shape,
    checked,
    exported,
    give,
    numbers,
    only,
    take,
    texts,
    tidy,
)

# Their column: ours.
_WORKER = {
    "HITId": "block_id", "workerid": "rater_id", "assignment_id": "session_id",
    "assignmentstatus": "status", "file": "stimulus_id", "short_file_name": "item_id",
    "vote": "score", "question_type": "dimension", "system": "system",
}  # fmt: skip
_CLIP = {"file_url": "stimulus_id", "short_file_name": "item_id", "system": "system"}

_MEANS = {"acr": "MOS", "p835": "MOS", "dcr": "DMOS", "ccr": "CMOS"}
# The dimension of a question that is called so without a scale's name.
_PLAIN = {"MOS": "quality", "DMOS": "degradation", "CMOS": "quality"}
_STATUSES = {"use": "Approved", "exclude": "Rejected"}

VOTES_PER_WORKER = Shape(
    "votes_per_worker",
    "votes_per_worker.csv",
    tuple(c for c in _WORKER if c != "system"),
    ("method", "score_signed", *_WORKER.values()),
    methods=tuple(_MEANS),
    statuses=("use", "exclude", "test"),
)
VOTES_PER_CLIP = Shape(
    "votes_per_clip",
    "votes_per_clip.csv",
    ("file_url", "n", "short_file_name"),
    ("method", "dimension", "score", "score_signed", *_CLIP.values()),
    methods=tuple(_MEANS),
    caution="it does not say who voted: intervals miss how raters differ, and are too narrow",
)


def _votes(frame: pd.DataFrame, shape: Shape) -> pd.DataFrame:
    """Rows for P.808: the vote as `score`, the toolkit's name of the question as `dimension`."""
    rows = _against_reference(exported(frame, shape)[0], shape.name)
    question = texts(rows, "method").replace("", "acr").map(_MEANS)
    dimension = texts(rows, "dimension")
    plain = (dimension == "") | (dimension == question.map(_PLAIN))
    return rows.assign(dimension=question + ("_" + dimension.str.upper()).mask(plain, ""))


def _against_reference(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Comparisons as ratings of the clip that is not the reference, by how much it is better."""
    compared = texts(rows, "method") == "ccr"
    first, second = texts(rows, "system"), texts(rows, "system_b")
    reference_first, reference_second = first == REFERENCE, second == REFERENCE
    for label in rows.index[compared & ~reference_first & ~reference_second]:
        raise FormatError(
            f"row {label + 2}: {name} compares with one reference, and none of {first[label]!r} "
            f"and {second[label]!r} is called {REFERENCE}. Rename the system that is, or keep only "
            "the pairs with it."
        )
    score = numbers(rows, "score")
    second_rated = compared & reference_first
    stimulus = texts(rows, "stimulus_id").mask(second_rated, texts(rows, "stimulus_b_id"))
    return rows.assign(
        system=first.mask(second_rated, second),
        stimulus_id=stimulus,
        score=score.mask(compared & reference_second, -score),
    )


def _ratings(frame: pd.DataFrame) -> pd.DataFrame:
    """Method and dimension from the toolkit's name of the question, which `dimension` holds."""
    parts = frame["dimension"].str.partition("_")
    for label, mean in parts[0].items():
        if mean not in _PLAIN:
            raise FormatError(
                f"row {label + 2}: question_type {frame['dimension'][label]!r} is unknown. "
                "Use MOS, DMOS or CMOS, or MOS_ and a scale as in MOS_SIG."
            )
    ending = parts[2].str.lower()
    method = parts[0].map({"MOS": "acr", "DMOS": "dcr", "CMOS": "ccr"})
    p835 = (method == "acr") & ending.isin(["sig", "bak", "ovrl"])
    dimension = ending.mask(ending == "", parts[0].map(_PLAIN))
    frame = frame.assign(method=method.mask(p835, "p835"), dimension=dimension)
    return tidy(_with_reference(frame, method == "ccr"))


def _with_reference(frame: pd.DataFrame, compared: pd.Series) -> pd.DataFrame:
    """Votes of comparisons as pairs, the reference heard first, as their scores are counted."""
    if not compared.any():
        return frame
    reference = frame["item_id"] + "/" + REFERENCE
    return frame.assign(
        system=frame["system"].mask(compared, REFERENCE),
        system_b=frame["system"].where(compared, ""),
        stimulus_id=frame["stimulus_id"].mask(compared, reference),
        stimulus_b_id=frame["stimulus_id"].where(compared, ""),
        score_signed=frame["score"].where(compared),
    )


def _condition(table: pd.DataFrame, known: Iterable[str]) -> pd.Series:
    """The system: `system`, or the toolkit's condition keys, joined as it joins them."""
    keys = sorted(set(table.columns) - set(known))
    if "system" in keys:
        return texts(table, "system", needed=True)
    rows = zip(*(texts(table, key) for key in keys), strict=True)
    joined = ["____".join(filter(None, row)) for row in rows] or [""]
    if "" in joined:
        raise FormatError(
            f"row {table.index[joined.index('')] + 2}: no condition says which system was heard. "
            "Set condition_pattern in the toolkit, or add a column system."
        )
    return pd.Series(joined, index=table.index, dtype=object)


def to_votes_per_worker(frame: pd.DataFrame) -> pd.DataFrame:
    """P.808 `votes_per_worker`, a row a vote, with `system` as the condition key.

    Excluded ratings go along with assignmentstatus Rejected: other readers must look at it.
    """
    table = give(_votes(frame, VOTES_PER_WORKER), _WORKER)
    return table.assign(assignmentstatus=table["assignmentstatus"].replace(_STATUSES))


def from_votes_per_worker(table: pd.DataFrame) -> pd.DataFrame:
    """Ratings from P.808 `votes_per_worker`; worker ids stay as they are.

    The toolkit lists only votes that it uses, approved by then or not: all count but those that
    were rejected afterwards.
    """
    table = checked(table, VOTES_PER_WORKER.required)
    frame = take(table, _WORKER).assign(system=_condition(table, VOTES_PER_WORKER.required))
    rejected = frame["status"].str.strip().str.lower() == "rejected"
    status = frame["status"].where(frame["status"] == "test", "use").mask(rejected, "exclude")
    reason = pd.Series("", index=table.index).mask(rejected, "assignmentstatus Rejected")
    return _ratings(frame.assign(status=status, status_reason=reason))


def to_votes_per_clip(frame: pd.DataFrame) -> pd.DataFrame:
    """P.808 `votes_per_clip`, a row a clip: its votes, their mean and the toolkit's interval."""
    rows = _votes(frame, VOTES_PER_CLIP)
    question = only(rows["dimension"], "question")
    ending = question.partition("_")[2].lower()
    std, interval = (f"{name}_{ending}" if ending else name for name in ("std", "95%CI"))
    clips = []
    for _, clip in rows.groupby([texts(rows, c) for c in _CLIP.values()], sort=False):
        votes = numbers(clip, "score").tolist()
        spread = statistics.stdev(votes) if len(votes) > 1 else math.nan
        half = 1.96 * spread / math.sqrt(len(votes))
        ids = give(clip.iloc[:1], _CLIP).iloc[0].to_dict()
        summary = {"n": len(votes), question: math.fsum(votes) / len(votes), std: spread}
        numbered = {f"vote_{i}": vote for i, vote in enumerate(votes, 1)}
        clips.append({"file_url": "", **summary, interval: half, **ids, **numbered})
    return pd.DataFrame(clips)


def from_votes_per_clip(table: pd.DataFrame) -> pd.DataFrame:
    """Ratings from P.808 `votes_per_clip`. Nobody knows who voted: each vote is its own rater."""
    table = checked(table, VOTES_PER_CLIP.required)
    votes = [c for c in table.columns if re.fullmatch(r"vote_\d+", c)]
    means = [c for c in table.columns if re.fullmatch(r"(MOS|DMOS|CMOS)(_.+)?", c)]
    if not votes or len(means) != 1:
        raise FormatError(
            f"has {len(votes)} columns vote_1, vote_2 ... and {len(means)} of MOS, DMOS, CMOS or "
            "MOS_...; one mean with its votes is needed. Take the toolkit's file of one scale."
        )
    summary = [c for c in table.columns if re.fullmatch(r"(std|95%CI)(_.+)?", c)]
    known = ["file_url", "n", "short_file_name", "n_silent", "is_silent_percentage", *summary]
    ids = take(table, _CLIP).assign(system=_condition(table, [*known, *votes, *means]))
    long = pd.concat([ids.assign(score=numbers(table, c), vote=c[5:]) for c in votes])
    long = long[long["score"].notna()].sort_index(kind="stable")
    counts = long.index.value_counts()
    for label, n in numbers(table, "n").items():
        if n != (found := counts.get(label, 0)):
            raise FormatError(
                f"row {label + 2}: n is {n:g}, but there are {found} votes. Is the file whole?"
            )
    rater = [f"unknown-{r + 2}-{v}" for r, v in zip(long.index, long["vote"], strict=True)]
    frame = long.drop(columns="vote").assign(session_id=rater, rater_id=rater, dimension=means[0])
    return _ratings(frame)
