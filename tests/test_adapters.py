"""Adapters: they start as nothing, train alone, and the plain model that they amount to says the same."""

# ruff: noqa: F811  the fixture `inputs` is imported by its name

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from tiny import tiny_model
from training_runs import TOKENIZER, inputs, metrics_of, recipe_of, refusal_of  # noqa: F401

from t3d.config import AdapterConfig
from t3d.errors import RequestError, WorkError
from t3d.models import load_model, model_fingerprint, save_model
from t3d.training import Trainer, train
from t3d.training import requirements as training_requirements
from t3d.training.adapters import AdaptedStudent, add_adapters
from t3d.training.student import Student, build_student, hold_in

KINDS = ("lora", "dora")
IDS = torch.arange(2, 26).reshape(2, 12)


def logits_of(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


def move_adapters(student, seed=0):
    """As if they had learned something: every adapter far from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in student.trainable().values():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)
            weight.mul_(1 + 0.3 * noise) if weight.dim() == 1 else weight.add_(0.3 * noise)


def base_model(dtype=torch.float64, **shapes):
    return tiny_model(**shapes) if dtype == torch.float64 else hold_in(dtype, tiny_model(dtype=torch.float32, **shapes))


def adapted(kind="lora", held_in=torch.float64, dtype=torch.float64, adapter=None, **shapes):
    config = AdapterConfig(type=kind, rank=3, **(adapter or {}))
    return AdaptedStudent(add_adapters(base_model(dtype, **shapes), config, held_in, seed=0))


def exact(model):
    """The norms of `tiny_model`, which do not round to float32, in a model that was made from another."""
    like = dict(tiny_model().named_modules())
    for name, module in model.named_modules():
        if "norm" in name:
            module.forward = like[name].forward.__func__.__get__(module)
    return model


# At the start


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_new_adapters_change_nothing(kind, dtype):
    """DoRA's magnitudes are the norms of the rows, also where the rows are held in bfloat16."""
    student = adapted(kind, held_in=torch.promote_types(dtype, torch.float32), dtype=dtype)
    before = logits_of(base_model(dtype))
    torch.testing.assert_close(logits_of(student.model), before, atol=1e-12, rtol=0)


def test_adapters_are_drawn_from_the_seed_alone():
    torch.rand(3)
    first, again = adapted().trainable(), adapted().trainable()
    other = AdaptedStudent(add_adapters(tiny_model(), AdapterConfig(rank=3), torch.float64, seed=1)).trainable()
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("tied", [True, False])
def test_only_adapters_are_trained(tied):
    student = adapted("dora", tie_word_embeddings=tied)
    names = list(student.trainable())
    assert len(names) == 2 * 7 * 3  # layers, places, matrices and a vector
    assert all(".lora_" in name and name.startswith("model.layers.") for name in names)
    frozen = {name for name, weight in student.model.named_parameters() if not weight.requires_grad}
    plain = {name for name, _ in tiny_model(tie_word_embeddings=tied).named_parameters()}
    assert {name.replace(".base_layer", "") for name in frozen} == plain


def test_alpha_is_twice_the_rank_unless_given():
    model = adapted().model
    assert model.model.layers[0].mlp.up_proj.scaling == {"default": 2.0}
    half = adapted(adapter={"alpha": 1.5, "targets": ("q_proj",)}).model
    assert half.model.layers[0].self_attn.q_proj.scaling == {"default": 0.5}
    assert type(half.model.layers[0].mlp.up_proj) is torch.nn.Linear


@pytest.mark.parametrize(
    "targets, named", [(("q_proj", "w_qkv", "fc1"), "w_qkv, fc1"), (("lm_head",), "lm_head"), ((), "none")]
)
def test_places_that_are_not_there_are_refused(targets, named):
    config = AdapterConfig(targets=targets)
    message = refusal_of(RequestError, add_adapters, tiny_model(), config, torch.float32, 0)
    assert named in message
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in message


# The plain model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shapes", [{"tie_word_embeddings": True}, {"attention_bias": True}])
def test_the_merged_model_is_the_adapted_one(kind, shapes):
    student = adapted(kind, **shapes)
    move_adapters(student)
    if "attention_bias" in shapes:
        torch.nn.init.normal_(student.model.model.layers[0].self_attn.q_proj.base_layer.bias)
    weights = {name: weight.clone() for name, weight in student.model.named_parameters()}
    wanted = logits_of(student.model)
    assert (wanted - logits_of(tiny_model(**shapes))).abs().max() > 0.1
    exported = exact(student.exported())
    torch.testing.assert_close(logits_of(exported), wanted, atol=1e-10, rtol=0)
    assert exported.state_dict().keys() == tiny_model(**shapes).state_dict().keys()
    for weight in exported.parameters():  # nothing of the student's hangs on it
        weight.data.zero_()
    assert all(torch.equal(weight, weights[name]) for name, weight in student.model.named_parameters())
    assert torch.equal(logits_of(student.model), wanted)


def test_merged_in_bfloat16_is_rounded_once():
    student = adapted("dora", held_in=torch.float32, dtype=torch.bfloat16)
    move_adapters(student)
    exact_weights = student.exported().state_dict()
    assert {weight.dtype for weight in exact_weights.values()} == {torch.float32}
    rounded = student.exported(torch.bfloat16)
    for name, weight in rounded.state_dict().items():
        assert torch.equal(weight, exact_weights[name].bfloat16())
    assert rounded.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_whole_student_is_exported_as_it_would_be_loaded(inputs, tmp_path):
    student = Student(load_model(inputs / "model", dtype="float32", device="cpu").train())
    student.save(tmp_path / "model", TOKENIZER)
    exported = student.exported(torch.bfloat16)
    assert not exported.training
    assert student.model.training
    loaded = load_model(tmp_path / "model", dtype="bfloat16", device="cpu")
    assert torch.equal(logits_of(exported), logits_of(loaded))
    exported.model.embed_tokens.weight.data.zero_()
    assert not exported.lm_head.weight.any()  # tied, as the student's
    assert student.model.lm_head.weight.any()


# Training


ADAPTER = {"rank": 4}


@pytest.fixture(scope="module", params=KINDS)
def finished(request, inputs, tmp_path_factory):
    """(recipe, student) of a run that trained adapters with dropout."""
    out = tmp_path_factory.mktemp("runs") / request.param
    source = str(inputs / "model")
    adapter = {**ADAPTER, "type": request.param, "dropout": 0.2}
    recipe = recipe_of(inputs, out, model={"source": source, "adapter": adapter}, optim__lr=1e-2)
    return recipe, train(recipe)


def test_the_run_leaves_a_merged_model_and_an_adapter(finished, inputs):
    recipe, student = finished
    merged = load_model(Path(recipe.out) / "model", device="cpu")
    base = load_model(inputs / "model", device="cpu")
    untrained = logits_of(base)
    assert (logits_of(merged) - untrained).abs().max() > 1e-3
    assert torch.equal(logits_of(merged), logits_of(student))
    beside = PeftModel.from_pretrained(base, Path(recipe.out) / "adapter").eval()
    torch.testing.assert_close(logits_of(beside), logits_of(merged), atol=1e-5, rtol=0)
    stored = load_file(Path(recipe.out) / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_checkpoints_hold_adapters_only(finished):
    checkpoint = Path(finished[0].out) / "checkpoints" / "step-000004"
    for file in ("model.safetensors", "reference.safetensors"):
        names = load_file(checkpoint / file).keys()
        assert names
        assert all(".lora_" in name for name in names)


def test_a_resumed_run_drops_out_what_the_whole_one_did(finished, tmp_path):
    recipe, student = finished
    again = recipe.model_copy(update={"out": str(tmp_path / "run")})
    first = Trainer(again)
    torch.rand(7)  # draws of others do not matter
    stopped_after(first, 6)
    resumed = train(again, resume=True)
    assert model_fingerprint(resumed) == model_fingerprint(student)
    assert all(torch.equal(left, right) for left, right in zip(resumed.parameters(), student.parameters(), strict=True))
    assert losses_of(again) == losses_of(recipe)


class Stopped(Exception):
    pass


def stopped_after(trainer, step):
    """The run dies right after an optimizer step (1-based)."""
    original = trainer.learner.step

    def stopping(batches, number):
        if number > step:
            raise Stopped
        return original(batches, number)

    trainer.learner.step = stopping
    with pytest.raises(Stopped):
        trainer.run()


def losses_of(recipe):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics_of(Path(recipe.out))]


def test_dropout_differs_from_step_to_step_and_stops_for_the_reference(inputs, tmp_path):
    model = {"source": str(inputs / "model"), "adapter": {**ADAPTER, "dropout": 0.5}}
    learner = Trainer(recipe_of(inputs, tmp_path / "run", model=model)).learner
    move_adapters(learner.student)
    learner.reference.refresh()
    ids = torch.arange(3, 20)[None]
    first, second = logits_of(learner.student.model, ids), logits_of(learner.student.model, ids)
    assert not torch.equal(first, second)
    with learner.reference.awake() as scorer:
        calm = logits_of(scorer.model, ids)
        assert torch.equal(calm, logits_of(scorer.model, ids))


def test_a_layer_computed_again_drops_out_the_same(finished, tmp_path):
    recipe, student = finished
    compute = recipe.compute.model_copy(update={"checkpoint_layers": 2})
    again = recipe.model_copy(update={"out": str(tmp_path / "run"), "compute": compute})
    assert model_fingerprint(train(again)) == model_fingerprint(student)
    assert losses_of(again) == losses_of(recipe)


def test_a_merged_model_is_the_start_of_the_next_run(finished, inputs, tmp_path):
    model = {"source": str(Path(finished[0].out) / "model"), "adapter": ADAPTER}
    trainer = Trainer(recipe_of(inputs, tmp_path / "run", model=model))
    torch.testing.assert_close(logits_of(trainer.model), logits_of(finished[1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "precision, base, trained",
    [
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.float32),
        ("bf16_pure", torch.bfloat16, torch.bfloat16),
    ],
)
def test_what_is_held_in_which_precision(precision, base, trained, inputs, tmp_path):
    model = {"source": str(inputs / "model"), "adapter": ADAPTER}
    recipe = recipe_of(inputs, tmp_path / "run", model=model, precision=precision)
    student = build_student(recipe, TOKENIZER, torch.device("cpu"))
    assert {weight.dtype for weight in student.trainable().values()} == {trained}
    frozen = {weight.dtype for weight in student.model.parameters() if not weight.requires_grad}
    assert frozen == {base}
    assert all(part.training for part in student.model.modules())


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"precision": "bf16_pure"}])
def test_adapters_learn_beside_rounded_weights(changes, inputs, tmp_path):
    recipe = recipe_of(
        inputs,
        tmp_path / "run",
        model={"source": str(inputs / "model"), "adapter": ADAPTER},
        objective={"name": "trajectory_ce"},
        corruption={"ratios": [1.0], "random_token_share": 0},
        optim={"steps": 25, "examples_per_step": 10, "lr": 2e-2, "warmup_steps": 0},
        batch={"tokens_per_batch": 1000},
        checkpoint={},
        **changes,
    )
    train(recipe)
    losses = [line["loss"] for line in metrics_of(tmp_path / "run")]
    assert losses[-1] < 0.9 * losses[0]


def test_adapters_keep_no_copies_of_their_inputs_in_bfloat16(inputs, tmp_path):
    """q, k and v share one input, gate and up another, and attention's result is kept anyway."""
    model = {"source": str(inputs / "model"), "adapter": ADAPTER}
    student = build_student(recipe_of(inputs, tmp_path, model=model, precision="bf16"), TOKENIZER, torch.device("cpu"))

    def kept_bytes():
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.autocast("cpu", torch.bfloat16), hooks:
            student.model.model(IDS)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    shared = kept_bytes()
    for part in student.model.modules():
        if isinstance(part, LoraLayer):
            part.cast_input_dtype_enabled = True  # peft's default
    copies = kept_bytes() - shared
    num_layers, hidden, attended, num_bytes = 2, 16, 16, 2
    assert copies == IDS.numel() * num_layers * (2 * hidden + hidden + attended) * num_bytes


# Four bits


def quantized(inputs, out, **changes):
    model = {"source": str(inputs / "model"), "quantize": "nf4", "adapter": {**ADAPTER, **changes.pop("adapter", {})}}
    return recipe_of(inputs, out, model=model, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_four_bit_training_ends_in_the_model_that_was_trained(kind, inputs, tmp_path):
    adapter = {"type": kind, "targets": ("q_proj", "up_proj")}  # the other layers are four-bit too
    trainer = Trainer(quantized(inputs, tmp_path / "run", adapter=adapter, optim__lr=1e-2, optim__steps=5))
    student = trainer.learner.student
    assert type(student.model.lm_head) is torch.nn.Linear
    packed = {name for name, weight in student.model.named_parameters() if weight.dtype == torch.uint8}
    assert len(packed) == 2 * 7
    before = {name: weight.clone() for name, weight in student.model.named_parameters()}
    trainer.run()
    after = dict(student.model.named_parameters())
    assert [name for name in before if not torch.equal(before[name], after[name])] == list(student.trainable())
    ids = torch.arange(3, 20)[None]
    student.model.eval()
    wanted = logits_of(student.model, ids)
    merged = load_model(tmp_path / "run" / "model", device="cpu")
    torch.testing.assert_close(logits_of(merged, ids), wanted, atol=2e-5, rtol=0)
    full = load_model(inputs / "model", device="cpu")
    assert (logits_of(full, ids) - wanted).abs().max() > 1e-3  # four bits and what was learned
    assert all(torch.equal(before[name], after[name]) for name in packed)  # also after eval


def test_four_bit_exports_are_plain(inputs, tmp_path):
    student = build_student(quantized(inputs, tmp_path / "run"), TOKENIZER, torch.device("cpu"))
    exported = student.exported(torch.bfloat16)
    assert {type(part) for part in exported.modules() if isinstance(part, torch.nn.Linear)} == {torch.nn.Linear}
    assert {weight.dtype for weight in exported.parameters()} == {torch.bfloat16}
    save_model(exported, tmp_path / "plain", TOKENIZER)
    loaded = load_model(tmp_path / "plain", dtype="bfloat16", device="cpu")
    assert torch.equal(logits_of(loaded), logits_of(exported))


# Refusals


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left\non device")

    monkeypatch.setattr(PeftModel, "save_pretrained", full)
    student = adapted(held_in=torch.float32, dtype=torch.float32)
    message = refusal_of(WorkError, student.save, tmp_path / "model", TOKENIZER)
    assert str(tmp_path / "adapter") in message
    assert load_model(tmp_path / "model", device="cpu")  # what was written stays


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"reference__form": "adapter"}, "model.adapter"),
        ({"model__adapter": {"type": "dora"}, "precision": "bf16_pure"}, "dora"),
        ({"model__adapter": {}, "model__quantize": "nf4", "reference__form": "copy"}, "reference.form copy"),
        ({"model__adapter": {}, "model__quantize": "nf4", "reference__form": "offload"}, "reference.form offload"),
        ({"model": {"init": {}, "tokenizer": "story-tokenizer", "adapter": {}, "quantize": "nf4"}}, "source"),
        ({"model__adapter": {"targets": ["w_qkv"]}}, "w_qkv"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(changes, said, inputs, tmp_path):
    fields = {}
    model = {"source": str(inputs / "model")}
    for key, value in changes.items():
        if key.startswith("model__"):
            model[key.removeprefix("model__")] = value
        else:
            fields[key] = value
    message = refusal_of(RequestError, train, recipe_of(inputs, tmp_path / "run", **{"model": model, **fields}))
    assert said in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package, changes", [("bitsandbytes", {}), ("torchao", {"optim__optimizer": "adamw_8bit"})])
def test_a_missing_package_is_one_line(package, changes, inputs, tmp_path, monkeypatch):
    original = training_requirements.find_spec
    monkeypatch.setattr(training_requirements, "find_spec", lambda name: None if name == package else original(name))
    message = refusal_of(RequestError, train, quantized(inputs, tmp_path / "run", **changes))
    assert package in message
    assert "pip install 't3d[gpu]'" in message
    assert not (tmp_path / "run").exists()
