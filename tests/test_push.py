"""`t3d push`: the card against results made by hand, what goes up and what stays, refusals; nothing is uploaded."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from test_compare import DYNAMIC, make_result, make_setting
from tiny import tiny_model
from training_runs import TOKENIZER

from t3d.checksums import damage_of_folder
from t3d.cli import run
from t3d.errors import RequestError, WorkError
from t3d.evaluation import write_result
from t3d.evaluation.metrics import wilson_interval
from t3d.hub import Subject, model_card, own_results, push, read_model_files, read_origin, upload
from t3d.hub.card import advised, weights_named
from t3d.models import load_model, model_fingerprint, save_model

RECIPE = {
    "model": {"source": "JetLM/SDAR-1.7B-Chat", "adapter": {"type": "lora", "rank": 8, "alpha": None}},
    "objective": {"name": "t3d"},
    "data": {"trajectories": "/home/someone/rollouts"},
    "optim": {"steps": 200, "examples_per_step": 256, "lr": 1e-5},
    "evaluation": {"data": "held/out"},
    "tracking": {"project": "mine"},
    "out": "/home/someone/runs",
    "rounds": [],
}
START = {"versions": {"t3d": "0.1.0"}, "commit": "0123456789abcdef", "folder": "/home/someone"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run with an optimizer state and logs about."""
    root = tmp_path_factory.mktemp("run")
    model = tiny_model(
        dtype=torch.float32, vocab_size=len(TOKENIZER), mask_token_id=TOKENIZER.mask_token_id, eos_token_id=0
    )
    save_model(model, root / "model", TOKENIZER, with_checksums=True)
    for name in ("optimizer.pt", "metrics.jsonl", "reference.safetensors", "notes.txt"):
        (root / "model" / name).write_text("private\n")
    (root / "recipe.json").write_text(json.dumps(RECIPE))
    (root / "starts.jsonl").write_text(json.dumps({"versions": {"t3d": "0"}}) + "\n" + json.dumps(START) + "\n")
    return root


@pytest.fixture
def folder(run_folder, tmp_path):
    """A model's folder in a run's folder, to be changed."""
    return shutil.copytree(run_folder, tmp_path / "run") / "model"


STUDENT = make_result("student", "gsm8k", make_setting(190, 1), make_setting(189, 2), make_setting(120, 4))
TEACHER = make_result("teacher", "gsm8k", make_setting(192, 1), make_setting(80, 2), model="JetLM/SDAR-1.7B-Chat")


def subject_of(folder, own=(STUDENT,), others=(), licence=None, **config):
    files = read_model_files(folder)
    for name, value in config.items():
        setattr(files.config, name, value)
    return Subject("someone/fast", files.config, read_origin(folder), list(own), [*own, *others], licence)


# The card


def test_metadata_is_what_the_hub_reads(folder):
    data = ModelCard(model_card(subject_of(folder, others=[TEACHER], licence="mit"))).data
    assert (data.base_model, data.license, data.pipeline_tag) == ("JetLM/SDAR-1.7B-Chat", "mit", "text-generation")
    assert data.library_name == "t3d"
    assert {"sdar", "block-diffusion", "arxiv:2602.12262"} <= set(data.tags)
    assert data.datasets is None  # rollouts are no data set of the hub, and what measured the run taught it nothing
    assert data.model_name == "fast"
    measured = data.eval_results
    assert [each.metric_value for each in measured] == [95.0, 94.5, 60.0]  # 190, 189 and 120 of 200; not the teacher's
    assert {(each.dataset_name, each.dataset_split, each.metric_type) for each in measured} == {
        ("gsm8k", "test", "accuracy")
    }
    assert measured[1].metric_name == "accuracy, 2 tokens/step"
    assert measured[1].metric_args["tokens_per_forward"] == 2.0
    assert measured[1].metric_args["interval_95"] == [round(100 * each, 2) for each in wilson_interval(189, 200)]


def test_a_license_is_named_only_if_it_is_given(folder):
    card = model_card(subject_of(folder))
    assert ModelCard(card).data.license is None
    assert "license" not in card


def test_body_holds_the_table_with_intervals_and_tokens_per_forward(folder):
    card = model_card(subject_of(folder, others=[TEACHER]))
    low, high = (f"{100 * each:.1f}" for each in wilson_interval(190, 200))
    (row,) = [line for line in card.splitlines() if line.startswith("| student | 1 token")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == f"95.0 ({low}–{high})"
    assert cells[6] == "1.00"
    assert any(line.startswith("| teacher | 2 token") and " 40.0 (" in line for line in card.splitlines())
    assert "weights `weights of student`" in card
    assert "weights of teacher" not in card  # how a companion was measured is the table's notes' to say


def test_training_is_told_without_paths_and_machines(folder):
    card = model_card(subject_of(folder))
    assert "t3d, 200 optimizer steps of 256 examples, learning rate 1e-05, lora of rank 8, merged" in card
    assert "t3d 0.1.0, commit 0123456789ab" in card
    assert "trajectories: rollouts" in card
    assert "someone/" not in card.replace("someone/fast", "")
    assert "tracking" not in card
    assert "[JetLM/SDAR-1.7B-Chat](https://huggingface.co/JetLM/SDAR-1.7B-Chat)" in card


def test_paths_that_are_not_here_are_no_data_sets_of_the_hub(folder):
    """Such as those of the machine that trained."""
    data = {"trajectories": "../someone/rollouts", "data": "data/mine.jsonl"}
    (folder.parent / "recipe.json").write_text(json.dumps({**RECIPE, "data": data}))
    measured = STUDENT.model_copy(update={"data": "data/held-out.jsonl"})
    card = ModelCard(model_card(subject_of(folder, own=(measured,))))
    assert card.data.datasets is None
    assert card.data.eval_results[0].dataset_type == "gsm8k"
    assert "trajectories: rollouts" in card.text


def test_secrets_of_the_environment_are_left_out(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret123")
    recipe = {**RECIPE, "data": {"data": "https://user:hf_verysecret123@host/x", "note": "hf_verysecret123"}}
    (folder.parent / "recipe.json").write_text(json.dumps(recipe))
    assert "verysecret" not in model_card(subject_of(folder))


def test_a_model_outside_of_a_run_has_a_card_too(folder, tmp_path):
    moved = shutil.move(folder, tmp_path / "elsewhere" / "model")
    card = model_card(subject_of(moved, own=()))
    assert "## Training" not in card
    assert "## Results" not in card
    assert "t3d generate --model someone/fast" in card
    assert ModelCard(card).data.eval_results is None


def test_what_is_learned_from_the_hub_is_named(folder):
    rounds = [{"rollout": {"data": "org/questions@main"}}, {"rollout": {"prompts": "org/questions"}}]
    (folder.parent / "recipe.json").write_text(json.dumps({**RECIPE, "rounds": rounds}))
    card = model_card(subject_of(folder))
    assert ModelCard(card).data.datasets == ["org/questions"]
    assert "200 optimizer steps of 256 examples a round, learning rate 1e-05, 2 rounds" in card


def test_servers_are_advised_only_for_what_they_can_decode(folder):
    assert "Not there" in model_card(subject_of(folder))
    card = model_card(subject_of(folder, mask_token_id=151669, block_size=4))
    assert "lmdeploy serve api_server someone/fast --backend pytorch --dtype bfloat16 --dllm-block-length 4" in card
    assert "--dllm-denoising-steps 2" in card
    assert "--trust-remote-code" in card


def test_commands_are_those_of_the_advised_setting(folder):
    """Measured in larger blocks than the config's, by another rule, with a temperature."""
    settings = [
        make_setting(190, tokens, block_size=8, rule="sequential", temperature=0.1, label=f"{tokens}, sequential")
        for tokens in (1, 2)
    ]
    student = make_result("student", "gsm8k", *settings)
    card = model_card(subject_of(folder, own=(student,), mask_token_id=151669, block_size=4))
    options = "--block-size 8 --steps-per-block 4 --rule sequential --temperature 0.1"
    assert f't3d generate --model someone/fast {options} "..."' in card
    assert "--dllm-block-length 8 \\\n" in card
    assert "--dllm-unmasking-strategy sequential --dllm-denoising-steps 4\n" in card
    assert "block_size: 8\\nthreshold" in card


def test_settings_of_a_benchmark_may_come_from_several_files():
    first, second = (make_result("m", "b", make_setting(190, tokens)) for tokens in (1, 2))
    other = make_result("m", "c", make_setting(200, 4))
    assert advised([first, other, second]).tokens_per_step == 2


@pytest.mark.parametrize(
    ("rights", "tokens"), [((190, 189, 120), 2), ((190, 187, 120), 1), ((190, 188, 188), 4), ((0, 0, 0), 4)]
)
def test_advised_is_the_fastest_static_setting_within_a_point(rights, tokens):
    settings = [make_setting(right, number) for right, number in zip(rights, (1, 2, 4), strict=True)]
    result = make_result("m", "b", *settings, make_setting(200, threshold=0.9))
    assert advised([result]).tokens_per_step == tokens


def test_nothing_is_advised_where_nothing_static_was_measured():
    assert advised([]) is None
    assert advised([make_result("m", "b", make_setting(200, threshold=0.9, rule=DYNAMIC))]) is None


# Whose results


@pytest.fixture(scope="module")
def measured(run_folder):
    """A result of the weights in the run's folder."""
    fingerprint = model_fingerprint(load_model(run_folder / "model", "float32", "cpu"))
    return STUDENT.model_copy(update={"model": "moved since", "model_fingerprint": fingerprint, "dtype": "float32"})


def test_own_results_are_those_of_the_folders_weights(folder, measured):
    assert own_results({"a": measured, "b": TEACHER}, folder) == [measured]
    assert own_results({}, folder) == []
    for results in ({"a": STUDENT}, {"a": STUDENT, "b": TEACHER}):
        with pytest.raises(RequestError, match=r"of student.* none measured on the weights in"):
            own_results(results, folder)


def test_weights_are_those_that_were_computed_with(folder, tmp_path, measured):
    """Float32 weights that were measured in bfloat16 are not the float32 ones; their export is what was measured."""
    assert run(["export", "--model", str(folder), "--out", str(tmp_path / "out")]) == 0
    rounded = model_fingerprint(load_model(folder, "bfloat16", "cpu"))
    assert rounded != measured.model_fingerprint
    in_half = measured.model_copy(update={"model_fingerprint": rounded, "dtype": "bfloat16"})
    assert own_results({"a": in_half}, tmp_path / "out") == [in_half]
    on_the_cpu = in_half.model_copy(update={"dtype": "float32"})  # which holds the same numbers in more bits
    assert own_results({"a": on_the_cpu}, tmp_path / "out") == [on_the_cpu]
    with pytest.raises(RequestError, match="none measured on the weights"):
        own_results({"a": measured}, tmp_path / "out")


def test_weights_that_changed_since_they_were_measured_are_told(folder, measured, monkeypatch):
    monkeypatch.chdir(folder.parent)
    here = measured.model_copy(update={"model": "model"})
    assert own_results({"a": here}, folder) == [here]
    model = load_model(folder, device="cpu")
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] += 1
    save_model(model, folder, TOKENIZER, with_checksums=True)
    with pytest.raises(RequestError, match=f"--results a: .* held weights {measured.model_fingerprint} then, and "):
        own_results({"a": here}, folder)


def test_a_card_of_other_weights_is_not_uploaded(folder, tmp_path, measured, monkeypatch, capsys):
    """It was written by a dry run; then training went on, into the same folder."""
    monkeypatch.setattr(push, "HfApi", FakeHub)
    monkeypatch.setattr(push, "get_token", lambda: "token")
    write_result(measured, tmp_path / "results" / "result.json")
    assert run(["push", str(folder), "a/b", "--results", str(tmp_path / "results"), "--dry-run"]) == 0
    assert weights_named((folder / "README.md").read_text()) == {("float32", measured.model_fingerprint)}
    assert run(["push", str(folder), "a/b"]) == 0
    model = load_model(folder, device="cpu")
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] += 1
    save_model(model, folder, TOKENIZER, with_checksums=True)
    assert run(["push", str(folder), "a/b"]) == 2
    assert f"its results are of weights {measured.model_fingerprint}, and" in capsys.readouterr().err


# What goes up


WEIGHTS_AND_SUCH = {
    "config.json",
    "configuration_sdar.py",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "checksums.json",
}


class FakeHub:
    """Takes what the hub would take; `there` names what a repository holds already."""

    def __init__(self, fails=None, there=(), private=True):
        self.calls, self.files, self.fails, self.there, self.private = [], {}, fails, there, private

    def create_repo(self, repo, **options):
        self.calls.append(("create_repo", repo, options))

    def create_branch(self, repo, **options):
        self.calls.append(("create_branch", repo, options))

    def model_info(self, repo, **options):
        self.calls.append(("model_info", repo, options))
        siblings = [SimpleNamespace(rfilename=name) for name in self.there]
        return SimpleNamespace(id=repo, private=self.private, siblings=siblings)

    def create_commit(self, repo, operations, **options):
        if self.fails is not None:
            raise self.fails
        self.calls.append(("create_commit", repo, options))
        for each in operations:
            content = each.path_or_fileobj
            self.files[each.path_in_repo] = content if isinstance(content, bytes) else Path(content).read_bytes()
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


def test_one_commit_holds_the_model_and_its_card(folder, tmp_path):
    hub = FakeHub()
    files = read_model_files(folder)
    options = {"private": True, "revision": "dev", "replaces_card": False, "api": hub}
    assert upload(files, b"card", "a/b", "why", **options) == "https://hub/a/b/commit/1"
    assert hub.calls == [
        ("create_repo", "a/b", {"private": True, "exist_ok": True}),
        ("create_branch", "a/b", {"branch": "dev", "exist_ok": True}),
        ("model_info", "a/b", {"revision": "dev"}),
        ("create_commit", "a/b", {"commit_message": "why", "revision": "dev"}),
    ]
    assert hub.files.keys() == WEIGHTS_AND_SUCH | {"README.md"}
    assert hub.files["README.md"] == b"card"
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert damage_of_folder(tmp_path) is None  # what is downloaded is whole by its own checksums
    assert files.left == ("metrics.jsonl", "notes.txt", "optimizer.pt", "reference.safetensors")


def test_checksums_that_name_more_than_goes_up_stay(folder, tmp_path):
    (folder / "checksums.json").unlink()
    model = tiny_model(dtype=torch.float32, vocab_size=len(TOKENIZER), mask_token_id=TOKENIZER.mask_token_id)
    save_model(model, folder, TOKENIZER, with_checksums=True)  # optimizer.pt was there already
    files = read_model_files(folder)
    assert set(files.upload) == WEIGHTS_AND_SUCH - {"checksums.json"}
    assert "checksums.json" in files.left


def test_a_card_that_was_edited_since_is_no_damage(folder):
    """A model that is saved again where its card lies has the card among its checksums."""
    (folder / "README.md").write_text("first\n")
    save_model(load_model(folder, device="cpu"), folder, TOKENIZER, with_checksums=True)
    (folder / "README.md").write_text("edited\n")
    assert "checksums.json" not in read_model_files(folder).upload


def test_weights_in_several_files_all_go_up(folder):
    for name in ("checksums.json", "model.safetensors"):
        (folder / name).unlink()
    model = tiny_model(dtype=torch.float32, vocab_size=len(TOKENIZER), mask_token_id=TOKENIZER.mask_token_id)
    model.save_pretrained(folder, max_shard_size="20KB")
    parts = {each.name for each in folder.glob("model-*.safetensors")}
    assert len(parts) > 1
    assert parts | {"model.safetensors.index.json"} <= set(read_model_files(folder).upload)
    (folder / min(parts)).unlink()
    with pytest.raises(RequestError, match=f"{min(parts)} is missing"):
        read_model_files(folder)


# The command


def test_dry_run_writes_the_card_and_names_each_file(folder, tmp_path, monkeypatch, capsys, measured):
    monkeypatch.setattr(push, "HfApi", None)  # a call would show
    write_result(measured, tmp_path / "results" / "result.json")
    words = ["push", str(folder), "someone/fast", "--results", str(tmp_path / "results"), "--dry-run"]
    assert run(words) == 0
    told = capsys.readouterr().out
    for name in (*WEIGHTS_AND_SUCH, "README.md"):
        assert f"  {name}\n" in told
    assert f"{(folder / 'config.json').stat().st_size} B  config.json" in told
    assert "left out: metrics.jsonl, notes.txt, optimizer.pt, reference.safetensors" in told
    assert "t3d export" in told  # float32
    assert "95.0 (" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("mine\n")
    assert run(words) == 0
    assert "as it is in the folder" in capsys.readouterr().out
    assert (folder / "README.md").read_text() == "mine\n"
    assert run([*words, "--new-card"]) == 0
    assert "mine\n" not in (folder / "README.md").read_text()


def test_command_uploads_what_the_dry_run_showed(folder, monkeypatch, capsys):
    hub = FakeHub()
    monkeypatch.setattr(push, "HfApi", lambda: hub)
    monkeypatch.setattr(push, "get_token", lambda: "token")
    (folder / "README.md").write_text("mine\n")
    assert run(["push", str(folder), "a/b", "--private", "--message", "why"]) == 0
    assert capsys.readouterr().out.endswith("https://hub/a/b/commit/1\n")
    assert hub.files["README.md"] == b"mine\n"
    assert hub.calls[0] == ("create_repo", "a/b", {"private": True, "exist_ok": True})
    assert hub.calls[-1][2] == {"commit_message": "why", "revision": None}


CLASHES = [
    (["README.md"], True, [], "hf download a/b README.md --local-dir"),
    (["README.md"], True, ["--new-card"], None),
    ([], False, ["--private"], "it is public already"),
    ([], False, [], None),
    (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], True, [], "other weights too (model.safe"),
    ([".gitattributes", "model.safetensors", "config.json", "notes.md", "gguf/model.safetensors"], True, [], None),
]


@pytest.mark.parametrize(("there", "private", "options", "told"), CLASHES)
def test_nothing_on_the_hub_is_lost_or_mixed_up(there, private, options, told, folder, monkeypatch, capsys):
    hub = FakeHub(there=there, private=private)
    monkeypatch.setattr(push, "HfApi", lambda: hub)
    monkeypatch.setattr(push, "get_token", lambda: "token")
    assert run(["push", str(folder), "a/b", *options]) == (0 if told is None else 2)
    assert bool(hub.files) == (told is None)
    assert (told or "") in capsys.readouterr().err


def test_a_card_in_the_folder_replaces_the_hubs(folder, monkeypatch):
    hub = FakeHub(there=["README.md"])
    monkeypatch.setattr(push, "HfApi", lambda: hub)
    monkeypatch.setattr(push, "get_token", lambda: "token")
    (folder / "README.md").write_text("mine\n")
    assert run(["push", str(folder), "a/b"]) == 0
    assert hub.files["README.md"] == b"mine\n"


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def cut_weights_without_checksums(folder):
    (folder / "checksums.json").unlink()
    cut_weights(folder)


DAMAGES = {
    "weights that were cut off": (cut_weights, "model.safetensors is damaged"),
    "the same, without checksums": (cut_weights_without_checksums, "model.safetensors cannot be read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "a save that was interrupted": (
        lambda folder: (folder / "checksums.json").write_text('{"unfinished": true}'), "was not written to its end",
    ),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("checksums.json", "tokenizer.json")], "no tokenizer",
    ),
    "a recipe that cannot be read": (
        lambda folder: (folder.parent / "recipe.json").write_text("{"), "recipe.json: cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_is_not_whole_is_refused(damage, folder, capsys):
    break_it, told = DAMAGES[damage]
    break_it(folder)
    assert run(["push", str(folder), "a/b", "--dry-run"]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (folder / "README.md").exists()


def test_the_folder_of_a_run_is_refused_with_the_one_that_is_meant(folder, capsys):
    assert run(["push", str(folder.parent), "a/b", "--dry-run"]) == 2
    assert f"its model is {folder}" in capsys.readouterr().err


@pytest.mark.parametrize("repo", ["fast", "a/b/c", "a/..", "/b", "a/", "a b/c", "a/b?token=x"])
def test_a_name_that_no_repository_can_have_is_refused(repo, capsys):
    assert run(["push", "nowhere", repo]) == 2
    assert "OWNER/NAME" in capsys.readouterr().err


def test_without_a_token_it_says_how_to_get_one(folder, monkeypatch, capsys):
    monkeypatch.setattr(push, "get_token", lambda: None)
    assert run(["push", str(folder), "a/b"]) == 2
    assert "hf auth login" in capsys.readouterr().err


def http_error(status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"{status} for url: https://user:pass@hub/a\nmore", response=response)


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (http_error(403), RequestError, "refuses this token (403)"),
        (http_error(401), RequestError, "refuses this token (401)"),
        (http_error(500), WorkError, "the hub confirmed no commit"),
        (
            ConnectionError(150 * "-" + " hf_" + 60 * "verysecret"),
            WorkError,
            "- [left out]; the hub confirmed no commit",
        ),
        (ConnectionError("no route\nto host"), WorkError, "no route to host; the hub confirmed no commit; try again"),
    ],
)
def test_failures_of_the_hub_are_one_line_without_secrets(error, kind, told, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + 60 * "verysecret")
    options = {"private": False, "revision": None, "replaces_card": False, "api": FakeHub(error)}
    with pytest.raises(kind) as failure:
        upload(read_model_files(folder), b"", "a/b", "m", **options)
    assert told in str(failure.value)
    assert "\n" not in str(failure.value)
    assert "pass@" not in str(failure.value)
    assert "verysecret" not in str(failure.value)
