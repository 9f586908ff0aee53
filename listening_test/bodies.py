"""What a rater's request may hold, and how much of it: all else is refused with a reason.

This module knows the form of what comes in; whether it fits the session is `trials.py`'s.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
)
from starlette.requests import ClientDisconnect, Request

from listening_test import resend
from listening_test.columns import clean_text
from listening_test.enrolment import Refused
from listening_test.rows import Answer, Heard
from listening_test.study_parts import MOST_ANCHORS, MOST_SYSTEMS

# A rating is below 2 kB; four times the longest comment leaves room for escapes.
MAX_BODY = 16_384
MAX_COMMENT = 1000
# Of a refusal: so much of a field's name, of so many fields.
MAX_NAME, MAX_PROBLEMS = 60, 3
# As many systems and anchors as a study can have, and the open reference.
MAX_CLIPS = MOST_SYSTEMS + MOST_ANCHORS + 1

Count = Annotated[StrictInt, Field(ge=0, le=10**6)]
ChosenValue = StrictInt | Annotated[StrictStr, Field(max_length=8)]
PlatformKey = Annotated[StrictStr, Field(pattern=r"^[A-Za-z_]{1,20}$")]
PlatformId = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.:-]{0,128}$")]
Ticket = Annotated[StrictStr, Field(pattern=resend.TICKET_PATTERN)]
LanguageTag = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9-]{0,35}$")]
Milliseconds = Annotated[StrictInt, Field(ge=0, le=10**9)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SessionBody(_Body):
    """Start of a session: only with consent; `ids` are a platform's, from the page's address.

    `touch`: whether the screen can be touched; `ui_lang`: the language of the consent read.
    """

    consent: bool
    ids: Annotated[dict[PlatformKey, PlatformId], Field(max_length=8)] = {}
    ticket: Ticket | None = None
    touch: StrictBool = False
    ui_lang: LanguageTag = ""


class QuestionnaireBody(_Body):
    """Answers by the questions' ids; none of them is a must."""

    answers: Annotated[
        dict[
            Annotated[StrictStr, Field(max_length=30)], Annotated[StrictStr, Field(max_length=300)]
        ],
        Field(max_length=12),
    ]


class WithdrawBody(_Body):
    """The second step of a withdrawal."""

    confirmed: Literal[True]
    ticket: Ticket | None = None


class HeardBody(_Body):
    """What the page claims of one clip."""

    clip: Annotated[StrictStr, Field(max_length=64)]
    plays: Count = 0
    listened_ms: Milliseconds = 0


class RatingBody(_Body):
    """One trial's answers as the page sends them."""

    rating_id: UUID
    trial_index: Annotated[StrictInt, Field(ge=1, le=10**4)]
    clips: Annotated[list[HeardBody], Field(min_length=1, max_length=MAX_CLIPS)]
    answers: Annotated[list[ChosenValue], Field(min_length=1, max_length=MAX_CLIPS)]
    rt_ms: Milliseconds = 0
    first_play_to_submit_ms: Milliseconds = 0
    hidden_ms: Milliseconds = 0
    changed_n: Count = 0
    comment: Annotated[StrictStr, Field(max_length=MAX_COMMENT)] = ""
    client_utc: Annotated[StrictStr, Field(pattern=r"^[0-9T:.Z+-]{0,40}$")] = ""
    ui_lang: LanguageTag = ""
    receipt: Annotated[StrictStr, Field(pattern=resend.RECEIPT_PATTERN)] | None = None

    def answer(self) -> Answer:
        """The claim with its text made safe to keep."""
        values = self.model_dump(exclude={"receipt"})
        values["rating_id"] = str(self.rating_id)
        values["clips"] = tuple(Heard(**clip) for clip in values["clips"])
        values["answers"] = tuple(self.answers)
        values["comment"] = clean_text(self.comment)
        return Answer(**values)


Body = TypeVar("Body", bound=BaseModel)


async def body_of(request: Request, model: type[Body]) -> Body:
    """The request's JSON as `model`, read no further than MAX_BODY bytes.

    Raises:
        Refused: it is too large, was cut off, or is not what `model` takes.
    """
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BODY:
                raise Refused(413, "too_large", f"A request may have {MAX_BODY} bytes at most.")
    except ClientDisconnect:  # nobody is left to read this; it will be sent again
        raise Refused(400, "cut_off", "The request ended before its body.") from None
    try:
        return model.model_validate_json(bytes(data))
    except ValidationError as error:
        raise Refused(422, "bad_request", f"Not understood: {_problems(error)}.") from None


def _problems(error: ValidationError) -> str:
    """The first things wrong: enough to mend a page, however many a script sends."""
    found = error.errors(include_input=False, include_url=False)
    told = [
        f"{clean_text('.'.join(map(str, p['loc'])))[:MAX_NAME] or 'body'}: {p['msg']}"
        for p in found[:MAX_PROBLEMS]
    ]
    if len(found) > MAX_PROBLEMS:
        told.append(f"and {len(found) - MAX_PROBLEMS} more")
    return "; ".join(told)
