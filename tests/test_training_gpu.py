"""Training on a CUDA device: compiled, with FlexAttention and in bfloat16, against the plain way."""

import pytest
import torch
from conftest import save_tiny_model
from training_runs import metrics_of, recipe_of, trajectory

from t3d import trajectories
from t3d.models import load_model
from t3d.models.scoring import Teacher, score_tokens
from t3d.training import Trainer, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
NUM_ROWS = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a tiny model whose heads FlexAttention takes, and a few trajectories."""
    from training_runs import meta

    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_model(folder / "model", head_dim=16)
    trajectories.write(folder / "trajectories", [trajectory(index) for index in range(NUM_ROWS)], meta())
    return folder


def cuda_recipe(inputs, out, **changes):
    fields = {"device": "cuda", "precision": "fp32", "batch": {"tokens_per_batch": 200}, "optim__examples_per_step": 12}
    return recipe_of(inputs, out, **{**fields, **changes})


PLAIN = {"attention": "sdpa", "compile": False}


@pytest.mark.parametrize("objective", ["t3d", "trajectory_ce", "sft"])
def test_fast_is_plain(objective, inputs, tmp_path):
    """FlexAttention, compiled layers and fused scores: the same run up to rounding."""
    named = {"objective": {"name": objective}}
    train(cuda_recipe(inputs, tmp_path / "plain", compute=PLAIN, **named))
    trainer = Trainer(cuda_recipe(inputs, tmp_path / "fast", **named))
    assert trainer.learner.computing.attention == "flex"
    assert trainer.learner.computing.compiled
    trainer.run()
    for left, right in zip(metrics_of(tmp_path / "fast"), metrics_of(tmp_path / "plain"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-3)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=2e-2)


def test_reference_is_the_student_in_bfloat16(inputs, tmp_path):
    """Right after it was made from it: held in bfloat16, it gives the numbers that float32 weights give there.

    Up to bfloat16's rounding: the student's forward is compiled for a backward to follow, the reference's is not. One
    step later they are some 0.02 nats apart.
    """
    train(cuda_recipe(inputs, tmp_path / "run", precision="bf16"))  # refresh_every 5
    for line in metrics_of(tmp_path / "run"):
        assert (abs(line["real_gap"]) < 2e-3) == (line["step"] in (1, 6, 11))


@pytest.mark.parametrize("form", ["offload", "copy"])
def test_forms_of_the_reference_agree(form, inputs, tmp_path):
    train(cuda_recipe(inputs, tmp_path / "copy", precision="bf16", compute=PLAIN))
    train(cuda_recipe(inputs, tmp_path / form / "run", precision="bf16", compute=PLAIN, reference__form=form))
    assert metrics_of(tmp_path / form / "run")[0] == metrics_of(tmp_path / "copy")[0]
    left, right = (metrics_of(out)[-1]["loss"] for out in (tmp_path / form / "run", tmp_path / "copy"))
    assert left == pytest.approx(right, rel=1e-3)  # sums of gradients are added in any order on this device


@pytest.mark.parametrize(
    "changes",
    [
        {"model__adapter": {"rank": 4}},
        {"model__adapter": {"rank": 4, "type": "dora"}},
        {"precision": "bf16_pure"},
        {"compute": {"checkpoint_layers": 1}},
    ],
    ids=["lora", "dora", "bf16_pure", "checkpointed"],
)
def test_ways_to_save_memory_learn(changes, inputs, tmp_path):
    wanted = {"precision": "bf16", "optim__steps": 40, "optim__lr": 5e-3, "reference__refresh_every": 0, **changes}
    corruption = {"ratios": [1.0], "random_token_share": 0}
    train(cuda_recipe(inputs, tmp_path / "run", corruption=corruption, **wanted))
    losses = [line["loss"] for line in metrics_of(tmp_path / "run")]
    assert losses[-1] < 0.95 * losses[0]
    load_model(tmp_path / "run" / "model", device="cpu")


def test_layers_are_checkpointed_when_memory_is_short(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("t3d.training.memory.free_bytes", lambda _: 0)
    trainer = Trainer(cuda_recipe(inputs, tmp_path / "run"))
    assert trainer.learner.checkpointed_layers is None
    trainer.run()
    assert trainer.learner.checkpointed_layers == len(trainer.model.model.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_scores_are_plain_scores(dtype):
    torch.manual_seed(0)
    hidden = torch.randn(700, 64, device="cuda", dtype=dtype, requires_grad=True)
    head = torch.randn(5000, 64, device="cuda", requires_grad=True)
    targets = torch.randint(0, 5000, (700, 2), device="cuda")
    teacher = Teacher(torch.randn(700, 32, device="cuda", dtype=dtype), torch.randn(5000, 32, device="cuda"))
    options = {"mask_token_id": 7, "append_own": True, "chunk_tokens": 256, "teacher": teacher}
    options |= {"entropy": True, "entropy_temperature": 0.5}
    results = []
    for fused in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            scores = score_tokens(hidden, head, targets, fused=fused, **options)
        said = (scores.logp, scores.entropy, scores.divergence)
        loss = scores.logp.sin().sum() + scores.entropy.sum() + 0.1 * scores.divergence.sum()
        results.append((*said, scores.own.double(), *torch.autograd.grad(loss, (hidden, head))))
    for plain, fused in zip(*results, strict=True):
        assert (fused - plain).double().norm() <= 1e-4 * plain.double().norm()
