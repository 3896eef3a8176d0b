"""The groups of the public code's training config, each as fields of our group; what has no place becomes a remark."""

from __future__ import annotations

import math
from typing import Any

from t3d.errors import RequestError
from t3d.interop.upstream.settings import Settings

STEPS_UNKNOWN = 200
"""Optimizer steps where the number of rows is not known."""
NO_CLIPPING = 1e9
"""A gradient norm that is never reached."""
OURS = "mask_order trajectory: the tokens revealed last are hidden, not the first"
THEIRS = (
    "mask_order reverse, as the public code: the tokens revealed first are hidden; --improved hides those revealed "
    "last, which are states that decoding meets"
)


def objective_fields(settings: Settings) -> dict[str, Any]:
    """DDO and the path loss, with the public code's own defaults where the file is silent."""
    return {
        "name": "t3d",
        "alpha": settings.number("training.alpha", 0.5),
        "beta": settings.number("training.beta", 0.1),
        "path_weight": settings.number("training.lambda_path", 0.05),
        "path_k": settings.whole("training.path_k_steps", 2),
    }


def optim_fields(settings: Settings, num_rows: int | None, num_gpus: int) -> dict[str, Any]:
    """AdamW, the schedule and the size of a step.

    Args:
        settings: the file.
        num_rows: of an epoch; None if nobody knows.
        num_gpus: that accumulation and batch size were chosen for.
    """
    settings.choose("optimizer.name", "adamw", ("adamw",))
    schedule = settings.text("lr_scheduler.scheduler", "cosine")
    if schedule != "cosine":
        settings.remark("lr_scheduler.scheduler", schedule, "not kept: cosine, the only one we have")
    examples = _examples_per_step(settings, num_gpus)
    return {
        "steps": _steps(settings, num_rows, examples),
        "examples_per_step": examples,
        "lr": settings.number("optimizer.params.learning_rate", 1e-5),
        "betas": [settings.number("optimizer.params.beta1", 0.9), settings.number("optimizer.params.beta2", 0.999)],
        "weight_decay": _weight_decay(settings),
        "clip_norm": _clip_norm(settings),
        "warmup_steps": settings.whole("lr_scheduler.params.warmup_steps", 0),
        "final_lr_share": settings.number("lr_scheduler.params.min_lr_scale", 0.0),
    }


def _examples_per_step(settings: Settings, num_gpus: int) -> int:
    accumulation = settings.whole("training.gradient_accumulation_steps", 1) or 1
    on_one = settings.whole("training.batch_size_lm", 1) or 1
    settings.remark(
        "training.gradient_accumulation_steps",
        accumulation,
        f"optim.examples_per_step is {accumulation} x {on_one} a GPU x {num_gpus} GPUs (--gpus); without DeepSpeed the "
        f"public code's gradient is that of the last {on_one * num_gpus} of them only, which is not kept",
    )
    return accumulation * on_one * num_gpus


def _steps(settings: Settings, num_rows: int | None, examples_per_step: int) -> int:
    epochs = settings.whole("training.num_train_epochs", 1) or 1
    if num_rows is None:
        why = (
            f"not kept: the number of rows is unknown, {STEPS_UNKNOWN} steps stand here; give --rows, or --trajectories"
        )
        settings.remark("training.num_train_epochs", epochs, why)
        return STEPS_UNKNOWN
    steps = epochs * math.ceil(num_rows / max(1, examples_per_step))
    settings.remark("training.num_train_epochs", epochs, f"{steps} steps over {num_rows} rows")
    return steps


def _weight_decay(settings: Settings) -> float | None:
    decay = settings.number("optimizer.params.weight_decay", 0.0)
    if decay:
        settings.remark("optimizer.params.weight_decay", decay, "norm weights and other vectors do not decay here")
    epsilon = settings.number("optimizer.params.epsilon", 1e-8)
    if epsilon != 1e-8:
        settings.remark("optimizer.params.epsilon", epsilon, "not kept: 1e-8, which AdamW has by default")
    return decay


def _clip_norm(settings: Settings) -> float | None:
    norm = settings.number("experiment.max_grad_norm", 1.0)
    if settings.flag("experiment.gradient_clipping", False):
        return norm
    settings.remark("experiment.gradient_clipping", False, f"clip_norm {NO_CLIPPING:g}, which clips nothing")
    return NO_CLIPPING


def corruption_fields(settings: Settings, improved: bool) -> dict[str, Any]:
    """What is hidden: with `improved` in our order."""
    settings.choose("training.method", "semi-ar", ("semi-ar",))
    strategy = settings.choose("training.mask_strategy", "trace", ("trace", "random"))
    order = "random" if strategy == "random" else "trajectory" if improved else "reverse"
    if strategy == "trace":
        settings.remark("training.mask_strategy", strategy, OURS if improved else THEIRS)
    return {
        "block_size": settings.whole("training.block_size", 8),
        "ratios": settings.numbers("training.mask_ratios", (1.0,)),
        "ratio_power": settings.number("training.mask_ratio_exponent", 4.0),
        "random_token_share": settings.number("model.random_ratio", 0.0),
        "mask_order": order,
    }


def reference_fields(settings: Settings) -> dict[str, Any]:
    """When the student replaces the reference: in optimizer steps, as the public code counts."""
    every = settings.whole("training.round_interval", 100)
    if settings.flag("training.multi_round", False):
        settings.remark("training.round_interval", every, "optimizer steps, as the public code counts (not epochs)")
    else:
        every = 0
    return {"refresh_every": every, "temperature": settings.number("training.reference_temp", 0.0)}


def compute_fields(settings: Settings) -> dict[str, Any]:
    """Recomputation of activations."""
    if settings.flag("training.gradient_checkpointing_enable", False):
        why = "compute.checkpoint_layers is left to us: the fewest layers that memory allows"
        settings.remark("training.gradient_checkpointing_enable", True, why)
        return {}
    return {"checkpoint_layers": 0}


def checkpoint_fields(settings: Settings) -> dict[str, Any]:
    """When to save."""
    fields: dict[str, Any] = {"every_steps": settings.whole("experiment.save_every_steps", 128)}
    if (keep := settings.whole("experiment.checkpoints_total_limit")) is not None:
        fields["keep"] = keep
    else:
        why = "the newest 2 are kept, as checkpoints to resume from (the public code keeps every model, but no state)"
        settings.remark("experiment.save_every_steps", fields["every_steps"], why)
    return fields


def precision_field(settings: Settings) -> str:
    """What is computed in."""
    wanted = settings.choose("training.mixed_precision", "no", ("bf16", "no", "fp16"))
    tf32 = settings.flag("training.enable_tf32", False)
    if wanted == "bf16":
        if tf32:
            settings.remark("training.enable_tf32", tf32, "not needed beside bf16")
        return "bf16"
    if wanted == "fp16":
        settings.remark("training.mixed_precision", wanted, "not kept: bf16, which needs no loss scaling")
        return "bf16"
    settings.remark("training.mixed_precision", wanted, "weights are held in float32; the public code's in bfloat16")
    return "tf32" if tf32 else "fp32"


def require_model(settings: Settings) -> str:
    """Where the model comes from; raises `RequestError` if the file does not say."""
    source = settings.text("model.pretrained_model")
    if source is None:
        raise RequestError(f"{settings.name}: model.pretrained_model is missing")
    return source
