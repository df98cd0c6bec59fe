"""Tests of serving run where vLLM is: ``make test-vllm``."""

from importlib.util import find_spec

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
