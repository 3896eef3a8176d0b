"""The harness' model interface on an `Engine`."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn, Self

from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import hash_string, simple_parse_args_string
from transformers import PreTrainedTokenizerBase

from t3d.engine import Engine
from t3d.errors import RequestError, WorkError
from t3d.interop.lm_eval.arguments import RequestArguments, model_arguments, request_arguments
from t3d.interop.lm_eval.stopping import cut_at_stop, stop_token_ids
from t3d.models import device_name, model_fingerprint, tokenizer_fingerprint
from t3d.noise import derive_seeds
from t3d.progress import progress
from t3d.tasks.templates import TemplateLimitError, check_powers, within_steps
from t3d.trajectories import RolloutSummary
from t3d.types import Decoding, Generation
from t3d.versions import versions


class LikelihoodError(RequestError, NotImplementedError):
    """A task asks for log-likelihoods; the harness' models raise `NotImplementedError` for what they cannot do."""


class T3DLM(LM):
    """A block-diffusion model as the harness sees it: text in, text out, generation tasks only.

    Prompts are tokenised as they are, nothing added. What was spent is in the harness' results, under `config.t3d`.

    Args:
        engine: with a tokenizer.
        decoding: what requests leave open; its seed gives every request a seed of its own.

    Raises:
        RequestError: no tokenizer, or settings that the model cannot decode with.
    """

    def __init__(self, engine: Engine, decoding: Decoding) -> None:
        super().__init__()
        engine.check(engine.encode(["?"]), decoding)
        self.engine = engine
        self.decoding = decoding.resolve(engine.model.config.block_size)
        self._spent = RolloutSummary()
        self._num_cut = 0

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """What `--model t3d --model_args ...` makes; `additional_config` is the harness' `--device` and batch sizes.

        Raises:
            RequestError: an unknown or wrong argument, or a launch of several processes.
        """
        arguments = model_arguments(arg_dict, additional_config or {})
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # else each of them would answer all questions
            raise RequestError("--model t3d runs in one process: start it without torchrun and accelerate launch")
        engine = Engine.from_pretrained(
            arguments.pretrained,
            dtype=arguments.dtype,
            device=arguments.device,
            max_batch_size=arguments.batch_size,
            backend=arguments.backend,
            memory_gib=arguments.memory_gib,
        )
        return cls(engine, arguments.decoding)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """The same from "pretrained=...,steps_per_block=1"."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The responses, in order, each up to its first stop string.

        All are decoded together, whatever their settings. The n-th request of a task has the same seed in every run,
        whichever other tasks run with it.

        Raises:
            RequestError: a request that cannot be decoded, before anything runs.
            WorkError: the engine lost a response; the others are in the harness' `--use_cache` file, if there is one.
        """
        asked = [request_arguments(request.args[1]) for request in requests]
        prompt_ids = self.engine.encode([request.args[0] for request in requests])
        decodings = [each.decoding(self.decoding, stop_token_ids(self.tokenizer, each.until)) for each in asked]
        seeds = _seeds([request.task_name for request in requests], self.decoding.seed)
        texts = [""] * len(requests)
        started = time.monotonic()
        with progress("generate", len(requests), "answers", shown=not disable_tqdm) as bar:

            def keep(index: int, generation: Generation) -> None:
                self._spent.add(generation)
                bar.advance(1, TPF=self._spent.tokens_per_forward)
                if generation.finish_reason != "error":
                    texts[index] = self._text(generation, asked[index])
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])

            generations = self.engine.generate(prompt_ids, decodings, seeds, on_finish=keep)
        self._spent.seconds += time.monotonic() - started
        errors = [generation.error for generation in generations if generation.finish_reason == "error"]
        if errors:
            raise WorkError(f"{len(errors)} of {len(requests)} requests failed, the first with: {errors[0]}")
        return texts

    def _text(self, generation: Generation, asked: RequestArguments) -> str:
        whole = generation.text or ""
        text = cut_at_stop(whole, asked.until)
        self._num_cut += text != whole
        return text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> NoReturn:
        """Refused: a block-diffusion model has no left-to-right likelihood."""
        raise _no_likelihood(requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> NoReturn:
        """Refused: a block-diffusion model has no left-to-right likelihood."""
        raise _no_likelihood(requests)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's; the harness writes its special tokens into the results."""
        assert self.engine.tokenizer is not None
        return self.engine.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """What rendered prompts depend on: the harness keys its cache of them by it."""
        return f"{tokenizer_fingerprint(self.tokenizer)}-{hash_string(str(self.tokenizer.chat_template))[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `--apply_chat_template` uses; None if it is not asked for.

        Raises:
            RequestError: the tokenizer has none, or one is asked for by name.
        """
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise RequestError(f"--apply_chat_template {chat_template}: the model has one template; give no name")
        return _template_of(self.tokenizer)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation; without a generation prompt its last message is what the model goes on with.

        Raises:
            RequestError: the tokenizer has no template, or it refuses the conversation.
        """
        try:
            template = _template_of(self.tokenizer)
            check_powers(template)
            text = within_steps(
                lambda: self.tokenizer.apply_chat_template(
                    chat_history,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )
        except (TemplateError, TemplateLimitError) as error:
            roles = ", ".join(message["role"] for message in chat_history)
            raise RequestError(f"the model's chat template refuses a conversation of {roles}: {error}") from error
        assert isinstance(text, str)
        return text

    def get_model_info(self) -> dict[str, Any]:
        """What the harness adds to `config` of its results: the model, how it decoded, and what that cost so far."""
        spent, model = self._spent, self.engine.model
        return {
            "model_num_parameters": model.num_parameters(),
            "model_dtype": str(model.dtype),
            "t3d": {
                "model_fingerprint": model_fingerprint(model),
                "decoding": asdict(self.decoding),
                "device": device_name(model.device),
                "versions": versions(),
                "num_responses": spent.num_rows,
                "num_cut_by_until": self._num_cut,
                "finish_reasons": spent.finish_reasons,
                "num_tokens": spent.num_tokens,
                "num_forwards": spent.num_forwards,
                "tokens_per_forward": spent.tokens_per_forward,
                "mean_length": spent.num_tokens / max(1, spent.num_rows),
                "seconds": spent.seconds,
                "tokens_per_second": spent.num_tokens / max(spent.seconds, 1e-9),
            },
        }


def _seeds(task_names: Sequence[str | None], seed: int) -> list[int]:
    """A seed for each request, by its number among those of its own task."""
    counts: Counter[str | None] = Counter()
    numbers = []
    for name in task_names:
        numbers.append(counts[name])
        counts[name] += 1
    derived = derive_seeds(seed, max(counts.values(), default=0))
    return [derived[number] for number in numbers]


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        raise RequestError("the model's tokenizer has no chat template: leave out --apply_chat_template")
    return tokenizer.get_chat_template()


def _no_likelihood(requests: Sequence[Instance]) -> LikelihoodError:
    tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
    return LikelihoodError(
        f"{tasks}: needs log-likelihoods, and a block-diffusion model has no left-to-right likelihood; "
        "choose tasks with output_type generate_until"
    )
