"""Measure optimizer steps of the real training code, on random weights and rows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator

from t3d.bench.lengths import get_lengths, random_rows
from t3d.bench.result_file import ResultFile, peak_memory_gib
from t3d.bench.shapes import build_model
from t3d.bench.timing import free_memory, wait_for
from t3d.bench.train_plan import TrainPlan
from t3d.bench.training_report import NOTE, Setting, TimedStep, TrainRow, make_row
from t3d.config import Recipe
from t3d.corruption import PackedBatch, TrainingRow
from t3d.errors import RequestError, WorkError
from t3d.models import BlockDiffusionConfig, BlockDiffusionModel
from t3d.objectives import build_objective
from t3d.progress import progress
from t3d.training.data import Share, StepDataset
from t3d.training.device import prepare_device
from t3d.training.learner import Learner
from t3d.training.parallel.strategy import is_sharded, with_strategy
from t3d.training.phases import TimedPhases
from t3d.training.precision import compute_dtype
from t3d.training.reference import reference_form
from t3d.training.requirements import check_training
from t3d.training.student import Student, make_sharded_student, make_student, weightless
from t3d.training.throughput import work_of


def bench_train(plan: TrainPlan, file: Path, command: str) -> TrainRow:
    """Measure what a plan says.

    Args:
        plan: what.
        file: JSON file to write, in a folder that exists.
        command: exact, for the file.

    Returns:
        the file's one row.

    Raises:
        RequestError: a plan that cannot be run.
        WorkError: memory ran out, a loss that is not finite, or a disk that refuses; an earlier file stays.
    """
    config, recipe = plan.check()
    accelerator, recipe = prepare_device(recipe)
    device = accelerator.device
    recipe = with_strategy(recipe, weightless(config).num_parameters(), accelerator.num_processes, device)
    check_training(recipe)
    with memory_limit(plan.memory_gib, device):
        bench = TrainBench(plan, config, recipe, accelerator)
        steps = bench.measure()
        row = make_row(bench.setting(), steps, device, bench.peaks_gib())
    if accelerator.is_main_process:
        ResultFile[TrainRow](file, command, device, compute_dtype(recipe), NOTE).add(row)
    accelerator.wait_for_everyone()
    return row


class TrainBench:
    """The training of a recipe on a model and rows that are made up.

    Args:
        plan: what to measure.
        config: of the plan's model.
        recipe: of the plan, its precision filled in.
        accelerator: of the recipe's device.
    """

    def __init__(self, plan: TrainPlan, config: BlockDiffusionConfig, recipe: Recipe, accelerator: Accelerator) -> None:
        self._plan, self._config, self._recipe, self._accelerator = plan, config, recipe, accelerator
        self._device, self._sharded = accelerator.device, is_sharded(recipe, accelerator.num_processes)
        self._objective = build_objective(recipe.objective.name)
        self._phases = TimedPhases(self._device)
        self._learner = Learner(self._student(), self._objective, recipe, accelerator, self._phases)

    def _student(self) -> Student:
        """One whose whole weights, if it is sharded, never lie on a device: they might not fit."""
        drawn_on = torch.device("cpu") if self._sharded else self._device

        def load(dtype: torch.dtype) -> BlockDiffusionModel:
            return build_model(self._config, drawn_on, dtype, self._plan.seed)

        if self._sharded:
            return make_sharded_student(weightless(self._config), load, self._recipe)
        return make_student(load, self._recipe, self._device)

    def measure(self) -> list[TimedStep]:
        """Warm up, then time the plan's steps."""
        steps, total = [], self._plan.warm_up + self._plan.steps
        shown = self._accelerator.is_main_process
        with progress(f"bench {self._plan.shape}", total, "steps", shown=shown) as bar:
            for number in range(1, 1 + total):
                step = self.step(number)
                steps.append(step)
                bar.advance(1, **{"s/example": step.seconds / self._plan.examples})
        return steps[self._plan.warm_up :]

    def step(self, number: int) -> TimedStep:
        """Optimizer step `number` (1-based), on rows of its own.

        Raises:
            WorkError: the loss is not finite.
        """
        lengths = get_lengths(self._plan.lengths)
        num_rows = self._plan.examples // (2 if self._objective.with_complement else 1)
        rows = random_rows(lengths, num_rows, self._config, self._plan.seed, number)
        begin = time.perf_counter()
        batches = self._prepared(rows)
        preparing_seconds = time.perf_counter() - begin
        self._phases.seconds()  # nothing is left over, and the device is idle
        self._accelerator.wait_for_everyone()
        begin = time.perf_counter()
        metrics = self._learner.step(batches, number)
        wait_for(self._device)
        seconds = max(self._from_all(time.perf_counter() - begin))
        if not math.isfinite(float(metrics["loss"])):
            raise WorkError("the loss is not finite: nothing was measured; try another --precision")
        return TimedStep(
            seconds=seconds,
            phases=self._phases.seconds(),
            preparing_seconds=preparing_seconds,
            num_batches=len(batches),
            num_positions=int(sum(self._from_all(sum(batch.input_ids.numel() for batch in batches)))),
            num_tokens=int(sum(self._from_all(sum(batch.num_tokens for batch in batches)))),
            num_prompt_tokens=sum(len(row.prompt_ids) for row in rows),
            num_response_tokens=sum(len(row.response_ids) for row in rows),
            num_flops=sum(self._from_all(self._learner.flops(work_of(batches)))),
        )

    def peaks_gib(self) -> list[float]:
        """Most memory of each process; empty on the CPU."""
        peak = peak_memory_gib(self._device)
        return [] if peak is None else self._from_all(peak)

    def _from_all(self, number: float) -> list[float]:
        """A number of every process, of all of them."""
        mine = torch.tensor([number], dtype=torch.float64, device=self._device)
        found: list[float] = self._accelerator.gather(mine).tolist()
        return found

    def setting(self) -> Setting:
        """What is measured and how: the plan, and what recipe and device make of what it leaves open."""
        plan, recipe, adapter = self._plan, self._recipe, self._recipe.model.adapter
        has_reference = self._learner.reference is not None
        assert recipe.precision is not None
        return Setting(
            shape=plan.shape,
            lengths=plan.lengths,
            objective=recipe.objective.name,
            precision=recipe.precision,
            optimizer=recipe.optim.optimizer,
            adapter=adapter.type if adapter else None,
            rank=adapter.rank if adapter else None,
            quantize=recipe.model.quantize,
            reference=reference_form(recipe) if has_reference else None,
            reference_refresh_every=self._learner.refresh_every if has_reference else None,
            attention=self._learner.computing.attention,
            compile=self._learner.computing.compiled,
            checkpoint_layers=self._learner.checkpointed_layers or 0,
            tokens_per_batch=recipe.batch.tokens_per_batch,
            block_size=recipe.corruption.block_size or self._config.block_size,
            processes=self._accelerator.num_processes,
            strategy=recipe.distributed.strategy if self._accelerator.num_processes > 1 else None,
            gradients=recipe.distributed.gradients if self._sharded else None,
            examples_per_step=plan.examples,
            memory_limit_gib=plan.memory_gib,
        )

    def _prepared(self, rows: list[TrainingRow]) -> list[PackedBatch]:
        """What a run would train on in a step that holds these rows."""
        dataset = StepDataset(
            rows,
            corruption=self._recipe.corruption,
            objective=self._objective,
            batch=self._recipe.batch,
            num_steps=1,
            examples_per_step=self._plan.examples,
            model=self._config,
            seed=self._recipe.seed,
            share=Share(self._accelerator.process_index, self._accelerator.num_processes),
            tiled=self._learner.computing.attention == "flex",
        )
        return dataset[0]


@contextmanager
def memory_limit(gib: float | None, device: torch.device) -> Iterator[None]:
    """Where more than `gib` of a CUDA device cannot be had, and what runs out of memory is told how to mend it.

    Raises:
        RequestError: no such device, or not so large a one.
        WorkError: memory ran out.
    """
    free_memory(device)
    if gib is not None:
        torch.cuda.set_per_process_memory_fraction(share_of_memory(gib, device))
    try:
        yield
    except torch.OutOfMemoryError as error:
        within = "the device's memory" if gib is None else f"--memory-gib {gib:g}"
        raise WorkError(
            f"the step does not fit into {within}: lower --tokens-per-batch, raise --checkpoint-layers, or choose "
            "--reference offload, --optimizer adamw_8bit, --precision bf16_pure or --adapter lora"
        ) from error
    finally:
        if gib is not None:
            torch.cuda.set_per_process_memory_fraction(1.0)


def share_of_memory(gib: float, device: torch.device) -> float:
    """Of a CUDA device, 0 .. 1.

    Raises:
        RequestError: not a CUDA device, or a smaller one.
    """
    if device.type != "cuda":
        raise RequestError("memory-gib limits the memory of a CUDA device: leave it out on the CPU")
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    if gib > total:
        raise RequestError(f"memory-gib {gib:g}: the device has {total:.1f} GiB")
    return gib / total
