"""Recipes and studies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fuzzing.drawing import VALUES, Draw, broken, broken_bytes, pick
from fuzzing.targets import PICKLE, Case, Target, json_bombs

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
TAGGED = (
    "!!python/object/apply:os.system ['touch t3d-was-here']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/new:subprocess.Popen [['touch', 't3d-was-here']]",
    "!!binary gA==",
    "!!binary x",
    "!!int x",
    "!!float x",
    "!!bool x",
    "!!timestamp x",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!null x",
    "2024-13-45",
    "2024-01-01",
    "12:30:45",
    "0o17",
    "0b2",
    "&a [*a, *a]",
    "&a {b: *a}",
    "*nothing",
    "{<<: {a: 1}}",
    "{<<: 3}",
    "<<",
    "? [a, b]",
    "{[a]: 1}",
    "{1: 2}",
    "{null: 2}",
    "{1.5: 2}",
    "~",
    ".inf",
    "-.inf",
    ".nan",
    "1_000",
    "0x_",
    "1e",
    "|",
    ">",
    "%",
    "@",
    "`",
    "\t",
    "---",
    "...",
    '"\\ud800"',
    '"\\0"',
    "'",
    "!",
    "&",
    "1" * 5000,
    "{2024-01-01: 1}",
    "{true: 1}",
    "[[[[[[[[[[]]]]]]]]]]",
)
"""YAML that stands in for a value."""
MARK = "@yaml@"


def as_yaml(draw: Draw, document: Any) -> bytes:
    """YAML text in flow style, in which some values are those of `TAGGED`; now and then with bytes at fault."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    while MARK in text:
        text = text.replace(f'"{MARK}"', pick(draw, TAGGED), 1).replace(MARK, "yaml", 1)
    data = text.encode("utf-8", "surrogatepass")
    return broken_bytes(draw, data) if draw.below(4) == 3 else data


class RecipeTarget(Target):
    """`t3d train`: the recipe, its overrides, and that what was read can be written down and read again."""

    name = "recipe"
    mentions = ("recipe.yaml", "override")
    file = "recipe.yaml"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.texts = [file.read_text() for file in sorted(RECIPES.rglob("*.yaml")) if "study" not in file.name]
        self.documents = [yaml.safe_load(text) for text in self.texts]

    def make(self, draw: Draw) -> Case:
        """In flow style by its structure, or the real file with other values or bytes."""
        number = draw.below(len(self.documents))
        if draw.below(4) == 3:
            content = self._with_other_lines(draw, self.texts[number])
        else:
            content = as_yaml(draw, broken(draw, self.documents[number], (*VALUES, MARK, MARK, MARK, MARK)))
        overrides = [self._override(draw) for _ in range(max(0, draw.below(6) - 4))]
        return {self.file: content, "overrides": json.dumps(overrides).encode()}

    def shaped(self, value: Any) -> Case:
        """A value in place of the document or of one group."""
        document = {**self.documents[0], "optim": value} if not isinstance(value, dict) else value
        return {self.file: json.dumps(document).encode("utf-8", "surrogatepass"), "overrides": b"[]"}

    def run(self, case: Case) -> None:
        """Read, write, read."""
        from t3d.config import load_recipe, make_recipe

        (self.folder / self.file).write_bytes(case[self.file])
        recipe = load_recipe(self.folder / self.file, json.loads(case["overrides"]))
        fields = json.loads(json.dumps(recipe.model_dump(mode="json")))
        assert make_recipe(fields).model_dump(mode="json") == recipe.model_dump(mode="json"), (
            "not the same when read again"
        )
        yaml.safe_dump(fields)

    def bombs(self) -> Iterator[tuple[str, Case]]:
        """Those of JSON, which is YAML, and YAML's own."""
        for what, content in (*json_bombs(self.documents[0]), *yaml_bombs(self.texts[0])):
            yield what, {self.file: content, "overrides": b"[]"}
        text = self.texts[0].encode()
        for override in (
            "a" * 10**5,
            "a." * 10**4 + "b=1",
            "optim.lr=" + "[" * 10**5,
            f"rounds.{'9' * 5000}=1",
            "=",
            "optim=&a [*a]",
        ):
            yield f"override {override[:20]}", {self.file: text, "overrides": json.dumps([override]).encode()}

    def _with_other_lines(self, draw: Draw, text: str) -> bytes:
        lines = text.splitlines(keepends=True)
        for _ in range(1 + draw.below(3)):
            place = draw.below(len(lines))
            key, colon, _ = lines[place].partition(":")
            lines[place] = f"{key}{colon} {pick(draw, TAGGED)}\n" if draw.below(3) else pick(draw, lines)
        return broken_bytes(draw, "".join(lines).encode(), most=1)

    def _override(self, draw: Draw) -> str:
        group = pick(
            draw,
            ("optim", "data", "rounds.0", "rounds.1.optim", "model.init", "prompt.template_options", "objective", "x"),
        )
        return f"{group}.{pick(draw, ('lr', 'steps', '', 'name', '0'))}={pick(draw, TAGGED)}"


def yaml_bombs(valid: str) -> Iterator[tuple[str, bytes]]:
    """What asks much of a reader of YAML."""
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    merges = "m0: &m0 {k: 1}\n" + "".join(
        f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
    )
    yield "aliases that multiply", laughs.encode()
    yield "merges that multiply", merges.encode()
    yield "an alias inside of itself", b"a: &a [*a]\n"
    yield "a billion rounds", valid.encode() + b"\nrounds: [{repeat: 1000000000, rollout: {task: story, count: 1}}]\n"
    yield "blocks a thousand deep", "".join(" " * depth + "a:\n" for depth in range(1000)).encode()
    yield "sequences a thousand deep", b"- " * 5000
    yield "brackets after a text, which might be a name", b'"a"' + b"[" * 60_000
    yield "a hundred thousand keys", b"".join(b"k%d: 1\n" % number for number in range(10**5))
    yield "a tag of a megabyte", b"a: !" + b"x" * 10**6
    yield "a sexagesimal number of a megabyte", b"a: 1" + b":59" * 300_000
    yield "a name twice", valid.encode() + b"\nseed: 1\nseed: 2\n"
    yield "a pickle", PICKLE


class StudyTarget(RecipeTarget):
    """`t3d study`: the file, and the recipe of every method."""

    name = "study"
    mentions = ("recipe.yaml", "override", "method ", "ablation ")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.texts = [file.read_text() for file in sorted(RECIPES.rglob("*study*.yaml"))]
        self.documents = [yaml.safe_load(text) for text in self.texts]

    def run(self, case: Case) -> None:
        """Read it, and what it makes of its methods."""
        from t3d.config.study import load_study
        from t3d.study.cells import Cell, recipe_of

        (self.folder / self.file).write_bytes(case[self.file])
        study = load_study(self.folder / self.file, json.loads(case["overrides"]))
        for name in study.variants:
            recipe_of(study, Cell(name, study.learning_rates[0], study.seeds[0]))
