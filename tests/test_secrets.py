"""No key, token or password is in what a command prints, logs or writes."""

import io
import logging
import os
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from served import Served
from study_runs import study_fields

from t3d.cli import run
from t3d.cli_serve import keys_of
from t3d.credentials import LEFT_OUT, Formatter, holds_credentials, typed_command, without_secrets
from t3d.errors import RequestError
from t3d.serve import Settings
from t3d.study import worker

CANARY = "c4n4ry"
"""In each secret below, and in nothing else."""
VARIABLES = {
    "HF_TOKEN": f"hf_{CANARY}Aa1",
    "WANDB_API_KEY": f"{CANARY}0123456789abcdef",
    "OPENAI_API_KEY": f"sk-{CANARY}-xyz",
    "T3D_API_KEY": f"first-{CANARY} second-{CANARY}",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}/+secret",
    "DATABASE_PASSWORD": f"pass{CANARY}",
}
SOURCE = f"https://user:{CANARY}@models.invalid/owner/name?access_token={CANARY}"
RECORDED = ["--api-key", f"typed-{CANARY}", f"--api-key={CANARY}too", SOURCE, *VARIABLES["T3D_API_KEY"].split()]
"""Secrets in places of a command line, which results record."""


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    """A process that holds them all."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["t3d", *RECORDED])


def all_that_is_in(folder):
    """Names and contents below a folder, as text; of parquet also what is compressed."""
    told = io.StringIO()
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        told.write(f"{file.relative_to(folder)}\n{file.read_bytes().decode('latin-1')}\n")
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            told.write(f"{table.schema.metadata}\n{table.to_pylist()}\n")
    return told.getvalue()


def test_the_search_below_finds_what_is_there(tmp_path):
    import pyarrow as pa

    text = " ".join([f"word {number}" for number in range(999)] + [CANARY])
    pq.write_table(pa.table({"text": [text] * 99}), tmp_path / "rows.parquet", compression="zstd")
    assert CANARY in all_that_is_in(tmp_path)


# --- commands that work ---


def commands(model, trajectories, folder):
    """Name -> words, each with what it writes in `folder`/name."""
    small = f"--model {model} --device cpu --limit 2 --max-new-tokens 8"
    recipe = {
        "model": {"source": str(model)},
        "objective": {"name": "trajectory_ce"},
        "data": {"trajectories": str(trajectories), "keep_unfinished": True},
        "optim": {"steps": 2, "examples_per_step": 4, "warmup_steps": 0},
        "checkpoint": {"every_steps": 1},
        "device": "cpu",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return {
        "rollout": f"rollout {small} --task story --out {folder}/rollout",
        "eval": f"eval {small} --tokens-per-step 4 --threshold= --out {folder}/eval",
        "train": f"train {folder}/recipe.yaml out={folder}/train",
        "bench": "bench rollout --shape tiny --device cpu --prompt-tokens 8 --new-tokens 8 --repeats 1 --concurrency 1 "
        f"--out {folder}/bench/result.json",
        "view": f"view {trajectories} --out {folder}/view.html",
    }


@pytest.mark.parametrize("name", ["rollout", "eval", "train", "bench", "view"])
def test_what_a_command_leaves(name, model_folder, trajectory_folder, tmp_path, capfd, caplog):
    words = commands(model_folder, trajectory_folder, tmp_path)[name]
    caplog.handler.setFormatter(Formatter("%(message)s"))
    assert run(["--debug", *shlex.split(words)]) == 0
    said, left = capfd.readouterr(), all_that_is_in(tmp_path)
    assert CANARY not in said.out + said.err + caplog.text
    assert left
    assert CANARY not in left
    if name in ("eval", "train", "bench"):  # which record what was typed
        assert LEFT_OUT in left
        assert "models.invalid/owner/name" in left


def test_what_a_study_and_its_workers_leave(model_folder, tmp_path, capfd):
    fields = study_fields(model_folder, tmp_path / "study")
    fields |= {"seeds": [0], "learning_rates": [1e-3], "ablations": {}, "claims": [], "equal_time": None}
    fields["methods"] = {"plain": fields["methods"]["plain"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(fields))
    assert run(["study", str(tmp_path / "study.yaml")]) == 0
    said, left = capfd.readouterr(), all_that_is_in(tmp_path / "study")
    names = {file.name for file in (tmp_path / "study").rglob("*")}
    assert {"worker-0.log", "rows.json", "cell.json", "starts.jsonl", "result.json", "report.md"} <= names
    assert CANARY not in said.out + said.err
    assert CANARY not in left
    assert LEFT_OUT in left


def test_what_the_harness_leaves(model_folder, tmp_path, monkeypatch, capfd):
    pytest.importorskip("lm_eval")
    from test_lm_eval import story_rows, write_task

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "cache" / "it looks for its own tasks here"))
    folder = write_task(tmp_path / "tasks", story_rows(2))
    model = f"pretrained={model_folder},device=cpu,max_new_tokens=8"
    words = f"--model t3d --model_args {model} --include_path {folder} --tasks local_story --log_samples"
    assert run(["lm-eval", *words.split(), "--output_path", str(tmp_path / "out")]) == 0
    said, left = capfd.readouterr(), all_that_is_in(tmp_path / "out")
    assert CANARY not in said.out + said.err
    assert "exact_match" in left
    assert "samples_local_story" in left
    assert CANARY not in left


# --- and that fail ---


@pytest.mark.parametrize(
    "words",
    [
        f"generate Hi --model {SOURCE}",
        f"rollout --model {SOURCE} --task story --limit 2 --out OUT",
        f"rollout --model story-mini --prompts {SOURCE} --out OUT",
        f"eval --model {SOURCE} --limit 2 --out OUT",
        f"convert --from-ar {SOURCE} --out OUT",
        f"bench rollout --shape {SOURCE}",
        f"serve --model {SOURCE} --port 0",
        f"serve --model name={SOURCE} --port 0",
        f"serve --model story-mini --port 0 typed-{CANARY}",
        f"view {SOURCE} --out OUT",
        f"train RECIPE model.source={SOURCE} out=OUT",
        f"train RECIPE data.trajectories={SOURCE} out=OUT",
        f"train RECIPE tracking.name={SOURCE} out=OUT",
        f"train {SOURCE}",
    ],
)
def test_what_a_refusal_says_and_leaves(words, model_folder, trajectory_folder, tmp_path, capfd):
    commands(model_folder, trajectory_folder, tmp_path)
    places = {"RECIPE": str(tmp_path / "recipe.yaml"), "OUT": str(tmp_path / "out")}
    assert run([places.get(word, word.replace("out=OUT", f"out={places['OUT']}")) for word in shlex.split(words)]) == 2
    said = capfd.readouterr()
    assert said.err.count("\n") == 1
    assert CANARY not in said.out + said.err
    assert CANARY not in all_that_is_in(tmp_path)


def test_a_study_refuses_what_it_would_write_down(model_folder, tmp_path, capfd):
    for field in ("teacher", "out"):
        fields = {**study_fields(model_folder, tmp_path / "study"), field: SOURCE}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(fields))
        assert run(["study", str(tmp_path / "study.yaml")]) == 2
        (tmp_path / "study.yaml").unlink()
        assert CANARY not in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_a_studys_worker_says_and_logs(monkeypatch, capfd):
    def fail(job):
        raise RequestError(f"cannot read {SOURCE}")

    monkeypatch.setattr(worker.Request, "model_validate_json", lambda line: type("Any", (), {"job": None}))
    monkeypatch.setattr(worker, "do", fail)
    assert worker._error_of(b"{}") == without_secrets(f"cannot read {SOURCE}")
    logged = capfd.readouterr().err
    assert "RequestError: cannot read https://" in logged
    assert CANARY not in logged


class EmptyHub(BaseHTTPRequestHandler):
    """Has nothing, and says so to whoever asks."""

    asked = False

    def do_GET(self):
        EmptyHub.asked = True
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


def test_tracebacks_and_what_libraries_log():
    """A process whose hub has nothing and is asked with the token: all that is printed, libraries' debug lines too."""
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyHub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        address = {"HF_ENDPOINT": f"http://user:{CANARY}@127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **address}
        words = ["--debug", "generate", "Hi", "--model", "owner/name"]
        ran = subprocess.run([sys.executable, "-m", "t3d.cli", *words], env=variables, capture_output=True)
        hub.shutdown()
    told = (ran.stdout + ran.stderr).decode()
    assert EmptyHub.asked
    assert LEFT_OUT in told
    assert ran.returncode == 1  # Python's, for a traceback
    assert "Traceback" in told
    assert "RequestError: model owner/name" in told
    assert CANARY not in told


# --- the server ---


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"\nfile-{CANARY}\n  other-{CANARY}\n")
    return file


@pytest.fixture(scope="module")
def server(key_file):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**VARIABLES, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        with Served("--model", "story-mini", "--api-key-file", str(key_file)) as served:
            yield served


def test_keys_of_a_file_and_of_the_environment_open_the_server_and_are_not_told(server):
    told = []
    keys = [f"file-{CANARY}", f"other-{CANARY}", *VARIABLES["T3D_API_KEY"].split(), f"wrong-{CANARY}"]
    for key in keys:
        head = {"Authorization": f"Bearer {key}"}
        for path in ("/v1/models", "/metrics", "/health", "/", f"/v1/models/{CANARY[:3]}", "/v1/nothing"):
            answer = httpx.get(server.url + path, headers=head)
            told.append(f"{answer.headers}{answer.text}")
            if path in ("/v1/models", "/metrics"):
                assert answer.status_code == (401 if key == keys[-1] else 200)
        asked = {"model": "story-mini", "prompt": "Tom", "max_tokens": 4, "user": 3}
        told.append(httpx.post(f"{server.url}/v1/completions", json=asked, headers=head).text)
    assert CANARY not in "".join(told)
    assert CANARY not in "".join(server.lines)
    processes = [read_if_there(file) for file in Path("/proc").glob("[0-9]*/cmdline")]
    assert any(b"--api-key-file" in line for line in processes)
    assert not any(CANARY.encode() in line for line in processes)


def read_if_there(file):
    """Nothing of a process that has ended meanwhile."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("content, message", [
    (None, "No such file"), ("", "has no key"), (" \n\n", "has no key"), (b"\xff\xfe", "cannot be read: not text"),
])  # fmt: skip
def test_a_file_without_keys(content, message, tmp_path):
    if content is not None:
        (tmp_path / "keys").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=message):
        keys_of(tmp_path / "keys")


def test_settings_do_not_show_their_keys():
    assert CANARY not in repr(Settings(api_keys=(CANARY,)))


# --- the parts ---

LETTERS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=20)


@given(value=LETTERS, before=st.text(max_size=5), after=st.text(max_size=5))
def test_a_variables_value_is_left_out_wherever_it_is(value, before, after):
    assert without_secrets(f"{before} {value} {after}", {"MY_TOKEN": value}, []).count(value) == LEFT_OUT.count(value)


def test_a_passphrase_is_left_out_whole():
    variables = {"MY_PASSWORD": " two keys of tin\n"}
    assert without_secrets("said 'two keys of tin'.", variables, []) == f"said '{LEFT_OUT}'."


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "OPENAI_API_KEY", "SSH_PASSPHRASE", "DB_PASS", "GITHUB_PAT", "my_secrets"]
)
def test_variables_that_are_named_like_secrets(name):
    assert without_secrets("tells long-one here", {name: "long-one"}, []) == f"tells {LEFT_OUT} here"


@pytest.mark.parametrize("name", ["HOME", "BYPASS", "PAT", "PATH", "KEYBOARD"])
def test_variables_that_are_not(name):
    assert without_secrets("tells long-one here", {name: "long-one"}, []) == "tells long-one here"


@pytest.mark.parametrize("text, shown", [
    ("https://user:pw@host/a", "https://[left out]@host/a"),
    ("https:/user:pw@host/a", "https:/[left out]@host/a"),
    ("'https://token@host:80/a'", "'https://[left out]@host:80/a'"),
    ("a http://h/p?x=1&access_token=abc&y=2 b", "a http://h/p?x=1&access_token=[left out]&y=2 b"),
    ("https://h/p?X-Amz-Signature=abc", "https://h/p?X-Amz-Signature=[left out]"),
    ("https://host/a@b", "https://host/a@b"),
    ("user@host says http://host/?page=3", "user@host says http://host/?page=3"),
    ("--api-key typed", "--api-key [left out]"),
    ("KEY is on", "KEY is on"),
    ("long-one long", "[left out] long"),
])  # fmt: skip
def test_what_is_left_out(text, shown):
    variables = {"KEY": "on", "A_TOKEN": "long-one", "HOME": "user@host"}
    assert without_secrets(text, variables, ["serve", "--api-key", "typed", "--api-key"]) == shown


def test_which_sources_hold_credentials():
    assert holds_credentials(SOURCE)
    assert not holds_credentials(f"Read {SOURCE} and answer.")
    assert not holds_credentials("https://host/owner/name")
    assert not holds_credentials("owner/name@main")


def test_a_command_is_recorded_as_it_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/t3d", "eval", "--name", "two words"])
    assert typed_command() == "t3d eval --name 'two words'"


def test_log_lines_and_their_tracebacks():
    try:
        raise ValueError(SOURCE)
    except ValueError:
        record = logging.LogRecord("t3d", logging.ERROR, "", 0, "%s", (VARIABLES["HF_TOKEN"],), sys.exc_info())
    line = Formatter("t3d: %(message)s").format(record)
    assert line.startswith(f"t3d: {LEFT_OUT}\nTraceback")
    assert CANARY not in line
