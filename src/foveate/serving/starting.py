"""Every part of vLLM that starts and ends servers and engines and is not its documented interface; see ``hooks``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from foveate.serving import memory


def parse_server_options(given: Sequence[str]) -> argparse.Namespace:
    """What vLLM's ``serve`` makes of its options, the model first.

    Raises:
        SystemExit: options that it does not know.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="foveate serve MODEL", usage="foveate serve MODEL [options]"))
    parsed: argparse.Namespace = parser.parse_args(given)
    return parsed


def limit_memory(parsed: argparse.Namespace, typed: Sequence[str], text: Mapping[str, Any]) -> None:
    """Asks for the memory that a small model can use, unless the user says how much; see ``foveate.serving.memory``.

    Args:
        parsed: the options.
        typed: as they were typed.
        text: the language model's config, as a checkpoint's config.json has it.
    """
    from vllm.config import CacheConfig
    from vllm.platforms import current_platform
    from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node

    usual = float(CacheConfig.gpu_memory_utilization)
    if memory.is_chosen(parsed, memory.names_of(typed), usual):
        return
    if current_platform.is_cpu():
        node = get_memory_node_info((get_visible_memory_node() or [0])[0])
        device = memory.Device(node.total_memory, node.available_memory)
    else:
        device = memory.Device(current_platform.get_device_total_memory())
    memory.limit(parsed, text, device, usual)


def chat_template_of(parsed: argparse.Namespace) -> str | None:
    """The text of the template that ``--chat-template`` names or holds; None without.

    Raises:
        ValueError: no such file, and no template.
    """
    from vllm.renderers.chat_utils import load_chat_template

    found: str | None = load_chat_template(parsed.chat_template)
    return found


def run_server(parsed: argparse.Namespace) -> None:
    """vLLM's ``serve``, until it is stopped: one API server or several, with engines of their own or without."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    cli_env_setup()
    validate_parsed_serve_args(parsed)
    ServeSubcommand.cmd(parsed)


def shut_down(llm: Any) -> None:
    """Ends the processes of a ``vllm.LLM``; left to the interpreter's own end, they leave shared memory behind."""
    llm.llm_engine.engine_core.shutdown()
