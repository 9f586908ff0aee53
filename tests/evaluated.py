"""A small evaluation of the tiny model in a folder, as a command leaves it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from spark.comparison import CompareSettings
from spark.evaluation import runner, summary
from spark.evaluation.answering import Job
from spark.evaluation.suite import Item
from spark.models.base import SpokenLM

POLICIES = ("full", "spark", "fixed:2")
PROMPTS = ("hello there", "the capital of peru", "what is nine", "say tide")


def items() -> list[Item]:
    """Four questions of two families; the last is refused by a model that knows no slash."""
    families = ("factual", "reasoning", "factual", "reasoning")
    made = [
        Item(f"i{n}", family, "test", prompt, "lima", "lima")
        for n, (prompt, family) in enumerate(zip(PROMPTS, families, strict=True))
    ]
    return [*made, Item("i4", "factual", "test", "what / not", "lima", "lima")]


def evaluate(lm: SpokenLM, out: Path, max_tokens: int = 60) -> Path:
    """Run all items and write the summary."""
    settings = CompareSettings.of(lm, max_tokens=max_tokens, seed=7)
    job = Job(lm.name, settings, None, out, policies=POLICIES)
    for _ in runner.run(job, items(), workers=1, lm=lm):
        pass
    told = {
        "command": "python -m spark.evaluation --model tiny", "model": lm.name, "title": lm.title,
        "layers": lm.transformer.num_layers, "suite": "builtin", "limit": None,
        "settings": asdict(settings), "fixed_exit": None, "policies": POLICIES, "margin": 0.05,
        "torch": "2", "recogniser": job.recogniser, "spoken": False, "threads": job.threads,
    }  # fmt: skip
    summary.ask(out, told, [item.item_id for item in items()])
    summary.write(out)
    return out
