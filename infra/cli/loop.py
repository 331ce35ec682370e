"""`text2song loop`: from pairs to an adapter that a blind test has judged, with one command."""

import secrets
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from infra.cli import batch, keyboard
from infra.cli.console import Folder, console, or_exit, run, url_option
from infra.cli.loop_state import Folder as State
from infra.cli.loop_state import Options, Turn, gone_on
from infra.cli.rate import login
from text2song.client import AsyncStudio
from workers.training.config import LEAST, METHODS

NOTHING_LEARNT: Final = 3
MAX_PAIRS: Final = 2_000
MAX_TEST_PAIRS: Final = 500
MAX_SEED: Final = 2**32 - 1
TASTES: Final = ("brighter", "darker", "bass", "dynamics", "denser")
DEFAULTS: Final[dict[str, Any]] = {
    "pairs": 64,
    "duration": 5.0,
    "method": "taste",
    "simulate": None,
    "errors": 0.0,
    "test_pairs": 32,
    "steps": None,
    "prompts": (),
}
WITHOUT_TERMINAL: Final = "Choose a simulated listener with --simulate, such as --simulate brighter."


@click.command("loop")
@url_option
@click.option(
    "--folder",
    type=Folder(),
    default=Path("text2song-loop"),
    show_default=True,
    help="Keeps what the turn has done. The same command goes on from there.",
)
@click.option("--prompt", "prompts", multiple=True, help="May be given several times.  [default: built-in prompts]")
@click.option("--file", "file", type=click.File("rb"), help="A UTF-8 file with a prompt on each line; - reads stdin.")
@click.option("--pairs", type=click.IntRange(1, MAX_PAIRS), help="How many to compare.  [default: 64]")
@click.option("--duration", type=float, help="Seconds of each clip.  [default: 5]")
@click.option("--method", type=click.Choice(METHODS), help="How to learn from the pairs.  [default: taste]")
@click.option("--steps", type=click.IntRange(1, 100_000), help="Of the training.  [default: the method's]")
@click.option("--test-pairs", type=click.IntRange(1, MAX_TEST_PAIRS), help="Of the blind test.  [default: 32]")
@click.option("--simulate", type=click.Choice(TASTES), help="A listener of this taste answers in your place.")
@click.option("--errors", type=click.FloatRange(0, 1), help="How often that one errs, 0 to 1.  [default: 0]")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Of everything that is drawn.  [default: a new one]")
@click.option("--user", help="Who listens.  [default: the login name]")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("loop.html"),
    show_default=True,
    help="Where the report is written.",
)
def command(
    url: str, folder: Path, report: Path, prompts: tuple[str, ...], file: BinaryIO | None, **given: Any
) -> None:
    """Teach the model a taste, in one turn: listen to pairs, train on your answers, and test the adapter blindly.

    Stop it at any time; the same command goes on. Of five given prompts or more, a fifth is kept for the test. The exit
    code is 3 when the answers teach nothing.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    if file is not None:
        prompts += tuple(line.prompt for line in or_exit(lambda: batch.read(file.name, file.read())))
    if prompts:
        asked["prompts"] = prompts
    _check(asked)
    outcomes: list[str] = []
    run(lambda: _begin(url, State(folder), asked, report, outcomes))
    sys.exit(NOTHING_LEARNT if outcomes == ["nothing_learnt"] else 0)


async def _begin(url: str, state: State, asked: dict[str, Any], report: Path, outcomes: list[str]) -> None:
    """Raises ClientError."""
    with state.held():
        turn = _turn(state, asked)
        fd = None if turn.options.simulate else keyboard.terminal(WITHOUT_TERMINAL)
        # Whatever measures and draws is loaded only now, so that mistakes are answered at once.
        from infra.cli.listener import Listener
        from infra.cli.loop_listening import Judge, Person, Simulated
        from infra.cli.loop_steps import Loop

        async with AsyncStudio(url) as client:
            judge: Judge
            if fd is not None:
                judge = Person(console, client, fd)
            else:
                options = turn.options
                judge = Simulated(client, Listener(options.simulate or "", options.errors, options.seed))
            outcomes.append(await Loop(console, client, state, turn, judge).run(report))


def _check(asked: dict[str, Any]) -> None:
    method, pairs = (asked.get(name, DEFAULTS[name]) for name in ("method", "pairs"))
    if pairs < LEAST[method]:
        raise click.UsageError(
            f"--pairs is {pairs}; the method {method} learns from {LEAST[method]} or more. Ask for some more than "
            "that, as ties do not count."
        )
    if asked.get("errors") and not asked.get("simulate"):
        raise click.UsageError("--errors is for a simulated listener; name one with --simulate.")


def _turn(state: State, asked: dict[str, Any]) -> Turn:
    if (turn := state.read()) is not None:
        return gone_on(turn, asked, state.path)
    chosen = DEFAULTS | {"seed": secrets.randbits(31), **asked}
    if "user" not in chosen:
        simulated = chosen["simulate"]
        chosen["user"] = f"simulated-{simulated}" if simulated else login() or "somebody"
    return Turn.begun(Options(**chosen))
