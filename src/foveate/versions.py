"""Placeholder until merged."""


def warn_untested() -> None:
    """Warns."""
