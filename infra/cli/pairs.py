"""Two clips against each other, one key per answer."""

from typing import Final

from msgspec import Struct

from domain.events.ab_tests import Choice, Side
from infra.cli.console import Terminal
from infra.cli.keyboard import Keyboard
from infra.cli.player import Clip, Player

CHOICES: Final[dict[str, Choice]] = {
    "left": "left",
    "a": "left",
    "right": "right",
    "d": "right",
    "t": "tie",
    "b": "both_bad",
}
LEGEND: Final = (
    "Keys: 1 left again · 2 right again · ← or a: left is better · → or d: right is better · t tie · b both are bad · "
    "n notes · q quit"
)


class Answer(Struct, frozen=True, kw_only=True):
    """`heard_first` and the seconds are null where nothing was heard here."""

    choice: Choice
    notes: str | None
    heard_first: Side | None
    left_seconds: float | None
    right_seconds: float | None

    @property
    def said(self) -> str:
        match self.choice:
            case "tie":
                return "a tie"
            case "both_bad":
                return "both are bad"
        return f"the {self.choice} one is better"


async def answer(terminal: Terminal, keyboard: Keyboard, player: Player, left: Clip, right: Clip) -> Answer | None:
    """None for a listener who stops. Whatever is playing goes on until the answer."""
    notes: str | None = None
    while (key := await keyboard.key()) not in CHOICES:
        match key:
            case "q":
                await player.stop()
                return None
            case "1" | "l":
                await player.play(left)
            case "2" | "r":
                await player.play(right)
            case "n":
                terminal.tell("Notes, up to Enter:")
                notes = await keyboard.line() or notes
                terminal.tell(f"  noted: {notes}" if notes else "  no notes")
            case _:
                terminal.tell(LEGEND)
    await player.stop()
    sides: dict[str, Side] = {left.path: "left", right.path: "right"}
    heard = [path for path in player.seconds if path in sides]
    return Answer(
        choice=CHOICES[key],
        notes=notes,
        heard_first=sides[heard[0]] if heard else None,
        left_seconds=player.seconds.get(left.path),
        right_seconds=player.seconds.get(right.path),
    )
