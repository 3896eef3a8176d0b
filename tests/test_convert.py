"""Autoregressive models become block-diffusion models: same weights, one more token, nothing else changed."""

import json
from pathlib import Path

import pytest
import torch
from ar_models import (
    CONFIGS,
    END_OF_TEXT,
    KNOWN,
    RESERVED,
    TEMPLATE,
    TOKENIZER,
    TURN_END,
    converted,
    make_source,
    make_tokenizer,
)
from transformers import GenerationConfig

from t3d.cli import run
from t3d.config import load_recipe
from t3d.engine import Engine
from t3d.errors import RequestError
from t3d.models import load_model, stop_token_ids
from t3d.models.attention import as_attention_mask
from t3d.models.conversion import convert_from_ar
from t3d.types import Decoding


@pytest.fixture(params=CONFIGS)
def model_type(request):
    return request.param


@pytest.fixture
def source(tmp_path):
    make_source(tmp_path / "ar")
    return tmp_path / "ar"


def causal_logits(model, ids):
    """What a block-diffusion model computes under the mask that it had as an autoregressive model: float [S, V]."""
    sees = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()[None]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=as_attention_mask(sees, torch.float32)).logits[0]


IDS = torch.arange(4, 44)[None]


def test_every_family_computes_what_it_did(tmp_path, model_type):
    ours = make_source(tmp_path / "ar", model_type)
    new = converted(tmp_path / "ar", tmp_path / "out")
    assert new.model.config.model_type == new.done.family == CONFIGS[model_type][1]
    with torch.no_grad():
        expected = ours(input_ids=IDS).logits[0]
    logits = causal_logits(new.model, IDS)[:, :KNOWN]
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_scaled_rotary_embeddings_come_along(tmp_path):
    scaling = {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    ours = make_source(tmp_path / "ar", rope_theta=None, rope_parameters=scaling)
    new = converted(tmp_path / "ar", tmp_path / "out")
    with torch.no_grad():
        expected = ours(input_ids=IDS).logits[0]
    torch.testing.assert_close(causal_logits(new.model, IDS)[:, :KNOWN], expected, rtol=1e-4, atol=1e-4)


def test_vocabulary_grows_by_whole_tiles_and_keeps_its_ids(source, tmp_path):
    new = converted(source, tmp_path / "out", block_size=8)
    assert KNOWN % 128
    assert new.tokenizer.mask_token_id == new.model.config.mask_token_id == KNOWN
    assert new.model.config.vocab_size == 128 * (KNOWN // 128 + 1) == new.done.new_rows
    assert new.model.config.block_size == 8
    old = TOKENIZER.get_vocab()
    assert {token: place for token, place in new.tokenizer.get_vocab().items() if token in old} == old
    assert new.tokenizer.chat_template == TEMPLATE
    text = "Tom has 1234 apples<|im_end|>"
    assert new.tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert new.tokenizer("a<|mask|>b")["input_ids"][1] == KNOWN


def test_the_mask_token_takes_a_spare_row(tmp_path):
    ours = make_source(tmp_path / "ar", vocab_size=KNOWN + 5)
    new = converted(tmp_path / "ar", tmp_path / "out")
    assert (new.done.old_rows, new.done.new_rows, new.done.mask_token_id) == (KNOWN + 5, KNOWN + 5, KNOWN)
    rows, old = new.model.get_input_embeddings().weight, ours.get_input_embeddings().weight
    others = [place for place in range(KNOWN + 5) if place != KNOWN]
    assert torch.equal(rows[others], old[others])
    torch.testing.assert_close(rows[KNOWN], old[:KNOWN].mean(dim=0))


def test_a_reserved_token_becomes_the_mask_token(tmp_path):
    ours = make_source(tmp_path / "ar", "qwen2")
    new = converted(tmp_path / "ar", tmp_path / "out", mask_token="<|reserved|>")
    assert new.tokenizer.mask_token_id == RESERVED
    assert new.model.config.vocab_size == KNOWN == len(new.tokenizer)
    others = [place for place in range(KNOWN) if place != RESERVED]
    for rows, old in (
        (new.model.get_input_embeddings().weight, ours.get_input_embeddings().weight),
        (new.model.get_output_embeddings().weight, ours.get_output_embeddings().weight),
    ):
        assert torch.equal(rows[others], old[others])
        torch.testing.assert_close(rows[RESERVED], old[others].mean(dim=0))


def test_a_mask_token_that_is_there_stays_as_it_is(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.mask_token = "<|reserved|>"
    ours = make_source(tmp_path / "ar", tokenizer=tokenizer)
    new = converted(tmp_path / "ar", tmp_path / "out")
    assert new.done.mask_token_id == RESERVED
    assert torch.equal(new.model.get_input_embeddings().weight, ours.get_input_embeddings().weight)


def test_new_rows_are_never_the_likeliest(source, tmp_path):
    """A mean of logits is not above all of them."""
    new = converted(source, tmp_path / "out")
    hidden = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    logits = hidden @ new.model.get_output_embeddings().weight.T
    assert (logits.argmax(dim=-1) < KNOWN).all()
    torch.testing.assert_close(
        logits[:, KNOWN:], logits[:, :KNOWN].mean(dim=1, keepdim=True).expand_as(logits[:, KNOWN:])
    )


def test_all_stop_tokens_are_known(source, tmp_path):
    GenerationConfig(eos_token_id=[END_OF_TEXT, TURN_END], do_sample=True, temperature=0.6).save_pretrained(source)
    new = converted(source, tmp_path / "out")
    assert new.done.stop_token_ids == stop_token_ids(new.model, new.tokenizer) == (END_OF_TEXT, TURN_END)
    assert new.model.generation_config.eos_token_id == [END_OF_TEXT, TURN_END]
    assert new.tokenizer.eos_token_id == TURN_END


def test_the_engine_decodes_it(source, tmp_path):
    convert_from_ar(str(source), tmp_path / "out")
    engine = Engine.from_pretrained(str(tmp_path / "out"), device="cpu")
    (result,) = engine.generate([[5, 6, 7]], Decoding(max_new_tokens=12))
    assert result.token_ids
    assert max(result.token_ids) < KNOWN


def test_weights_are_bfloat16_unless_asked(source, tmp_path):
    convert_from_ar(str(source), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_command_line(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["convert", "--from-ar", str(source), "--out", str(out), "--mask-token", "<|hidden|>"]) == 0
    said = capsys.readouterr().out
    assert f"llama -> block_llama, 0.0 M weights, mask token <|hidden|> = {KNOWN} ({KNOWN} -> 384 rows)" in said
    assert run(["convert", "--from-ar", str(source), "--out", str(out)]) == 2
    assert run(["convert", "--from-ar", str(source)]) == 2
    refusals = capsys.readouterr().err.splitlines()
    assert len(refusals) == 2
    assert "holds something already" in refusals[0]


def change_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def drop_tokenizer(folder):
    for file in folder.glob("*token*"):
        file.unlink()


def drop_eos(folder):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": None}))


WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
REFUSALS = {
    "gpt2": (lambda folder: change_config(folder, model_type="gpt2"), {}, "'gpt2' cannot be converted"),
    "a family that is a list": (lambda folder: change_config(folder, model_type=["llama"]), {}, "is not a name"),
    "already": (lambda folder: change_config(folder, model_type="block_llama"), {}, "block-diffusion model already"),
    "experts": (lambda folder: change_config(folder, model_type="mixtral", num_local_experts=8), {}, "experts"),
    "windows": (
        lambda folder: change_config(folder, model_type="qwen2", **WINDOWS),
        {},
        "sliding-window",
    ),
    "quantised": (lambda folder: change_config(folder, quantization_config={"quant_method": "awq"}), {}, "quantised"),
    "no config": (lambda folder: (folder / "config.json").unlink(), {}, "--gguf-file"),
    "no tokenizer": (drop_tokenizer, {}, "no tokenizer"),
    "no end": (drop_eos, {}, "eos_token"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), {}, "weights cannot be read"),
    "other shapes": (lambda folder: change_config(folder, intermediate_size=48), {}, "another shape"),
    "fewer rows": (lambda folder: change_config(folder, vocab_size=KNOWN - 9), {}, "another shape"),
    "dtype": (lambda folder: None, {"dtype": "int8"}, "'int8' is unknown"),
    "ordinary token": (lambda folder: None, {"mask_token": "a"}, "means something else"),
    "blank token": (lambda folder: None, {"mask_token": " "}, "is blank"),
    "stop token": (lambda folder: None, {"mask_token": "<|im_end|>"}, "means something else"),
    "no such file": (lambda folder: None, {"gguf_file": "model.gguf"}, "there is no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(source, tmp_path, case):
    spoil, options, expected = REFUSALS[case]
    spoil(source)
    with pytest.raises(RequestError, match=expected) as refusal:
        convert_from_ar(str(source), tmp_path / "out", **options)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="not a folder, and the hub did not give it"):
        convert_from_ar("../no/such/model", tmp_path / "out")


def test_a_file_that_is_not_gguf(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GIF89a" * 20)
    with pytest.raises(RequestError, match="is not GGUF"):
        convert_from_ar(str(tmp_path / "model.gguf"), tmp_path / "out")


def test_without_the_gguf_package(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(RequestError, match=r"pip install 't3d\[gguf\]'"):
        convert_from_ar(str(tmp_path / "model.gguf"), tmp_path / "out")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A converted model that any of the recipes can start from, and a few rollouts and problems."""
    folder = tmp_path_factory.mktemp("start")
    make_source(folder / "ar", max_position_embeddings=1024)
    convert_from_ar(str(folder / "ar"), folder / "model", dtype="float32")
    asked = ["--task", "story", "--limit", "3", "--max-new-tokens", "8", "--device", "cpu"]
    assert run(["rollout", "--model", str(folder / "model"), "--out", str(folder / "rollouts"), *asked]) == 0
    row = {"question": "What is 1 + 2?", "answer": "3", "solution": "1 + 2 = 3"}
    (folder / "gsm8k.jsonl").write_text(json.dumps(row))
    return folder


SMALL = {
    "sft-story": ["data.count=4", "evaluation.limit=2", "evaluation.max_new_tokens=4", "evaluation.every_steps=2"],
    "student-story": ["data.trajectories={start}/rollouts", "data.keep_unfinished=true"],
    "rounds-story": [
        "every_round.rollout.count=2",
        "every_round.rollout.max_new_tokens=8",
        "every_round.keep_unfinished=true",
        "rounds=[{rollout: {steps_per_block: 1}}, {rollout: {steps_per_block: 2}}]",
    ],
    "sft-gsm8k": ["data.data={start}/gsm8k.jsonl"],
}
"""Recipe -> what makes it small."""


@pytest.mark.parametrize("name", SMALL)
def test_recipes_train_it(start, tmp_path, name):
    everywhere = ["optim.steps=2", "optim.examples_per_step=2", "batch.num_workers=0", "device=cpu", "tracking.to=[]"]
    recipe = Path(__file__).parents[1] / "recipes" / "smollm2" / f"{name}.yaml"
    own = [each.replace("{start}", str(start)) for each in SMALL[name]]
    load_recipe(recipe)
    places = [f"model.source={start}/model", f"out={tmp_path}/run"]
    assert run(["train", str(recipe), *everywhere, *own, *places]) == 0
    before, after = (load_model(folder, device="cpu") for folder in (start / "model", tmp_path / "run" / "model"))
    assert not torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)


def test_every_recipe_is_tried():
    assert {file.stem for file in (Path(__file__).parents[1] / "recipes" / "smollm2").glob("*.yaml")} == set(SMALL)
