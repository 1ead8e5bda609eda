from __future__ import annotations

import os
import time

import pytest

from tests.once import once


def test_of_several_processes_the_first_makes_it_and_the_others_use_it(tmp_path):
    def make(folder):
        with (tmp_path / "makers").open("a") as makers:
            makers.write(f"{os.getpid()}\n")
        time.sleep(0.3)  # the others ask meanwhile
        (folder / "result").write_text("done")

    children = []
    for _ in range(3):
        if not (pid := os.fork()):
            os._exit((once(tmp_path / "made" / "it", make) / "result").read_text() != "done")
        children.append(pid)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert (once(tmp_path / "made" / "it", make) / "result").read_text() == "done"
    assert len((tmp_path / "makers").read_text().splitlines()) == 1


def test_what_was_not_made_to_its_end_is_made_anew(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        once(tmp_path / "it", fail)
    assert list(once(tmp_path / "it", lambda folder: (folder / "whole").touch()).iterdir()) == [tmp_path / "it/whole"]
