"""What the doctor found: tables for the terminal, and plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from t3d.config import Recipe
from t3d.doctor.examination import Examination
from t3d.doctor.host import READING, checkpoint_bytes, disk, host_memory, peak_of_host
from t3d.doctor.measured import MOST_MEMORY_ABOVE, TRAINING
from t3d.doctor.seconds import EXCHANGE
from t3d.doctor.training import Training

GIB = 2**30


def examination_tables(found: Examination) -> Iterator[Table]:
    """Everything, from the model to the cost."""
    largest = found.largest
    yield _table("model and cluster", _facts(found))
    memory = {name: _gib(size) for name, size in largest.memory.items.items()}
    verdict = "left over" if largest.memory.fits else "MISSING"
    memory |= {"together": _gib(largest.memory.total), verdict: _gib(abs(largest.memory.reserve))}
    of = "" if largest.name == "training" else f", {largest.name}"
    yield _table(f"memory of a GPU, {_gib(largest.memory.capacity)}{of}", memory)
    items = host_memory(largest)
    host = {name: _gib(size) for name, size in items.items()} | {"at most at once": _gib(peak_of_host(items))}
    yield _table("memory of the host, beside processes and libraries", host)
    yield _table("disk" + of, {name: _gib(size) for name, size in disk(largest).items()})
    yield _table("an optimizer step" + of, _step(largest))
    yield _table("the whole run", _whole(found))


def remarks(found: Examination) -> Iterator[str]:
    """What to know of the figures, a line each."""
    subject, largest = found.subject, found.largest
    if subject.shape not in (None, subject.name):
        yield (
            f"{subject.name} is not on this machine: taken to have the shapes of {subject.shape}, which are known, "
            "and an LM head of its own"
        )
    if largest.no_seconds:
        yield f"seconds, hours and cost are not known: {largest.no_seconds}"
    else:
        files = ", ".join(point.file for point in TRAINING)
        yield f"speed is taken from bench/results: {files} (one H200)"
    yield f"memory that was measured lay up to {MOST_MEMORY_ABOVE:.0%} above what is worked out like this: leave room"
    yield f"the GPU's facts are those of its data sheet: {found.cluster.gpu.source}"
    if not found.fits:
        none = f"nothing that was tried is enough: {_last_resort(largest.recipe)}"
        yield f"it does NOT fit. To make it fit: {'; or '.join(found.changes) or none}"
    if largest.recipe.device == "cpu":
        yield "the recipe says device: cpu; all figures are a GPU's"
    if found.unlike:
        yield f"not measured, arithmetic alone: {'; '.join(found.unlike)}"
    if found.cluster.num_gpus > 1 and not largest.no_seconds:
        yield "exchange: bytes over the links' rated bandwidth, which real ones miss, none of it hidden by computing"
    yield f"not checked here: {', '.join(found.unchecked)}"


def _last_resort(recipe: Recipe) -> str:
    return "take larger GPUs" if recipe.model.adapter else "train adapters (model.adapter), or take larger GPUs"


def _facts(found: Examination) -> dict[str, str]:
    subject, cluster, recipe = found.subject, found.cluster, found.largest.recipe
    active = "" if subject.num_active == subject.num_weights else f", {subject.num_active:,} active"
    trained = sum(each.numel for each in found.largest.weights if each.is_trained)
    shared = f", {recipe.distributed.strategy}" if cluster.num_gpus > 1 else ""
    if cluster.num_gpus > 1 and recipe.distributed.strategy == "fsdp":
        shared += f" (gradients {recipe.distributed.gradients})"
    return {
        "model": subject.name,
        "weights": f"{subject.num_weights:,}{active}",
        "trained": f"{trained:,}, {recipe.precision}, {recipe.optim.optimizer}",
        "cluster": f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}{shared}",
        "lengths": f"{found.lengths} ({found.mean_prompt:.0f} + {found.mean_response:.0f} tokens on average)",
        "layers computed again": f"{found.largest.memory.checkpointed} of {found.largest.memory.num_layers}",
    }


def _step(training: Training) -> dict[str, str]:
    work, time, several = training.work, training.time, training.cluster.num_gpus > 1
    lines = {
        "examples": f"{work.whole.num_examples:,}",
        "batches on each GPU": f"{work.num_batches}",
        "tokens, clean and noisy": f"{work.whole.num_tokens:,}",
        "TFLOP": f"{time.flops / 1e12:,.0f}",
    }
    if several:
        rate = time.exchanged_bytes / time.parts[EXCHANGE]
        lines["each GPU sends"] = f"{time.exchanged_bytes / 1e9:.1f} GB, at {rate / 1e9:.0f} GB/s"
    if training.no_seconds:
        return {**lines, "seconds": "not known"}
    lines |= {f"  {name}": f"{seconds:.3f} s" for name, seconds in time.parts.items()}
    return {**lines, "together": duration(time.seconds), "MFU": f"{time.mfu:.1%}"}


def _whole(found: Examination) -> dict[str, str]:
    lines = {}
    for each in found.trainings:
        took = "not known" if each.seconds is None else duration(each.seconds)
        lines[f"{each.name}, {each.recipe.optim.steps:,} steps"] = took
    for rollout in found.rollouts:
        if rollout.seconds is None:
            unknown = "not known" if rollout.answers is not None else "number of prompts unknown: set rollout.count"
            lines[f"{rollout.name}, rollout"] = unknown
        else:
            lines[f"{rollout.name}, rollout of {rollout.answers:,} answers"] = duration(rollout.seconds)
    lines["together"] = "not known" if found.seconds is None else duration(found.seconds)
    if found.gpu_hours is not None:
        lines["GPU-hours"] = f"{found.gpu_hours:,.2f}"
    if found.cost is not None:
        lines[f"cost at {found.price:,.2f} a GPU-hour"] = f"{found.cost:,.2f}"
    return lines


def _table(title: str, lines: Mapping[str, str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(justify="right", overflow="fold")
    for name, value in lines.items():
        table.add_row(name, value)
    return table


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= 0.05 * GIB else f"{size / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """In the unit that a person would say it in."""
    for limit, size, unit in ((100, 1, "s"), (100 * 60, 60, "min"), (72 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:,.1f} days"


def as_fields(found: Examination) -> dict[str, Any]:
    """All figures, in bytes and seconds."""
    cluster = found.cluster
    return {
        "model": {
            "name": found.subject.name,
            "shape": found.subject.shape,
            "weights": found.subject.num_weights,
            "active": found.subject.num_active,
        },
        "cluster": {"gpu": cluster.gpu.name, "gpus_per_node": cluster.gpus_per_node, "nodes": cluster.nodes},
        "lengths": {"from": found.lengths, "prompt": found.mean_prompt, "response": found.mean_response},
        "fits": found.fits,
        "changes": list(found.changes),
        "trainings": [_training_fields(each) for each in found.trainings],
        "rollouts": [
            {"name": each.name, "answers": each.answers, "tokens": each.tokens, "seconds": each.seconds}
            for each in found.rollouts
        ],
        "seconds": found.seconds,
        "gpu_hours": found.gpu_hours,
        "price": found.price,
        "cost": found.cost,
        "not_measured": list(found.unlike),
        "not_checked": list(found.unchecked),
    }


def _training_fields(training: Training) -> dict[str, Any]:
    recipe, memory, time = training.recipe, training.memory, training.time
    items, several, known = host_memory(training), training.cluster.num_gpus > 1, not training.no_seconds
    return {
        "name": training.name,
        "steps": recipe.optim.steps,
        "precision": recipe.precision,
        "strategy": recipe.distributed.strategy if several else None,
        "gradients": recipe.distributed.gradients if several else None,
        "checkpointed_layers": memory.checkpointed,
        "layers": memory.num_layers,
        "kept_by_layer": memory.kept_by_layer,
        "memory": {
            "items": dict(memory.items),
            "total": memory.total,
            "capacity": memory.capacity,
            "fits": memory.fits,
        },
        "host": {"items": items, "peak": peak_of_host(items), "reading": items[READING]},
        "disk": {**disk(training), "checkpoint": checkpoint_bytes(training)},
        "step": {
            "tokens": training.work.whole.num_tokens,
            "flops": time.flops,
            "exchanged_bytes": time.exchanged_bytes,
            "parts": dict(time.parts) if known else None,
            "seconds": time.seconds if known else None,
            "mfu": time.mfu if known else None,
        },
        "seconds": training.seconds,
    }
