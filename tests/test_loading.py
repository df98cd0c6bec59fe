"""Loading by folder or id: what is missing is named, with the command that gets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import import_utils

from foveate import bundled
from foveate.loading import load
from tests.checkpoint import save, tokenizer

# Families whose processor does not come into being without torchvision, and the classes that hub checkpoints name.
NEED_TORCHVISION = {
    "glm4v": ("Glm4vProcessor", "Glm4vImageProcessor"),
    "internvl": ("InternVLProcessor", "GotOcr2ImageProcessor"),
    "llava_onevision": ("LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor"),
    "mistral3": ("PixtralProcessor", "PixtralImageProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor"),
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLImageProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen2VLImageProcessor"),
    "smolvlm": ("SmolVLMProcessor", "SmolVLMImageProcessor"),
}
LOADS = ("llava_next",)
"""Control: its processor does without, and loading fails at the weights, which are no weights."""

WITHOUT = """
import json, sys
for module in ("torchvision", "num2words"):
    sys.modules[module] = None  # can neither be found nor imported
from foveate.loading import load
found = {}
for folder in sys.argv[1:]:
    try:
        load(folder)
    except Exception as error:
        found[folder] = [type(error).__name__, str(error), getattr(error, "name", None)]
print(json.dumps(found))
"""


def checkpoint(folder: Path, model_type: str, processor: str, images: str) -> Path:
    """Everything but weights, as a hub checkpoint has it."""
    AutoConfig.for_model(model_type).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    named = {"processor_class": processor, "image_processor_type": images}
    (folder / "preprocessor_config.json").write_text(json.dumps(named), encoding="utf-8")
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture(scope="module")
def without_torchvision(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By family, what loading raises where neither torchvision nor num2words is installed, whatever is here."""
    classes = NEED_TORCHVISION | dict.fromkeys(LOADS, ("LlavaNextProcessor", "LlavaNextImageProcessor"))
    folders = {str(checkpoint(tmp_path_factory.mktemp(name), name, *classes[name])): name for name in sorted(classes)}
    output = subprocess.run(
        [sys.executable, "-c", WITHOUT, *folders], check=True, capture_output=True, encoding="utf-8"
    ).stdout
    return {folders[folder]: found for folder, found in json.loads(output.splitlines()[-1]).items()}


@pytest.mark.parametrize("family", NEED_TORCHVISION)
def test_processors_that_need_torchvision_say_so(family: str, without_torchvision: dict[str, list[str]]) -> None:
    kind, message, name = without_torchvision[family]
    assert (kind, name) == ("ModuleNotFoundError", "torchvision")
    assert "needs the package torchvision, which is not installed: pip install torchvision" in message
    assert "://" not in message and "\n" not in message


def test_processors_that_do_without_load(without_torchvision: dict[str, list[str]]) -> None:
    for family in LOADS:
        kind, message, _ = without_torchvision[family]
        assert kind == "SafetensorError" and "torchvision" not in message


def test_bundled_model_needs_no_torchvision() -> None:
    code = WITHOUT.splitlines()[1:4]
    asked = "model, processor = load(); assert 'Pil' in type(processor.image_processor).__name__"
    subprocess.run([sys.executable, "-c", "\n".join([*code, "from foveate.loading import load", asked])], check=True)


def raising(error: Exception) -> Any:
    def from_pretrained(*_: Any, **__: Any) -> Any:
        raise error

    return from_pretrained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    return save(tmp_path)


def test_smolvlm_needs_num2words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    monkeypatch.setitem(sys.modules, "num2words", None)
    monkeypatch.setattr(
        AutoProcessor,
        "from_pretrained",
        lambda *_, **__: processing_smolvlm.SmolVLMProcessor(None, tokenizer(), None),
    )
    with pytest.raises(ModuleNotFoundError, match="needs the package num2words, .*: pip install num2words$") as caught:
        load(str(folder))
    assert caught.value.name == "num2words"


@pytest.mark.parametrize(
    "backend, module, package",
    [
        ("sentencepiece", "sentencepiece", "sentencepiece"),
        ("protobuf", "google.protobuf", "protobuf"),
        ("torchvision", "torchvision", "torchvision"),
    ],
)
def test_backends_of_transformers_are_named(
    backend: str, module: str, package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of the transformers that is installed."""
    _, words = import_utils.BACKENDS_MAPPING[backend]
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", raising(ImportError(words.format("Some class"))))
    with pytest.raises(ModuleNotFoundError, match=f"needs the package {package}, .*: pip install {package}"):
        load(str(folder))


@pytest.mark.parametrize(
    "error, package",
    [
        (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), "tiktoken"),
        (ModuleNotFoundError("No module named 'google.protobuf'", name="google.protobuf"), "protobuf"),
        (ImportError("`mistral-common` is required, install it"), "mistral-common"),
        (
            ImportError("Loading an AWQ model requires absent_quantizer: `pip install absent-quantizer`"),
            "absent-quantizer",
        ),
        (ImportError("it needs absent: `pip install -U 'absent[gpu]>=1.2'`"), "absent"),
    ],
)
def test_what_the_weights_need_is_named(
    error: Exception, package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tiktoken", "mistral_common"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", raising(error))
    with pytest.raises(ModuleNotFoundError, match=f"needs the package {package}, .*: pip install {package}$") as caught:
        load(str(folder))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("TokenizersBackend has no attribute boi_token_id"),
        ImportError("Please install the latest version of torch ( pip install --upgrade torch )"),
        ValueError("Unrecognized configuration class"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No package is blamed that is there, or has nothing to do with it."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", raising(error))
    with pytest.raises(type(error)) as caught:
        load(str(folder))
    assert caught.value is error


def test_torchvision_is_not_blamed_where_it_is_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.loading.find_spec", lambda _: object())
    error = ValueError("Unrecognized image processor in somewhere")
    monkeypatch.setattr(AutoProcessor, "from_pretrained", raising(error))
    with pytest.raises(ValueError, match="Unrecognized image processor") as caught:
        load(str(folder))
    assert caught.value is error


def test_a_folder_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model.safetensors"):
        load(str(tmp_path))


def test_bundled_is_the_default() -> None:
    model, _ = load(device="cpu")
    assert model.config.to_dict() == bundled.load()[0].config.to_dict()
