"""The decode benchmark's figures for people to read. Knows its JSON object only."""

from __future__ import annotations

from typing import Any

from benchmarks import true_shape
from spark.evaluation.speed import number

_BESIDE = (
    ("generate", "generate_ms_per_token"),
    ("generate, static", "generate_static_ms_per_token"),
    ("generate, compiled", "generate_compiled_ms_per_token"),
    ("matrix-vector", "floor_ms_per_token"),
    ("reading weights", "reading_ms_per_token"),
)


def show(result: dict[str, Any]) -> None:
    """Print the tables, what the policies stand beside, and what the figures come to."""
    print(
        f"{result['model']}, {result['dtype']} with weights in {result['weights']}, "
        f"{result['threads']} thread(s), "
        f"medians of {result['repeats']} interleaved repetitions, prefill apart"
    )
    _policies(result)
    for name, key in _BESIDE:
        print(f"{name:<20}{_known(result[key], '.2f'):>14}")
    print(
        f"full, whole head is {_known(result['speedup_over_generate'])} times as fast as generate, "
        f"{_known(result['speedup_over_compiled_generate'])} times where that is compiled; torch's "
        f"matrix-vector products of the same weights take {_known(result['floor_ratio'])} of its "
        f"time, and reading as many bytes {_known(result['reading_ratio'])}"
    )
    print(
        f"GB/s: {_known(result['copy_gb_per_s'], '.1f')} copied, "
        f"{_known(result['reading_gb_per_s'], '.1f')} read, "
        f"{_known(result['floor_gb_per_s'], '.1f')} multiplied with a vector; the policies took at "
        f"most {result['policies_gb']:.2f} GB"
    )
    print(f"SPAR-K's cut in traffic that became time: {_known(result['depth_cut_realised'])}")
    if result["graphs_trouble"]:
        print(f"Without graphs: {result['graphs_trouble']}")
    if "load_s" in result:
        print(true_shape.told(result))


def _policies(result: dict[str, Any]) -> None:
    heads = ("policy", "ms/token", "lowest", "highest", "tokens/s", "RTF", "GB/s", "depth",
             "traffic", "time", "saved")  # fmt: skip
    print("{:<18}{:>9}{:>8}{:>8}{:>9}{:>7}{:>7}{:>7}{:>8}{:>7}{:>6}".format(*heads))
    for row in result["rows"]:
        depth = number(row["mean_depth_speech"], ".2f")
        print(
            f"{row['policy']:<18}{row['ms_per_token']:>9.2f}{row['lowest']:>8.2f}"
            f"{row['highest']:>8.2f}{row['tokens_per_s']:>9.1f}"
            f"{number(row['real_time_factor'], '.3f'):>7}{row['gb_per_s']:>7.2f}"
            f"{depth:>7}{row['traffic_ratio']:>8.3f}{row['time_ratio']:>7.3f}"
            f"{number(row['cut_realised'], '.2f'):>6}"
        )
    for row in result["rows"]:
        told = ", ".join(
            f"{name} {kind['ms']:.2f} ms ({kind['steps']})" for name, kind in row["kinds"].items()
        )
        print(f"{row['policy']}, a step of {told}")


def _known(value: float | None, form: str = ".2f") -> str:
    return "not measured" if value is None else format(value, form)
