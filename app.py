"""The lab as one app: wires the pages together and launches them.

    python app.py [--model MODEL] [--device DEVICE] [--bits 8] [--host 127.0.0.1] [--port 7860]

Knows both halves, and is known by neither. Nothing here decodes, draws or judges.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before gradio is imported: its usage reports are the one request it would make by itself.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi import FastAPI

from listening_test import addresses
from listening_test.gate import Gate
from listening_test.hosting import Studies
from listening_test.limit import BadLimit, limit_from
from listening_test.prepared import NotPrepared
from listening_test.ready import STUDY_VARIABLE, ensure_ready_study, offer_study
from listening_test.server import attach
from listening_test.targets import BadTarget, target_from
from listening_test.ui import admin_page, listen_page, results_page
from spark.compare import compare
from spark.comparison import Comparison
from spark.compiled import prepare
from spark.lending import lends
from spark.models import ModelInfo, available, load
from spark.models.base import SpokenLM
from spark.models.loading import placement, say
from spark.shelf import Shelf, fitting
from spark.ui import EXAMPLES, ComparePage, ExperimentsPage, about_page, evidence_page

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("app.js", "live.js")
# Folder for ratings, on a local disk: SQLite on a mounted bucket keeps corrupting. A Space's disk
# is emptied at every restart: LISTENING_TEST_COPY names where ratings are copied to.
DATA_VARIABLE = "SPARK_LAB_DATA"
MODEL = "embedded"
EXPERIMENTS = Path("build")  # below which `python -m spark.evaluation` writes by default
EXAMPLE_REPLAYS = 5
LOOPBACK = ("127.0.0.1", "localhost", "::1")
log = logging.getLogger("app")


def theme() -> gr.themes.Base:
    """System fonts, one accent, and greys that hold 4.5:1 in light and dark."""
    plain = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="gray",
        font=("system-ui", "-apple-system", "Segoe UI", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Consolas", "monospace"),
        radius_size="sm",
        spacing_size="sm",
    )
    return plain.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        block_info_text_color="*neutral_600",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color_dark="white",
    )


def build(
    lm: SpokenLM,
    studies: Studies,
    example: Comparison | None = None,
    others: Sequence[SpokenLM] = (),
    shelf: Shelf | None = None,
    experiments: Path = EXPERIMENTS,
) -> gr.Blocks:
    """The app's pages.

    Args:
        lm: the model to begin with; the lab's others are loaded when chosen.
        studies: of the listening test.
        example: what the Compare page shows before the first press.
        others: models that are loaded already.
        shelf: that holds `lm`; None for one that keeps it.
        experiments: folder below which evaluations are found.
    """
    shelf = shelf or Shelf(lm)
    for other in others:
        shelf.add(other)
    if lends():
        shelf.load_all()
    with gr.Blocks(title="SPAR-K Lab", analytics_enabled=False, fill_width=True) as demo:
        _navbar()
        page = ComparePage(shelf, example)
        demo.load(
            page.share.load,
            None,
            page.share.load_outputs(),
            show_progress="hidden",
            api_visibility="private",
        )
    with demo.route("Listen", "/listen"):
        _navbar()
        listen_page(studies)
    with demo.route("Results", "/results"):
        _navbar()
        results_page(studies, demo)
    with demo.route("Evidence", "/evidence"):
        _navbar()
        evidence_page()
    with demo.route("Experiments", "/experiments"):
        _navbar()
        ExperimentsPage(shelf, experiments, demo)
    with demo.route("About", "/about"):
        _navbar()
        about_page(shelf)
    if Gate.exists():  # else there is no such page: 404
        with demo.route("Admin", "/admin", show_in_navbar=False):
            _navbar()
            admin_page(studies)
    demo.queue(default_concurrency_limit=4, max_size=20)
    return demo


def _navbar() -> None:
    """Every page needs its own, or it calls the first one “Home”."""
    gr.Navbar(main_page_name="Compare")


def launch(
    demo: gr.Blocks, studies: Studies, host: str | None = None, port: int | None = None
) -> tuple[FastAPI, str]:
    """Start serving and return; the raters' routes are added to the app that gradio makes.

    Always this call, because a platform that lends GPUs hooks it.

    Returns:
        The app and its local address.
    """
    app, address, _ = demo.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        show_error=True,
        quiet=True,
        theme=theme(),
        css_paths=[ASSETS / "app.css"],
        head="".join(f"<script>{(ASSETS / name).read_text()}</script>" for name in SCRIPTS),
    )
    attach(app, studies)
    return app, address


def finished_example(lm: SpokenLM) -> Comparison | None:
    """A real run of the first example prompt, so that nobody meets an empty page."""
    try:
        return compare(lm, EXAMPLES[0][0], replays=EXAMPLE_REPLAYS)
    except ValueError:  # the page works without; the log says why it begins empty
        log.exception("no example at start-up")
        return None


def _stop(studies: Studies) -> None:
    """A platform that stops the app leaves it some seconds: enough for a last copy of ratings.

    In a thread of its own, since the main one may be at work in `studies`; and without an orderly
    end, which a thread that is decoding would turn into a crash.
    """
    studies.close()
    os._exit(128 + signal.SIGTERM)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python app.py", description="Serve SPAR-K Lab.")
    parser.add_argument("--host", help="default: GRADIO_SERVER_NAME, else 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, else from 7860 up")
    parser.add_argument(
        "--model", default=MODEL,
        help="to begin with: a known model, a folder with its files, or OWNER/NAME of the hub; "
        "default: embedded",
    )  # fmt: skip
    parser.add_argument("--device", help="of large models: cuda, mps or cpu; default: the best")
    parser.add_argument("--bits", type=int, choices=(8, 16),
                        help="of large models: 8 for layers as 8-bit integers; default: 8 where "
                        "16 do not fit")  # fmt: skip
    parser.add_argument(
        "--experiments", type=Path, default=EXPERIMENTS, metavar="DIR",
        help="where the Experiments page finds folders of python -m spark.evaluation; "
        "default: %(default)s",
    )  # fmt: skip
    return parser


def _shelf(options: argparse.Namespace, own: SpokenLM, on_offer: Sequence[ModelInfo]) -> Shelf:
    """The models of the page, the one that it begins with loaded; raises ValueError."""
    asked = placement(options)
    # Only whoever sits at this machine may have tens of gigabytes fetched by a press on the page.
    host = options.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    fetches = host in LOOPBACK and not os.environ.get(addresses.SPACE_VARIABLE)
    if options.model == MODEL:
        return Shelf(own, on_offer, options=asked, fetches=fetches)
    lm = fitting(options.model, told=say, **asked)
    return Shelf(lm, on_offer, options.model, asked, fetches)


def main() -> None:
    """Load the model, make the example, serve until interrupted."""
    logging.basicConfig(level=logging.WARNING)
    parser = _arguments()
    options = parser.parse_args()
    addresses.trust_platform(os.environ)
    try:
        studies = Studies(target_from(os.environ), limit_from(os.environ))
        if study_dir := os.environ.get(STUDY_VARIABLE):
            offer_study(Path(study_dir), studies)
    except (BadTarget, BadLimit, NotPrepared) as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_stop, args=[studies]).start())
    try:
        on_offer = available(options.device)  # with all memory free: models can make way
        own = load(MODEL)
        prepare(own.transformer)
        shelf = _shelf(options, own, on_offer)
    except ValueError as error:
        parser.error(str(error))
    data: Any = os.environ.get(DATA_VARIABLE) or Path(__file__).parent / "runs" / "listening"
    # Before the study's clips: decoding them beside it would disturb the example's timing. Of the
    # embedded model, whatever the page begins with: others can take minutes for it.
    example = finished_example(own)
    if not study_dir:
        ensure_ready_study(Path(data), studies)
    demo = build(
        shelf.get(shelf.default), studies, example, others=[own], shelf=shelf,
        experiments=options.experiments,
    )  # fmt: skip
    _, address = launch(demo, studies, options.host, options.port)
    root = addresses.root_of(os.environ, address)
    print(f"SPAR-K Lab: {root}")
    for state in studies.states():
        print(f"raters: {root}{state.path}", flush=True)
    demo.block_thread()
    studies.close()


if __name__ == "__main__":
    main()
