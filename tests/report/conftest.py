"""A run folder to read, and a report of it, each made once."""

import pytest
from pages import FLAGS, find_browser
from sample_run import write_run

from btp.report.pages.run_page import write_report


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "btp")


@pytest.fixture(scope="session")
def page(run_folder):
    return write_report(run_folder)


@pytest.fixture(scope="module")
def browser():
    """Closed with its module: a process that later tests fork would keep its pipe open, and it would never end."""
    path = find_browser()
    if path is None:
        pytest.skip("no chromium or google-chrome on this machine")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield opened
        opened.close()
