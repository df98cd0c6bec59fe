"""``python -m tests.peers FOLDER [pytest's arguments]``: transformers' model tests, bare and around a pruner of keep 1.

FOLDER is an unpacked source distribution of transformers, which brings the common model tests, or a checkout, which has
those of the families and of generation too. A test that passes bare must pass around a pruner, or fail with an error on
the list in ``refused``; anything else is printed and makes the status 1.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from foveate.models import FAMILIES
from tests.peers.refused import REFUSED

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
Outcomes = dict[str, list[dict[str, Any]]]
"""By test, its reports: several where it has subtests."""


def main(arguments: list[str]) -> int:
    if not arguments or not (Path(arguments[0]) / "tests" / "test_modeling_common.py").is_file():
        print("usage: python -m tests.peers FOLDER: a checkout or source distribution of transformers", file=sys.stderr)
        return 2
    folder = Path(arguments[0]).resolve()
    bare, around = (outcomes(folder, wrapped, arguments[1:]) for wrapped in (False, True))
    return report(bare, around)


def outcomes(folder: Path, around: bool, arguments: list[str]) -> Outcomes:
    """Runs the tests once."""
    checkout = (folder / "tests" / "models").is_dir()
    if checkout:
        names = [folder / "tests" / "models" / name / f"test_modeling_{name}.py" for name in sorted(FAMILIES)]
        files = [str(path.relative_to(folder)) for path in names if path.is_file()]
    else:
        files = [str(HERE / "families.py")]
    paths = [ROOT / "src", HERE, *([] if checkout else [ROOT])]
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / "outcomes"
        environment = {
            **os.environ,
            "FOVEATE_AROUND": str(int(around)),
            "FOVEATE_OUTCOMES": str(written),
            "FOVEATE_PEERS": str(folder),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }
        command = [sys.executable, "-m", "pytest", "-p", "around", "-p", "no:cacheprovider", "-p", "no:warnings"]
        command += ["-c", os.devnull, "--rootdir", str(folder if checkout else ROOT), "-q", "--tb=no", "-rE"]
        command += ["-n", os.environ.get("WORKERS", "auto"), "--dist", "worksteal"]
        print(f"==> {'around a pruner' if around else 'bare'}: {len(files)} file(s) of {folder.name}", flush=True)
        done = subprocess.run(
            [*command, *files, *arguments], check=False, cwd=folder if checkout else ROOT, env=environment
        )
        if done.returncode not in (0, 1):
            raise SystemExit(done.returncode)
        found: Outcomes = defaultdict(list)
        for line in written.read_text(encoding="utf-8").splitlines():
            outcome = json.loads(line)
            found[outcome["test"]].append(outcome)
        return found


def report(bare: Outcomes, around: Outcomes) -> int:
    """Prints what passes, what is refused and why, and what is new; 1 where something is."""
    passed = {test for test, reports in bare.items() if verdict(reports) == "passed"}
    if not passed:
        print("no test passes bare: nothing could be compared", file=sys.stderr)
        return 1
    refused: Counter[str] = Counter()
    new: list[str] = []
    kept = pruned = 0
    for test in sorted(passed):
        reports = around.get(test, [])
        outcome = verdict(reports) if reports else "missing"
        if outcome == "passed":
            kept += 1
            pruned += any(one["pruned"] for one in reports)
            continue
        for one in [one for one in reports if one["outcome"] == outcome] or [{"message": "it did not run"}]:
            pattern = next((pattern for pattern in REFUSED if re.search(pattern, one["message"])), None)
            if pattern is None:
                new.append(f"{test} ({outcome}): {' '.join(one['message'].split())[:400]}")
                break
        else:
            refused[pattern or ""] += 1
    print(
        f"\n{len(passed)} tests pass bare; around a pruner {kept} of them pass too ({pruned} of these pruned images),"
    )
    print(f"{sum(refused.values())} are refused as documented, {len(new)} are not as they should be.")
    for pattern, count in refused.most_common():
        print(f"  {count:5} {REFUSED[pattern]}\n        {pattern}")
    for pattern in REFUSED.keys() - refused.keys():
        print(f"  not seen in this run: {pattern}")
    print("".join(f"NEW {line}\n" for line in new), end="")
    return 1 if new or not pruned else 0


def verdict(reports: list[dict[str, Any]]) -> str:
    """Of a whole test: failed where any part of it is, passed where the test itself is."""
    found = {report["outcome"] for report in reports}
    return next(outcome for outcome in ("failed", "passed", "skipped") if outcome in found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
