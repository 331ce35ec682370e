"""What every command that runs a role has in common: its log, its traces, and how it stops."""

from collections.abc import Callable, Coroutine
from typing import Any

from infra import logs, tracing
from infra.cli.console import chosen_settings, heartbeat, or_exit, run, run_role
from infra.settings import Settings


def serve(role: str, work: Callable[[Settings], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Runs until a signal comes. The options override settings."""
    settings = chosen_settings(**options)
    logs.configure(role, settings.log_format, settings.log_level)
    or_exit(lambda: _run(role, settings, work))


def _run(role: str, settings: Settings, work: Callable[[Settings], Coroutine[Any, Any, None]]) -> None:
    with tracing.exporting(role, settings.otlp_endpoint):
        run(lambda: run_role(work(settings), heartbeat(settings)))
