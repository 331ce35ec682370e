from domain.errors import Text2SongError


class TrainingError(Text2SongError):
    """The training cannot go on. The message is for the person who asked for it: what is wrong, and the way out.

    `transient` says that the machine is at fault and not the work: another try, or another machine, may do it.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class NothingLearntError(Text2SongError):
    """The data teach nothing that the method can hear. `metrics` has what was measured."""

    def __init__(self, message: str, metrics: dict[str, float]) -> None:
        super().__init__(message)
        self.metrics = metrics


class Stopped(Exception):  # noqa: N818
    """A stop was asked for before the first step, or after the last."""
