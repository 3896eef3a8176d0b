"""`t3d doctor`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t3d import cli_completion as completion
from t3d.errors import RequestError, WorkError

if TYPE_CHECKING:
    from t3d.doctor import Cluster


def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="YAML file; without one: what this machine has.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, as t3d train takes it.", autocompletion=completion.recipe_keys),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Of a machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpu: Annotated[
        str | None, typer.Option(help="h200, h100, a100-80gb, ...; default: this machine's, where it has one, or h200.")
    ] = None,
    network: Annotated[float, typer.Option(help="Gbit/s of a GPU between machines.")] = 400.0,
    price: Annotated[float | None, typer.Option(min=0.0, help="Of a GPU and hour, in any currency.")] = None,
    lengths: Annotated[
        str | None, typer.Option(help="real or full: made-up rows of such lengths, in place of the recipe's data.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.")] = None,
) -> None:
    """Say before anyone pays what a recipe takes: memory, seconds, cost. Without a recipe: what is installed."""
    if recipe is None:
        if overrides or gpu or lengths or price is not None or (gpus, nodes) != (1, 1):
            raise RequestError("give a recipe: of the options only --json goes without one")
        _this_machine(json_file)
        return
    from t3d.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())  # before the slow imports: a typing error shows at once
    if not (math.isfinite(network) and network > 0):
        raise RequestError(f"--network {network}: must be more than 0")
    from rich.console import Console

    from t3d.doctor import examine
    from t3d.doctor.printing import as_fields, examination_tables, remarks

    found = examine(loaded, _cluster(gpu, gpus, nodes, network), lengths, price)
    for table in examination_tables(found):
        Console().print(table)
    for remark in remarks(found):
        print(remark)
    _write(json_file, as_fields(found))
    if not found.fits:
        raise WorkError("it does not fit; more is said above")


def _this_machine(json_file: Path | None) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from t3d.doctor.machine import findings_table, look_around

    findings = look_around(Path("runs"))
    Console().print(findings_table(findings))
    _write(json_file, {"findings": [asdict(each) for each in findings]})


def _cluster(name: str | None, gpus: int, nodes: int, gigabits: float) -> Cluster:
    """The cluster of the options: this machine's kind of GPU where none is named."""
    import torch

    from t3d.doctor import GPUS, Cluster, find_gpu, gpu_called

    if name is not None:
        chosen = find_gpu(name)
    elif torch.cuda.is_available():
        here = torch.cuda.get_device_name()
        known = gpu_called(here)
        if known is None:
            raise RequestError(
                f"the facts of this machine's {here} are not known: give --gpu, one of {', '.join(GPUS)}"
            )
        chosen = known
    else:
        chosen = GPUS["h200"]
        print("no --gpu is given and none is here: figures are those of an h200")
    return Cluster(chosen, gpus, nodes, gigabits * 1e9 / 8)


def _write(file: Path | None, fields: dict) -> None:
    if file is None:
        return
    from t3d.files import write_whole

    try:
        write_whole(file, json.dumps(fields, indent=1) + "\n")
    except OSError as error:
        raise WorkError(f"--json {file}: {error.strerror or error}") from error
