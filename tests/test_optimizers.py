"""Optimizers for people short of memory: what they keep of an update, and that a resumed run draws the same."""

# ruff: noqa: F811  the fixture `inputs` is imported by its name

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_runs import assert_same_state, inputs, metrics_of, recipe_of  # noqa: F401

from t3d.config import OptimConfig
from t3d.training import Trainer, learner, stochastic_adamw, train
from t3d.training.draws import seed_dropout, seed_rounding
from t3d.training.learner import LearnerState
from t3d.training.optimizers import build_optimizer, set_learning_rate
from t3d.training.stochastic_adamw import StochasticAdamW, round_stochastically

# Stochastic rounding


@given(st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda value: abs(value) < 3e38))
def test_a_number_goes_to_one_of_its_neighbours(value):
    exact = torch.full((64,), value)
    rounded = round_stochastically(exact)
    assert rounded.dtype == torch.bfloat16
    towards_zero = exact.view(torch.int32).bitwise_and(-(1 << 16))
    lower, upper = towards_zero.view(torch.float32), (towards_zero + (1 << 16)).view(torch.float32)
    assert bool(((rounded.float() == lower) | (rounded.float() == upper)).all())
    if float(lower[0]) == value:
        assert torch.equal(rounded.float(), exact)


@pytest.mark.parametrize("value", [1.0 + 2**-10, -(3.0 + 2**-9), 1e-3, 2**-130 * 1.3])
def test_rounding_is_right_on_average(value):
    torch.manual_seed(0)
    exact = torch.full((100_000,), value)
    rounded = round_stochastically(exact).double()
    step = float(rounded.max() - rounded.min())
    assert step > 0
    assert float(rounded.mean()) == pytest.approx(float(exact[0]), abs=5 * step / 2 / 100_000**0.5)


def test_what_is_not_finite_is_not_hidden():
    """Also the pattern that CUDA's arithmetic makes, all bits set, which any carry would turn into a zero."""
    all_bits = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    values = torch.cat([torch.tensor([torch.inf, -torch.inf, torch.nan]), all_bits])
    rounded = round_stochastically(values)
    assert rounded[0] == torch.inf
    assert rounded[1] == -torch.inf
    assert bool(rounded[2:].isnan().all())


def test_an_update_that_rounding_to_nearest_would_lose_is_kept_on_average():
    """A step of 1e-4 at 1.0, where bfloat16's next numbers are 1/256 below and 1/128 above."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(50_000, dtype=torch.bfloat16))
    assert torch.equal((weight.float() - 1e-4).bfloat16(), weight.data)
    optimizer = StochasticAdamW([weight], lr=1e-4, weight_decay=0.0)
    for _ in range(10):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert 1 - float(weight.detach().double().mean()) == pytest.approx(10 * 1e-4, rel=0.05)


def test_the_second_moment_follows_a_falling_gradient():
    """To the nearest it would stay where it was for ever: a thousandth of it is less than half a bfloat16."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weight], lr=0.0)
    for step in range(600):
        weight.grad = torch.full_like(weight, 1.0 if step < 100 else 0.0)
        optimizer.step()
    wanted = (1 - 0.999**100) * 0.999**500
    assert float(optimizer.state[weight]["exp_avg_sq"].double().mean()) == pytest.approx(wanted, rel=0.02)


def weights_and_gradients(dtype, num_steps=7):
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 7), (7,), (3, 2, 2))
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    gradients = [[torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for _ in range(num_steps)]
    return weights, gradients


def optimized(make, dtype=torch.float32):
    weights, gradients = weights_and_gradients(dtype)
    optimizer = make(weights)
    for gradient in gradients:
        for weight, one in zip(weights, gradient, strict=True):
            weight.grad = one.clone()
        optimizer.step()
    return weights


def test_without_rounding_it_is_torchs_adamw(monkeypatch):
    options = {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1}
    wanted = optimized(lambda weights: torch.optim.AdamW(weights, **options))
    monkeypatch.setattr(stochastic_adamw, "CHUNK", 4)  # whole tensors or parts of them
    for left, right in zip(optimized(lambda weights: StochasticAdamW(weights, **options)), wanted, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)


def test_its_state_goes_on_where_it_stopped():
    """Through `state_dict`, as checkpoints have it; draws are the step's."""
    weights, gradients = weights_and_gradients(torch.bfloat16)

    def steps(weights, optimizer, first, last):
        for number in range(first, last):
            for weight, gradient in zip(weights, gradients[number], strict=True):
                weight.grad = gradient.clone()
            seed_rounding(0, number)
            optimizer.step()

    whole = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    steps(whole, StochasticAdamW(whole, lr=1e-2), 0, 7)
    first = StochasticAdamW(weights, lr=1e-2)
    steps(weights, first, 0, 4)
    second = StochasticAdamW(weights, lr=1.0)
    second.load_state_dict(first.state_dict())
    assert second.state[weights[0]]["exp_avg"].dtype == torch.bfloat16
    steps(weights, second, 4, 7)
    assert all(torch.equal(left, right) for left, right in zip(weights, whole, strict=True))


# Draws


def test_draws_hang_on_seed_step_and_process_alone():
    def draw(seed_torch, *key):
        torch.rand(3)
        seed_torch(*key)
        return torch.rand(8)

    keys = [(seed, step, process) for seed in (0, 1) for step in (1, 2) for process in (0, 1)]
    drawn = [draw(seed_dropout, *key) for key in keys] + [draw(seed_rounding, *key) for key in ((0, 1), (1, 1), (0, 2))]
    assert len({tuple(each.tolist()) for each in drawn}) == len(drawn)
    assert torch.equal(draw(seed_dropout, 1, 2, 0), drawn[keys.index((1, 2, 0))])
    assert torch.equal(draw(seed_rounding, 0, 2), drawn[-1])


# Which optimizer


def test_vectors_do_not_decay_and_bfloat16_is_rounded_stochastically():
    optim = OptimConfig(steps=1, weight_decay=0.3)
    for dtype, kind in ((torch.float32, torch.optim.AdamW), (torch.bfloat16, StochasticAdamW)):
        weights = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((2, 3), (4,))]
        optimizer = build_optimizer(weights, optim)
        assert type(optimizer) is kind
        matrices, vectors = optimizer.param_groups
        assert matrices["params"] == weights[:1]
        assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
        set_learning_rate(optimizer, 0.25)
        assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.fixture
def uncompiled():
    """torchao compiles its step for every shape, which takes this machine half a minute; its arithmetic is the same."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def eight_bit(weights):
    return build_optimizer(weights, OptimConfig(optimizer="adamw_8bit", steps=1, lr=1e-2, weight_decay=0.1))


@pytest.mark.usefixtures("uncompiled")
def test_the_eight_bit_optimizer_follows_the_exact_one():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 128, generator=generator)
    gradients = [torch.randn(64, 128, generator=generator) for _ in range(8)]
    ends = []
    for make in (lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1), eight_bit):
        weight = torch.nn.Parameter(start.clone())
        optimizer = make([weight])
        set_learning_rate(optimizer, 5e-3)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach() - start)
    exact, rounded = ends
    assert float((rounded - exact).norm() / exact.norm()) < 0.05
    moment = optimizer.state[weight]["exp_avg"]
    assert moment.codes.dtype == torch.uint8
    assert moment.codes.shape == weight.shape
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)  # a compiled step is not made anew for another


@pytest.mark.slow
def test_the_eight_bit_optimizer_compiled_is_the_uncompiled_one():
    def end(stance):
        torch.compiler.set_stance(stance)
        try:
            weight = torch.nn.Parameter(torch.linspace(-1, 1, 4096).view(64, 64))
            optimizer = eight_bit([weight])
            for _ in range(3):
                weight.grad = weight.detach().cos()
                optimizer.step()
            return weight.detach()
        finally:
            torch.compiler.set_stance("default")

    torch.testing.assert_close(end("default"), end("force_eager"), atol=1e-6, rtol=1e-5)


# Whole runs


@pytest.fixture(scope="module")
def pure(inputs, tmp_path_factory):
    """(recipe, student) of a run whose weights are bfloat16 alone."""
    out = tmp_path_factory.mktemp("runs") / "pure"
    recipe = recipe_of(inputs, out, precision="bf16_pure", optim__lr=5e-3)
    return recipe, train(recipe)


def test_all_is_held_in_bfloat16(pure):
    recipe, _ = pure
    stored = load_file(Path(recipe.out) / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    moments = torch.load(Path(recipe.out) / "checkpoints" / "step-000012" / "optimizer.pt", weights_only=True)["state"]
    assert {moments[0][name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    losses = [line["loss"] for line in metrics_of(Path(recipe.out))]
    assert sum(losses[-4:]) < 0.98 * sum(losses[:4])


class Stopped(Exception):
    pass


def run_in_two_parts(recipe, step):
    """Killed in an optimizer step (1-based), then resumed, with other draws before each part."""
    torch.rand(5)
    dying = Trainer(recipe)
    original = dying.learner.step

    def stopping(batches, number):
        if number == step:
            raise Stopped
        return original(batches, number)

    dying.learner.step = stopping
    with pytest.raises(Stopped):
        dying.run()
    torch.rand(11)
    return train(recipe, resume=True)


def test_a_resumed_run_is_rounded_as_the_whole_one(pure, tmp_path):
    recipe, student = pure
    resumed = run_in_two_parts(recipe.model_copy(update={"out": str(tmp_path / "run")}), step=7)
    assert all(torch.equal(left, right) for left, right in zip(resumed.parameters(), student.parameters(), strict=True))
    assert metrics_of(tmp_path / "run") == metrics_of(Path(recipe.out))
    name = Path("checkpoints") / "step-000012"
    assert_same_state(tmp_path / "run" / name, Path(recipe.out) / name)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_processes_round_alike_and_drop_out_differently(dropout, inputs, tmp_path, monkeypatch):
    """On the same examples: what differs is what the second process draws."""
    weights = []
    for process in (0, 1):
        monkeypatch.setattr(learner, "seed_dropout", lambda seed, step, _, own=process: seed_dropout(seed, step, own))
        model = {"source": str(inputs / "model"), "adapter": {"rank": 4, "dropout": dropout}}
        recipe = recipe_of(inputs, tmp_path / str(process), model=model, precision="bf16_pure", optim__steps=3)
        trainer = Trainer(recipe)
        trainer.run()
        weights.append(
            torch.cat([weight.detach().flatten() for weight in trainer.learner.student.trainable().values()])
        )
    assert torch.equal(*weights) == (dropout == 0)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("precision", ["fp32", "bf16_pure"])
def test_eight_bit_runs_resume_bit_for_bit(precision, inputs, tmp_path):
    def recipe(name):
        optim = {"steps": 6, "examples_per_step": 4, "lr": 5e-3, "warmup_steps": 2, "optimizer": "adamw_8bit"}
        shapes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
        shapes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
        model = {"init": shapes, "tokenizer": "story-tokenizer"}
        changes = {"model": model, "optim": optim, "checkpoint__every_steps": 2}
        return recipe_of(inputs, tmp_path / name, precision=precision, **changes)

    whole = train(recipe("whole"))
    resumed = run_in_two_parts(recipe("parts"), step=6)
    state = torch.load(tmp_path / "whole" / "checkpoints" / "step-000006" / "optimizer.pt", weights_only=True)["state"]
    packed = [moments["exp_avg"] for moments in state.values() if hasattr(moments["exp_avg"], "codes")]
    assert [tuple(moment.shape) for moment in packed] == [(64, 64)] * 3  # smaller ones are not worth it
    assert all(torch.equal(left, right) for left, right in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")


def test_a_state_of_another_form_is_not_taken_in_silence(pure, inputs, tmp_path):
    """Weights of other names: a run of adapters does not go on from a run of whole weights."""
    model = {"source": str(inputs / "model"), "adapter": {"rank": 2}}
    adapted = Trainer(recipe_of(inputs, tmp_path / "run", model=model)).learner
    whole = load_file(Path(pure[0].out) / "checkpoints" / "step-000012" / "model.safetensors")
    with pytest.raises(ValueError, match="other shapes"):
        adapted.load(LearnerState(weights=whole, reference={}, optimizer={}))
