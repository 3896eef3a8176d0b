"""Loading, saving and naming models; whatever cannot be loaded is refused in one line."""

import json
import shutil

import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from t3d.errors import RequestError
from t3d.models import (
    BUILT_IN,
    SDARConfig,
    as_device,
    as_dtype,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    random_model,
    save_model,
    stop_token_ids,
    tokenizer_fingerprint,
)

RELEASED = {  # config.json as the released SDAR-4B-Chat has it
    "architectures": ["SDARForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_sdar.SDARConfig",
        "AutoModel": "modeling_sdar.SDARModel",
        "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
    },
    "block_size": 4,
    "bos_token_id": 151643,
    "debug": False,
    "eos_token_id": 151643,
    "fuse_cross_entropy": True,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 9728,
    "mask_token_id": 151669,
    "max_position_embeddings": 32768,
    "max_window_layers": 36,
    "model_type": "sdar",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.52.3",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
IDS = torch.arange(2, 20)[None]


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(model, folder) of a float32 model."""
    model, folder = tiny_model(dtype=torch.float32), tmp_path_factory.mktemp("model") / "saved"
    save_model(model, folder)
    return model, folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved model to break."""
    return shutil.copytree(saved[1], tmp_path / "model")


def edit_config(folder, **fields):
    file = folder / "config.json"
    stored = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({key: value for key, value in stored.items() if value is not ...}))


# Saving and loading


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_model_loads_with_the_same_logits(tied, dtype, tmp_path):
    save_model(tiny_model(dtype=torch.float32, tie_word_embeddings=tied), tmp_path / "float32")
    model = load_model(tmp_path / "float32", dtype=dtype, device="cpu")
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, dtype=dtype, device="cpu")
    assert not loaded.training
    assert loaded.dtype == model.dtype
    assert torch.equal(logits_of(loaded), logits_of(model))
    through_transformers = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert torch.equal(logits_of(through_transformers), logits_of(model))


def test_attention_functions_agree(saved):
    model, folder = saved
    torch.testing.assert_close(logits_of(load_model(folder, device="cpu", attention="eager")), logits_of(model))


def test_saved_config_is_what_other_servers_read(saved):
    fields = json.loads((saved[1] / "config.json").read_text())
    assert fields["model_type"] == "sdar"
    assert fields["architectures"] == ["SDARForCausalLM"]
    assert fields["rope_theta"] == 10000.0
    assert fields["mask_token_id"] == 29
    assert fields["block_size"] == 4
    assert fields["auto_map"] == {"AutoConfig": "configuration_sdar.SDARConfig"}  # tests/test_server_folders.py


def test_config_survives_a_round_trip(saved):
    once = load_config(saved[1])
    assert SDARConfig.from_dict(once.to_dict()).to_dict() == once.to_dict()


def test_released_config_is_read_and_its_code_never_runs(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    for name in ("configuration_sdar", "modeling_sdar"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('remote code ran')\n")
    config = load_config(tmp_path)
    assert type(config) is SDARConfig
    for name in ("hidden_size", "head_dim", "num_key_value_heads", "vocab_size", "mask_token_id", "block_size"):
        assert getattr(config, name) == RELEASED[name]
    assert config.rope_parameters["rope_theta"] == 1_000_000.0
    assert config.dtype == torch.bfloat16
    assert config.pad_token_id is None
    stored = config.to_dict()
    assert "auto_map" not in stored
    assert not hasattr(config, "auto_map")
    assert stored["rope_theta"] == 1_000_000.0


def test_a_model_of_the_released_kind_loads_beside_its_code(folder):
    """The rope base at the top level must reach the layers, and the code beside the weights must not run."""
    expected = logits_of(load_model(folder, device="cpu"))
    edit_config(folder, auto_map=RELEASED["auto_map"], fuse_cross_entropy=True, torch_dtype="float32", dtype=...)
    (folder / "modeling_sdar.py").write_text("raise SystemExit('remote code ran')\n")
    (folder / "configuration_sdar.py").write_text("raise SystemExit('remote code ran')\n")
    edit_config(folder, rope_parameters=..., rope_theta=10000.0)
    assert torch.equal(logits_of(load_model(folder, device="cpu")), expected)
    edit_config(folder, rope_theta=100.0)
    assert not torch.allclose(logits_of(load_model(folder, device="cpu")), expected)


def test_block_size_defaults_to_the_released_one(folder):
    edit_config(folder, block_size=...)
    assert load_config(folder).block_size == 4


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_models_speak_the_storys_tokenizer(name):
    config, tokenizer = load_config(name), load_tokenizer(name)
    assert config.vocab_size == len(tokenizer)
    assert (config.mask_token_id, config.eos_token_id) == (tokenizer.mask_token_id, tokenizer.eos_token_id)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(load_tokenizer("story-tokenizer"))


# Refusals


def break_weights(folder, keep=None, reshape=None):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors = {key: value for key, value in tensors.items() if keep is None or keep in key}
    tensors = {key: value[:-1].contiguous() if key == reshape else value for key, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


BREAKAGES = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights"),
    "truncated weights": (lambda f: (f / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"{"), "weights"),
    "half the weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "weights",
    ),
    "missing layers": (lambda f: break_weights(f, keep="layers.0"), "weights missing: "),
    "wrong shape": (lambda f: break_weights(f, reshape="model.norm.weight"), "model.norm.weight"),
    "other shapes in the config": (lambda f: edit_config(f, intermediate_size=32), "another shape"),
    "no mask id": (lambda f: edit_config(f, mask_token_id=...), "mask_token_id"),
    "mask id outside": (lambda f: edit_config(f, mask_token_id=31), "mask_token_id"),
    "negative mask id": (lambda f: edit_config(f, mask_token_id=-1), "mask_token_id"),
    "mask id is text": (lambda f: edit_config(f, mask_token_id="<mask>"), "mask_token_id"),
    "block size 0": (lambda f: edit_config(f, block_size=0), "block_size"),
    "block size is null": (lambda f: edit_config(f, block_size=None), "block_size"),
    "unknown family": (lambda f: edit_config(f, model_type="llama"), "'llama'"),
    "no family": (lambda f: edit_config(f, model_type=...), "model_type"),
    "a family that is a list": (lambda f: edit_config(f, model_type=["sdar"]), "model_type ['sdar']"),
    "field out of place": (lambda f: edit_config(f, hidden_size="wide"), "hidden_size"),
    "sliding window": (
        lambda f: edit_config(f, layer_types=["full_attention", "sliding_attention"], sliding_window=4),
        "sliding",
    ),
    "broken config": (lambda f: (f / "config.json").write_text('{"model_type": "sdar",'), "config.json"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1, 2]"), "config.json"),
    "config is no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json"),
    "empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "no config.json"),
    "no folder": (lambda f: shutil.rmtree(f), "not a folder"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("")), "not a folder"),
}


@pytest.mark.parametrize("how", BREAKAGES)
def test_refusals_are_one_line(how, folder):
    breakage, said = BREAKAGES[how]
    breakage(folder)
    with pytest.raises(RequestError) as refusal:
        load_model(folder, device="cpu")
    message = str(refusal.value)
    assert "\n" not in message
    assert str(folder) in message
    assert said in message.replace(str(folder), "")


@pytest.mark.parametrize("name", ["owner/no-such-model", "no-such-model", "a/b/c"])
def test_a_hub_that_does_not_answer_is_one_line(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError) as refusal:
        load_model(name, device="cpu")
    assert "\n" not in str(refusal.value)
    assert "story-mini" in str(refusal.value)


@pytest.mark.parametrize(
    "options, said",
    [({"dtype": "int8"}, "int8"), ({"attention": "flash"}, "flash"), ({"device": "abacus"}, "abacus")],
)
def test_unknown_options_are_one_line(saved, options, said):
    with pytest.raises(RequestError, match=said) as refusal:
        load_model(saved[1], **{"device": "cpu", **options})
    assert "\n" not in str(refusal.value)


def test_no_tokenizer_is_one_line(saved):
    with pytest.raises(RequestError, match="no tokenizer") as refusal:
        load_tokenizer(saved[1])
    assert "\n" not in str(refusal.value)


def test_mask_id_comes_from_the_tokenizer_if_the_config_has_none(folder):
    load_tokenizer("story-tokenizer").save_pretrained(folder)
    edit_config(folder, mask_token_id=...)
    assert load_config(folder).mask_token_id == 1


def test_devices_and_dtypes_by_name():
    assert as_device("cpu") == torch.device("cpu")
    assert as_dtype(None, torch.device("cpu")) == torch.float32
    assert as_dtype(None, torch.device("cuda")) is None
    assert as_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(RequestError, match="cuda:99"):
        as_device("cuda:99")


def test_random_models():
    tokenizer = load_tokenizer("story-tokenizer")
    shapes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "rope_theta": 500.0}
    shapes |= {"intermediate_size": 16, "num_key_value_heads": 1}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = random_model(shapes, tokenizer, seed=3)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's randomness moves
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.mask_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 0, 2)
    assert model.config.rope_parameters["rope_theta"] == 500.0
    assert model_fingerprint(model) == model_fingerprint(random_model(shapes, tokenizer, seed=3))
    assert model_fingerprint(model) != model_fingerprint(random_model(shapes, tokenizer, seed=4))


@pytest.mark.parametrize("shapes", [{"hidden": 16}, {"hidden_size": "wide"}])
def test_random_models_of_unknown_shapes_are_one_line(shapes):
    with pytest.raises(RequestError, match="hidden") as refusal:
        random_model(shapes, load_tokenizer("story-tokenizer"))
    assert "\n" not in str(refusal.value)


# Stop tokens and fingerprints


def test_stop_tokens_are_everybodys():
    model, tokenizer = tiny_model(), load_tokenizer("story-tokenizer")
    model.generation_config.eos_token_id = [7, 1, 5]
    assert stop_token_ids(model) == (1, 5, 7)
    assert stop_token_ids(model, tokenizer) == (0, 1, 5, 7)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    assert stop_token_ids(model) == ()


def story_tokenizer_with(tmp_path, edit):
    load_tokenizer("story-tokenizer").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    fields = json.loads(file.read_text())
    edit(fields["model"]["vocab"])
    file.write_text(json.dumps(fields))
    return PreTrainedTokenizerFast.from_pretrained(tmp_path)


def test_tokenizer_fingerprint_sees_every_id(tmp_path):
    tokenizer = load_tokenizer("story-tokenizer")
    fingerprint = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(story_tokenizer_with(tmp_path, lambda vocabulary: None)) == fingerprint

    def swap(vocabulary):
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    assert tokenizer_fingerprint(story_tokenizer_with(tmp_path, swap)) != fingerprint
    tokenizer.add_tokens(["<|new|>"])
    assert tokenizer_fingerprint(tokenizer) != fingerprint


def test_model_fingerprint_survives_saving_and_sees_one_step(saved):
    model, folder = saved
    loaded = load_model(folder, device="cpu")
    assert model_fingerprint(loaded) == model_fingerprint(model)
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-6)
    loaded(input_ids=IDS).logits.square().mean().backward()
    optimizer.step()
    assert model_fingerprint(loaded) != model_fingerprint(model)
