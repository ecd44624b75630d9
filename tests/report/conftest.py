"""A run folder to read, and a report of it, each made once."""

import pytest
from sample_run import write_run

from btp.report.page import write_report


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "btp")


@pytest.fixture(scope="session")
def page(run_folder):
    return write_report(run_folder)
