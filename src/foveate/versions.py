"""The transformers versions that this package was tested with: kept in one place; others get a warning."""

from __future__ import annotations

import functools
import warnings

import transformers
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

LOWEST = "5.5.0"
"""The oldest transformers that the tests run on (``make test-lowest``)."""
NEWEST = "5.24.0"
"""The newest transformers that the tests run on (``make test-newest``)."""

_SERIES = Version(NEWEST)
TESTED = f">={LOWEST},<{_SERIES.major}.{_SERIES.minor + 1}"
"""What the package asks for: from the oldest tested version to before the series that follows the newest tested one."""

_warned: set[str] = set()


@functools.cache
def is_tested(version: str) -> bool:
    """Whether a transformers version lies in the tested range.

    Patch releases and local builds (``5.24.1``, ``5.24.0+cpu``) count with their series. So does a pre-release inside
    the range; one of the series behind it (``5.25.0.dev0``), or of the oldest version (``5.5.0rc1``), does not, and
    neither does what is no version.
    """
    try:
        return SpecifierSet(TESTED).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def warn_untested(version: str | None = None) -> None:
    """Warns, once per version and process, where transformers is not one that this package was tested with.

    pip does not install such a version beside foveate; a user may force it.

    Args:
        version: as transformers says it; default that of the installed one.
    """
    version = transformers.__version__ if version is None else version
    if version in _warned or is_tested(version):
        return
    warnings.warn(
        f"foveate was tested with transformers {LOWEST} to {NEWEST}, and this is {version}: what it hooks into may "
        f'have moved. Check the answers against the model without a pruner, or pip install "transformers{TESTED}"',
        stacklevel=3,
    )
    _warned.add(version)
