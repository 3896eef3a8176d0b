"""The groups of a recipe's keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from t3d.config.base import Config

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moment: the share that a step keeps."""


class CorruptionConfig(Config):
    """How tokens are hidden (design section 4). Which fields count is the objective's hider's matter.

    Attributes:
        block_size: B of the training grid; None takes the model's own.
        ratios: hidden shares r to draw from, in (0, 1].
        ratio_power: r is drawn with probability proportional to r ** ratio_power.
        final_ratio_power: what that power comes to, linearly, at the last step of the run; None leaves it as it is.
        rho_min, rho_max: d3llm draws its hidden share evenly from above a floor that rises from one to the other.
        random_token_share: share of the hidden tokens that show a random token in place of [MASK].
        mask_order: which tokens of a block are hidden: `trajectory` the last revealed (a state the teacher was in),
            `reverse` the first revealed (the public code), `random` any.
    """

    block_size: int | None = Field(None, ge=1)
    ratios: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    ratio_power: float = Field(8.0, ge=-100, le=100)
    final_ratio_power: float | None = Field(None, ge=-100, le=100)
    rho_min: float = Field(0.0, ge=0, le=1)
    rho_max: float = Field(0.8, gt=0, le=1)
    random_token_share: float = Field(0.1, ge=0, le=1)
    mask_order: Literal["trajectory", "reverse", "random"] = "trajectory"

    @model_validator(mode="after")
    def _ratios_in_range(self) -> Self:
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError("ratios must be one or more numbers in (0, 1]")
        if self.rho_min > self.rho_max:
            raise ValueError(f"rho_min {self.rho_min:g} must not exceed rho_max {self.rho_max:g}")
        return self


class AdapterConfig(Config):
    """Low-rank adapters that are trained in place of the model's own weights.

    Attributes:
        type: LoRA, or DoRA (a learned magnitude beside it).
        rank: of each adapter.
        alpha: the adapter's product is scaled by alpha / rank; None is 2 * rank.
        dropout: of the adapters' input.
        targets: names of the linear layers that get one; None is all of the decoder's. Experts and their router are no
            linear layers: of a mixture the attention gets adapters.
    """

    type: Literal["lora", "dora"] = "lora"
    rank: int = Field(32, ge=1)
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None


class ModelConfig(Config):
    """Where the model comes from: `source`, or random weights of the shapes in `init`; and which part is trained.

    Attributes:
        source: folder, hub id or built-in name.
        init: fields of the family's config, for random weights; the tokenizer fills in vocabulary and special ids.
        tokenizer: folder, hub id or built-in name of the tokenizer; None takes the one beside the model.
        adapter: train adapters and leave the model as it is; None trains all weights.
        quantize: hold the weights that adapters stand beside in 4 bits (QLoRA); needs `adapter` and bitsandbytes.
    """

    source: str | None = None
    init: dict[str, Any] | None = None
    tokenizer: str | None = None
    adapter: AdapterConfig | None = None
    quantize: Literal["nf4"] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.source is None) == (self.init is None):
            raise ValueError("give either source (a model) or init (shapes for random weights)")
        if self.init is not None and self.tokenizer is None:
            raise ValueError("init needs tokenizer: a model folder, or story-tokenizer")
        if self.quantize is not None and self.adapter is None:
            raise ValueError("quantize needs adapter: four-bit weights cannot be trained themselves")
        return self


class DataConfig(Config):
    """What to learn from: a trajectory folder, or a task's worked answers.

    Attributes:
        trajectories: folder or file that `t3d rollout` wrote.
        task: a name in `t3d.tasks.TASKS`, in place of trajectories.
        data: file or hub id that the task's problems come from; None takes the task's own source.
        split, count, seed: which of the task's problems; count None is all, which an endless task refuses.
        keep_unfinished: also learn from answers that ended by length.
        mix_in: another trajectory folder, of whose rows some are mixed in; which of them, is drawn by `seed`.
        mix_in_share: so many that they are this share of all.
    """

    trajectories: str | None = None
    task: str | None = None
    data: str | None = None
    split: str = "train"
    count: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    keep_unfinished: bool = False
    mix_in: str | None = None
    mix_in_share: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.trajectories is None) == (self.task is None):
            raise ValueError("give either trajectories (a folder) or task (such as gsm8k)")
        if self.data is not None and self.task is None:
            raise ValueError("data is where a task's problems come from: give task too")
        if (self.mix_in is None) != (self.mix_in_share == 0):
            raise ValueError("give both mix_in (a folder) and mix_in_share (of all rows, more than 0), or neither")
        if self.mix_in is not None and self.trajectories is None:
            raise ValueError("mix_in: is mixed into trajectories, not into a task's worked answers")
        return self


class OptimConfig(Config):
    """AdamW with warm-up and cosine decay.

    Attributes:
        optimizer: adamw, or adamw_8bit, whose two moments take a byte each (needs torchao).
        steps: optimizer steps.
        examples_per_step: over all processes; every loss is a mean over them.
        lr: peak learning rate.
        betas, weight_decay: of AdamW; vectors (norm weights) do not decay.
        clip_norm: of the gradient.
        warmup_steps: from 0 to `lr`.
        final_lr_share: the cosine ends at this share of `lr`.
        on_nonfinite: what becomes of a step whose loss or gradient is not finite. Its update is never made; the run
            stops, or goes on without it (skip).
        max_skipped: steps in a row that are skipped; at the next one the run stops.
        moments_from: folder of a finished run whose last moments AdamW goes on from; None starts from zero.
        keep_moments: leave the last moments in `out`, for another run's `moments_from`.
    """

    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    steps: int = Field(..., ge=1)
    examples_per_step: int = Field(256, ge=1)
    lr: float = Field(1e-5, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    warmup_steps: int = Field(20, ge=0)
    final_lr_share: float = Field(0.1, ge=0, le=1)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = Field(3, ge=1)
    moments_from: str | None = None
    keep_moments: bool = False


class BatchConfig(Config):
    """How a step's examples are cut into forward passes; changes speed and memory, never the result.

    Attributes:
        tokens_per_batch: tokens of one forward pass on one device, clean and noisy.
        row_tokens: tokens of one packed row; None makes rows as long as the longest example of the batch, and one row
            of the whole batch where attention costs what it sees (flex).
        num_workers: processes that prepare batches; 0 does it in the training process; None takes 2 beside a CUDA
            device, which would have to wait, and 0 on the CPU.
    """

    tokens_per_batch: int = Field(16_384, ge=1)
    row_tokens: int | None = Field(None, ge=1)
    num_workers: int | None = Field(None, ge=0)


class ComputeConfig(Config):
    """How the forward and backward passes are carried out; changes speed and memory, results only by rounding.

    Attributes:
        attention: flex (FlexAttention, CUDA only) or sdpa (a dense mask); None takes flex where there is CUDA.
        compile: torch.compile of the layers; None compiles on CUDA.
        checkpoint_layers: how many layers forget their activations and compute them again in the backward pass; None
            takes the fewest that memory allows (none on the CPU).
    """

    attention: Literal["flex", "sdpa"] | None = None
    compile: bool | None = None
    checkpoint_layers: int | None = Field(None, ge=0)


class ReferenceConfig(Config):
    """The frozen model inside DDO, or the teacher of an objective that learns from its distributions (tad).

    Attributes:
        form: copy (a second model), adapter (a snapshot of the adapters beside the one model; needs `model.adapter`) or
            offload (a second model that waits in the host's memory and is on the device only while it is asked);
            None is adapter where adapters are trained, else copy.
        refresh_every: optimizer steps after which the student replaces it; 0 keeps the teacher throughout, and so does
            an objective that learns from the teacher's distributions, whatever stands here.
        temperature: of the fake token; 0 takes the reference's argmax.
    """

    form: Literal["copy", "adapter", "offload"] | None = None
    refresh_every: int = Field(10, ge=0)
    temperature: float = Field(0.0, ge=0)


class DistributedConfig(Config):
    """How several processes share a training; changes speed and memory, results only by rounding. One needs nothing.

    Attributes:
        strategy: ddp (each holds all), fsdp (weights, gradients, moments and the frozen model are sharded over all), or
            auto: ddp where all that a process would hold fits its device, else fsdp.
        gradients: of fsdp, between the batches of a step: whole (each process keeps its own until the last batch, and
            they are exchanged once a step) or sharded (exchanged after every batch); None is whole where they fit well.
        shards: of fsdp, over how many processes, neighbours by rank, everything is sharded; each such group holds the
            same, and gradients are averaged over groups. It divides the number of processes; None is all of them.
    """

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    gradients: Literal["whole", "sharded"] | None = None
    shards: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _shards_of_fsdp(self) -> Self:
        if self.shards is not None and self.strategy != "fsdp":
            raise ValueError(f"shards: strategy {self.strategy} has none to count; set strategy: fsdp too")
        return self


class CheckpointConfig(Config):
    """What is kept on the way. A run that is interrupted writes one more, if it writes any.

    Attributes:
        every_steps: 0 writes none by count of steps.
        every_minutes: since the last one; 0 writes none by the clock; both may be set. A run that keeps any also
            writes one when it is interrupted.
        keep: newest checkpoints kept.
        asynchronous: write in a thread, from a copy in the host's memory, while training goes on.
    """

    every_steps: int = Field(0, ge=0)
    every_minutes: float = Field(30.0, ge=0)
    keep: int = Field(2, ge=1)
    asynchronous: bool = True


class EvaluationConfig(Config):
    """Few-step accuracy on held-out problems while training, through the engine that serves.

    Attributes:
        benchmark: a name in `t3d.evaluation.BENCHMARKS`.
        data: file or hub id that its problems come from; None takes the task's own source.
        split: of the benchmark's task; the test split is for the end.
        every_steps: optimizer steps between two evaluations; the last step is always evaluated.
        at_start: evaluate before the first step too, to see what training changes.
        limit: problems.
        max_new_tokens: longest answer; None takes the benchmark's.
        tokens_per_step: settings to measure, each divides the block size.
        best_by: the setting whose accuracy tells which student is best (of equals the earliest); None takes the largest
            of `tokens_per_step`.
        patience: evaluations in a row without a better one after which training stops; 0 never stops early.
        memory_gib: what the engine may take on the device beside all that training holds; None leaves it to the engine,
            which gives back all it takes.
    """

    benchmark: str = "story"
    data: str | None = None
    split: str = "validation"
    every_steps: int = Field(..., ge=1)
    at_start: bool = True
    limit: int = Field(200, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)
    tokens_per_step: tuple[int, ...] = (1, 2, 4)
    best_by: int | None = Field(None, ge=1)
    patience: int = Field(0, ge=0)
    memory_gib: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        if not self.tokens_per_step:
            raise ValueError("tokens_per_step must name at least one setting")
        if self.best_by is not None and self.best_by not in self.tokens_per_step:
            raise ValueError(f"best_by {self.best_by} is not one of tokens_per_step {list(self.tokens_per_step)}")
        return self


class TrackingConfig(Config):
    """Where metrics go beside metrics.jsonl.

    Attributes:
        to: any of tensorboard, wandb, trackio (the latter two must be installed).
        project: under which wandb and trackio file the run.
        name: of the run there; None takes the out folder's, and rounds add their numbers.
    """

    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    project: str = "t3d"
    name: str | None = None


class ObjectiveConfig(BaseModel):
    """The objective's name; the other keys are its options, checked by the objective itself.

    Attributes:
        name: in `t3d.objectives.OBJECTIVES`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})
