"""The launch files of rollouts: they parse, and the commands in them exist with the options that they are given."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from torch.distributed.run import get_args_parser

from t3d.cli import app
from t3d.trajectories import Part

LAUNCH = Path(__file__).parent.parent / "launch"
SKY = yaml.safe_load((LAUNCH / "rollout-ray.sky.yaml").read_text())
SCRIPTS = {
    "slurm": (LAUNCH / "slurm-rollout.sbatch").read_text(),
    "torchrun": (LAUNCH / "torchrun-rollout.sh").read_text(),
    "tensor parallel": (LAUNCH / "torchrun-tensor-parallel.sh").read_text(),
    "sky setup": SKY["setup"],
    "sky run": SKY["run"],
}


def commands_of(script):
    """The words of each simple command, `\\`-continued lines joined."""
    for line in re.sub(r"\\\n\s*", " ", script).splitlines():
        for command in line.split("; "):
            yield shlex.split(command, comments=True)


def calls(program):
    """The arguments of every call of a program, by script."""
    return [
        (name, words[words.index(program) + 1 :])
        for name, script in SCRIPTS.items()
        for words in commands_of(script)
        if program in words[:4]  # also after `until`, `||`
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse(name):
    ran = subprocess.run(["bash", "-n"], input=SCRIPTS[name], text=True, capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def check_rollout(words):
    """Parse a command line as `t3d` does."""
    assert words[0] == "rollout"
    command = typer.main.get_command(app).commands["rollout"]
    numbers = {"$SLURM_ARRAY_TASK_ID/$PARTS": "7/8", "$HEAD:6379": "head:6379"}
    words = [numbers.get(word, word) for word in words[1:]]
    if "$((SKYPILOT_NUM_NODES" in words:
        start = words.index("$((SKYPILOT_NUM_NODES")
        words[start:] = ["32"]
    return command.make_context("t3d", words).params


def test_rollouts_have_the_options_that_they_are_given():
    (slurm, in_slurm), (sky, in_sky) = calls("t3d")
    under_torchrun = dict(calls("torchrun"))
    assert (slurm, sky) == ("slurm", "sky run")
    assert check_rollout(in_slurm)["shard"] == "7/8"
    assert check_rollout(in_sky)["num_workers"] == 32
    assert list(under_torchrun) == ["torchrun", "tensor parallel"]
    for name, holders in (("torchrun", 1), ("tensor parallel", 2)):
        parsed = get_args_parser().parse_args(under_torchrun[name])
        assert (parsed.module, parsed.training_script) == (True, "t3d.cli")
        asked = check_rollout(parsed.training_script_args)
        assert (asked["resume"], asked["tensor_parallel"]) == (True, holders)


def test_a_job_array_has_as_many_tasks_as_there_are_parts():
    script = SCRIPTS["slurm"]
    first, last = re.search(r"^#SBATCH --array=(\d+)-(\d+)$", script, flags=re.MULTILINE).groups()
    (parts,) = re.findall(r"^PARTS=(\d+)", script, flags=re.MULTILINE)
    shards = [index for task in range(int(first), int(last) + 1) for index in Part.parse(f"{task}/{parts}").of(100)]
    assert sorted(shards) == list(range(100))


def test_ray_is_started_with_options_that_it_has():
    scripts = pytest.importorskip("ray.scripts.scripts")
    starts = [words for _, words in calls("ray")]
    assert [words[0] for words in starts] == ["start", "start"]
    for words in starts:
        scripts.start.make_context("ray", words[1:])


def test_sky_task_has_fields_that_tasks_have():
    assert set(SKY) <= {"name", "num_nodes", "resources", "workdir", "setup", "run", "envs", "file_mounts"}
    assert SKY["resources"] == {"accelerators": "H200:8"}
