"""An OpenAI-compatible chat endpoint, asked patiently.

Where it is and its key come from the environment; the key goes into one header and nowhere else.
Knows HTTP and the two fields of the protocol that are of use here.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PUBLIC = "https://api.openai.com/v1"
_TRIES = 5
_LONGEST_WAIT_S = 60.0
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # states that another try may find gone


class EndpointError(RuntimeError):
    """The endpoint refused, or stayed away; the message says which and what helps."""


@dataclass(frozen=True)
class Endpoint:
    """A judge that can be asked.

    Attributes:
        url: of the API, without /chat/completions.
        model: as the endpoint calls it.
        key: sent as a bearer token; empty for a server that asks for none.
        first_wait_s: before a second try; doubled before each further one.
        timeout_s: of one request.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    first_wait_s: float = 1.0
    timeout_s: float = 120.0

    @classmethod
    def of_environment(cls, model: str, environment: Mapping[str, str]) -> Endpoint:
        """The endpoint of OPENAI_BASE_URL with the key of OPENAI_API_KEY.

        Raises:
            EndpointError: no key for the public endpoint, or an address that is none.
        """
        url = environment.get("OPENAI_BASE_URL", "").rstrip("/") or PUBLIC
        key = environment.get("OPENAI_API_KEY", "")
        if not url.startswith(("http://", "https://")):
            raise EndpointError(
                f"OPENAI_BASE_URL is {url!r}: it must begin with http:// or https://"
            )
        if url == PUBLIC and not key:
            raise EndpointError(
                "no key: set OPENAI_API_KEY, or OPENAI_BASE_URL to a server of your own"
            )
        return cls(url, model, key)

    def reply(
        self, messages: Sequence[Mapping[str, str]], temperature: float, top_p: float, longest: int
    ) -> str:
        """The first choice's text; what may pass is tried again, with growing pauses.

        Raises:
            EndpointError: it refused, stayed away, or answered in another protocol.
        """
        body = {
            "model": self.model, "messages": list(messages), "temperature": temperature,
            "top_p": top_p, "max_tokens": longest,
        }  # fmt: skip
        wait, reason = self.first_wait_s, ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(min(wait, _LONGEST_WAIT_S))
                wait *= 2
            try:
                return _text(self._post(body))
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.reason}"
                if error.code not in _PASSING:
                    raise EndpointError(self._refusal(error)) from error
                wait = max(wait, _asked_to_wait(error))
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                reason = str(getattr(error, "reason", error))
        raise EndpointError(f"{self.url} did not answer in {_TRIES} tries (the last: {reason})")

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        asked = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(asked, timeout=self.timeout_s) as answer:
            try:
                return json.loads(answer.read())
            except ValueError as error:
                raise EndpointError(f"{self.url} answered something else than JSON") from error

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        said = error.read(300).decode("utf-8", "replace").strip()
        remedy = {401: ": check OPENAI_API_KEY", 403: ": check OPENAI_API_KEY",
                  404: ": check OPENAI_BASE_URL and --judge"}.get(error.code, "")  # fmt: skip
        return f"{self.url} refused ({error.code} {error.reason}){remedy}. It said: {said}"


def _asked_to_wait(error: urllib.error.HTTPError) -> float:
    """Seconds of a Retry-After header; 0 where there is none."""
    try:
        return float(error.headers.get("Retry-After", 0))
    except ValueError:  # a date: our own pauses will do
        return 0.0


def _text(answer: Any) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"the endpoint's answer holds no text: {str(answer)[:200]}") from error
