"""Train the bundled model: ``python -m training [--preset NAME] [--out DIR]``. See training/README.md."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

STAGES = ("vision", "language", "joint", "export")

#: glibc gives memory back to the system and asks for it again at every step, which makes training on a CPU several
#: times slower than it need be. It reads these once, when the process starts.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(512 << 20),
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}


def _with_environment() -> None:
    """Start this command again with the environment it needs, unless it has it."""
    if any(name not in os.environ for name in _ENVIRONMENT):
        os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
        os.execv(sys.executable, [sys.executable, "-m", "training", *sys.argv[1:]])


def _arguments(presets: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--preset", choices=list(presets), default="cpu", help="size and schedule (default: cpu)")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of states, log and record (default: training/runs/PRESET); a run goes on where it was",
    )
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=STAGES, help="which stages (default: all)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="where the export goes (default: OUT for a preset with smoke in its name, else the package)",
    )
    parser.add_argument(
        "--no-token-dropout",
        action="store_true",
        help="the control: language model and finish always see all visual tokens; exported to OUT/checkpoint-control",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="CHECKPOINT",
        help="weights to begin with instead of random ones: a folder that an export wrote, such as the one that ships; "
        "the dynamic model then needs no letters first",
    )
    parser.add_argument(
        "--language-afresh",
        action="store_true",
        help="stage 2 begins with random layers whatever --start-from holds: for a control that has seen no dropout",
    )
    parser.add_argument("--vision-steps", type=int, help="another length of stage 1, as for a model that goes on")
    parser.add_argument("--language-steps", type=int, help="another length of stage 2, as for a shorter control")
    return parser.parse_args()


def main() -> None:
    import torch

    import training.dynamic.recipe
    import training.recipe
    from foveate import bundled
    from training import parallel
    from training.runs import load_state, log, write_record

    recipes = {name: recipe for recipe in (training.recipe, training.dynamic.recipe) for name in recipe.PRESETS}
    arguments = _arguments(recipes)
    recipe = recipes[arguments.preset]
    preset = recipe.PRESETS[arguments.preset]
    for stage in ("vision", "language"):
        steps = getattr(arguments, f"{stage}_steps")
        if steps is not None:
            preset = replace(preset, **{stage: replace(getattr(preset, stage), steps=steps)})
    out = arguments.out or Path(__file__).parent / "runs" / preset.name
    out.mkdir(parents=True, exist_ok=True)
    parallel.begin()
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(out / "log.txt", encoding="utf-8")]
    logging.basicConfig(
        level=logging.WARNING if parallel.rank() else logging.INFO, format="%(asctime)s %(message)s", handlers=handlers
    )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", parallel.rank() % torch.cuda.device_count())
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // parallel.size()))
    dropout = not arguments.no_token_dropout
    model = recipe.build(preset)
    if arguments.language_afresh:
        begun = model.state_dict()
        random = {name: weight.clone() for name, weight in begun.items() if "language_model.layers." in name}
    if arguments.start_from is not None:
        _start_from(model, arguments.start_from)
        preset = preset.going_on()
    log.info(
        "preset %s on %s, %.1f M parameters",
        preset.name,
        device,
        sum(p.numel() for p in model.parameters()) / 1e6,
    )
    machine = {"device": device.type, "threads": torch.get_num_threads(), "processes": parallel.size()}
    machine["torch"] = torch.__version__
    suffix = "" if dropout else "-control"
    write_record(out / "training.json", {f"preset{suffix}": asdict(preset), "data": recipe.DATA, "machine": machine})
    if "vision" in arguments.stage:
        recipe.train_vision(model, preset, out, device)
    if "language" in arguments.stage:
        _restore(model, load_state(out / "vision.pt"), "vision")
        if arguments.language_afresh:
            model.load_state_dict(random, strict=False)
        recipe.train_language(model, preset, out, device, dropout=dropout)
    if "joint" in arguments.stage:
        _restore(model, load_state(out / f"language{suffix}.pt"), "language")
        recipe.train_joint(model, preset, out, device, dropout=dropout)
    if "export" in arguments.stage and parallel.rank() == 0:
        states = (load_state(out / f"{stage}{suffix}.pt") for stage in ("joint", "language", "vision"))
        _restore(model, next((state for state in states if state), None), "any")
        name = recipe.SHIPPED.get(preset.name) if dropout else None
        shipped = bundled.path(name) if name else out / f"checkpoint{suffix}"
        folder = arguments.checkpoint or shipped
        recipe.export(model, folder)
        (folder / "training.json").write_text((out / "training.json").read_text("utf-8"), encoding="utf-8")
        log.info("checkpoint written to %s", folder)


def _start_from(model, checkpoint: Path) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForImageTextToText

    trained = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32", local_files_only=True)
    _load(model, trained.state_dict())


def _restore(model, state, stage: str) -> None:  # type: ignore[no-untyped-def]
    if state is None:
        sys.exit(f"no state of stage {stage} in the output folder: train it first")
    _load(model, state["model"])


def _load(model, weights) -> None:  # type: ignore[no-untyped-def]
    """Takes over weights, also those from before the vocabulary grew: words that they lack stay as they are."""
    import torch

    own = model.state_dict()
    for name, weight in weights.items():
        lacking = own[name][len(weight) :]
        if name.endswith(("embed_tokens.weight", "lm_head.weight")) and len(lacking):
            weights = {**weights, name: torch.cat([weight.to(lacking), lacking])}
    model.load_state_dict(weights)
    model.tie_weights()


if __name__ == "__main__":
    _with_environment()
    main()
