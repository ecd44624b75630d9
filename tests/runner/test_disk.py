"""Files are written whole or not at all, and a disk that refuses them is said with what to do."""

import fcntl
import json
import os
import resource
import stat
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest

from btp.report.drawing_errors import Spared
from btp.results.atomic import clear_parts, whole, write_array, write_bytes, write_json, write_parquet, write_text
from btp.results.disk import CannotWrite, make_folder
from btp.results.writer import RunFolder
from btp.runner.evaluation.answer_store import Answers, held
from btp.runner.messages import one_line
from btp.runner.workers.requests import handed_in

FRAME = pd.DataFrame({"a": [str(i) * 40 for i in range(3000)]})


@contextmanager
def files_of_at_most(size):
    """No file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 9000),
        lambda path: write_json(path, ["x" * 9000]),
        lambda path: write_array(path, np.zeros(9000)),
        lambda path: write_parquet(path, FRAME),
    ],
    ids=["text", "json", "array", "parquet"],
)
def test_what_finds_no_room_leaves_the_old_file_and_nothing_else(tmp_path, write):
    path = tmp_path / "it"
    path.write_text("old")
    with files_of_at_most(4096), pytest.raises(CannotWrite, match=r"it cannot be written: .* has [\d,]+ bytes free"):
        write(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["it"]


def test_an_error_of_the_writer_is_its_own(tmp_path):
    def fail():
        with whole(tmp_path / "it") as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.listdir(tmp_path) == []


def test_answers_that_found_no_room_are_answered_again(tmp_path):
    """What was answered before stays; a row that fitted in half does not count."""
    answers = Answers(tmp_path / "a")
    answers.add([{"sample": "1"}])
    full = r"rows-0\.jsonl cannot be written: it would grow .* and .*/a has"
    with files_of_at_most(24), pytest.raises(CannotWrite, match=full):
        answers.add([{"sample": "2"}])
    assert list(answers.rows()) == ["1"]
    answers.add([{"sample": "2"}])
    assert list(answers.rows()) == ["1", "2"]


def test_a_full_disk_is_no_figure_that_is_missing(tmp_path):
    """A report does not end whole without the figures that there was no room for."""
    with files_of_at_most(10), pytest.raises(CannotWrite), Spared().part("the figure a"):
        write_bytes(tmp_path / "a.png", b"x" * 99)


def test_a_library_s_own_error_names_the_folder(tmp_path):
    said = one_line(OSError(28, "No space left on device"), tmp_path)
    assert "the disk is full" in said
    assert str(tmp_path.parent) in said
    assert "set output to a folder on another disk" in said
    assert one_line(MemoryError(), tmp_path).startswith("out of memory in this machine's own memory")
    assert one_line(PermissionError(13, "Permission denied", "/proc/1/mem"), tmp_path).endswith("'/proc/1/mem'")


def test_temporary_files_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    stale = tmp_path / "deep" / f".run.json.{'0' * 32}"
    stale.parent.mkdir()
    stale.write_text("{")
    (tmp_path / "deep" / "x.npy.part").touch()
    (tmp_path / "deep" / "kept.json").touch()
    with whole(tmp_path / "now") as file:
        file.write(b"a")
        clear_parts(tmp_path)
        file.write(b"b")
    assert (tmp_path / "now").read_bytes() == b"ab"
    assert os.listdir(tmp_path / "deep") == ["kept.json"]


def test_requests_of_the_dead_are_cleared_by_the_next(tmp_path):
    """Their locks are free; that of a request that is being computed is not."""
    spool = tmp_path / "requests"
    spool.mkdir()
    for name in ("dead.json", "dead.lock", "dead.outcome", "dead.outcome1", f".dead.outcome.{'0' * 32}", "old.json"):
        (spool / name).touch()
    with handed_in(spool, {"a": 1}) as first:
        assert {file.stem for file in spool.iterdir()} == {first.stem}
        with handed_in(spool, {"a": 2}) as second:
            assert json.loads(first.read_text()) == {"a": 1}
            assert json.loads(second.read_text()) == {"a": 2}
    assert os.listdir(spool) == []


@pytest.mark.parametrize("mode", [0o755, 0o775, 0o777])
def test_what_is_shared_is_as_open_as_the_folder_it_lies_in(tmp_path, mode):
    """Whoever may write the output folder can go on in it, whatever the umask of who came first."""
    tmp_path.chmod(mode)
    before = os.umask(0o022)
    try:
        make_folder(tmp_path / ".store" / "answers")
        write_text(tmp_path / ".store" / "answers" / "a.json", "{}")
        Answers(tmp_path / ".store" / "answers" / "b").add([{"sample": "1"}])
    finally:
        os.umask(before)
    for made in (tmp_path / ".store").rglob("*"):
        wanted = mode if made.is_dir() else mode & 0o666
        assert stat.S_IMODE(made.stat().st_mode) & 0o022 == wanted & 0o022, made


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is to be had by root alone")
def test_two_users_share_an_output_folder(tmp_path):
    """Locks, answers and files that one made serve the other; where they cannot, file, owner and way out are named."""
    for folder in [tmp_path, *tmp_path.parents][:-2]:
        folder.chmod(0o777 if folder == tmp_path else 0o755)
    with held(tmp_path / "a.lock", "it"):
        pass
    Answers(tmp_path / "shared").add([{"sample": "1"}])
    (tmp_path / "closed").mkdir(mode=0o755)

    def as_nobody(work):
        child = os.fork()
        if not child:
            code = 1
            try:
                os.setgid(65534)
                os.setuid(65534)
                work()
                code = 0
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def share():
        with held(tmp_path / "a.lock", "it"):
            Answers(tmp_path / "shared").add([{"sample": "2"}])

    def trespass():
        with pytest.raises(CannotWrite, match=r"belongs to root and has mode 755; this process is nobody.*chmod -R"):
            write_text(tmp_path / "closed" / "a", "")

    assert as_nobody(share) == 0
    assert as_nobody(trespass) == 0
    assert set(Answers(tmp_path / "shared").rows()) == {"1", "2"}


def test_answers_computed_anew_leave_the_distributions_to_who_reads_them(tmp_path):
    """Another run may compare its answers with them while this one begins again."""
    answers = Answers(tmp_path / "a")
    answers.add_logits(["1"], np.zeros((1, 3)))
    answers.add([{"sample": "1"}])
    Answers(tmp_path / "a").clear()
    assert not answers.rows()
    assert answers.logits("1").shape == (3,)


def test_a_writer_s_file_is_locked(tmp_path):
    with whole(tmp_path / "a"):
        (part,) = tmp_path.iterdir()
        with part.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_fails_behind_the_end_of_a_run_does_not_undo_it(tmp_path):
    """Its log is left, where there is room for it, and its state is what it was."""
    run = RunFolder(tmp_path / "run")
    run.begin({"command": "python run.py"}, "identity", "hardware")
    run.fail("first", "details")
    assert json.loads((run.path / "run.json").read_text())["state"] == "failed"
    run.update(state="finished")
    with files_of_at_most(1):
        run.fail("then", "details of it")
    assert json.loads((run.path / "run.json").read_text())["state"] == "finished"
    assert (run.path / "error.log").read_text() == "details"


def test_a_refused_run_takes_no_earlier_one_along(tmp_path):
    """Whoever waited for another run sees what that has left, not what was there at first."""
    late = RunFolder(tmp_path / "run")
    RunFolder(tmp_path / "run").begin({"command": "python run.py"}, "identity", "hardware")
    late.withdraw()
    late.begin({"command": "python run.py"}, "identity", "hardware")
    late.withdraw()
    assert (tmp_path / "run" / "run.json").is_file()
