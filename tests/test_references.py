"""The reference's forms: where the snapshot lies changes no number, and waking it changes nothing of the student's."""

# ruff: noqa: F811  the fixture `inputs` is imported by its name

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model
from training_runs import assert_same_state, inputs, metrics_of, recipe_of, refusal_of  # noqa: F401

from t3d.config import AdapterConfig
from t3d.models import model_fingerprint
from t3d.training import Trainer, train
from t3d.training.adapters import AdaptedStudent, add_adapters
from t3d.training.reference import AdapterReference, CopyReference, OffloadReference, build_reference
from t3d.training.student import Student

IDS = torch.arange(2, 26).reshape(2, 12)
ADAPTERS = {"none": None, "lora": {"rank": 4, "dropout": 0.2}, "dora": {"type": "dora", "rank": 4}}


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def student_of(kind):
    model = tiny_model().train()
    if kind == "none":
        return Student(model)
    config = AdapterConfig(type=kind, rank=3, dropout=0.5)
    return AdaptedStudent(add_adapters(model, config, torch.float64, seed=0))


def references_of(student):
    """One of every form that this student may have."""
    references = [CopyReference(student), OffloadReference(student)]
    return [*references, AdapterReference(student)] if isinstance(student, AdaptedStudent) else references


def learn(student, seed):
    """As a few optimizer steps would: every trained weight moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in student.trainable().values():
            weight.mul_(1 + 0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
            weight.add_(0.1 * torch.rand(weight.shape, generator=generator, dtype=weight.dtype))


def judged(reference):
    with reference.awake() as scorer:
        assert not scorer.model.training
        return logits_of(scorer.model)


def calm_logits(student):
    """What the student says without dropout."""
    training = [part for part in student.model.modules() if part.training]
    student.model.eval()
    logits = logits_of(student.model)
    for part in training:
        part.training = True
    return logits


# A snapshot


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_form_is_the_student_of_the_last_refresh(kind):
    student = student_of(kind)
    references = references_of(student)
    for seed in range(3):
        taken = calm_logits(student)
        learn(student, seed)
        assert (calm_logits(student) - taken).abs().max() > 1e-3
        for reference in references:
            assert torch.equal(judged(reference), taken)
            reference.refresh()
            assert torch.equal(judged(reference), calm_logits(student))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_what_is_stored_comes_back(kind):
    student = student_of(kind)
    stored = [{name: tensor.clone() for name, tensor in form.tensors().items()} for form in references_of(student)]
    assert all(tensors.keys() == student.trainable().keys() for tensors in stored)
    before = calm_logits(student)
    learn(student, 0)
    for tensors, reference in zip(stored, references_of(student), strict=True):
        assert not torch.equal(judged(reference), before)
        reference.load(tensors)
        assert torch.equal(judged(reference), before)
        with pytest.raises(ValueError, match="other shapes"):
            reference.load({"lm_head.weight": torch.zeros(3)})


class Surprise(Exception):
    pass


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("fails", [False, True])
def test_waking_changes_nothing_of_the_students(kind, fails):
    student = student_of(kind)
    reference = AdapterReference(student)
    learn(student, 0)
    student.model.model.layers[1].eval()  # not all parts need be in training mode
    weights = {name: (weight, weight.data_ptr(), weight.clone()) for name, weight in student.model.named_parameters()}
    training = {name: part.training for name, part in student.model.named_modules()}
    try:
        with reference.awake() as scorer:
            assert scorer.model is student.model  # nothing is held twice
            assert not torch.is_grad_enabled()
            if fails:
                raise Surprise
    except Surprise:
        assert fails
    assert torch.is_grad_enabled()
    assert {name: part.training for name, part in student.model.named_modules()} == training
    for name, weight in student.model.named_parameters():
        same, place, value = weights[name]
        assert weight is same
        assert weight.data_ptr() == place
        assert torch.equal(weight, value)
        assert weight.requires_grad == (".lora_" in name)


def test_an_offloaded_model_gives_its_place_on_the_device_back():
    """On the CPU both memories are one, but the copies are still two."""
    student = student_of("none")
    reference = OffloadReference(student)
    weights = list(reference.model.parameters())
    waiting = [weight.data_ptr() for weight in weights]
    awake = reference.awake()
    scorer = awake.__enter__()
    assert [id(weight) for weight in scorer.model.parameters()] == [id(weight) for weight in weights]
    assert not {weight.data_ptr() for weight in weights} & set(waiting)
    assert not awake.__exit__(Surprise, Surprise(), None)  # the exception goes on
    assert [weight.data_ptr() for weight in weights] == waiting
    assert not any(weight.requires_grad for weight in weights)


def test_copies_hold_matrices_rounded_and_share_nothing():
    student = Student(tiny_model(dtype=torch.float32, tie_word_embeddings=True))
    for reference in (CopyReference(student, torch.bfloat16), OffloadReference(student, torch.bfloat16)):
        own = dict(reference.model.named_parameters())
        assert own.keys() == student.trainable().keys()  # tied weights once
        for name, weight in student.trainable().items():
            assert own[name].dtype == (torch.bfloat16 if weight.dim() > 1 else torch.float32)
            assert torch.equal(own[name], weight.to(own[name].dtype))
            assert own[name].data_ptr() != weight.data_ptr()


# A run


@pytest.fixture(scope="module")
def runs(inputs, tmp_path_factory):
    """Runs by (adapter, form), made once each."""
    made = {}

    def run_of(adapter, form):
        if (adapter, form) not in made:
            out = tmp_path_factory.mktemp("runs") / f"{adapter}-{form}"
            model = {"source": str(inputs / "model"), "adapter": ADAPTERS[adapter]}
            reference = {"refresh_every": 3, "form": form}
            recipe = recipe_of(inputs, out, model=model, reference=reference, optim__lr=1e-2)
            made[adapter, form] = recipe, train(recipe)
        return made[adapter, form]

    return run_of


@pytest.mark.parametrize(
    "adapter, form, other",
    [("none", None, "offload"), ("lora", None, "copy"), ("lora", "adapter", "offload"), ("dora", None, "copy")],
)
def test_the_form_changes_no_number(adapter, form, other, runs):
    """Twelve steps with four refreshes, dropout included."""
    (left, student), (right, other_student) = runs(adapter, form), runs(adapter, other)
    left, right = Path(left.out), Path(right.out)
    assert metrics_of(left) == metrics_of(right)
    assert any(abs(line["real_gap"]) > 1e-6 for line in metrics_of(left))
    assert model_fingerprint(student) == model_fingerprint(other_student)
    for name in ("step-000004", "step-000008", "step-000012"):
        assert_same_state(left / "checkpoints" / name, right / "checkpoints" / name)
    stored = load_file(left / "checkpoints" / "step-000008" / "reference.safetensors")
    own = load_file(left / "checkpoints" / "step-000008" / "model.safetensors")
    assert stored.keys() == own.keys()
    assert not all(torch.equal(stored[name], own[name]) for name in own)  # the snapshot is of step 6


@pytest.mark.parametrize("adapter, form, other", [("none", None, "offload"), ("lora", None, "copy")])
def test_the_form_changes_no_number_of_a_teachers(adapter, form, other, inputs, tmp_path):
    """What is kept of an offloaded teacher, or of one that shares the student's model, outlives its waking."""
    students = []
    for name in (form, other):
        model = {"source": str(inputs / "model"), "adapter": ADAPTERS[adapter]}
        changes = {"model": model, "reference": {"form": name}, "objective": {"name": "tad"}, "optim__lr": 1e-2}
        students.append(model_fingerprint(train(recipe_of(inputs, tmp_path / str(name), **changes))))
    assert metrics_of(tmp_path / str(form)) == metrics_of(tmp_path / str(other))
    assert metrics_of(tmp_path / str(form))[-1]["far"] > 1e-3
    assert students[0] == students[1]


@pytest.mark.parametrize("adapter, form", [("none", "offload"), ("lora", None), ("dora", "copy")])
def test_resumed_is_uninterrupted_in_every_form(adapter, form, runs, tmp_path):
    recipe, student = runs(adapter, form)
    again = recipe.model_copy(update={"out": str(tmp_path / "run")})
    dying = Trainer(again)
    original = dying.learner.step

    def step(batches, number):
        if number == 6:
            raise Surprise
        return original(batches, number)

    dying.learner.step = step
    with pytest.raises(Surprise):
        dying.run()
    assert model_fingerprint(train(again, resume=True)) == model_fingerprint(student)
    assert metrics_of(tmp_path / "run") == metrics_of(Path(recipe.out))
    assert_same_state(
        tmp_path / "run" / "checkpoints" / "step-000012", Path(recipe.out) / "checkpoints" / "step-000012"
    )


@pytest.mark.parametrize(
    "adapter, form, made",
    [
        (None, None, CopyReference),
        (None, "copy", CopyReference),
        (None, "offload", OffloadReference),
        ({}, None, AdapterReference),
        ({}, "adapter", AdapterReference),
        ({}, "copy", CopyReference),
    ],
)
def test_the_form_that_is_chosen(adapter, form, made, inputs, tmp_path):
    model = {"source": str(inputs / "model"), "adapter": adapter}
    recipe = recipe_of(inputs, tmp_path / "run", model=model, reference={"form": form})
    student = student_of("none" if adapter is None else "lora")
    assert type(build_reference(student, recipe)) is made
