"""The engine: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedTokenizerBase

from t3d import models
from t3d.engine.continuous import ContinuousEngine, why_unsupported
from t3d.engine.plain import PlainEngine
from t3d.engine.request import Request, check_request
from t3d.errors import RequestError
from t3d.models import BlockDiffusionModel
from t3d.noise import derive_seeds
from t3d.types import Decoding, Generation

OnFinish = Callable[[int, Generation], None]


class Backend(Protocol):
    """What decodes: `PlainEngine` or `ContinuousEngine`.

    Attributes:
        name: by which results call it.
    """

    name: str

    def run(self, requests: list[Request]) -> Iterator[tuple[Request, Generation]]:
        """Decode requests that share a block size; yields each as it finishes."""
        ...


class Engine:
    """Decodes batches of prompts with a block-diffusion model.

    Attributes:
        model, tokenizer: that it was given.
        mask_token_id: the model's.
        stop_token_ids: ids that end every response.
        max_batch_size: requests decoded together at most; None is what memory allows.
        backend: what decodes.
    """

    def __init__(
        self,
        model: BlockDiffusionModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        stop_token_ids: Sequence[int] | None = None,
        max_batch_size: int | None = None,
        backend: str | Backend | None = None,
        memory_gib: float | None = None,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: on the device and in the dtype to run in.
            tokenizer: fills in `Generation.text`; only `generate_text` needs it.
            stop_token_ids: ids that end every response; None takes the model's and the tokenizer's.
            max_batch_size: requests decoded together; None takes what memory allows, at most 256 (plain: 512).
            backend: "continuous" (continuous batching, paged cache, CUDA graphs) or "plain" (the reference: the model's
                own layers, a block of all requests at a time), or one that was made with settings of its own. None is
                continuous on CUDA where the model allows it, else plain.
            memory_gib: device memory that the process may hold, weights included; None is nine tenths of what there is.
        """
        if max_batch_size is not None and max_batch_size < 1:
            raise RequestError(f"max_batch_size must be at least 1 (or None), not {max_batch_size}")
        if model.config.mask_token_id is None:
            raise RequestError("the model's config has no mask_token_id: set it to the id of the mask token")
        self.model = model
        self.mask_token_id: int = model.config.mask_token_id
        self.tokenizer = tokenizer
        self.stop_token_ids = models.stop_token_ids(model, tokenizer) if stop_token_ids is None else stop_token_ids
        if backend is None or isinstance(backend, str):
            backend = _make_backend(backend or default_backend(model), model, max_batch_size, memory_gib)
        self.max_batch_size = max_batch_size
        self.backend: Backend = backend

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        attention: str = "sdpa",
        max_batch_size: int | None = None,
        backend: str | None = None,
        memory_gib: float | None = None,
        mesh: DeviceMesh | None = None,
    ) -> Engine:
        """Load a model by folder, hub id or built-in name (see `t3d.models.load_model`), and the tokenizer beside it.

        A folder without one gives an engine that takes and gives token ids only.
        """
        model = models.load_model(name, dtype=dtype, device=device, attention=attention, mesh=mesh)
        tokenizer = models.load_tokenizer(name) if models.has_tokenizer(name) else None
        return cls(model, tokenizer, max_batch_size=max_batch_size, backend=backend, memory_gib=memory_gib)

    def generate_text(
        self,
        texts: Sequence[str],
        decoding: Decoding | Sequence[Decoding] | None = None,
        seeds: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Generation]:
        """`generate` for rendered prompts: each is tokenised once, as it is."""
        return self.generate(self.encode(texts), decoding, seeds, on_finish)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered prompts, nothing added."""
        if self.tokenizer is None:
            raise RequestError(
                "the model folder holds no tokenizer: save one beside the model, or use Engine.generate with token ids"
            )
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def check(self, prompts: Sequence[Sequence[int]], decoding: Decoding | Sequence[Decoding] | None = None) -> None:
        """Raise the `RequestError` that `generate` would, without decoding: for callers that cut their work up."""
        self._requests(prompts, decoding, None)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding | Sequence[Decoding] | None = None,
        seeds: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Generation]:
        """Decode every prompt.

        Args:
            prompts: token ids, one list a request.
            decoding: one setting for all, or one for each prompt; None is `Decoding()`.
            seeds: one for each prompt, used as they are. None: request i of a single `Decoding` gets a seed hashed
                from (its seed, i), so that equal prompts give different samples; of a list, each its own seed. What
                was used is in `Generation.seed`, and gives the same response again in any company.
            on_finish: called with (place among the prompts, result) as requests finish, in any order.

        Returns:
            one result a prompt, in the order of the prompts.

        Raises:
            RequestError: a wrong request, before anything runs.
        """
        results: dict[int, Generation] = {}
        requests = self._requests(prompts, decoding, seeds)
        with _eval_mode(self.model):
            for block_size in sorted({request.block_size for request in requests}):
                same_grid = [request for request in requests if request.block_size == block_size]
                for request, generation in self.backend.run(same_grid):
                    if self.tokenizer is not None:
                        generation.text = self.tokenizer.decode(generation.token_ids, skip_special_tokens=True)
                    results[request.index] = generation
                    if on_finish is not None:
                        on_finish(request.index, generation)
        return [results[index] for index in range(len(requests))]

    def _requests(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding | Sequence[Decoding] | None,
        seeds: Sequence[int] | None,
    ) -> list[Request]:
        if decoding is None or isinstance(decoding, Decoding):
            shared = decoding or Decoding()
            decodings: Sequence[Decoding] = [shared] * len(prompts)
            default_seeds = derive_seeds(shared.seed, len(prompts))
        else:
            decodings = decoding
            default_seeds = [each.seed for each in decodings]
        chosen_seeds = default_seeds if seeds is None else seeds
        for name, values in (("decoding", decodings), ("seeds", chosen_seeds)):
            if len(values) != len(prompts):
                raise RequestError(f"{name} has {len(values)} entries for {len(prompts)} prompts: give one for each")
        return [
            check_request(index, prompt, one, seed, self.stop_token_ids, self.model.config)
            for index, (prompt, one, seed) in enumerate(zip(prompts, decodings, chosen_seeds, strict=True))
        ]


def _make_backend(
    name: str, model: BlockDiffusionModel, max_batch_size: int | None, memory_gib: float | None
) -> PlainEngine | ContinuousEngine:
    if name == "plain":
        return PlainEngine(model, max_batch_size)
    if name != "continuous":
        raise RequestError(f"backend {name!r} is unknown: use continuous or plain")
    reason = why_unsupported(model)
    if reason is not None:
        raise RequestError(f"the continuous backend cannot run this model: {reason}; use the plain one")
    return ContinuousEngine(model, max_batch_size, memory_gib)


def default_backend(model: BlockDiffusionModel) -> str:
    """The faster backend for a model where it lies."""
    return "continuous" if model.device.type == "cuda" and why_unsupported(model) is None else "plain"


@contextmanager
def _eval_mode(model: BlockDiffusionModel) -> Iterator[None]:
    """No dropout while decoding, even when a trainer lends its model."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
