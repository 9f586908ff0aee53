"""The registry, and what a spoken language model must be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spark import models
from tests.tiny import tiny_lm


def test_unknown_models_are_named() -> None:
    with pytest.raises(ValueError, match="no model 'gpt': use one of embedded"):
        models.load("gpt")


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    family = {"ghost": ("Ghost", "spark.models.ghost"), "base": ("Base", "spark.models.base")}
    monkeypatch.setattr(models, "_FAMILIES", family)
    ghost, base = models.available()
    assert (ghost.runnable, base.runnable, base.reason) == (False, True, "")
    with pytest.raises(ValueError, match="cannot run here: this installation"):
        models.load("ghost")
    monkeypatch.setattr("spark.models.base.unavailable", lambda: "needs a GPU", raising=False)
    assert models.available()[1] == replace(base, runnable=False, reason="needs a GPU")


def test_models_that_contradict_themselves() -> None:
    lm = tiny_lm(0)
    with pytest.raises(ValueError, match="exit layer 4"):
        replace(lm, default_exit=4)
    with pytest.raises(ValueError, match="72 ids"):
        replace(lm, vocabulary=replace(lm.vocabulary, size=72))
