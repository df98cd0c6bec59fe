"""An evaluation's questions answered by vLLM in this process, one engine for all methods and budgets."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from foveate.asking_again import AskAgain
from foveate.evaluation.blind import Blind, is_blind
from foveate.evaluation.cropped import Cropped, is_cropped
from foveate.evaluation.engines import Answered, Asker, Item, Spent, Way
from foveate.images import load_image
from foveate.inputs import question_prompt
from foveate.pixels import Pixels, resized
from foveate.pruners import Method, get_pruner, replaced
from foveate.resizing import Resize, is_resize
from foveate.serving import Policy, options
from foveate.serving.policy import CONFIG_KEY
from foveate.tokens import Keep
from foveate.turns import adds_special_tokens

HEAD = 1 << 20
"""Bytes of every weights file that go into a model's fingerprint."""
RESIZE = "resize: vLLM's own processor is not asked what it makes of other sizes: use --engine transformers"
BLIND = "blind: requests to vLLM carry a picture here: use --engine transformers"
CROPS = "vLLM does not say which crops it encoded for a request, so their share is unknown: use --engine transformers"
"""Why crops are not chosen by question."""


class Vllm:
    """Batches go to vLLM as they are; every request says which method and budget it wants.

    Args:
        llm: a ``vllm.LLM`` that was started with ``overrides`` of the same methods.
        processor: the model's; its chat template and tokenizer write the prompts.
        policy: what ``llm`` was started with.
        fingerprint: of the model.
        pixels: how large pictures are when they are sent, see ``Pixels``; default as they are.
    """

    mixes = True

    def __init__(
        self,
        llm: Any,
        processor: Any,
        policy: Policy,
        fingerprint: str,
        pixels: float | int | str | None = None,
    ) -> None:
        from foveate.serving.family import family_of

        self.pixels = None if pixels is None else Pixels(pixels)

        self.llm, self.processor, self.policy, self.fingerprint = llm, processor, policy, fingerprint
        self.family = family_of(llm.llm_engine.vllm_config.model_config.hf_config)
        self._totals: dict[Path, int] = {}
        self._names: dict[str, str] = {}

    @classmethod
    def start(
        cls,
        model: str,
        methods: Sequence[str],
        dtype: str,
        vllm_options: Sequence[str] = (),
        pixels: float | int | str | None = None,
    ) -> Vllm:
        """Starts an engine.

        Args:
            model: a checkpoint folder or a hub id; "bundled" or "dynamic".
            methods: all that will be asked for.
            dtype: as for ``foveate.loading.load``.
            vllm_options: vLLM's own, as typed.
            pixels: see the class.

        Raises:
            ModuleNotFoundError: vLLM is not installed.
            RuntimeError: a vLLM that was not tested.
            ValueError: a method that vLLM cannot run.
            SystemExit: options that vLLM does not know.
        """
        from foveate.serving.server import require_vllm

        wanted = overrides(methods)
        check_pixels(pixels)
        require_vllm()
        import vllm
        from transformers import AutoProcessor
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        from foveate import bundled, loading
        from foveate.serving import starting
        from foveate.serving.versions import require_tested

        require_tested(vllm.__version__)
        if dtype not in loading.DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(loading.DTYPES)}")
        ships = bundled.shipped(model)
        if ships:
            model, dtype = str(bundled.path(ships)), "float32" if dtype == "auto" else dtype
        elif loading.is_folder(model):
            model = str(Path(model).expanduser())
            loading.check_folder(Path(model))
        parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="foveate eval --engine vllm --"))
        parsed = parser.parse_args(["--model", model, "--dtype", dtype, *vllm_options])
        if ships:
            starting.limit_memory(parsed, vllm_options, bundled.text_config(ships))
        given = EngineArgs.from_cli_args(parsed)
        if given.hf_overrides:
            raise ValueError("--hf-overrides is where the methods are named: foveate eval sets it itself")
        given.hf_overrides = wanted
        processor = AutoProcessor.from_pretrained(model, local_files_only=Path(model).is_dir())
        policy = Policy(**wanted[CONFIG_KEY])
        return cls(vllm.LLM.from_engine_args(given), processor, policy, fingerprint_of(model), pixels)

    def facts(self) -> dict[str, Any]:
        import vllm

        config = self.llm.llm_engine.vllm_config
        return {
            "engine": f"vllm {vllm.__version__}",
            "model": self.fingerprint,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "device": config.device_config.device_type,
            **({} if self.pixels is None else {"pixels": self.pixels.value}),
        }

    def require(self, method: str, pruners: Sequence[Way]) -> None:
        for pruner in pruners:
            if isinstance(pruner, Cropped):
                raise ValueError(f"{method}: {CROPS}")
            if isinstance(pruner, AskAgain):
                raise ValueError(f"{method}: a request to vLLM is asked once: use --engine transformers")
            if isinstance(pruner, Resize):
                raise ValueError(RESIZE)
            if isinstance(pruner, Blind):
                raise ValueError(BLIND)
            name = method if method in self.policy.names else pruner.name
            served = self.policy.pruner(name, pruner.keep) if name in self.policy.names else None
            if served == pruner:
                self._names[_whatever_its_budget(pruner)] = name
            else:
                raise ValueError(
                    f"{method}: a request to vLLM carries a method's name and its budget alone, and this engine runs "
                    f"{served!r} where the evaluation wants {pruner!r}: use --engine transformers"
                )

    def require_sizes(self, resize: Resize, sizes: Sequence[tuple[int, int]]) -> None:
        raise ValueError(RESIZE)

    def asker(self, folder: Path, across: bool) -> Asker:
        return _Asker(self, folder)

    def close(self) -> None:
        from foveate.serving import starting

        starting.shut_down(self.llm)

    def generate(self, prompts: Sequence[tuple[str, Image, Method]], max_new_tokens: int) -> list[Any]:
        """vLLM's outputs for prompts with a picture each."""
        parameters = self.llm.get_default_sampling_params()
        parameters.temperature, parameters.max_tokens = 0.0, max_new_tokens
        requests = []
        for text, picture, pruner in prompts:
            ids = self.processor.tokenizer(text, add_special_tokens=adds_special_tokens(self.processor, text))
            asks: dict[str, Any] = {"keep": Keep(pruner.keep).written}
            if not _is_all(pruner):
                asks["method"] = self._names.get(_whatever_its_budget(pruner), pruner.name)
            requests.append(
                {
                    "prompt_token_ids": ids["input_ids"],
                    "multi_modal_data": {"image": picture},
                    "mm_processor_kwargs": {CONFIG_KEY: asks},
                }
            )
        found: list[Any] = self.llm.generate(requests, parameters, use_tqdm=False)
        return found

    def placeholders(self, output: Any) -> int:
        """Visual tokens of an output's prompt."""
        return list(output.prompt_token_ids).count(self.family.image_token_id)

    def total(self, path: Path, prompt: str, picture: Image, whole: Any = None) -> int:
        """Patch tokens of a picture before pruning, which vLLM says of a prompt that keeps them all.

        Args:
            path: of the picture.
            prompt, picture: what to ask, where no such prompt was seen.
            whole: vLLM's output of one.
        """
        if path not in self._totals:
            if whole is None:
                (whole,) = self.generate([(prompt, picture, get_pruner("uniform", keep=1.0))], 1)
            size = (picture.height, picture.width)
            self._totals[path] = self.placeholders(whole) - self.family.newlines(size)
        return self._totals[path]


class _Asker:
    def __init__(self, engine: Vllm, folder: Path) -> None:
        self.engine, self.folder = engine, folder

    def ask(self, items: Sequence[Item], pruner: Way, max_new_tokens: int) -> tuple[list[Answered], Spent]:
        """See ``Asker``."""
        assert isinstance(pruner, Method)  # ``require`` has refused others
        engine = self.engine
        paths = [self.folder / item.image for item in items]
        pictures = [load_image(path) for path in paths]
        prompts = [question_prompt(engine.processor, item.question, 1) for item in items]
        start = time.perf_counter()
        if engine.pixels is not None:
            pictures = resized(pictures, engine.pixels)
        outputs = engine.generate(
            [(prompt, picture, pruner) for prompt, picture in zip(prompts, pictures, strict=True)], max_new_tokens
        )
        seconds = (time.perf_counter() - start) / len(items)
        answers: list[Answered] = []
        for path, prompt, picture, output in zip(paths, prompts, pictures, outputs, strict=True):
            total = engine.total(path, prompt, picture, output if _is_all(pruner) else None)
            kept = Keep(pruner.keep).budget(total)
            seen = engine.placeholders(output)
            if seen != kept and not (kept == total and seen > total):  # all of them come with their newlines
                raise RuntimeError(f"{path.name}: vLLM saw {seen} visual tokens, not {kept} of {total}")
            ids = output.outputs[0].token_ids
            text = engine.processor.tokenizer.decode(list(ids), skip_special_tokens=True)
            answers.append((text.strip(), kept, total, None))
        return answers, Spent(seconds * 1e3)


def overrides(methods: Sequence[str]) -> dict[str, Any]:
    """``hf_overrides`` of an engine that runs these methods as ``foveate eval`` does with transformers.

    Raises:
        ValueError: a method that prunes inside the LLM or draws by chance.
    """
    for name in methods:
        if not servable(name):
            raise ValueError(
                f"{name} draws anew for every picture, and requests to vLLM carry no seed: leave it out, or use "
                "--engine transformers"
            )
    first, *others = methods or ["uniform"]
    return options(first, methods=others)


def check_pixels(pixels: float | int | str | None) -> None:
    """Raises ValueError for pictures' sizes that only a model in this process could say."""
    if pixels is not None and Pixels(pixels).is_auto:
        raise ValueError(
            "--pixels auto looks at pictures with the first block of the encoder, which runs in vLLM's own process: "
            "give a scale such as 0.5, or use --engine transformers"
        )


def servable(name: str) -> bool:
    """Whether a method does without luck, which requests to vLLM have no way to say. Raises ValueError for one that is
    unknown, prunes inside the LLM, encodes some crops only, or is ``resize`` or ``blind``."""
    if is_resize(name):
        raise ValueError(RESIZE)
    if is_blind(name):
        raise ValueError(BLIND)
    if is_cropped(name):
        raise ValueError(f"{name}: {CROPS}")
    Policy(name)
    return "seed" not in get_pruner(name).options


def _whatever_its_budget(pruner: Method) -> str:
    return repr(replaced(pruner, keep=1.0))


def _is_all(pruner: Method) -> bool:
    return isinstance(pruner.keep, float) and pruner.keep == 1


def fingerprint_of(model: str) -> str:
    """A short hash of a checkpoint: its configuration, and the head of every weights file or the hub's commit."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, local_files_only=Path(model).is_dir())
    digest = hashlib.sha256(config.to_json_string().encode())
    digest.update(str(getattr(config, "_commit_hash", None)).encode())
    for file in sorted(Path(model).glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + opened.read(HEAD))
    return digest.hexdigest()[:16]
