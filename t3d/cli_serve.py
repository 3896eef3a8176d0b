"""`t3d serve`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from t3d import cli_completion as completion
from t3d.cli_options import (
    BlockOption,
    DeviceOption,
    DtypeOption,
    EntropyOption,
    MaxTokensOption,
    RuleOption,
    StepsOption,
    TemperatureOption,
    TensorParallelOption,
    ThresholdOption,
    TopKOption,
    TopPOption,
    decoding_of,
)
from t3d.errors import RequestError

EXTRA = ("fastapi", "uvicorn", "prometheus_client")


def serve(
    model: Annotated[
        list[str],
        typer.Option(
            help="Folder, hub id or built-in name; NAME=PATH gives it a name; may be repeated.",
            autocompletion=completion.models,
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="T3D_API_KEY",
            help="Clients must send it; may be repeated. Others on this machine can see it: take --api-key-file.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with keys, one a line, of which clients must send one.")
    ] = None,
    block_size: BlockOption = None,
    steps_per_block: StepsOption = None,
    rule: RuleOption = "low_confidence_static",
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    threshold: ThresholdOption = 0.9,
    entropy_bound: EntropyOption = 0.5,
    max_tokens: MaxTokensOption = 512,
    max_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Answers of a model decoded together; default: 256.")
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=0, help="Answers of a model that may wait; more get 429.")] = 2048,
    max_positions: Annotated[
        int | None, typer.Option(min=1, help="Of the longest prompt and answer; default: the model's limit.")
    ] = None,
    memory_gib: Annotated[
        float | None, typer.Option(min=0.0, help="GiB of the device for all models; default: nine tenths of it.")
    ] = None,
    tensor_parallel: TensorParallelOption = 1,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    request_timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 600.0,
    read_timeout: Annotated[float, typer.Option(help="Seconds that a client may take to send, or to read on.")] = 15.0,
    max_body_mib: Annotated[float, typer.Option(help="MiB of the largest request.")] = 2.0,
    rate_limit: Annotated[float | None, typer.Option(help="Requests a minute of a key, or of an address.")] = None,
    cors: Annotated[list[str] | None, typer.Option(help="Origin whose pages may call; may be repeated.")] = None,
    shutdown_seconds: Annotated[float, typer.Option(help="That running requests get at the end.")] = 30.0,
) -> None:
    """Answer over HTTP as OpenAI's API does, with a page to try it in."""
    if tensor_parallel > 1:
        raise RequestError(
            "t3d serve answers with one GPU a model; for one that does not fit use t3d rollout --tensor-parallel, or a "
            "server that shares SDAR models out: SGLang, LMDeploy"
        )
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise RequestError(f"t3d serve needs {missing[0]}: pip install 't3d[serve]'")
    from t3d.serve import ModelOptions, Service, Settings, bind, load_served
    from t3d.serve import serve as run
    from t3d.serve.server import address_of, is_loopback

    defaults = decoding_of(
        block_size, steps_per_block, rule, temperature, top_k, top_p, threshold, entropy_bound, max_tokens, seed=0
    )
    settings = Settings(
        api_keys=(*(api_key or ()), *(keys_of(api_key_file) if api_key_file else ())),
        request_timeout=request_timeout,
        read_timeout=read_timeout,
        max_waiting=max_waiting,
        max_body_mib=max_body_mib,
        requests_per_minute=rate_limit,
        cors_origins=tuple(cors or ()),
        shutdown_seconds=shutdown_seconds,
    )
    listener = bind(host, port)  # before the models: a wrong address shows at once
    if not is_loopback(host) and not settings.api_keys:
        print(f"t3d: warning: anyone who reaches {host} can use this server; --api-key-file closes it", file=sys.stderr)
    served = load_served(model, defaults, ModelOptions(device, dtype, max_batch_size, max_positions, memory_gib))
    service = Service(served, settings.max_waiting, settings.request_timeout)
    names = ", ".join(service.models)
    if not run(service, settings, listener, lambda: print(f"{address_of(listener)} serves {names}", flush=True)):
        raise KeyboardInterrupt("running requests were dropped")


def keys_of(file: Path) -> tuple[str, ...]:
    """The keys of a file, one a line.

    Raises:
        RequestError: it cannot be read, or has none.
    """
    try:
        keys = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--api-key-file {file}: cannot be read: {getattr(error, 'strerror', 'not text')}"
        ) from error
    if not keys:
        raise RequestError(f"--api-key-file {file}: has no key; write one a line")
    return keys
