"""Make the stimuli of a study: `python -m listening_test.prepare STUDY.yaml --out STUDY_DIR`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from listening_test.key import KeyMismatch
from listening_test.levelling import StimulusError
from listening_test.stimuli import prepare
from listening_test.study import Study, StudyError, load_study
from listening_test.texts import end_of_day


def is_over(study: Study, now: float) -> bool:
    """Whether the study's last day is over; `now` in seconds since 1970."""
    stop = study.stop_rule
    return stop is not None and stop.until is not None and end_of_day(stop.until) <= now


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m listening_test.prepare", description=__doc__)
    parser.add_argument("study", type=Path, help="the study file (YAML)")
    parser.add_argument("--out", type=Path, required=True, metavar="STUDY_DIR")
    options = parser.parse_args(arguments)
    try:
        study = load_study(options.study)
        report = prepare(study, options.out)
    except (StudyError, StimulusError, KeyMismatch) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{options.out} cannot be written ({error}). Give another folder.", file=sys.stderr)
        return 2
    print(report)
    if is_over(study, time.time()):
        print(
            "warning: `stop_rule:` ends the study on a day that is over, so nobody can begin; "
            "write a later `until:` and prepare it again.",
            file=sys.stderr,
        )
    print(f"next: python -m listening_test.serve {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
