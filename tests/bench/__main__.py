"""`python -m tests.bench [name ...]` measures everything, or what is named."""

import os
import platform
import sys
from importlib import import_module
from pkgutil import iter_modules

import apsw

from tests import bench


def main() -> None:
    known = [module.name for module in iter_modules(bench.__path__) if module.name != "__main__"]
    names = sys.argv[1:] or known
    if unknown := set(names).difference(known):
        sys.exit(f"There is no bench {', '.join(sorted(unknown))}; there are {', '.join(known)}.")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}")
    for name in names:
        module = import_module(f"tests.bench.{name}")
        print(f"\n{name}: {module.__doc__}\n")
        module.main()


if __name__ == "__main__":
    main()
