"""Checkpointed layers: the fewest that fit, and the same training with any number of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_runs import assert_same_state, inputs, metrics_of, recipe_of  # noqa: F401

from t3d.errors import RequestError
from t3d.training import Trainer, train
from t3d.training.memory import free_bytes, layers_to_checkpoint

GIB = 2**30


def test_by_hand():
    """Four layers of 10 bytes each, 2 for an input; the layer whose backward runs needs its 10 once more."""
    fits = {50: 0, 49: 1, 42: 1, 41: 2, 34: 2, 26: 3, 25: 4, 0: 4}
    assert {free: layers_to_checkpoint(4, 10, 2, free) for free in fits} == fits


@given(st.integers(1, 40), st.integers(0, 1000), st.integers(0, 1000), st.integers(-100, 50_000))
def test_no_fewer_would_fit(layers, kept, remembered, free):
    count = layers_to_checkpoint(layers, kept, remembered, free)

    def needed(count):
        return (layers - count + 1) * kept + count * remembered

    assert 0 <= count <= layers
    assert count == layers or needed(count) <= free
    assert all(needed(fewer) > free for fewer in range(count))


@pytest.mark.parametrize("count", [1, 2, 99])
def test_checkpointed_layers_change_nothing(count, inputs, tmp_path):  # noqa: F811
    plain = recipe_of(inputs, tmp_path / "plain", optim__steps=3, checkpoint={"every_steps": 3})
    train(plain)
    compute = plain.compute.model_copy(update={"checkpoint_layers": count})
    trainer = Trainer(plain.model_copy(update={"compute": compute, "out": str(tmp_path / "run")}))
    assert trainer.learner.checkpointed_layers == min(count, 2)
    assert [layer.gradient_checkpointing for layer in trainer.model.model.layers] == [True, count > 1]
    trainer.run()
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "plain")
    assert_same_state(*(tmp_path / run / "checkpoints" / "step-000003" for run in ("run", "plain")))


def test_none_is_checkpointed_on_the_cpu_unless_asked(inputs, tmp_path):  # noqa: F811
    trainer = Trainer(recipe_of(inputs, tmp_path / "run"))
    assert trainer.learner.checkpointed_layers == 0


def test_flex_attention_without_cuda_is_refused(inputs, tmp_path):  # noqa: F811
    with pytest.raises(RequestError, match="use sdpa"):
        Trainer(recipe_of(inputs, tmp_path / "run", compute={"attention": "flex"}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures device memory")
def test_free_memory_respects_the_cap_of_the_process():
    device = torch.device("cuda", 0)
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(10 * GIB / total)
    try:
        held = torch.empty(3 * GIB, dtype=torch.uint8, device=device)
        free = free_bytes(device)
        assert 6.5 * GIB < free <= 7 * GIB + torch.cuda.memory_reserved(device) - held.nbytes
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
