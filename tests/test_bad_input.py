"""What others wrote is read, or refused in one line: nothing hangs, nothing fills memory, nothing is run.

`bench/faults/fuzz.py` looks for more; each test here is of something that it, or the reading for it, once found.
"""

import ast
import contextlib
import json
import re
import struct
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fuzzing.engines import TARGETS, RandomDraw
from fuzzing.judging import LONGEST_MESSAGE
from fuzzing.strategies import cases_of
from fuzzing.targets import PICKLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import t3d
from t3d.checksums import CHECKSUM
from t3d.config import load_recipe
from t3d.config.plain_yaml import MAX_DEPTH, parse_yaml
from t3d.errors import RequestError, WorkError
from t3d.evaluation import report
from t3d.evaluation.results import SettingResult
from t3d.models import load_model, load_tokenizer
from t3d.models.conversion.gguf_lengths import check_lengths
from t3d.tasks import get_task
from t3d.tasks.prompts import render_chat
from t3d.tasks.templates import TemplateLimitError, check_powers, within_steps
from t3d.trajectories import count, read, read_meta, write
from t3d.trajectories.manifest import MANIFEST
from t3d.viewer.writing import write_view

PACKAGE = Path(t3d.__file__).parent
REPOSITORY = PACKAGE.parent
RECIPE = (REPOSITORY / "recipes/story/rounds-mini.yaml").read_text()
TURNS = [{"role": "user", "content": "Hi"}]


# --- messages ---


@given(st.text(st.characters(), max_size=3 * LONGEST_MESSAGE), st.sampled_from([RequestError, WorkError]))
def test_a_message_is_one_printable_line(text, kind):
    message = str(kind(text))
    assert message.isprintable()
    assert len(message) <= LONGEST_MESSAGE
    message.encode()


def test_a_long_message_keeps_its_beginning_and_its_cure():
    message = str(RequestError(f"recipe r.yaml: unknown key {'x' * 10**6}: remove it or check its spelling"))
    assert message.startswith("recipe r.yaml: unknown key xxx")
    assert message.endswith("xxx: remove it or check its spelling")


def test_a_message_keeps_what_can_be_printed():
    assert str(RequestError("Größe  é\n\t\x1b[2J \ud800")) == "Größe é \\x1b[2J \\ud800"


# --- YAML ---

NOT_PLAIN = {
    "an object of Python": ("a: !!python/object/apply:os.system ['false']", "not valid YAML"),
    "a name of Python": ("a: !!python/name:os.system", "not valid YAML"),
    "a number that is none": ("a: !!int x", "not valid YAML"),
    "a float that is none": ("a: !!float x", "not valid YAML"),
    "a flag that is none": ("a: !!bool x", "not valid YAML"),
    "a day that is none": ("a: 2024-13-45", "not valid YAML"),
    "a day": ("a: {b: 2024-01-01}", "a.b: must be text"),
    "a set": ("a: !!set {b}", "a: must be text"),
    "bytes": ("a: !!binary gA==", "a: must be text"),
    "infinity": ("a: [1, .inf]", "a.1: must be a finite number"),
    "no number": ("a: .nan", "a: must be a finite number"),
    "a huge number": ("a: 0x" + "f" * 5000, "at most 64 bits"),
    "a name that is a number": ("a: {1: 2}", "has 1 as a name"),
    "half a character": ('a: "\\ud800"', "half of a surrogate pair"),
    "a name twice": ("a: 1\nb: 2\na: 3", "'a' twice in one group, in lines 1 and 3"),
    "a name twice, inside": ("c: {a: 1, a: 1}", "'a' twice"),
    "an alias inside of itself": ("a: &x [*x]", "nested more than"),
    "brackets after a text, which might be a name": ('"a"' + "[" * 60_000, "nested more than"),
    "brackets": ("[" * 60_000, "nested more than"),
    "depth": ("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "nested more than"),
    "depth by aliases": (
        "".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else ''}]\n" for n in range(60)),
        "nested more than",
    ),
    "length": ("a: " + "x" * 70_000, "at most 65,536"),
    "NUL": ("a: \0", "not valid YAML"),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_yaml_that_is_refused(kind):
    text, fragment = NOT_PLAIN[kind]
    with pytest.raises(ValueError, match=re.escape(fragment)):
        parse_yaml(text)


@pytest.mark.parametrize("item", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_do_not_multiply(item):
    """Nine to the power of eleven values in 600 bytes."""
    lines = ["a0: &a0 {k: 1}", *(f"a{n}: &a{n} {item.format(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, 12))]
    with pytest.raises(ValueError, match="holds more than 20,000 values"):
        parse_yaml("\n".join(lines))


def test_yaml_of_recipes_is_read_as_ever():
    for file in sorted(REPOSITORY.glob("recipes/**/*.yaml")):
        assert parse_yaml(file.read_text()) == yaml.safe_load(file.read_text())


def test_aliases_are_copies():
    value = parse_yaml("a: &x {b: [1]}\nc: *x\nd: {<<: *x, e: 2}")
    assert value == {"a": {"b": [1]}, "c": {"b": [1]}, "d": {"b": [1], "e": 2}}
    assert value["a"] is not value["c"]
    assert value["a"]["b"] is not value["d"]["b"]


@pytest.mark.parametrize(
    "override", ["rounds.0.optim.lr=!!int x", f"rounds.{'9' * 5000}=1", "a." * 100 + "b=1", "optim.lr=.inf"]
)
def test_wrong_overrides(tmp_path, override):
    (tmp_path / "r.yaml").write_text(RECIPE)
    with pytest.raises(RequestError, match="override"):
        load_recipe(tmp_path / "r.yaml", [override])


def test_a_billion_rounds_are_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("rounds: [{repeat: 1000000000, rollout: {task: story}}]")
    with pytest.raises(RequestError, match=r"r\.yaml: rounds\.0: makes more than 1,000 rounds"):
        load_recipe(tmp_path / "r.yaml")


# --- prompts ---


def problems_of(file, *rows):
    file.write_text("\n".join(map(json.dumps, rows)))
    return get_task("jsonl", data=str(file)).problems("all")


@pytest.mark.parametrize(
    "row", [{"prompt": "a\ud800"}, {"prompt": "a", "answer": "\udfff"}, {"prompt": "a", "cases": [["\ud83d", "x"]]}]
)
def test_half_a_character_is_refused_with_its_line(tmp_path, row):
    with pytest.raises(RequestError, match=r"rows\.jsonl, line 2: .* half of a character"):
        problems_of(tmp_path / "rows.jsonl", {"prompt": "b"}, row)


@pytest.mark.parametrize("code", ["-" * 10**5 + "1", "x" + ".y" * 10**4, "(" * 10**4])
def test_tests_that_are_nested_too_deep(tmp_path, code):
    with pytest.raises(RequestError, match="line 1: `tests` is not Python"):
        problems_of(tmp_path / "rows.jsonl", {"prompt": "a", "tests": code})


def test_a_parquet_file_may_not_unpack_to_gigabytes(tmp_path):
    """100,000 rows of one text of a million characters, in 12 kB."""
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["y" * 10**6]))
    pq.write_table(pa.table({"prompt": once}), tmp_path / "p.parquet")
    assert (tmp_path / "p.parquet").stat().st_size < 10**5
    with pytest.raises(RequestError, match=r"p\.parquet unpacks to more than .* split it"):
        get_task("jsonl", data=str(tmp_path / "p.parquet")).problems("all")


def test_times_that_python_cannot_hold(tmp_path):
    pq.write_table(pa.table({"prompt": ["p"], "answer": pa.array([2**60], pa.timestamp("ms"))}), tmp_path / "p.parquet")
    with pytest.raises(RequestError, match=r"cannot read .*p\.parquet"):
        get_task("jsonl", data=str(tmp_path / "p.parquet")).problems("all")


# --- trajectories ---

WRONG_META = {
    "block_size": [0, -1, "four", 1.5, None, 2**40],
    "mask_token_id": [-1, "x", 2**31],
    "eos_token_ids": ["x", [-1], 3],
    "temperature": ["hot", None],
    "prompt": [{"style": "loud"}, "x", {"unknown": 1}],
    "model": [3, None],
}


def manifest_of(folder):
    """Without its checksum, as somebody would write it."""
    content = json.loads((folder / MANIFEST).read_text())
    content.pop(CHECKSUM)
    return content


@pytest.mark.parametrize("field", WRONG_META)
def test_wrong_metadata_names_its_field(field, trajectory_folder, tmp_path):
    content = manifest_of(trajectory_folder)
    for value in WRONG_META[field]:
        (tmp_path / MANIFEST).write_text(json.dumps({**content, "meta": {**content["meta"], field: value}}))
        with pytest.raises(RequestError, match=f"manifest.json cannot be read.*{field}"):
            read_meta(tmp_path)


@pytest.mark.parametrize("num_shards", [10**12, 0, -1, "2", 1.5, None, True])
def test_wrong_numbers_of_shards(num_shards, trajectory_folder, tmp_path):
    content = manifest_of(trajectory_folder)
    (tmp_path / MANIFEST).write_text(json.dumps({**content, "num_shards": num_shards}))
    with pytest.raises(RequestError, match=r"manifest\.json cannot be read"):
        count(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**5,
        '{"a":' * 10**5,
        "\ufeff{}",
        "[]",
        '{"num_rows": [], "sha256": "0"}',
        '{"num_rows": -1, "sha256": "0"}',
    ],
)
def test_wrong_json_beside_shards(text, trajectory_folder, tmp_path):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(RequestError, match=r"manifest\.json cannot be read"):
        read_meta(tmp_path)
    for file in (MANIFEST, "shard-00000.parquet"):
        (tmp_path / file).write_bytes((trajectory_folder / file).read_bytes())
    (tmp_path / ".shard-00000-0123456789abcdef.json").write_text(text)
    with pytest.raises(RequestError, match="is unfinished: 3 of 3 shards are missing"):
        count(tmp_path)


@pytest.mark.parametrize("field", ["prompt_ids", "response_ids", "sample", "num_forwards", "seed"])
def test_numbers_below_zero_in_rows(field, trajectory_folder, tmp_path):
    row, meta = next(iter(read(trajectory_folder))), read_meta(trajectory_folder)
    ids = [-1] * len(getattr(row, field)) if field.endswith("ids") else -1
    with pytest.raises(RequestError, match=f"row 0: {field} must be 0 or more"):
        write(tmp_path / "out", [replace(row, **{field: ids})], meta)


def test_the_viewer_makes_no_table_of_terabytes(trajectory_folder, tmp_path):
    rows, meta = list(read(trajectory_folder)), read_meta(trajectory_folder)
    write(tmp_path / "out", rows, replace(meta, block_size=10**6))
    with pytest.raises(RequestError, match="blocks of 1000000 tokens cannot be shown"):
        write_view(tmp_path / "out", tmp_path / "view.html")


# --- models ---


@pytest.fixture
def folder(model_folder, tmp_path):
    """A model folder of links, in which tests put files in place of some."""
    for file in model_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def put(folder, name, content):
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def put_fields(folder, name, **fields):
    put(folder, name, json.dumps({**json.loads((folder / name).read_text()), **fields}))


WRONG_CONFIG = {
    "vocab_size": [10**12, 10**6, 0, -1],
    "hidden_size": [10**9, -1],
    "num_hidden_layers": [10**9, 9999, 0, -1],
    "num_attention_heads": [10**9, 0],
    "intermediate_size": [10**9, 0],
    "max_position_embeddings": [0, -1, 10**30],
    "block_size": [0, -1, 1.5, 10**30],
    "eos_token_id": [-1, ["x"], {}],
    "layer_types": [3, "x"],
    "rope_parameters": [[1], 3],
}


@pytest.mark.parametrize("field", WRONG_CONFIG)
def test_configs_that_cannot_be_true(field, folder):
    for value in WRONG_CONFIG[field]:
        put_fields(folder, "config.json", **{field: value})
        with pytest.raises(RequestError, match=f"model {folder}"):
            load_model(folder, device="cpu")


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "[]", "\0", "9" * 10**5])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
def test_json_that_is_none(folder, name, text):
    put(folder, name, text)
    with pytest.raises(RequestError, match=f"model {folder}"):
        load_model(folder, device="cpu"), load_tokenizer(folder)


def test_stop_tokens_that_are_no_ids(folder):
    put_fields(folder, "generation_config.json", eos_token_id=["x", 1])
    with pytest.raises(RequestError, match=r"eos_token_id of generation_config\.json"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_weights_that_are_pickles_are_not_read(folder, name, monkeypatch):
    (folder / "model.safetensors").unlink()
    put(folder, name, PICKLE)
    monkeypatch.chdir(folder)
    with pytest.raises(RequestError, match="weights cannot be read"):
        load_model(folder, device="cpu")
    assert not (folder / "t3d-was-here").exists()  # what the pickle's command would leave


def test_code_that_a_model_names_is_not_run(folder, tmp_path):
    put(folder, "evil.py", f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    put_fields(folder, "config.json", auto_map=auto_map, trust_remote_code=True)
    load_model(folder, device="cpu")
    put_fields(folder, "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Evil", trust_remote_code=True)
    with contextlib.suppress(RequestError):  # transformers may do without the class
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("length", [2**60, 2**63, 10**9, 0])
def test_a_header_longer_than_the_file(folder, length):
    data = (folder / "model.safetensors").read_bytes()
    put(folder, "model.safetensors", struct.pack("<Q", length) + data[8:])
    with pytest.raises(RequestError, match="weights cannot be read"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "owner/" + "y" * 5000])
def test_names_that_no_file_can_have(name, trajectory_folder, tmp_path):
    with pytest.raises(RequestError, match="model "):
        load_model(name, device="cpu")
    with pytest.raises(RequestError, match="cannot"):
        get_task("jsonl", data=f"{name}.jsonl").problems("all")
    write(tmp_path / "out", list(read(trajectory_folder)), replace(read_meta(trajectory_folder), model=name))
    assert "tokens are shown as ids" in write_view(tmp_path / "out", tmp_path / "view.html").text_source


# --- chat templates ---


def chat(template):
    tokenizer = load_tokenizer("story-tokenizer")
    tokenizer.chat_template = template
    return render_chat(TURNS, tokenizer)


ENDLESS = {
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "a long range in digits": "{% for i in range(1000000000) %}x{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "powers": "{{ 10 ** 10 ** 9 }}",
}
OUT_OF_THE_SANDBOX = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ cycler.__init__.__globals__.os.popen('false') }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
)


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_templates_end(kind):
    started = time.process_time()
    with pytest.raises(RequestError, match="chat template refuses"):
        chat(ENDLESS[kind])
    assert time.process_time() - started < 20  # without a limit: for ever


@pytest.mark.parametrize("template", OUT_OF_THE_SANDBOX)
def test_templates_reach_nothing(template):
    with pytest.raises(RequestError, match="chat template refuses"):
        chat(template)


def test_what_the_sandbox_hides_is_nothing():
    assert chat("{{ ''|attr('__class__') }}") == ""


def test_templates_in_the_limits_are_rendered_as_ever():
    macro = "{% macro say(x, who='') %}<{{ who }}>{{ x }}{% endmacro %}"
    assert chat(macro + "{% for m in messages %}{{ say(m.content, who=m.role) }}{% endfor %}") == "<user>Hi"
    check_powers("{{ f(**options) }}{{ f(1, **options) }}{# 2 ** 3 #} 2 ** 3")


def test_steps_are_counted_and_tracing_is_put_back():
    import sys

    before = sys.gettrace()
    assert within_steps(lambda: 7) == 7
    from jinja2 import Environment

    loop = Environment().from_string("{% for i in range(50) %}{% set x = i %}{% endfor %}")
    assert within_steps(loop.render, max_steps=1000) == ""
    with pytest.raises(TemplateLimitError, match="more than 40 steps"):
        within_steps(loop.render, max_steps=40)
    assert sys.gettrace() is before


# --- GGUF ---


def gguf_header(num_tensors=0, fields=(), tail=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, len(fields)) + b"".join(fields) + tail


def named(name, kind, value):
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


GGUF_HEADERS = {
    "no GGUF": (b"GGML" + bytes(40), "does not begin"),
    "nothing": (b"", "length of 4"),
    "many fields": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "length of 1152921504606846976"),
    "many tensors": (gguf_header(2**60), "length of 1152921504606846976"),
    "a long list": (gguf_header(0, [named(b"a", 9, struct.pack("<IQ", 4, 2**60))]), "only 0 bytes follow"),
    "a long list of texts": (gguf_header(0, [named(b"a", 9, struct.pack("<IQ", 8, 2**60))]), "only 0 bytes follow"),
    "a long text": (gguf_header(0, [named(b"a", 8, struct.pack("<Q", 2**63))]), "only 0 bytes follow"),
    "a value of no kind": (gguf_header(0, [named(b"a", 99, b"")]), "kind 99"),
    "lists in lists": (gguf_header(0, [named(b"a", 9, struct.pack("<IQ", 9, 1) * 9 + bytes(99))]), "lists in lists"),
    "many dimensions": (gguf_header(1, [], struct.pack("<QI", 0, 2**31) + bytes(99)), "2147483648 dimensions"),
}


@pytest.mark.parametrize("kind", GGUF_HEADERS)
def test_gguf_lengths_that_do_not_fit(kind, tmp_path):
    content, fragment = GGUF_HEADERS[kind]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=fragment):
        check_lengths(tmp_path / "m.gguf")


@pytest.mark.parametrize("order", ["<", ">"])
def test_gguf_lengths_that_fit(order, tmp_path):
    """Of either byte order: one list of two texts, one tensor of two dimensions."""
    text = struct.pack(f"{order}Q", 1) + b"x"
    field = text + struct.pack(f"{order}IIQ", 9, 8, 2) + text * 2
    tensor = text + struct.pack(f"{order}IQQIQ", 2, 4, 5, 0, 0)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack(f"{order}IQQ", 3, 1, 1) + field + tensor)
    check_lengths(tmp_path / "m.gguf")


# --- results ---


@pytest.mark.parametrize("answers", ["0" * 7, "012345", "01" * 50, ""])
def test_right_answers_that_are_not_one_a_response(answers, tmp_path):
    source = REPOSITORY / "bench/results/evaluation/story-t3d.json"
    fields = json.loads(source.read_text())
    setting = SettingResult.model_validate(fields["settings"][0])
    assert setting.num_problems * setting.num_samples not in (6, 7, 100)
    fields["settings"][0]["right_answers"] = answers
    (tmp_path / "result.json").write_text(json.dumps(fields))
    with pytest.raises(RequestError, match=r"result\.json: not a result"):
        report.read_results([tmp_path / "result.json"])


FIGURES = {"steps_per_block": 0, "num_problems": -1, "accuracy": 1.5, "seconds": float("inf"), "num_tokens": 10**30}


@pytest.mark.parametrize("field", FIGURES)
def test_figures_that_cannot_be(field, tmp_path):
    fields = json.loads((REPOSITORY / "bench/results/evaluation/story-t3d.json").read_text())
    fields["settings"][0][field] = FIGURES[field]
    (tmp_path / "result.json").write_text(json.dumps(fields))
    with pytest.raises(RequestError, match=r"result\.json: not a result"):
        report.read_results([tmp_path / "result.json"])


@pytest.mark.parametrize("text", ["[" * 10**5, '{"settings":' * 10**5, "\0", "9" * 10**5])
def test_results_that_are_none(text, tmp_path):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RequestError, match=r"result\.json: not a result"):
        report.read_results([tmp_path / "result.json"])


# --- all readers, a little of what bench/faults/fuzz.py does at length ---


@pytest.fixture(scope="module")
def target(request, tmp_path_factory):
    from importlib import import_module

    module, kind = TARGETS[request.param]
    return getattr(import_module(module), kind)(tmp_path_factory.mktemp(request.param))


SMALL = [name for name in TARGETS if name != "request"]  # whose engine would outlive its test


def passes(target, case):
    """It is read, or refused by name; any other error is this test's."""
    refusal = ""
    try:
        target.run(case)
    except (RequestError, WorkError) as error:
        refusal = str(error)
    assert not refusal or (refusal.isprintable() and any(each in refusal for each in target.mentions)), refusal


@pytest.mark.parametrize("target", SMALL, indirect=True)
def test_cases_near_valid_ones(target):
    for seed in range(40):
        passes(target, target.make(RandomDraw(seed)))


@pytest.mark.parametrize("target", ["recipe", "prompts", "results"], indirect=True)
def test_cases_of_any_shape(target):
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases_of(target))
    def one(case):
        passes(target, case)

    one()


# --- the package itself ---


def calls():
    """(file, dotted name, keyword arguments) of every call in the package."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""
                yield file.relative_to(PACKAGE), name, {each.arg: ast.unparse(each.value) for each in node.keywords}


UNSAFE_YAML = {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.FullLoader"}
UNPICKLERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def test_nothing_is_unpickled_and_no_code_is_trusted():
    """By name: the loaders that can run what they read."""
    found = []
    for file, name, options in calls():
        where = f"{file}: {name}"
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(f"{where} without weights_only=True")
        if options.get("trust_remote_code", "False") != "False":
            found.append(f"{where} trusts code")
        if name.endswith("model_class.from_pretrained") and options.get("use_safetensors") != "True":
            found.append(f"{where} without use_safetensors=True")
        if options.get("allow_pickle", "False") != "False":
            found.append(f"{where} reads pickles")
        if (
            name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
            or name.split(".")[0] in UNPICKLERS
        ):
            found.append(where)
    assert found == []


def test_pickle_is_used_between_own_processes_only():
    """`training/data.py` gets its batches from its own workers so, never from a file."""
    word = rf"^\s*(import|from) ({'|'.join(UNPICKLERS)})\b"
    using = {file for file in PACKAGE.rglob("*.py") if re.search(word, file.read_text(), re.MULTILINE)}
    assert using == {PACKAGE / "training/data.py"}
    assert "map(pickle.loads, loader)" in (PACKAGE / "training/data.py").read_text()
