"""The scripts that compare one GPU with several: stages go on where they stopped, and leave no process behind."""

import json
import subprocess
import sys

import psutil
import pytest
from stages import Failed, Stage, end, run_stages, start

BABY = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"


class Work:
    """Does a stage's work once it is allowed to."""

    def __init__(self):
        self.fails, self.limits = True, []

    def __call__(self, limit):
        self.limits.append(limit)
        if self.fails:
            raise Failed("exit code 1")
        return {"pace": 7}


def test_a_second_call_does_what_failed_and_what_was_asked_otherwise(tmp_path):
    first, second = Work(), Work()
    first.fails = False
    stages = [Stage("first", 100.0, first), Stage("second", 1e9, second)]

    def call(**settings):
        return run_stages(stages, settings, tmp_path / "work", tmp_path / "deep" / "out.json", budget=1000.0)

    found = call(processes=2)
    assert (found["first"]["pace"], found["second"]["failed"]) == (7, "exit code 1")
    assert json.loads((tmp_path / "deep" / "out.json").read_text()) == found
    second.fails = False
    assert call(processes=2)["second"]["pace"] == 7
    assert (len(first.limits), len(second.limits)) == (1, 2)
    assert first.limits == [100.0]
    assert all(0 < limit <= 1000 for limit in second.limits)  # what the budget left
    call(processes=2)
    assert (len(first.limits), len(second.limits)) == (1, 2)
    call(processes=4)
    assert (len(first.limits), len(second.limits)) == (2, 3)


def test_a_stage_that_no_time_is_left_for_says_so(tmp_path):
    work = Work()
    found = run_stages([Stage("late", 100.0, work)], {}, tmp_path, tmp_path / "out.json", budget=10.0)
    assert "no time was left" in found["late"]["failed"]
    assert work.limits == []


def test_a_program_that_fails_or_takes_too_long_is_a_stage_that_failed(tmp_path):
    with pytest.raises(Failed, match=r"exit code 3; said before"):
        start(["-c", "print('said before'); raise SystemExit(3)"], 1, 100.0, tmp_path, on_cpu=True)
    with pytest.raises(Failed, match="not done after 1 s"):
        start(["-c", "import time; time.sleep(600)"], 1, 1.0, tmp_path, on_cpu=True)


def test_what_a_program_started_ends_with_it(tmp_path):
    """Also what has a session of its own, as torchrun's processes have."""
    program = [sys.executable, "-c", f"{BABY}; import time; time.sleep(600)"]
    running = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(running.stdout.readline()))
    end(running)
    running.stdout.close()
    assert child.wait(timeout=60) is None or not child.is_running()
