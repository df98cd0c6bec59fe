"""What transformers' own tests ask for and a pruner refuses, at keep 1 too: the words of the error, and the reason."""

from __future__ import annotations

REFUSED: dict[str, str] = {
    "inputs_embeds hide which tokens are visual": (
        "embeddings instead of token ids: visual tokens cannot be told from text (docs/options.md, Refused)"
    ),
    "the prompt holds image placeholders, but no pixel_values came with it": (
        "placeholders without pixels: there is nothing to choose from (docs/options.md, Refused)"
    ),
    '"Image features and image tokens do not match" does not match "the prompts hold': (
        "stock refuses it too, and the test compares the words: ours count the placeholders of every image"
    ),
    r"^ValueError: the prompts hold \d+ image placeholders, but the \d+ image\(s\) given need": (
        "a random attention mask hides placeholders of some images, which stock fills all the same"
    ),
    r"the prompts hold \d+ video placeholders, but the 0 video": (
        "random ids that happen to be video placeholders, without a video (docs/options.md, Refused)"
    ),
    r"runs of \[8\] image placeholders, each of which must be 4 long with a mark behind it": (
        "Idefics3 and SmolVLM without the marks that their processors write around tiles: they say which tile is where"
    ),
    r"Ovis2 writes five indicator tokens .* the config's visual_indicator_token_ids are \(\)": (
        "Ovis2 without indicator tokens, which no released checkpoint is: they say which tile is where"
    ),
    r"Skip calling `torch\.compiler\.disable\(\)`d function": (
        "a forward compiled into one graph: choosing tokens depends on the data and breaks the graph"
    ),
}
"""A regular expression of the error's text -> what was asked for and why it is refused."""
