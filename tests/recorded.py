"""What other packages say of shared data: writes `data/crowdmos.json`, `data/krippendorff.json`.

    pip install mean-opinion-score==0.0.2 krippendorff==0.9.0    # Python 3.11
    python tests/recorded.py

Neither can be asked everywhere: the first (crowdMOS in Python, MIT) ends at Python 3.11, where
the tests ask it anew, the second is under the GPL, so that the project does not require it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"


def crowdmos() -> None:
    """The ratings stay as they are; mean and half-width are written anew."""
    from mean_opinion_score import get_ci95, get_mos

    path = DATA / "crowdmos.json"
    cases = json.loads(path.read_text())
    for case in cases:
        table = np.array(case["ratings"], dtype=float)
        case |= {"mos": float(get_mos(table)), "ci95": float(get_ci95(table))}
    path.write_text(json.dumps(cases) + "\n")


def krippendorff() -> None:
    """Tables of raters x units with a third of the cells empty, and alpha at each level."""
    from krippendorff import alpha

    rng = np.random.default_rng(20)
    cases = []
    for raters, units, levels in ((4, 12, 5), (9, 30, 5), (3, 40, 7), (6, 8, 2)):
        quality = rng.normal(0, 1, units)
        table = np.clip(
            np.rint(levels / 2 + quality + rng.normal(0, 0.8, (raters, units))), 1, levels
        )
        table[rng.random(table.shape) < 1 / 3] = np.nan
        cases.append(
            {
                "ratings": [[None if np.isnan(x) else int(x) for x in row] for row in table],
                "alpha": {
                    level: float(alpha(reliability_data=table, level_of_measurement=level))
                    for level in ("nominal", "ordinal", "interval")
                },
            }
        )
    (DATA / "krippendorff.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    crowdmos()
    krippendorff()
