"""The model card: what the model is, what was measured, how to use it, how it was trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from huggingface_hub import EvalResult as HubResult
from huggingface_hub import ModelCardData

from t3d.credentials import without_secrets
from t3d.evaluation import EvalResult, SettingResult
from t3d.evaluation.report import result_table
from t3d.evaluation.report.measurements import grouped
from t3d.evaluation.report.notes import COST
from t3d.evaluation.settings import STATIC
from t3d.hub.origin import Origin, is_hub_id
from t3d.models import BlockDiffusionConfig
from t3d.models.servers import SERVED_MASK_ID, is_served

PAPER = "arxiv:2602.12262"
CLOSE = 0.01
"""A faster setting is advised if its accuracy is at most so much below the best one's."""

_WEIGHTS = re.compile(r"; (\w+) on [^;\n]*; weights `([0-9a-f]{16})`;")
"""In what `_how_measured` writes."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a card is about.

    Attributes:
        repo: owner/name on the hub.
        config: of the model.
        origin: how it was trained, where that is known.
        own: results of this model; all: those, and results of others to compare with.
        licence: as the hub calls it, None if nobody said.
    """

    repo: str
    config: BlockDiffusionConfig
    origin: Origin | None
    own: Sequence[EvalResult]
    all: Sequence[EvalResult]
    licence: str | None


def model_card(subject: Subject) -> str:
    """The text of README.md, metadata and all, without secrets of this process."""
    parts = (_what_it_is, _results, _use, _servers, _training)
    body = "\n".join(text for part in parts if (text := part(subject)))
    return without_secrets(f"---\n{_metadata(subject).to_yaml()}\n---\n\n{body}")


def advised(results: Sequence[EvalResult]) -> SettingResult | None:
    """Of the first benchmark's static settings, the one with most tokens a forward among those close to the best."""
    same = [result for result in results if result.benchmark == results[0].benchmark]
    settings = [setting for result in same for setting in result.settings if setting.tokens_per_step is not None]
    best = max((setting.accuracy for setting in settings), default=0.0)
    close = [setting for setting in settings if setting.accuracy >= best - CLOSE]
    return max(close, key=lambda setting: setting.tokens_per_forward, default=None)


def weights_named(card: str) -> set[tuple[str, str]]:
    """(dtype, fingerprint) of the weights that a card of ours says its results were measured on."""
    return set(_WEIGHTS.findall(card))


def _metadata(subject: Subject) -> ModelCardData:
    origin = subject.origin
    return ModelCardData(
        base_model=origin.base if origin else None,
        datasets=list(origin.datasets) if origin and origin.datasets else None,
        eval_results=[_measured(result, each) for result in subject.own for each in result.settings] or None,
        library_name="t3d",
        license=subject.licence,
        model_name=subject.repo.partition("/")[2],
        pipeline_tag="text-generation",
        tags=["block-diffusion", "diffusion-language-model", "few-step-decoding", subject.config.model_type, PAPER],
    )


def _measured(result: EvalResult, setting: SettingResult) -> HubResult:
    return HubResult(
        task_type="text-generation",
        dataset_name=result.benchmark,
        dataset_type=result.data if is_hub_id(result.data) and result.data else result.benchmark,
        dataset_split=result.split,
        metric_type="accuracy",
        metric_name=f"accuracy, {setting.label}",
        metric_value=round(100 * setting.accuracy, 2),
        metric_args={
            "interval_95": [round(100 * bound, 2) for bound in setting.interval],
            "tokens_per_forward": round(setting.tokens_per_forward, 3),
            "num_problems": setting.num_problems,
        },
    )


def _what_it_is(subject: Subject) -> str:
    config = subject.config
    base = subject.origin.base if subject.origin else None
    begun = f" from [{base}](https://huggingface.co/{base})" if base else ""
    return (
        f"# {subject.repo.partition('/')[2]}\n\n"
        f"A block-diffusion language model (`{config.model_type}`, {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, blocks of {config.block_size} tokens), trained{begun} with T3D (arXiv 2602.12262) to "
        "answer in few forward passes: it reveals several tokens of a block at once.\n"
    )


def _results(subject: Subject) -> str:
    if not subject.all:
        return ""
    tables = [result_table(own).section() for own in grouped(subject.all, lambda each: each.benchmark).values()]
    how = [_how_measured(result) for result in subject.own]
    return "\n".join(["## Results\n", *(f"#{table}" for table in tables), f"{COST}\n", *how])


def _how_measured(result: EvalResult) -> str:
    decoding = result.settings[0]
    form = ", ".join(f"{name} {value!r}" for name, value in result.prompt.model_dump(exclude_defaults=True).items())
    return (
        f"- {result.benchmark}, split {result.split}: prompts in {form or 'the default form'}; temperature "
        f"{decoding.temperature:g}, at most {decoding.max_new_tokens:,} tokens, seed {result.seed}; graded by "
        f"{result.grader}; {result.dtype} on {result.device}; weights `{result.model_fingerprint}`; "
        f"{_versions(result.versions)}.\n"
    )


def _use(subject: Subject) -> str:
    setting = advised(subject.own)
    options, why = "", ""
    if setting is not None:
        options = _options(setting, subject.config)
        why = f"Advised, as {100 * setting.accuracy:.1f}% right on {subject.own[0].benchmark}: {setting.label}.\n\n"
    return (
        f"## Use with T3D\n\n{why}```bash\n"
        f't3d generate --model {subject.repo}{options} "..."\n'
        f"t3d serve --model {subject.repo}{options}\n```\n"
    )


def _options(setting: SettingResult, config: BlockDiffusionConfig) -> str:
    """What `t3d generate` and `t3d serve` are to be told for a setting."""
    options = f" --block-size {setting.block_size}" if setting.block_size != config.block_size else ""
    options += f" --steps-per-block {setting.steps_per_block}"
    options += f" --rule {setting.rule}" if setting.rule != STATIC else ""
    return options + (f" --temperature {setting.temperature:g}" if setting.temperature else "")


def _servers(subject: Subject) -> str:
    config, setting = subject.config, advised(subject.own)
    if not is_served(config.model_type, config.mask_token_id):
        return (
            "## LMDeploy and SGLang\n\nNot there: both know `sdar` and `sdar_moe` with mask token "
            f"{SERVED_MASK_ID} only; this is `{config.model_type}` with {config.mask_token_id}.\n"
        )
    size, rule = (setting.block_size, setting.rule) if setting else (config.block_size, STATIC)
    steps = setting.steps_per_block if setting else size
    return (
        "## LMDeploy and SGLang\n\nNeither was run for the figures above. SGLang decodes by threshold only.\n\n"
        "```bash\n"
        f"lmdeploy serve api_server {subject.repo} --backend pytorch --dtype bfloat16 --dllm-block-length {size} \\\n"
        f"  --dllm-unmasking-strategy {rule} --dllm-denoising-steps {steps}\n\n"
        f"printf 'block_size: {size}\\nthreshold: 0.9\\n' > dllm.yaml\n"
        f"python -m sglang.launch_server --model-path {subject.repo} --trust-remote-code --dtype bfloat16 \\\n"
        "  --dllm-algorithm LowConfidence --dllm-algorithm-config dllm.yaml\n```\n"
    )


def _training(subject: Subject) -> str:
    origin = subject.origin
    if origin is None:
        return ""
    text = yaml.safe_dump(origin.recipe, sort_keys=False, allow_unicode=True)
    commit = f", commit {origin.commit[:12]}" if origin.commit else ""
    return (
        f"## Training\n\n{origin.method}; {_versions(origin.versions)}{commit}.\n\n"
        f"<details><summary>Recipe</summary>\n\n```yaml\n{text}```\n\n</details>\n"
    )


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "versions unknown"
