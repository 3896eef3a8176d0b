"""Training a mixture of experts: losses and gradients of transformers' own model, runs that resume and export.

Of two processes that share the experts: `test_sharded_training.py`.
"""

import pytest
import torch
from safetensors.torch import load_file
from test_mixtures import assert_same_tensors, hub_tensors
from tiny import MASK, noisy_example, random_row, tiny_model
from training_runs import TOKENIZER, assert_same_state, cut_short, meta, metrics_of, recipe_of, trajectory
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from t3d import trajectories
from t3d.config import AdapterConfig
from t3d.corruption import pack
from t3d.errors import RequestError
from t3d.models import load_model, save_model
from t3d.objectives import OBJECTIVES, Scores, build_objective
from t3d.training import run_recipe, train
from t3d.training.adapters import AdaptedStudent, add_adapters
from t3d.training.quantization import quantize_layers
from t3d.training.scorer import Scorer, consult, score_batch

torch.set_num_threads(1)


# One batch, by hand


def original_of(model):
    """transformers' own model of the same shapes and weights, with its own loop over experts."""
    fields = {key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")}
    original = Qwen3MoeForCausalLM(Qwen3MoeConfig(**fields, experts_implementation="eager")).double().eval()
    original.load_state_dict(model.state_dict())
    return original


def logits_by_hand(model, batch, examples):
    """[M, V]: for each token with loss one forward over the text up to the end of its block, as decoding shows it."""
    rows, width = [], batch.input_ids.shape[1]
    for place in batch.loss_index.tolist():
        row, column = divmod(place, width)
        example = examples[int(batch.document_ids[row, column])]
        position = int(batch.position_ids[row, column])
        start = position // 4 * 4
        offset = start - example.noisy_start
        tokens = torch.tensor([*example.clean_ids[:start], *example.noisy_ids[offset : offset + 4]])
        blocks = torch.arange(len(tokens)) // 4
        hidden = torch.zeros(len(tokens), len(tokens), dtype=torch.float64)
        mask = hidden.masked_fill(blocks[None, :] > blocks[:, None], -torch.inf)
        rows.append(model(input_ids=tokens[None], attention_mask=mask[None, None]).logits[0, position])
    return torch.stack(rows)


def scores_by_hand(logits, frozen, targets, entropy_at):
    """What an objective asks for, from all logits of the student and of the frozen model."""
    logp, theirs = logits.log_softmax(dim=-1), frozen.log_softmax(dim=-1)
    allowed = torch.arange(logits.shape[1]) != MASK
    own = theirs.masked_fill(~allowed, -torch.inf).argmax(dim=-1)

    def of(scores, tokens):
        return scores.gather(1, tokens[:, None])[:, 0]

    tempered = (logits / (entropy_at or 1)).log_softmax(dim=-1)
    return Scores(
        real=of(logp, targets),
        argmax=logits.masked_fill(~allowed, -torch.inf).argmax(dim=-1),
        fake=of(logp, own),
        reference_real=of(theirs, targets),
        reference_fake=of(theirs, own),
        entropy=-(tempered.exp() * tempered).sum(dim=-1),
        divergence=(theirs.exp() * (theirs - logp)).sum(dim=-1),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradients_are_those_of_transformers_own_model(name):
    """Packed rows through our scorer, and unpacked ones through Qwen3-MoE's model, in float64."""
    objective = build_objective(name)
    rows = [random_row(str(index), *lengths) for index, lengths in enumerate(((5, 6), (4, 4), (0, 5)))]
    hiding = {"ratios": (0.75, 0.5), "ratio_power": 0}
    examples = [noisy_example(row, objective.hider, complement=index == 1, **hiding) for index, row in enumerate(rows)]
    batch = pack(examples, row_tokens=1000, block_size=4, num_examples_in_step=3)
    student, frozen = (tiny_model(seed=seed, family="sdar_moe", mlp_only_layers=[1]) for seed in (0, 1))

    verdict = None
    if objective.needs_reference or objective.needs_teacher:
        verdict = consult(Scorer(frozen), batch, objective)
    entropy_at = objective.needs_entropy_at
    loss, _ = objective(score_batch(Scorer(student), batch, verdict, entropy_at), batch.tokens)
    loss.backward()

    original = original_of(student)
    with torch.no_grad():
        theirs = logits_by_hand(original_of(frozen), batch, examples)
    scores = scores_by_hand(logits_by_hand(original, batch, examples), theirs, batch.tokens.targets, entropy_at)
    expected, _ = objective(scores, batch.tokens)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5, check_dtype=False)
    wanted = dict(original.named_parameters())
    assert float(student.model.layers[0].mlp.experts.down_proj.grad.abs().max()) > 1e-3
    for parameter, weight in student.named_parameters():
        torch.testing.assert_close(weight.grad, wanted[parameter].grad, atol=1e-5, rtol=1e-4, msg=parameter)


# Runs


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A folder with a tiny mixture of the story's vocabulary and a few trajectories."""
    folder = tmp_path_factory.mktemp("mixture")
    special = {"mask_token_id": TOKENIZER.mask_token_id, "eos_token_id": TOKENIZER.eos_token_id}
    shapes = {"vocab_size": len(TOKENIZER), "initializer_range": 0.1, "decoder_sparse_step": 2, **special}
    save_model(tiny_model(dtype=torch.float32, family="sdar_moe", **shapes), folder / "model", TOKENIZER)
    trajectories.write(folder / "trajectories", [trajectory(index) for index in range(10)], meta())
    return folder


@pytest.fixture(scope="module")
def whole(mixture, tmp_path_factory):
    """An uninterrupted run of T3D: twelve steps, a checkpoint every four, a new reference every five."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(recipe_of(mixture, out))
    return out


def test_a_run_leaves_the_hubs_names(whole, mixture):
    stored = load_file(whole / "model" / "model.safetensors")
    assert stored.keys() == load_file(mixture / "model" / "model.safetensors").keys()
    trained, start = (load_model(folder / "model", device="cpu") for folder in (whole, mixture))
    assert_same_tensors(stored, hub_tensors(trained))
    before = start.state_dict()
    assert [name for name, weight in trained.state_dict().items() if torch.equal(weight, before[name])] == []


def test_the_reference_follows_the_student(whole):
    """It is the student again after each refresh, and at no other step."""
    for line in metrics_of(whole):
        assert (abs(line["real_gap"]) < 1e-6) == (line["step"] in (1, 6, 11))


def test_a_resumed_run_is_the_whole_one(whole, mixture, tmp_path):
    cut_short(whole, tmp_path / "run")
    run_recipe(recipe_of(mixture, tmp_path / "run"), resume=True)
    assert metrics_of(tmp_path / "run") == metrics_of(whole)
    assert_same_state(*(out / "checkpoints" / "step-000012" for out in (tmp_path / "run", whole)))
    assert_same_tensors(*(load_file(out / "model" / "model.safetensors") for out in (tmp_path / "run", whole)))


def test_layers_computed_again_are_the_same(whole, mixture, tmp_path):
    train(recipe_of(mixture, tmp_path / "run", compute={"checkpoint_layers": 2}))
    assert metrics_of(tmp_path / "run") == metrics_of(whole)
    assert_same_tensors(*(load_file(out / "model" / "model.safetensors") for out in (tmp_path / "run", whole)))


@pytest.mark.parametrize("objective", ["sft", "tad"])
def test_bfloat16_products_are_close(objective, mixture, tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        recipe = recipe_of(mixture, tmp_path / precision, objective={"name": objective}, precision=precision)
        train(recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"steps": 3})}))
        losses.append([line["loss"] for line in metrics_of(tmp_path / precision)])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


# Adapters


def test_adapters_stand_beside_the_attention(mixture, tmp_path):
    """Experts and routers are no linear layers: they stay as they are, and the merged model has the hub's names."""
    recipe = recipe_of(mixture, tmp_path / "run", model__adapter={"rank": 3}, optim__steps=3)
    train(recipe)
    start, merged = (load_file(folder / "model" / "model.safetensors") for folder in (mixture, tmp_path / "run"))
    assert start.keys() == merged.keys()
    moved = {name for name in start if not torch.equal(start[name], merged[name])}
    dense = {f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}  # this one's first layer
    attention = {f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in (0, 1) for part in "qkvo"}
    assert moved == dense | attention


def test_an_adapter_goes_onto_the_model_by_peft(mixture, tmp_path):
    from peft import PeftModel

    train(recipe_of(mixture, tmp_path / "run", model__adapter={"rank": 3}, optim__steps=3))
    adapted = PeftModel.from_pretrained(load_model(mixture / "model", device="cpu"), tmp_path / "run" / "adapter")
    ids = torch.arange(3, 27).reshape(2, 12)
    with torch.no_grad():
        merged = load_model(tmp_path / "run" / "model", device="cpu")(input_ids=ids).logits
        torch.testing.assert_close(adapted(input_ids=ids).logits, merged, atol=1e-5, rtol=1e-4)


def test_experts_take_no_adapter_and_no_four_bits():
    model = tiny_model(dtype=torch.float32, family="sdar_moe")
    with pytest.raises(RequestError, match="no linear layer is called up_proj; the model has k_proj, o_proj, q_proj"):
        add_adapters(model, AdapterConfig(targets=("q_proj", "up_proj")), torch.float32, seed=0)
    with pytest.raises(RequestError, match="does not reach the experts") as refusal:
        quantize_layers(model, torch.float32, torch.device("cpu"))
    assert "\n" not in str(refusal.value)
    student = AdaptedStudent(add_adapters(model, AdapterConfig(rank=3), torch.float32, seed=0))
    assert len(student.trainable()) == 2 * 4 * 2  # layers, places, matrices
