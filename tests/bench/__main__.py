"""`python -m tests.bench [name ...]` measures everything, or whatever begins with a name given."""

import os
import platform
import sys
from importlib import import_module
from pkgutil import iter_modules

import apsw
import pytest

from tests import bench


def main() -> None:
    known = [module.name for module in iter_modules(bench.__path__) if module.name != "__main__"]
    names = [name for name in known if name.startswith(tuple(sys.argv[1:]) or "")]
    if unknown := [given for given in sys.argv[1:] if not any(name.startswith(given) for name in names)]:
        sys.exit(f"There is no bench {', '.join(unknown)}; there are {', '.join(known)}.")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}")
    for name in names:
        module = import_module(f"tests.bench.{name}")
        print(f"\n{name}: {module.__doc__}\n")
        try:
            module.main()
        except pytest.skip.Exception as skipped:
            print(skipped)


if __name__ == "__main__":
    main()
