"""The package's shape: imports go one way, files are short, everything public says what it does."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import t3d
from t3d.corruption import HIDERS
from t3d.engine.rules import RULES
from t3d.evaluation import BENCHMARKS
from t3d.models import FAMILIES
from t3d.objectives import OBJECTIVES, build_objective
from t3d.tasks import TASKS

PACKAGE = Path(t3d.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 320

ORDER = (
    {"errors", "versions", "files", "credentials"},
    {"types", "checksums", "config", "progress", "noise", "web"},
    {"models", "kernels"},
    {"sandbox"},
    {"tasks"},
    {"engine"},
    {"trajectories"},
    {"corruption"},
    {"objectives"},
    {"evaluation"},
    {"training"},
    {"study"},
    {"bench"},
    {"doctor"},
    {"cli_completion"},
    {"demo", "cli_options"},
    {"interop", "hub"},
    {"serve", "viewer"},
    {
        "cli_bench",
        "cli_compare",
        "cli_convert",
        "cli_doctor",
        "cli_eval",
        "cli_interop",
        "cli_publish",
        "cli_rollout",
        "cli_serve",
        "cli_study",
        "cli_view",
    },
    {"cli"},
)
"""A part imports from its own group's earlier ones only; `t3d` itself gives `types` and, lazily, the engine."""
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}


def part_of(module):
    """ "t3d.engine.rules.common" -> "engine"."""
    return module.split(".")[1]


def module_of(file):
    parts = ("t3d", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file):
    """Our own modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write absolute imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "t3d" and "." in name)


def test_every_part_has_its_place():
    parts = {part_of(module_of(file)) for file in FILES if file != PACKAGE / "__init__.py"}
    assert parts == set(LEVEL)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_go_one_way(file):
    if file == PACKAGE / "__init__.py":
        assert set(map(part_of, imports_of(file))) == {"types", "engine"}
        return
    own = part_of(module_of(file))
    for name in imports_of(file):
        part = part_of(name)
        if part in LEVEL:  # not `from t3d import __version__`
            assert part == own or LEVEL[part] < LEVEL[own], f"{module_of(file)} imports {name}"


SLOW = ("torch", "transformers", "numpy", "pyarrow", "matplotlib", "datasets", "accelerate", "fastapi")
HELP_OF_ALL = """
import typer
from t3d.cli import app, run
for name, command in typer.main.get_command(app).commands.items():
    if name != "lm-eval":  # its help is another program's
        for inner in ([], *([each] for each in getattr(command, "commands", ()))):
            assert run([name, *inner, "--help"]) == 0
"""
STATEMENTS = (
    "import t3d",
    "import t3d.cli",
    "from t3d.cli import run; run(['--help'])",
    HELP_OF_ALL,
)


@pytest.mark.parametrize("statement", STATEMENTS, ids=["package", "command line", "help", "help of all commands"])
def test_help_waits_for_nothing_slow(statement):
    assert imported_by(statement, SLOW) == []


@pytest.mark.parametrize("command, untouched", [
    ("compare nowhere", ("torch", "transformers")),
    ("doctor", ("transformers", "t3d.training")),
    ("generate a --rule unknown", ("transformers",)),
    ("train nowhere.yaml", ("torch", "transformers")),
])  # fmt: skip
def test_a_command_imports_what_it_needs(command, untouched):
    assert imported_by(f"from t3d.cli import run; run({command.split()})", untouched) == []


def imported_by(statement, modules):
    """Which of the modules are there after a statement in a new process."""
    check = f"{statement}\nimport sys; print(*({set(modules)!r} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_are_short(file):
    assert len(file.read_text().splitlines()) <= LONGEST_FILE


def public_definitions(body, inside=""):
    """Public functions, classes and their public methods below a module's or class's body."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{inside}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{node.name}.")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_everything_public_says_what_it_does(file):
    module = ast.parse(file.read_text())
    assert ast.get_docstring(module) or not module.body
    silent = [name for name, node in public_definitions(module.body) if not ast.get_docstring(node)]
    assert silent == []


@pytest.mark.parametrize("registry", [RULES, OBJECTIVES, TASKS, BENCHMARKS, HIDERS, FAMILIES])
def test_registries_name_their_entries(registry):
    assert registry
    assert all(name == name.lower() for name in registry)


def test_entries_can_be_used():
    for name in OBJECTIVES:
        objective = build_objective(name)
        assert objective.hider in HIDERS
    assert set(BENCHMARKS) <= set(TASKS)
    for name, task in TASKS.items():
        assert task.name == name
    for name, (config_class, model_class) in FAMILIES.items():
        assert config_class().model_type == name
        assert model_class.config_class is config_class
    for function in (*RULES.values(), *HIDERS.values()):
        assert inspect.isfunction(function)
        assert function.__doc__
