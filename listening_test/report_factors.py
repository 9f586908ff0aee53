"""What a report on a listening test must tell, each factor filled from the data or left open.

The list is that of Chiang, Huang & Lee, "Why we should report the details in subjective
evaluation of TTS more rigorously" (Interspeech 2023, arXiv 2306.02044), with what ITU-T P.800.2
asks of a mean opinion score. A factor without text is missing, and says what to write and where.
Knows ratings and study files; how a report looks is `document.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from listening_test.columns import SCORED_TRIALS
from listening_test.decisions import BY_HAND, INTERNAL, STATUS
from listening_test.exclusion import rules_of
from listening_test.methods import CHOICE_METHODS, Question
from listening_test.report_statistics import told_statistics
from listening_test.study import Study
from listening_test.study_parts import Anchor, Reporting
from listening_test.texts import texts
from listening_test.wording import bands

_PLATFORMS = {
    "prolific": "Raters were recruited through Prolific.",
    "mturk": "Raters were recruited through Amazon Mechanical Turk.",
    "lab": "Raters took the test in the laboratory, or were invited to it by the authors.",
    "open": "The page was open to anybody who had its address.",
}
# Rules of exclusion in words, by their key in the study file.
_RULES: dict[str, Callable[[Any], str]] = {
    "trap_errors": lambda n: f"more than {number(n, 'wrong trap')}",
    "gold_errors": lambda n: f"more than {number(n, 'wrong gold question')}",
    "same_answer_share": lambda share: f"{share:.0%} or more of one and the same answer",
    "repeat_difference": lambda d: f"repeats that differ by more than {d:g} on average",
    "reference_below": lambda rule: (
        f"the hidden reference below {rule[0]} in more than {rule[1]:.0%} of the texts "
        "(ITU-R BS.1534-3)"
    ),
    "anchor_above": lambda rule: (
        f"the mid anchor above {rule[0]} in more than {rule[1]:.0%} of the texts (ITU-R BS.1534-3)"
    ),
    "correlation_below": lambda r: f"a correlation with the mean of the others below {r:g}",
    "incomplete_sessions": lambda _: "a session that did not come to its end",
}
_SCREENS = {
    "woods": "Woods et al. 2017, antiphase tones",
    "huggins": "Milne et al. 2020, Huggins pitch",
}


@dataclass(frozen=True)
class Evidence:
    """What a report is written from.

    Attributes:
        frame: all rows of ratings.csv with `status` and `status_reason` after the study's rules.
        used: the rows that count.
        result: the analysis of `used`.
        sessions, stimuli: the export's files, where there are any; without the team's own sessions.
        study: what the study file fixed, where it is known.
        details: what no rating can tell.
        screenshot: whether a picture of the rater's page goes with the report.
    """

    frame: pd.DataFrame
    used: pd.DataFrame
    result: dict[str, Any]
    sessions: pd.DataFrame | None = None
    stimuli: pd.DataFrame | None = None
    study: Study | None = None
    details: Reporting = field(default_factory=Reporting)
    screenshot: bool = False


@dataclass(frozen=True)
class Factor:
    """One thing to report: its text, or None and the remedy."""

    section: str
    name: str
    text: str | None
    remedy: str


def factors(evidence: Evidence) -> list[Factor]:
    """Every factor, in the order of a methods section."""
    return [
        Factor(section, name, text(evidence), remedy) for section, name, text, remedy in _FACTORS
    ]


def _told(key: str, example: str) -> str:
    """What to do about a factor that only people know."""
    return f"Write `{key}:` under `report:` in the study file, or in --details: {example}"


def _detail(key: str) -> Callable[[Evidence], str | None]:
    return lambda evidence: getattr(evidence.details, key)


def _joined(*parts: str | None) -> str | None:
    return " ".join(part for part in parts if part) or None


def number(n: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def _spread(counts: pd.Series) -> str:
    """A count of which each has its own: one number, or the mean and the range."""
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{counts.mean():.1f} on average ({low} to {high})"


def _platform(evidence: Evidence) -> str | None:
    own = evidence.details.recruitment
    if "platform" in evidence.used:
        names = set(evidence.used["platform"]) - {""}
        known = [_PLATFORMS[name] for name in _PLATFORMS if name in names]
        # That anybody could come, or that colleagues did, does not tell who they were asked by.
        if own or names & {"prolific", "mturk"}:
            return _joined(*known, own)
        return None
    return own


def _dates(evidence: Evidence) -> str | None:
    if "server_utc" not in evidence.used:
        return None
    days = sorted(day[:10] for day in evidence.used["server_utc"] if day)
    if not days:
        return None
    when = f"on {days[0]}" if days[0] == days[-1] else f"from {days[0]} to {days[-1]}"
    return f"Ratings were given {when} (UTC)."


def _account(evidence: Evidence) -> str | None:
    """What raters said of themselves: how often each choice of the questionnaire was picked."""
    if evidence.study is None:
        return None
    asked = evidence.study.questionnaire
    if not asked:
        return "Raters were asked nothing about themselves."
    sessions = evidence.sessions
    told = []
    for question in asked:
        name = f"about_{question.id}"
        if sessions is None or name not in sessions:
            told.append(f"“{question.question}” (answers are not in these data)")
            continue
        given = sessions.loc[sessions["rater_id"].isin(evidence.used["rater_id"]), name]
        answered = given[given.fillna("") != ""]
        counts = f"answered by {len(answered)} of {len(given)}"
        if question.choices:
            found = [f"{choice}: {int((answered == choice).sum())}" for choice in question.choices]
            counts += f"; {', '.join(found)}"
        told.append(f"“{question.question}” ({counts})")
    return f"Raters whose ratings count were asked about themselves: {'; '.join(told)}."


def _screen(evidence: Evidence) -> str | None:
    study = evidence.study
    if study is None:
        return None
    if study.screening is None:
        return "No screening of raters or devices was part of the test itself."
    end = {"screen_out": "who failed was sent away", "note": "who failed could go on"}
    told: list[str | None] = []
    given = study.screening
    if given.screens:
        names = " and ".join(_SCREENS[kind] for kind in given.screens)
        told.append(
            f"Before the practice raters took a headphone screen ({names}); {given.passes} of 6 "
            f"right passed, {end[given.on_fail]}."
        )
        told.append(_passed(evidence, "headphones_passed"))
    if (room := given.environment) is not None:
        told.append(
            "A room check followed (Naderi et al. 2020, pairs of a voice under noise, 6 dB apart); "
            f"{room.passes} of 4 right passed, {end[room.on_fail]}."
        )
        told.append(_passed(evidence, "environment_passed"))
    return _joined(*told)


def _passed(evidence: Evidence, column: str) -> str | None:
    """How many of those who came to its end passed a screen."""
    if evidence.sessions is None or column not in evidence.sessions:
        return None
    passed = evidence.sessions[column].astype(str).str.strip()
    n = int((passed != "").sum())
    return f"{int(passed.isin(('1', '1.0')).sum())} of {n} passed."


def _filtering(evidence: Evidence) -> str | None:
    if evidence.study is None:
        return None
    rules = evidence.study.exclusion
    # By identity: no error allowed at all is 0, and a rule.
    given = {k: v for k, v in rules.model_dump().items() if v is not None and v is not False}
    fixed = "The study file fixed no rule of exclusion."
    if given:
        words = [_RULES[name](value) for name, value in given.items()]
        fixed = f"Fixed before the first rating, raters were excluded for: {'; '.join(words)}."
    out = evidence.frame[
        (evidence.frame["status"] != "use") & evidence.frame["trial_type"].isin(SCORED_TRIALS)
    ]
    internal = out[out["status"] == STATUS[INTERNAL]]
    apart = (
        f" Apart from these, {number(internal['rater_id'].nunique(), 'session')} of the team "
        f"({number(len(internal), 'rating')}) tested the test, and count nowhere."
        if len(internal) else ""
    )  # fmt: skip
    out = out[out["status"] != STATUS[INTERNAL]]
    reason = out["status_reason"].where(out["status_reason"] != "", out["status"])
    dropped = dict.fromkeys(rules_of(rules), (0, 0))
    dropped |= {
        str(name): (rows["rater_id"].nunique(), len(rows)) for name, rows in out.groupby(reason)
    }
    if out.empty:
        return f"{fixed} Nobody was excluded.{apart}"
    told = [
        f"{number(raters, 'rater')} ({number(rows, 'rating')}) "
        f"{name if name.startswith(BY_HAND) else f'by {name}'}"
        for name, (raters, rows) in dropped.items()
    ]
    return f"{fixed} Excluded: {'; '.join(told)}.{apart}"


def _raters(evidence: Evidence) -> str:
    used, scored = evidence.used, evidence.frame["trial_type"].isin(SCORED_TRIALS)
    scored &= evidence.frame["status"] != STATUS[INTERNAL]
    everyone = evidence.frame.loc[scored, "rater_id"].nunique()
    text = f"{number(used['rater_id'].nunique(), 'rater')} of {everyone} who rated are analysed."
    if evidence.sessions is not None and "state" in evidence.sessions:
        states = evidence.sessions["state"].value_counts()
        told = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in states.items())
        text += f" Sessions: {told}."
    return text


def _clip_key(used: pd.DataFrame) -> pd.Series:
    """What was rated: one clip, or two in either order."""
    if "stimulus_b_id" not in used:
        return used["stimulus_id"].astype(str)
    pairs = zip(used["stimulus_id"].astype(str), used["stimulus_b_id"].fillna(""), strict=True)
    return pd.Series(["/".join(sorted(pair)) for pair in pairs], index=used.index)


def _asked_once(used: pd.DataFrame) -> pd.DataFrame:
    """One row an answered trial, where a trial has several questions."""
    if "dimension" not in used or used["dimension"].nunique() < 2:
        return used
    return used[used["dimension"] == used["dimension"].iloc[0]]


def _counts(evidence: Evidence) -> str:
    used = _asked_once(evidence.used)
    pairs = "method" in used and used["method"].isin(("ccr", *CHOICE_METHODS)).any()
    apart = ""
    if pairs:
        # A clip beside itself is no pair of the design: its count says nothing of the others'.
        itself = used["system"] == used["system_b"]
        if itself.any():
            apart = f" Besides, {number(int(itself.sum()), 'rating')} of a clip with itself."
        used = used[~itself]
    clips = _clip_key(used)
    if used.empty:
        return apart.strip()
    what = "pair" if pairs else "stimulus"
    per_rater, per_clip = used.groupby("rater_id").size(), used.groupby(clips).size()
    return (
        f"Each rater gave {_spread(per_rater)} ratings that count; each {what} got "
        f"{_spread(per_clip)}. In all {len(used)} ratings of "
        f"{clips.nunique()} {'pairs' if pairs else 'stimuli'} "
        f"({number(used['item_id'].nunique(), 'text')}).{apart}"
    )


def _payment(evidence: Evidence) -> str | None:
    told = evidence.study.payment if evidence.study else None
    shown = f"Raters read before they agreed: “{told}”" if told else None
    return _joined(evidence.details.payment, shown)


def _time(evidence: Evidence) -> str | None:
    sessions = evidence.sessions
    if sessions is None or not {"consent_utc", "last_seen_utc", "state"} <= set(sessions.columns):
        return None
    done = sessions[sessions["state"] == "complete"]
    known = [name for name in ("consent_utc", "last_seen_utc", "ended_utc") if name in done]
    times = {
        name: pd.to_datetime(done[name], errors="coerce", utc=True, format="ISO8601")
        for name in known
    }
    start, end = times["consent_utc"], times["last_seen_utc"]
    if "ended_utc" in times:  # who looks in again later is seen then, and ended before
        end = times["ended_utc"].fillna(end)
    minutes = (end - start).dt.total_seconds().dropna() / 60
    if minutes.empty:
        return None
    return (
        f"The median complete session took {minutes.median():.1f} minutes "
        f"({minutes.min():.1f} to {minutes.max():.1f}), from consent to the last answer."
    )


def _instructions(evidence: Evidence) -> str | None:
    if evidence.study is None:
        return None
    read = texts(evidence.study)
    several = len(read) > 1
    told = [f"“{one.instructions}”" + f" ({one.language})" * several for one in read]
    return f"Raters read, word for word: {' '.join(told)}"


def _question(evidence: Evidence) -> str | None:
    if evidence.study is None:
        return None
    told = [
        _asked(question, one.language)
        for one in texts(evidence.study)
        for question in one.questions
    ]
    method = "P.835" if evidence.study.method == "p835" else evidence.study.method.upper()
    return f"Method: {method}. Asked: {' '.join(told)}. No answer was chosen beforehand."


def _asked(question: Question, language: str) -> str:
    if not question.options:
        named = ", ".join(bands(language))
        scale = f"a slider from 0 to 100 in steps of 1, five bands named {named}"
    else:
        labels = ", ".join(f"{value} {label}" for value, label in question.options)
        scale = f"labels in the order shown: {labels}"
        if all(isinstance(value, int) for value, _ in question.options):
            scale += "; steps of 1"
    return f"“{question.text}” ({question.dimension}; {scale}; {question.scale_id})"


def _language(evidence: Evidence) -> str | None:
    if "ui_lang" in evidence.used and (found := sorted(set(evidence.used["ui_lang"]) - {""})):
        return f"Language of the rater's page: {', '.join(found)}."
    if evidence.study is None:
        return None
    return f"Language of the study's texts: {evidence.study.language}."


def _screenshot(evidence: Evidence) -> str | None:
    return "A picture of the rater's page is in the bundle." if evidence.screenshot else None


def _training(evidence: Evidence) -> str | None:
    study = evidence.study
    if study is None:
        return None
    if not study.practice:
        return "There was no practice."
    n = number(len(study.practice), "practice trial")
    return f"Before the test came {n}, whose answers are not analysed."


def _systems(evidence: Evidence) -> str | None:
    if evidence.details.systems is None:
        return None
    study = evidence.study
    reference = study.reference if study else None
    names = [s.name for s in study.systems] if study else list(evidence.result["systems"])
    text = f"Systems: {', '.join(names)}."
    if reference:
        text += f" Reference: {reference}."
    if study and study.anchors:
        told = "; ".join(_anchor(study, anchor) for anchor in study.anchors)
        text += f" Anchors, which span the scale and are not under test: {told}."
    return f"{text} {evidence.details.systems}"


def _anchor(study: Study, anchor: Anchor) -> str:
    if anchor.folder is not None:
        return f"{anchor.label} (clips of its own)"
    made = f"low-pass at {anchor.low_pass} Hz"
    if anchor.mnru is not None:
        made = f"modulated noise of ITU-T P.810, Q = {anchor.mnru:g} dB"
    return f"{anchor.label} ({made}, made from {study.origin(anchor)})"


def _playback(evidence: Evidence) -> str | None:
    study = evidence.study
    if evidence.stimuli is None or study is None:
        return None
    rates = sorted(set(evidence.stimuli["sample_rate"]) - {""})
    headphones = "not tested"
    if study.screening is not None and study.screening.screens:
        headphones = "tested, see above"
    return (
        f"All clips are mono 16 bit PCM at {', '.join(rates)} Hz, at "
        f"{study.loudness_lufs:g} LUFS (ITU-R BS.1770), played whole before the scale opened. "
        f"Headphones were {headphones}. {_volume(evidence)}"
    )


def _volume(evidence: Evidence) -> str:
    offered = "Before the first clip the page offered a sound of no system to set the volume by"
    sessions = evidence.sessions
    if sessions is None or "volume_utc" not in sessions:
        return f"{offered}."
    own = sessions[sessions["rater_id"].isin(evidence.used["rater_id"])]
    heard = int((own["volume_utc"].fillna("") != "").sum())
    return f"{offered}; in {heard} of the {len(own)} sessions that count it was played."


def _design(evidence: Evidence) -> str | None:
    study = evidence.study
    if study is None:
        return None
    checks = len(study.traps) + len(study.gold)
    texts = f"{study.items_per_rater} of {number(len(study.items), 'text')}"
    if study.same_text == "once":
        order = (
            f"Each rater heard {texts} once, each under one of {study.conditions} conditions, in "
            "balanced incomplete blocks"
        )
    else:
        order = (
            f"Within raters: each heard {texts} {_under(study)}, in an order from a Williams "
            f"Latin square{_apart(study)}"
        )
    return (
        f"{order} (seed {study.seed}). Between the trials lay {number(study.repeats, 'repeat')}, "
        f"{number(study.null_pairs, 'null pair')} and {number(checks, 'check')} with a known "
        f"answer.{_talkers(study)}"
    )


def _talkers(study: Study) -> str:
    texts = Counter(item.talker for item in study.items if item.talker)
    named = [f"{talker} ({number(n, 'text')})" for talker, n in texts.items()]
    return f" Talkers: {', '.join(named)}." if named else ""


def _under(study: Study) -> str:
    trials = f"in {number(study.conditions, 'trial')}, one for each"
    return {
        "each": f"{trials} condition",
        "reference": f"{trials} condition, with the reference first",
        "pair": f"{trials} pair of systems",
        "all": "in one trial, under all conditions side by side",
    }[study.layout.conditions]


def _apart(study: Study) -> str:
    if study.conditions == 1:
        return ""
    together = study.same_text == "together"
    return ", one text after the other" if together else ", never the same text twice in a row"


def _planned(evidence: Evidence) -> str | None:
    study = evidence.study
    if study is None:
        return None
    wanted = [number(study.ratings_per_stimulus, "rating") + " a stimulus"]
    wanted += [number(study.raters, "rater")] if study.raters else []
    return (
        f"The study file asked for {' and '.join(wanted)} at least: "
        f"{number(study.planned_sessions, 'session')} of {number(study.trials, 'trial')} each."
    )


def _stop(evidence: Evidence) -> str | None:
    study = evidence.study
    fixed = []
    if study is not None and (stop := study.stop_rule) is not None:
        fixed += ["with the last planned session"] * stop.planned
        fixed += [f"at the end of {stop.until}"] if stop.until else []
    ends = f"The study file has the test close {' or '.join(fixed)}." if fixed else None
    return _joined(ends, evidence.details.stop_rule)


def _lengths(evidence: Evidence) -> str | None:
    stimuli = evidence.stimuli
    if stimuli is None or "duration_s" not in stimuli:
        return None
    rated = stimuli[stimuli["trial_type"] == "rating"]
    seconds = pd.to_numeric(rated["duration_s"], errors="coerce")
    lengths = [
        f"{name} {own.mean():.2f} s ({own.min():.2f} to {own.max():.2f})"
        for name, own in seconds.groupby(rated["system"])
    ]
    same = int((rated["identical_to"] != "").sum()) if "identical_to" in rated else 0
    return (
        f"Mean length of the clips: {', '.join(lengths)}. {number(same, 'clip')} held the very "
        "samples of another system's clip of the same text."
    )


def _hash(evidence: Evidence) -> str | None:
    if "config_sha256" not in evidence.used:
        return None
    found = sorted(set(evidence.used["config_sha256"]) - {""})
    if not found:
        return None
    return f"SHA-256 of the study's configuration, on every rating: {', '.join(found)}."


_EXPORTED = (
    "Give the folder of a prepared study, or what `python -m listening_test.export` wrote; for a "
    "test made with another tool, write it here yourself."
)
_Entry = tuple[str, str, Callable[[Evidence], str | None], str]
_FACTORS: tuple[_Entry, ...] = (
    ("Raters", "Recruitment platform", _platform, _told(
        "recruitment", "which platform, or who was asked and how.")),
    ("Raters", "Dates", _dates, "Add the column `server_utc` to ratings.csv, or tell the days."),
    ("Raters", "Location and language background", _detail("raters"), _told(
        "raters", "countries, native languages, hearing, age, and how you know.")),
    ("Raters", "Raters' own account", _account, _EXPORTED),
    ("Raters", "Qualification before the test", _detail("qualification"), _told(
        "qualification", "who was let in (approval rate, native speakers), or that anybody was.")),
    ("Raters", "Screening in the test", _screen, _EXPORTED),
    ("Raters", "Filtering after the test", _filtering, _EXPORTED),
    ("Raters", "Payment", _payment, _told(
        "payment", "pay for a session and for an hour, or that nobody was paid.")),
    ("Raters", "Time taken", _time, _EXPORTED),
    ("Counts", "Number of raters", _raters, ""),
    ("Counts", "Ratings a rater, a stimulus and in all", _counts, ""),
    ("Task", "Instructions", _instructions, _EXPORTED),
    ("Task", "Question, labels and steps", _question, _EXPORTED),
    ("Task", "Language", _language, "Tell in which language the page spoke."),
    ("Task", "Picture of the page", _screenshot, "Give a PNG of the rater's page: --screenshot."),
    ("Task", "Practice", _training, _EXPORTED),
    ("Stimuli", "Range of systems, anchors, natural reference", _systems, _told(
        "systems", "what each system is, and whether natural speech and a low anchor are there.")),
    ("Stimuli", "Origin of the texts", _detail("materials"), _told(
        "materials", "source of the texts, how they were picked, language, talkers.")),
    ("Stimuli", "Lengths and identical clips", _lengths, _EXPORTED),
    ("Stimuli", "Playback", _playback, _EXPORTED),
    ("Design", "Order, repeats and seed", _design, _EXPORTED),
    ("Design", "Planned size", _planned, _EXPORTED),
    ("Design", "Stop rule", _stop, _told(
        "stop_rule", "when the test was to end, fixed before its first rating.")),
    ("Analysis", "Intervals, tests, correction, effect size",
     lambda evidence: told_statistics(evidence.result, evidence.study is not None), ""),
    ("Analysis", "Configuration", _hash, "Add the column `config_sha256`, or keep the study file."),
    ("Analysis", "Where data and code are", _detail("availability"), _told(
        "availability", "an address of the bundle and of the code, or why there is none.")),
)  # fmt: skip
