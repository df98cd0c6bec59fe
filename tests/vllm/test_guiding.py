"""Which text of a request guides, and the identity that follows from it, in the API server's own process. No engine.

What is expected is written by hand: the words of the question, as the tokenizer splits them by themselves.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import ProcessorInputs, TimingContext
from vllm.plugins import load_general_plugins

from foveate import bundled, serving
from foveate.serving.requests import guiding_texts
from foveate.serving.server import arguments
from tests.vllm import checkpoints

PICTURE = Image.new("RGB", (120, 90), "red")
CAT, DOG, SIGN = "is there a cat ?", "what color is the dog ?", "what number is on the sign ?"
IMAGE = None

Message = tuple[str, tuple[str | None, ...]]


def user(*parts: str | None) -> Message:
    return "user", parts


def assistant(text: str) -> Message:
    return "assistant", (text,)


SYSTEM: Message = ("system", ("the biggest object is a car",))
LAYOUTS: dict[str, tuple[tuple[Message, ...], tuple[tuple[str, ...], ...]]] = {
    "behind": ((user(IMAGE, CAT),), ((CAT,),)),
    "in front": ((user(CAT, IMAGE),), ((CAT,),)),
    "on both sides": ((user(CAT, IMAGE, DOG),), ((CAT, DOG),)),
    "after a system prompt": ((SYSTEM, user(CAT, IMAGE)), ((CAT,),)),
    "in the next message": ((user(IMAGE), assistant("yes"), user(CAT)), ((CAT,),)),
    "in the first message with text": (
        (user(IMAGE), assistant("yes"), user(CAT), assistant("no"), user(DOG)),
        ((CAT,),),
    ),
    "in its own turn": ((user(CAT, IMAGE), assistant("no"), user(DOG)), ((CAT,),)),
    "of a later picture": ((user(DOG), assistant("red"), user(CAT, IMAGE), assistant("no"), user(SIGN)), ((CAT,),)),
    "of each picture": ((user(CAT, IMAGE), assistant("no"), user(IMAGE, DOG)), ((CAT,), (DOG,))),
    "of two pictures at once": ((user(IMAGE, CAT, IMAGE, DOG),), ((CAT, DOG),) * 2),
}
"""Messages, and the pieces of text that guide the selection of each picture."""


@dataclass
class Front:
    """What an API server has of a model.

    Args:
        processor: transformers'.
        ours: vLLM's, with pruning on.
        around: what the model's processor writes around every picture, which stands among the text: blank lines.
    """

    processor: Any
    ours: Any
    around: Sequence[int] = ()

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        written = [
            {"role": role, "content": [{"type": "text", "text": part} if part else {"type": "image"} for part in parts]}
            for role, parts in messages
        ]
        text: str = self.processor.apply_chat_template(written, add_generation_prompt=True, tokenize=False)
        return self.ids(text)

    @property
    def image(self) -> int:
        """What stands for a picture in a prompt, before its tokens are laid out: Llama 4's is none of these."""
        found: int = self.processor.image_token_id
        return found

    def guiding(self, prompt: Sequence[int], images: int = 1, **options: Any) -> list[list[int]]:
        """The ids that guide the selection of every picture of a prompt, but for what stands around pictures."""
        info = self.ours.info
        pruner = serving.Policy(options=options).pruner("adafv", 0.25)
        written = self.ours.batches.written(self.ours, prompt, images)
        found = guiding_texts(written, images, pruner, info.family, info.turns)
        return [[token for token in one if token not in self.around] for one in found]

    def identities(self, prompt: Sequence[int], images: int = 1) -> list[str]:
        """The identity of every picture in vLLM's caches."""
        items = self.ours.info.parse_mm_data({"image": [PICTURE] * images})
        found = self.ours.apply(ProcessorInputs(list(prompt), items), TimingContext(enabled=False))
        hashes: list[str] = found["mm_hashes"]["image"]
        return hashes


def front_of(folder: Any, told: dict[str, Any] | None = None, **options: Any) -> Front:
    """What an API server has of the model in a folder; ``told``: to its config, beside Foveate's options."""
    load_general_plugins()
    overrides = {**serving.options(keep=0.25, **options), **(told or {})}
    config = EngineArgs(str(folder), dtype="float32", hf_overrides=overrides).create_model_config()
    return Front(AutoProcessor.from_pretrained(folder), MULTIMODAL_REGISTRY.create_processor(config))


@pytest.fixture(scope="module", params=list(checkpoints.FAMILIES))
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Front:
    # On a CPU it is served with what its pictures' tokens see of each other given up: test_layouts.
    told = {"is_mm_prefix_lm": False} if request.param == "gemma3" else {}
    front = front_of(checkpoints.write(request.param, tmp_path_factory.mktemp(request.param)), told)
    return dataclasses.replace(front, around=front.ids("\n\n")) if told else front


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_question_guides_wherever_it_stands(front: Front, layout: str) -> None:
    messages, texts = LAYOUTS[layout]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = front.guiding(front.prompt(messages), len(texts))
    assert found == [[one for text in pieces for one in front.ids(text)] for pieces in texts]


def test_a_released_span_is_all_that_follows(front: Front) -> None:
    """Special tokens and the opening of the answer too, and none of what stands before."""
    prompt = front.prompt((user(CAT, IMAGE, DOG),))
    behind = front.ids(DOG + "</s> assistant :")
    assert front.guiding(prompt, text_span="prompt") == [behind]
    end = front.processor.tokenizer.eos_token_id
    assert front.guiding(prompt, text_span="prompt", special_tokens=False) == [[one for one in behind if one != end]]


def test_a_prompt_by_hand_needs_no_template(front: Front) -> None:
    """A turn whose end is not written reaches to the prompt's; without role names, to its beginning."""
    image = front.image
    role, cat, dog = front.ids("<s> user : "), front.ids(CAT), front.ids(DOG)
    assert front.guiding([*role, *cat, image, *dog]) == [cat + dog]
    assert front.guiding([*cat, image]) == [cat]
    assert front.guiding([image, *dog]) == [dog]


def test_a_picture_alone_is_guided_by_what_there_is(front: Front) -> None:
    with pytest.warns(UserWarning, match="no text stands in the image's turn or a later one"):
        (found,) = front.guiding(front.prompt((SYSTEM, user(IMAGE))))
    assert set(front.ids(SYSTEM[1][0])) <= set(found)


def test_a_prompt_without_any_text_is_refused(front: Front) -> None:
    image, special = front.image, front.processor.tokenizer
    for prompt in ([image], [special.bos_token_id, image, special.eos_token_id]):
        for span in ("turn", "prompt"):
            with pytest.raises(ValueError, match="adafv reads the question, and there is no text"):
                front.guiding(prompt, text_span=span)
        with pytest.raises(ValueError, match="there is no text"):
            front.identities(prompt)
    with pytest.raises(ValueError, match="there is no text"):
        front.guiding([*front.ids("user :"), image, special.eos_token_id], text_span="prompt", special_tokens=False)


def test_placeholders_that_do_not_fit(front: Front) -> None:
    with pytest.raises(ValueError, match="1 image placeholders for 2"):
        front.guiding(front.prompt((user(CAT, IMAGE),)), 2)


def test_identity_covers_the_guiding_text_and_nothing_more(front: Front) -> None:
    """The same text wherever it stands and whatever comes later: one identity. Another text: another."""
    same = [
        (user(IMAGE, CAT),), (user(CAT, IMAGE),), (SYSTEM, user(CAT, IMAGE)),
        (user(CAT, IMAGE), assistant("no"), user(DOG)),
        (user(CAT, IMAGE), assistant("no"), user(DOG), assistant("red"), user(SIGN)),
        (user(IMAGE), assistant("yes"), user(CAT)),
        (user(IMAGE), assistant("yes"), user(CAT), assistant("no"), user(DOG)),
    ]  # fmt: skip
    # What stands around a picture stands before or behind the words, or not in their turn.
    for alike in (same[:1], same[1:5], same[5:]) if front.around else (same,):
        assert len({tuple(front.identities(front.prompt(messages))) for messages in alike}) == 1
    others = [
        (user(DOG, IMAGE),), (user(IMAGE), assistant("yes"), user(SIGN)), (user(CAT, IMAGE, DOG),),
        (user(DOG), assistant("red"), user(CAT, IMAGE, SIGN)),
    ]  # fmt: skip
    found = [front.identities(front.prompt(messages))[0] for messages in [same[0], *others]]
    assert len(set(found)) == len(found)


def test_labels_of_frames_are_no_question(tmp_path: Any) -> None:
    """A video that is sent as pictures, labelled in as many words as InternVL's own code takes ("Frame", "-", ":"); two
    alike words are no labels."""
    front = front_of(checkpoints.write("internvl", tmp_path))
    for tail in ((CAT,), ()):
        frames = [part for number in range(4) for part in (f" sign a {number} : ", IMAGE)]
        head = () if tail else (CAT,)
        found = front.guiding(front.prompt((user(*head, *frames, *tail),)), 4)
        assert found == [front.ids(CAT)] * 4
    words = front.prompt((user("sign 1 : ", IMAGE, "sign 2 : ", IMAGE, CAT),))
    assert front.guiding(words, 2) == [front.ids(f"sign 1 : sign 2 : {CAT}")] * 2


def test_without_a_template_turns_end_with_the_model_s_own_tokens(tmp_path: Any) -> None:
    folder = checkpoints.write("qwen2_5_vl", tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    bare = front_of(folder)
    assert not bare.ours.info.turns.starts
    image = bare.image
    prompt = [*bare.ids(f"<s> {CAT}"), image, *bare.ids(f"</s> red </s> {DOG}")]
    assert bare.guiding(prompt) == [bare.ids(CAT)]


def test_a_template_of_the_server_s_own(tmp_path: Any) -> None:
    """``--chat-template`` writes the prompts, so it says where their turns are."""
    template = (
        "{% for message in messages %}dog {{ message['role'] }} : {% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
        "{% endif %} cat sign {% endfor %}{% if add_generation_prompt %}dog assistant :{% endif %}"
    )
    folder = checkpoints.write("qwen2_5_vl", tmp_path / "model")
    (tmp_path / "template.jinja").write_text(template)
    for given in (template, str(tmp_path / "template.jinja")):
        parsed = arguments(str(folder), ["--chat-template", given], {"keep": 0.25})
        assert parsed.hf_overrides["foveate"]["chat_template"] == template
    ours, stock = front_of(folder, chat_template=template), front_of(folder)
    image = ours.image
    prompt = [*ours.ids(f"dog user : {CAT}"), image, *ours.ids("cat sign dog assistant :")]
    assert ours.guiding(prompt) == [ours.ids(CAT)]
    assert stock.guiding(prompt) != [ours.ids(CAT)]
    assert "dog" not in ours.ours.info.get_hf_processor().chat_template  # which vLLM has for itself


def test_the_bundled_model() -> None:
    """Its template ends a user's turn with the next role's name, which is no special token."""
    front = front_of(bundled.path())
    image = front.image
    for text in (f"{CAT} <image>", f"<image> {CAT}", f"{CAT} <image> assistant: yes</s>user: {DOG}"):
        ids = front.ids(f"<s>user: {text} assistant:")
        assert ids.count(image) == 1
        assert front.guiding(ids) == [front.ids(CAT)]
