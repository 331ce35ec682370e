"""What `faust -A infra.faust_app worker --without-web` runs: the views' host, made of the settings when asked for."""

import os

from infra.hosts import projection_host
from infra.settings import load
from projections.hosts.faust import FaustHost


def __getattr__(name: str) -> FaustHost:
    if name != "app":
        raise AttributeError(name)
    host: FaustHost = globals().setdefault(name, projection_host(load(os.environ)))
    return host
