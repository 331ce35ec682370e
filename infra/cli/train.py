"""Trains an adapter from a dataset, on this machine."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from domain.models import NANO, NOISE
from infra.cli.console import Folder, console, or_exit, url_option
from infra.cli.console import run as run_async
from infra.cli.dataset import write
from workers.cores import spin_briefly, usable_cores
from workers.engine import EngineError
from workers.engines.checkpoints import resolve
from workers.training import examples
from workers.training.config import DEFAULTS, METHODS, Config, config
from workers.training.errors import Stopped, TrainingError

ALIASES: Final = {"nano": NANO.id, "noise": NOISE.id}
NOTHING_LEARNT: Final = 3
BARS: Final = "▁▂▃▄▅▆▇█"
WIDTH: Final = 48
# What is shown of a step, and drawn at the end, where the method has it.
SHOWN: Final = {
    "loss": "loss",
    "gain": "expected reward",
    "kl": "KL a code",
    "held_out_loss": "held-out loss",
    "held_out_accuracy": "held-out pairs",
    "held_out_gain": "held-out reward",
}


def default_help(name: str) -> str:
    values = {method: getattr(each, name) for method, each in DEFAULTS.items()}
    if len(set(values.values())) == 1:
        return f"[default: {values['taste']:g}]"
    return "[default: " + ", ".join(f"{value:g} for {method}" for method, value in values.items()) + "]"


@click.command("train")
@click.option("--data", type=Folder(), help="The folder of an exported dataset.")
@click.option("--dataset", "dataset_id", metavar="ID", help="A dataset of a running studio, which is exported first.")
@url_option
@click.option(
    "--method",
    default="taste",
    show_default=True,
    type=click.Choice(METHODS),
    help="taste and dpo learn from pairs, sft from liked clips.",
)
@click.option("--output", required=True, type=Folder(), help="Folder for the adapter and its checkpoints.")
@click.option("--base-model", help="nano, a folder, or a name on the hub.  [default: the model that made the clips]")
@click.option("--device", help="A torch device.  [default: the GPU, if there is one]")
@click.option("--threads", type=click.IntRange(1), help="Of the processor.  [default: one for each core]")
@click.option(
    "--checkpoint-minutes",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.01),
    help="Minutes between checkpoints, from which a stopped training goes on.",
)
@click.option("--steps", type=int, help=f"Training steps.  {default_help('steps')}")
@click.option("--rank", type=int, help=f"Rank of the LoRA.  {default_help('rank')}")
@click.option("--learning-rate", type=float, help=f"Of the optimiser.  {default_help('learning_rate')}")
@click.option("--batch", type=int, help=f"Clips in one pass; pairs for dpo.  {default_help('batch')}")
@click.option("--accumulation", type=int, help=f"Passes in one step.  {default_help('accumulation')}")
@click.option("--seconds", type=float, help=f"Seconds of each clip that are used.  {default_help('seconds')}")
@click.option("--seed", type=int, help=f"The same seed and data give the same weights.  {default_help('seed')}")
@click.option(
    "--kl-target",
    type=float,
    help=f"For taste: how far to move from the base, in nats a code.  {default_help('kl_target')}",
)
@click.option("--beta", type=float, help=f"For dpo: how strongly to stay close to the base.  {default_help('beta')}")
@click.option(
    "--sft-weight", type=float, help=f"For dpo: weight of the preferred clips' own loss.  {default_help('sft_weight')}"
)
@click.option(
    "--label-smoothing",
    type=float,
    help=f"For dpo: the share of pairs taken to be wrong.  {default_help('label_smoothing')}",
)
@click.option("--samples", type=int, help=f"How many prompts to make before and after.  {default_help('samples')}")
def command(
    *,
    data: Path | None,
    dataset_id: str | None,
    url: str,
    method: str,
    output: Path,
    base_model: str | None,
    **given: Any,
) -> None:
    """Train a LoRA adapter from a dataset: an exported folder with --data, or one of a running studio with --dataset.

    Ctrl-C keeps a checkpoint, and the same command goes on from it. The exit code is 3 when the data teach nothing, and
    there is no adapter then.
    """
    run = {name: given.pop(name) for name in ("device", "threads", "checkpoint_minutes")}
    chosen = {name: value for name, value in given.items() if value is not None}
    if data is not None and dataset_id is not None:
        raise click.UsageError("--data and --dataset both name a dataset. Give one of them.")
    if dataset_id is not None:
        data = output / "dataset"
        _export(url, dataset_id, data)
    if data is None:
        raise click.UsageError("There is no dataset. Give --data FOLDER, or --dataset ID and the studio's --url.")
    found = data
    sys.exit(or_exit(lambda: _train(config(method, chosen), found, output, base_model, **run)))


def _export(url: str, dataset_id: str, folder: Path) -> None:
    """Once: a training that goes on has to find what it began with."""
    if (folder / examples.MANIFEST).exists():
        there = or_exit(lambda: examples.read_manifest(folder)).dataset_id
        if there != dataset_id:
            raise click.UsageError(f"{folder} has the dataset {there}, not {dataset_id}. Choose another --output.")
        return
    run_async(lambda: write(url, dataset_id, folder, None))


def _train(
    chosen: Config,
    data: Path,
    output: Path,
    base_model: str | None,
    *,
    device: str | None,
    threads: int | None,
    checkpoint_minutes: float,
) -> int:
    """The exit code."""
    name = base_model or examples.base_model(examples.read(data))
    try:
        model = resolve(ALIASES.get(name, name))
    except EngineError as error:
        raise TrainingError(str(error)) from error
    console.tell(f"Loading {model.model.id} …")
    spin_briefly()
    import torch

    from workers.training.run import Training
    from workers.training.samples import FOLDER

    torch.set_num_threads(threads or usable_cores())
    with _stops() as stops, _Shown() as shown:
        training = Training(
            chosen,
            model,
            data,
            output,
            cache=_cache(),
            device=device,
            checkpoint_seconds=60 * checkpoint_minutes,
            on_point=shown.point,
            is_stopped=lambda: bool(stops),
        )
        try:
            result = training.run()
        except Stopped:
            result = None
    if result is None:
        console.tell("Stopped before the first step; the same command begins again, and clips are not encoded again.")
        return 130
    if result.left_out:
        some = "; ".join(result.left_out[:5])
        console.tell(f"Left out {len(result.left_out)}: {some}", style="yellow")
    console.tell(result.message)
    if result.status == "stopped":
        return 130
    _tell_of(result.metrics, result.hears)
    if result.status == "nothing_learnt":
        return NOTHING_LEARNT
    _draw(result.curve)
    for warning in result.warnings:
        console.tell(warning, style="yellow")
    console.tell(
        f"The adapter is in {output}, its weights are {result.sha256}. It took {result.seconds / 60:.1f} minutes."
    )
    if result.samples:
        whose = "has not learnt from" if result.samples[0].is_held_out else "learnt from"
        console.tell(f"Hear {len(result.samples)} prompts that it {whose}, before and after, in {output / FOLDER}.")
    console.tell("Register it at a running studio, and let a blind test judge it:")
    console.tell(f"  text2song adapters add {output} --name {output.resolve().name} --version 1.0.0")
    return 0


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "text2song" / "codes"


def _tell_of(metrics: dict[str, float], hears: list[dict[str, Any]]) -> None:
    if "pair_accuracy" in metrics:
        share, low, high = (metrics[f"pair_accuracy{end}"] for end in ("", "_low", "_high"))
        judged = metrics["pairs_judged"]
        console.tell(
            f"The preference model tells {share:.0%} of {judged:.0f} held-out pairs apart ({low:.0%} to {high:.0%})."
        )
    if hears:
        console.tell("It hears that preferred clips have or are: " + ", ".join(each["words"] for each in hears) + ".")


def _draw(curve: list[dict[str, float]]) -> None:
    for name, words in SHOWN.items():
        values = [point[name] for point in curve if name in point]
        if len(values) > 1:
            console.tell(f"{words:>16} {_line(values)} {values[0]:.3f} → {values[-1]:.3f}")


def _line(values: list[float]) -> str:
    low, high = min(values), max(values)
    count = min(WIDTH, len(values))
    groups = [values[place * len(values) // count : (place + 1) * len(values) // count] for place in range(count)]
    heights = [(sum(group) / len(group) - low) / ((high - low) or 1) for group in groups]
    return "".join(BARS[round(height * (len(BARS) - 1))] for height in heights)


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Filled by a signal that asks to stop; the second Ctrl-C stops at once."""
    found: list[int] = []

    def stop(number: int, _: object) -> None:
        if found and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not found:
            console.tell("Stopping after this step … (Ctrl-C again stops at once)")
        found.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Shown:
    """The stages and steps on the terminal."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        self._progress = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_Shown":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def point(self, point: Any) -> None:
        if point.stage not in self._tasks:
            self._tasks[point.stage] = self._progress.add_task(point.stage, total=point.steps, figures="")
        known = [f"{SHOWN[name]} {value:.3f}" for name, value in (point.figures or {}).items() if name in SHOWN]
        task = self._tasks[point.stage]
        self._progress.update(task, completed=point.step)
        if known:
            self._progress.update(task, figures=" · ".join(known))
