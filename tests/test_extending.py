"""docs/extending.md: its examples run as they stand, and keep the contracts of what they are registered as."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import test_attention_patterns
import test_families
import test_layout
import test_packing
import test_rules
import test_tasks
import tiny
import torch
from test_engine import assert_same, mixed_requests
from torch.nn.functional import cross_entropy
from transformers import MistralConfig, MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRMSNorm

from t3d.cli import run
from t3d.engine import Engine
from t3d.engine.continuous import decoder
from t3d.engine.rules import RULES
from t3d.evaluation import BENCHMARKS
from t3d.models import FAMILIES, load_model
from t3d.objectives import OBJECTIVES, Scores, build_objective
from t3d.tasks import TASKS
from t3d.training.scorer import Scorer
from t3d.types import Decoding

torch.set_num_threads(1)

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
FENCE = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```', flags=re.MULTILINE | re.DOTALL)
REGISTRIES = (OBJECTIVES, RULES, FAMILIES, TASKS, BENCHMARKS)


def fences(section):
    """The (language, title, text) of a section's fences; "" is what stands before the first section."""
    sections = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")}
    return FENCE.findall(sections[section] if section else PAGE.split("\n## ")[0])


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    """The folder in which the page's command left its answers."""
    folder = tmp_path_factory.mktemp("extending")
    (command,) = (text for language, _, text in fences("") if language == "bash")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert run(command.split()[1:]) == 0
    return folder / "runs" / "rollouts"


def names_of(section, fences_run=2):
    """What a section's first fences define: the file, and its use."""
    names = {"__name__": "extension"}
    for language, title, text in fences(section)[:fences_run]:
        assert language == "python"
        exec(compile(text, title, "exec"), names)
    return names


@pytest.fixture
def execute(tmp_path, rollouts, monkeypatch):
    """Runs a section in a folder of its own; what it registers is gone afterwards."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "rollouts").symlink_to(rollouts)
    monkeypatch.chdir(tmp_path)
    before = [dict(registry) for registry in REGISTRIES]

    yield names_of
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


def test_every_example_of_the_page_is_run():
    sections = re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    assert sections == ["An objective", "A decoding rule", "A model family", "A benchmark"]
    assert [title for _, title, _ in fences("")] == ["my_t3d.py", ""]
    for section in sections:
        file, use = fences(section)
        assert file[1].endswith(".py")
        assert use[1].startswith("register")
    assert len(FENCE.findall(PAGE)) == PAGE.count("\n```") / 2


def test_the_files_that_the_page_names_are_there():
    root = Path(__file__).parent.parent
    for name in re.findall(r"`((?:t3d|tests)/[\w/]+(?:\.py)?)`", PAGE):
        assert (root / name).exists(), name
    for name in re.findall(r"`(test_\w+\.py)`", PAGE):
        assert (root / "tests" / name).exists(), name


def test_an_objective(execute, tmp_path):
    execute("An objective")
    lines = [json.loads(line) for line in (tmp_path / "runs" / "focal" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2
    assert 0 < lines[-1]["doubt"] < 1
    trained = load_model(tmp_path / "runs" / "focal" / "model", device="cpu").state_dict()
    teacher = load_model("story-mini", device="cpu").state_dict()
    assert not all(torch.equal(trained[name], teacher[name]) for name in teacher)

    student, reference = (Scorer(tiny.tiny_model(seed=seed)) for seed in (1, 2))
    test_packing.test_an_objective_keeps_its_word("focal", student, reference)
    test_packing.test_packed_is_one_at_a_time("focal", student, reference)
    test_packing.test_the_step_is_the_mean_over_its_examples("focal", student, reference)
    test_packing.test_an_example_without_a_hidden_token_adds_nothing("focal", student, reference)


def test_the_focal_loss_by_hand(execute):
    OBJECTIVES["focal"] = execute("An objective", 1)["Focal"]
    batch = test_packing.pack(
        [tiny.noisy_example(tiny.random_row("row", 4, 4), ratios=(0.5,), random_token_share=0)],
        row_tokens=None,
        block_size=4,
        num_examples_in_step=1,
    )
    probabilities = torch.tensor([0.5, 0.25])
    scores = Scores(real=probabilities.log(), argmax=batch.tokens.targets)
    loss, metrics = build_objective("focal", gamma=2.0)(scores, batch.tokens)
    assert loss.item() == pytest.approx((0.5**2 * 0.693147 + 0.75**2 * 1.386294) / 2, rel=1e-5)
    assert metrics["doubt"].item() == pytest.approx((0.25 + 0.5625) / 2)
    plain, _ = build_objective("focal", gamma=0.0)(scores, batch.tokens)
    logits = torch.stack([probabilities, 1 - probabilities], dim=1).log()
    assert plain.item() == pytest.approx(cross_entropy(logits, torch.tensor([0, 0])).item())


@pytest.mark.parametrize("backend", ["plain", "continuous"])
def test_a_rule_decodes_on_both_backends(execute, backend):
    names = execute("A decoding rule")
    answer = names["answer"]
    assert answer.finish_reason == "stop"
    assert max(answer.reveal_steps.count(step) for step in answer.reveal_steps) == 2  # two steps a block of four
    engine = Engine(names["engine"].model, names["engine"].tokenizer, backend=backend)
    decodings = [Decoding(rule=rule, steps_per_block=2, max_new_tokens=40) for rule in RULES]  # all in one batch
    together = engine.generate([answer.prompt_ids] * len(RULES), decodings)
    alone = engine.generate([answer.prompt_ids], decodings[-1])
    assert_same(together[-1:], alone)
    assert alone[0].token_ids == answer.token_ids[: len(alone[0].token_ids)]


def test_a_rule_keeps_the_contract(execute):
    name = "low_entropy_static"
    RULES[name] = execute("A decoding rule", 1)[name]
    test_rules.test_contract_only_masked_at_least_one_and_pure(name=name)
    test_rules.test_contract_rows_are_independent_and_settings_may_differ_by_row(name)
    for block_size in (1, 4, 7):
        test_rules.test_contract_a_full_block_takes_at_most_the_steps_asked_for(name, block_size)
    entropy, masked = torch.tensor([[0.3, 0.1, 0.2, 0.1]]), torch.tensor([[True, False, True, True]])
    options = {"entropy": entropy, "threshold": 0.9, "entropy_bound": 0.5}
    assert RULES[name](torch.zeros(1, 4), masked, 0, 2, **options).tolist() == [[False, False, True, True]]


def test_a_script_makes_it_known_to_every_command(execute, tmp_path, monkeypatch, capsys):
    ((_, _, rule), _) = fences("A decoding rule")
    (tmp_path / "low_entropy_static.py").write_text(rule)
    ((_, title, script), _) = fences("")
    (tmp_path / title).write_text(script)
    asked = ["generate", "--rule", "low_entropy_static", "--max-new-tokens", "4", "--device", "cpu", "How many?"]
    assert run(asked) == 2
    assert "low_entropy_static" in capsys.readouterr().err
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", [title, *asked])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tmp_path / title), run_name="__main__")
    sys.modules.pop("low_entropy_static")
    assert ended.value.code == 0
    assert "[4 tokens, " in "".join(capsys.readouterr())


def test_a_family_loads_saves_and_decodes(execute, tmp_path):
    names = execute("A model family")
    assert (
        json.loads((tmp_path / "runs" / "block-mistral" / "config.json").read_text())["model_type"] == "block_mistral"
    )
    loaded = names["engine"].model
    assert type(loaded) is FAMILIES["block_mistral"][1]
    for name, weight in names["model"].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert len(names["answer"].reveal_steps) == 8


def test_a_family_keeps_the_contract(execute, monkeypatch):
    names, family = execute("A model family", 1), "block_mistral"
    FAMILIES[family] = (names["BlockMistralConfig"], names["BlockMistralForCausalLM"])
    monkeypatch.setattr(decoder, "LAYERS", (*decoder.LAYERS, MistralDecoderLayer))
    monkeypatch.setattr(tiny, "RMS_NORMS", (*tiny.RMS_NORMS, MistralRMSNorm))
    monkeypatch.setitem(test_families.ORIGINALS, family, (MistralConfig, MistralForCausalLM))
    for backend in ("plain", "continuous"):
        test_families.test_the_first_step_is_transformers_own({"family": family}, backend, 14)
    test_families.test_a_training_forward_is_transformers_own(family, "sdpa")
    test_attention_patterns.test_packed_documents_do_not_see_each_other(family)
    for lengths in tiny.ODD_LENGTHS:
        test_attention_patterns.test_training_shows_what_decoding_shows(lengths, 4, "sdpa", family)
    model, requests = test_families.decoding_model(family=family), mixed_requests(8)
    plain, continuous = (Engine(model, backend=backend).generate(*requests) for backend in ("plain", "continuous"))
    assert_same(continuous, plain)


def test_a_benchmark(execute, tmp_path, monkeypatch):
    names = execute("A benchmark")
    result = names["result"]
    assert result.benchmark == "svamp"
    assert [each.tokens_per_step for each in result.settings] == [1, 4]
    assert all(each.num_problems == 3 for each in result.settings)
    assert result.settings[0].accuracy >= 2 / 3  # the built-in student knows such stories

    monkeypatch.setitem(test_tasks.ROWS, "svamp", names["rows"])
    (tmp_path / "contract").mkdir()
    test_tasks.test_task_contract("svamp", tmp_path / "contract")
    test_tasks.test_tasks_that_read_data_say_where_they_cannot("svamp", tmp_path / "contract")
    test_tasks.test_tasks_that_read_data_read_them_once("svamp", tmp_path / "contract")


def test_all_together_are_good_entries(execute):
    OBJECTIVES["focal"] = execute("An objective", 1)["Focal"]
    RULES["low_entropy_static"] = execute("A decoding rule", 1)["low_entropy_static"]
    family = execute("A model family", 1)
    FAMILIES["block_mistral"] = (family["BlockMistralConfig"], family["BlockMistralForCausalLM"])
    TASKS["svamp"] = BENCHMARKS["svamp"] = execute("A benchmark", 1)["SvampTask"]
    for registry in REGISTRIES:
        test_layout.test_registries_name_their_entries(registry)
    test_layout.test_entries_can_be_used()
