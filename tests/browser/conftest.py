"""Tests of the explorer in a real browser: ``make test-app``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("gradio") is None or find_spec("selenium") is None:
    collect_ignore_glob = ["test_*.py"]

SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # as root there is none
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1400,1500",
)
PATIENCE = 240.0
"""Seconds that anything may take on a busy machine."""


def waited_for(found, what: str = "what was waited for"):
    """What ``found`` gives once it gives something; the page may change under it meanwhile."""
    from selenium.common.exceptions import WebDriverException

    end, last = time.monotonic() + PATIENCE, None
    while time.monotonic() < end:
        try:
            value = found()
            if value:
                return value
        except WebDriverException as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come in {PATIENCE:.0f} s ({last})")


@pytest.fixture(scope="session")
def address(tmp_path_factory) -> Iterator[str]:
    """Where ``foveate app`` answers, started as people start it."""
    log = tmp_path_factory.mktemp("app") / "log"
    environment = {**os.environ, "GRADIO_SHARE": "True", "GRADIO_TEMP_DIR": str(log.parent / "uploads")}
    with log.open("w") as file:
        command = [sys.executable, "-m", "foveate", "app", "--max-new-tokens", "8"]
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:

        def told():
            assert server.poll() is None, log.read_text()
            return re.search(r"Foveate is at (\S+)", log.read_text())

        yield waited_for(told, "the server's address")[1]
    finally:
        server.terminate()
        server.wait(timeout=30)
    assert "share" not in log.read_text().lower()  # of a tunnel Gradio would tell, also of one that it could not open


@pytest.fixture(scope="session")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def browser(tmp_path_factory, downloads) -> Iterator[object]:
    """A headless Chromium."""
    from selenium import webdriver

    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    assert not missing, f"{' and '.join(missing)} not found: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
    try:
        yield driver
    finally:
        driver.quit()
