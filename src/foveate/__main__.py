"""The ``foveate`` command; without the packages it needs, it says how to install them."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

NEEDED = ("typer", "rich")


def main() -> int | None:
    """Runs the command, or says how to install what it needs and returns 1."""
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        needs = f"the foveate command needs {', '.join(missing)}, which the library alone does not install:"
        install = 'pip install "foveate[cli]"'
        print(f"{needs}\n    {install}", file=sys.stderr)
        if "--json" in sys.argv[1:]:
            error = {"message": f"{needs} {install}", "kind": "ModuleNotFoundError", "status": 1}
            print(json.dumps({"error": error}, indent=2))
        return 1
    from foveate.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
