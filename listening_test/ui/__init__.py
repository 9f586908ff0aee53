"""The listening test's Gradio pages: the only modules of it that know Gradio.

    listen_page(studies)          inside `with demo.route("Listen", "/listen"):`
    results_page(studies, demo)   inside `with demo.route("Results", "/results"):`
    admin_page(studies)           inside a route that is made only where `Gate.exists()`

The test itself is the plain page /listen/<study> (`server.py`).
"""

from listening_test.ui.admin import admin_page
from listening_test.ui.public import listen_page, results_page

__all__ = ["admin_page", "listen_page", "results_page"]
