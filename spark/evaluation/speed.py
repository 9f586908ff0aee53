"""Tables of what the benchmarks measured, in Markdown, from the JSON objects that they write.

Knows those objects' keys; measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spark.evaluation.report import table

Result = Mapping[str, Any]
COMMANDS = {
    name: f"python -m benchmarks.{name} --model embedded --out DIR/{name}.json"
    for name in ("decode", "growth", "first_audio")
}


def tables(results: Mapping[str, Result]) -> str:
    """The tables of those benchmarks that were run, by name; the others are called not measured.

    Raises:
        ValueError: another version wrote one of them.
    """
    makers = {"decode": _decode, "growth": _growth, "first_audio": _first_audio}
    parts = []
    for name, make in makers.items():
        told = f"`{COMMANDS[name]}`"
        if name not in results:
            parts.append(f"{told}: not measured.")
            continue
        try:
            parts.append(f"{told}: {_conditions(results[name])}\n\n{make(results[name])}")
        except KeyError as error:
            raise ValueError(
                f"{name}.json lacks {error}: another version wrote it. Run {told} again."
            ) from error
    return "\n\n".join(parts) + "\n"


def _conditions(found: Result) -> str:
    step = "compiled step" if found["compiled_step"] else "plain step"
    if found["graphs"]:
        step = "CUDA graphs"
    return (
        f"{found['processor']}, {found['cores']} cores, {found['threads']} threads, torch "
        f"{found['torch']}, {found['dtype']} with weights in {found['weights']}, {step}; medians "
        f"of {found['repeats']} interleaved repetitions."
    )


def _decode(found: Result) -> str:
    rows = [
        [
            row["policy"], _spread(row), f"{row['tokens_per_s']:.0f}",
            number(row["real_time_factor"], ".3f"), f"{row['gb_per_s']:.1f}",
            number(row["mean_depth_speech"], ".2f"),
            f"{100 * row['traffic_ratio']:.1f} %", f"{100 * row['time_ratio']:.1f} %",
            number(row["cut_realised"], ".2f"),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    beside = (
        ("transformers' generate", "generate_ms_per_token"),
        ("transformers' generate, static cache", "generate_static_ms_per_token"),
        ("transformers' generate, compiled", "generate_compiled_ms_per_token"),
        ("matrix-vector products of all weights", "floor_ms_per_token"),
        ("reading as many bytes", "reading_ms_per_token"),
    )
    rows += [[name, number(found[key], ".2f"), *["-"] * 7] for name, key in beside]
    heads = ("policy", "ms a token", "tokens/s", "real-time factor", "GB/s", "speech depth",
             "weights read", "time", "time saved / weights saved")  # fmt: skip
    return f"{table(rows, heads)}\n\n{_kinds(found)}\n\n{_beside(found)}"


def _beside(found: Result) -> str:
    """What the table comes to beside other decoders and the machine's ceilings, in words."""
    over = found["speedup_over_compiled_generate"]
    return (
        "Full depth on every row of the head is "
        f"{number(found['speedup_over_generate'], '.1f')} times as fast as transformers' generate "
        f"on the same weights ({'not measured' if over is None else f'{over:.1f} times'} where "
        "that is compiled); torch's matrix-vector products take "
        f"{number(found['floor_ratio'], '.2f')} times as long. SPAR-K's cut in weights became time "
        f"to {_share(found['depth_cut_realised'])}. This machine copies "
        f"{found['copy_gb_per_s']:.0f} GB/s (read and written), reads "
        f"{found['reading_gb_per_s']:.0f} and multiplies matrices with a vector at "
        f"{number(found['floor_gb_per_s'], '.0f')}, in stretches as long as the weights. The "
        "real-time factor is without the vocoder. The process of the policies took "
        f"{found['policies_gb']:.2f} GB of memory at most."
    )


def _kinds(found: Result) -> str:
    """Median milliseconds by what a slot is for and how deep its step went."""
    names = sorted({name for row in found["rows"] for name in row["kinds"]})
    rows = [
        [row["policy"], *(number(row["kinds"].get(name, {}).get("ms"), ".2f") for name in names)]
        for row in found["rows"]
    ]
    return table(rows, ("ms a step of", *names))


def _growth(found: Result) -> str:
    parts = []
    for kind, what in (("context", "tokens of context"), ("batch", "replies at once")):
        sizes = list(dict.fromkeys(row["size"] for row in found[kind]))
        names = list(dict.fromkeys(row["policy"] for row in found[kind]))
        cells = {(row["size"], row["policy"]): row for row in found[kind]}
        rows = [[f"{size:,}", *(_spread(cells[size, name]) for name in names)] for size in sizes]
        parts.append(table(rows, (what, *(f"{name}, ms a token" for name in names))))
    return "\n\n".join(parts)


def _spread(row: Mapping[str, Any]) -> str:
    return f"{row['ms_per_token']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"


def _first_audio(found: Result) -> str:
    rows = [
        [
            row["variant"], number(row["tokens_ms"], ".0f"), number(row["audio_ms"], ".0f"),
            f"{row['ms_per_token']:.2f}", f"{100 * row['traffic_ratio']:.1f} %",
            f"{100 * row['time_ratio']:.1f} %", _share(row["acceptance_rate"]),
            number(row["drift"], ".3f"),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    heads = ("variant", "ms to the first sound's tokens", "with the vocoder", "ms a token",
             "weights read", "time", "tokens kept", "drift")  # fmt: skip
    return table(rows, heads)


def number(value: float | None, form: str) -> str:
    """A figure as a table shows it; a dash where there is none."""
    return "-" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
