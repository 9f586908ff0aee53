"""Helpers of the formats' tests: a file in the shape of each tool, and tables through files."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from listening_test.analyse import REQUIRED
from listening_test.convert import read_table, write_table
from listening_test.formats import FORMATS

# Each in the shape its tool writes; two raters, two texts, systems x and y.
WORKER = """\
HITId,workerid,assignment_id,assignmentstatus,file,short_file_name,vote,question_type,condition_num
H1,A1,S1,Submitted,https://h/c/x_1.wav,x_1.wav,4,MOS,x
H1,A1,S1,Submitted,https://h/c/y_1.wav,y_1.wav,2,MOS,y
H1,A2,S2,Approved,https://h/c/x_1.wav,x_1.wav,5,MOS,x
H2,A2,S3,Rejected,https://h/c/y_1.wav,y_1.wav,1,MOS,y
"""
CLIP = """\
file_url,n,MOS_SIG,std_sig,95%CI_sig,short_file_name,n_silent,is_silent_percentage,snr,model,\
Unknown,vote_1,vote_2,vote_3
https://h/c/x_1.wav,3,4,1,1.13,x_1.wav,0,0,10,x,,3,4,5
https://h/c/y_1.wav,2,2.5,0.7,0.98,y_1.wav,0,0,10,y,,2,3,
"""
# PHP's fputcsv quotes only what needs it.
MUSHRA = """\
session_test_id,email,age,session_uuid,trial_id,rating_stimulus,rating_score,rating_time,\
rating_comment
t1,a@b.c,30,u1,trial1,reference,100,53210,
t1,a@b.c,30,u1,trial1,anchor35,20,53210,"dull, ""very"" dull
and slow"
t1,d@e.f,41,u2,trial1,reference,95,9999,=cmd
t1,d@e.f,41,u2,trial1,anchor35,11,9999,
"""
LSS = """\
session_test_id,name,trial_id,stimuli_rating1,stimuli_rating2,stimuli,rating_time
t1,ann,lss1,4,5,C1,1200
t1,ann,lss1,2,NA,C2,800
t1,bob,lss1,3,1,C1,700
"""
PAIRED = """\
session_test_id,name,trial_id,choice_reference,choice_non_reference,choice_answer,choice_time,\
choice_comment
t1,ann,pc1,reference,C1,correct,1200,
t1,ann,pc1,reference,C2,undecided,800,same
t1,bob,pc1,reference,C1,incorrect,700,
t1,bob,pc1,reference,C2,unknown,700,
"""
MATRIX = """\
system,rater_id,s1,s2,s3,s4,s5,s6
a,rater 1,4,5,,4,,3
a,rater 2,4,4,4,5,,4
a,rater 3,,3,5,4,,1
"""
SAMPLES = {
    "votes_per_worker": WORKER, "votes_per_clip": CLIP, "mushra": MUSHRA, "lss": LSS,
    "paired_comparison": PAIRED, "matrix": MATRIX,
}  # fmt: skip


def read(text: str, name: str) -> pd.DataFrame:
    """Through a file, as the command reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.csv"
        path.write_bytes(text.encode())
        return FORMATS[name].read(read_table(path))


def values(frame: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return list(frame[list(columns)].itertuples(index=False, name=None))


def there_and_back(table: pd.DataFrame) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        write_table(table, Path(folder) / "x.csv")
        return read_table(Path(folder) / "x.csv")


def ratings(**changes: Any) -> pd.DataFrame:
    frame = pd.DataFrame({c: [f"{c}{i}" for i in range(6)] for c in REQUIRED})
    made = {"score": [1.0, 2, 3, 4, 5, math.nan], "trial_type": "rating", "status": "use"}
    return frame.assign(**made | changes)
