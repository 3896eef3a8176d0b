"""Saved students against what LMDeploy and SGLang read of a folder; docs/servers.md names the lines of theirs."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from ar_models import converted, make_source
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import tiny_model
from training_runs import TOKENIZER, meta, recipe_of, trajectory
from transformers import dynamic_module_utils

from t3d import trajectories
from t3d.cli import run
from t3d.models import load_config, load_model, load_tokenizer, save_model
from t3d.models.servers import SERVED_MASK_ID, configuration_sdar, is_served
from t3d.training import train

TRAINED, MERGED, CONVERTED, MIXTURE = "trained", "merged", "converted", "mixture"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Students as they are left by training whole, by training an adapter, by conversion; and a mixture of experts."""
    root = tmp_path_factory.mktemp("students")
    rows = [trajectory(index) for index in range(4)]
    trajectories.write(root / "trajectories", rows, meta())
    adapter = {"adapter": {"rank": 2}}
    for name, family, own in ((TRAINED, "sdar", {}), (MERGED, "sdar", adapter), (MIXTURE, "sdar_moe", {})):
        model = tiny_model(
            dtype=torch.float32, family=family, vocab_size=len(TOKENIZER), mask_token_id=TOKENIZER.mask_token_id,
            eos_token_id=TOKENIZER.eos_token_id, tie_word_embeddings=name != MERGED, rope_theta=1e6,
        )  # fmt: skip
        save_model(model, root / name / "start", TOKENIZER)
        optim = {"steps": 1, "examples_per_step": 2, "lr": 1e-3, "warmup_steps": 0}
        source = {"source": str(root / name / "start"), **own}
        fields = {"model": source, "optim": optim, "objective": {"name": "trajectory_ce"}}
        train(recipe_of(root, root / name / "run", **fields))
    make_source(root / "ar", "qwen3")
    converted(root / "ar", root / CONVERTED)
    places = {name: root / name / "run" / "model" for name in (TRAINED, MERGED, MIXTURE)}
    return {**places, CONVERTED: root / CONVERTED}


def opened(folder):
    """What a server sees of a folder, before it runs any code of it."""
    fields = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("config", "tokenizer_config")}
    generation = json.loads((folder / "generation_config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  no mapping
    return SimpleNamespace(path=folder, generation=generation, shapes=shapes, **fields)


def expected_shapes(config):
    """The tensors that the servers' SDAR classes take from the file, by the names they look for: none less, none more.

    Both stack q, k, v and gate, up themselves, take each expert by its number, and tie the head to the embedding.
    """
    width, head, heads = config["hidden_size"], config["head_dim"], config["num_attention_heads"]
    inner, shared = heads * head, config["num_key_value_heads"] * head
    expected = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        expected["lm_head.weight"] = (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        own = {
            "self_attn.q_proj": (inner, width), "self_attn.k_proj": (shared, width),
            "self_attn.v_proj": (shared, width), "self_attn.o_proj": (width, inner),
            "self_attn.q_norm": (head,), "self_attn.k_norm": (head,),
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }  # fmt: skip
        if "num_experts" in config:
            own["mlp.gate"] = (config["num_experts"], width)
        parts = [f"mlp.experts.{index}" for index in range(config.get("num_experts", 0))] or ["mlp"]
        inside = config["moe_intermediate_size" if "num_experts" in config else "intermediate_size"]
        for part in parts:
            own |= {f"{part}.gate_proj": (inside, width), f"{part}.up_proj": (inside, width)}
            own |= {f"{part}.down_proj": (width, inside)}
        expected |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return expected


ARCHITECTURES = {"sdar": "SDARForCausalLM", "sdar_moe": "SDARMoeForCausalLM"}
READ_DIRECTLY = (
    "attention_bias", "sliding_window", "rms_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id", "head_dim",
    "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "vocab_size",
    "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip
READ_OF_MIXTURES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
READ_OF_MIXTURES += ("mlp_only_layers", "decoder_sparse_step")
FACTS = {
    "both choose their class by architectures[0]": lambda seen: (
        seen.config["architectures"] == [ARCHITECTURES[seen.config["model_type"]]]
    ),
    "both take the config's class from the folder, by auto_map": lambda seen: (
        (seen.path / f"{seen.config['auto_map']['AutoConfig'].split('.')[0]}.py").exists()
        and hasattr(configuration_sdar, seen.config["auto_map"]["AutoConfig"].split(".")[1])
    ),
    "LMDeploy reads these fields of the config without a default": lambda seen: (
        set(READ_DIRECTLY) <= seen.config.keys()
        and ("moe" not in seen.config["model_type"] or set(READ_OF_MIXTURES) <= seen.config.keys())
    ),
    "SGLang reads rope_theta at the top level, else takes 10,000": lambda seen: seen.config["rope_theta"] > 10_000,
    "LMDeploy on transformers 4 stumbles over rope_parameters beside rope_scaling null": lambda seen: (
        "rope_parameters" not in seen.config and seen.config["rope_scaling"] is None
    ),
    "both read the dtype, older releases of them by its older name": lambda seen: (
        seen.config["dtype"] == seen.config["torch_dtype"] == "float32"
    ),
    "both find every tensor they look for, and no other": lambda seen: seen.shapes == expected_shapes(seen.config),
    "neither shares a sliding window": lambda seen: seen.config["sliding_window"] is None,
    "both stop at generation_config's eos ids": lambda seen: seen.generation["eos_token_id"] is not None,
    "transformers 4 knows the tokenizer's class": lambda seen: (
        seen.tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"
    ),
    "transformers 4 wants no list in extra_special_tokens": lambda seen: (
        not isinstance(seen.tokenizer_config.get("extra_special_tokens"), list)
    ),
    "no tokenizer code is asked for that is not there": lambda seen: "auto_map" not in seen.tokenizer_config,
    "both read the tokenizer from tokenizer.json": lambda seen: (seen.path / "tokenizer.json").exists(),
}


@pytest.mark.parametrize("fact", FACTS)
@pytest.mark.parametrize("student", [TRAINED, MERGED, MIXTURE, CONVERTED])
def test_servers_read(student, fact, folders):
    assert FACTS[fact](opened(folders[student]))


def test_a_chat_template_lies_where_both_look_for_it(folders):
    assert (folders[CONVERTED] / "chat_template.jinja").read_text() == load_tokenizer(folders[CONVERTED]).chat_template


@pytest.mark.parametrize("student", [TRAINED, MIXTURE])
def test_the_config_class_of_the_folder_reads_its_config(student, folders, tmp_path, monkeypatch):
    """As the servers do it: by `auto_map`, from a copy of the folder's code, without the families of this package."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    stored = json.loads((folders[student] / "config.json").read_text())
    config_class = dynamic_module_utils.get_class_from_dynamic_module(
        stored["auto_map"]["AutoConfig"], folders[student]
    )
    config = config_class.from_pretrained(folders[student])
    assert config_class.__module__.startswith("transformers_modules")
    assert config.rope_theta == 1e6
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    read = {"mask_token_id", "block_size", "model_type", "architectures", *READ_DIRECTLY}
    read |= set(READ_OF_MIXTURES) if student == MIXTURE else set()
    assert {name: getattr(config, name) for name in read} == {name: stored[name] for name in read}


# Our own way back


@pytest.mark.parametrize("family", ["sdar", "sdar_moe"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 5e5},
        {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotary_embeddings_survive(family, rope, tmp_path):
    model = tiny_model(dtype=torch.float32, family=family, rope_parameters=rope)
    save_model(model, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["rope_theta"] == rope["rope_theta"]
    assert load_config(tmp_path).rope_parameters == rope == model.config.rope_parameters
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path, device="cpu")(input_ids=ids).logits, model(input_ids=ids).logits)


def test_saving_what_was_read_changes_nothing(folders, tmp_path):
    for folder in folders.values():
        again = tmp_path / "again"
        save_model(load_model(folder, device="cpu"), again, load_tokenizer(folder))
        for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
            assert (again / name).read_bytes() == (folder / name).read_bytes(), name
        shutil.rmtree(again)


def test_the_tokenizer_of_a_released_model_survives(tmp_path):
    """Its config names code that is not copied, and its special tokens have two names in two releases."""
    (tmp_path / "hub").mkdir()
    TOKENIZER.save_pretrained(tmp_path / "hub")
    file = tmp_path / "hub" / "tokenizer_config.json"
    special = ["<|pad|>", "<|mask|>"]
    code = {"AutoTokenizer": ["tokenization_qwen2.Qwen2Tokenizer", "tokenization_qwen2_fast.Qwen2TokenizerFast"]}
    fields = {**json.loads(file.read_text()), "additional_special_tokens": special, "auto_map": code}
    file.write_text(json.dumps(fields))
    read = load_tokenizer(tmp_path / "hub")
    save_model(tiny_model(dtype=torch.float32), tmp_path / "saved", read)
    written = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert written["additional_special_tokens"] == special
    assert "auto_map" not in written
    again = load_tokenizer(tmp_path / "saved")
    assert again.get_vocab() == read.get_vocab()
    assert again.all_special_tokens == read.all_special_tokens


def test_families_that_no_server_knows_get_no_code(tmp_path):
    save_model(tiny_model(dtype=torch.float32, family="block_llama"), tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert not list(tmp_path.glob("*.py"))


def test_only_the_released_mask_token_is_served():
    assert is_served("sdar", SERVED_MASK_ID)
    assert is_served("sdar_moe", 151669)
    assert not is_served("sdar", 1)
    assert not is_served("block_llama", SERVED_MASK_ID)


def test_export_writes_another_dtype_in_the_form_of_servers(folders, tmp_path):
    """Also of a folder that an earlier version saved, in the form of transformers 5."""
    old = shutil.copytree(folders[TRAINED], tmp_path / "old")
    for file in ("configuration_sdar.py", "checksums.json"):
        (old / file).unlink()
    load_config(folders[TRAINED]).save_pretrained(old)
    assert "rope_parameters" in json.loads((old / "config.json").read_text())
    assert run(["export", "--model", str(old), "--out", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((folders[TRAINED] / "config.json").read_text())
    assert written == {**before, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "configuration_sdar.py"):
        assert (tmp_path / "out" / name).read_bytes() == (folders[TRAINED] / name).read_bytes()
    given, rounded = (load_file(each / "model.safetensors") for each in (old, tmp_path / "out"))
    assert all(torch.equal(rounded[name], weight.bfloat16()) for name, weight in given.items())


@pytest.mark.parametrize(("words", "told"), [(["--dtype", "int8"], "int8"), (["--out", "."], "holds something")])
def test_export_refuses(words, told, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folders[CONVERTED])
    assert run(["export", "--model", str(folders[CONVERTED]), "--out", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_a_dtype_does_not_reach_are_not_exported(tmp_path, capsys):
    model = tiny_model(dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] = 1e5  # float16 ends at 65,504
    save_model(model, tmp_path / "model")
    words = ["export", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert run([*words, "--dtype", "float16"]) == 2
    assert "not finite in float16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(words) == 0
