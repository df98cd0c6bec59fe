"""Ovis2: a visual vocabulary, tiles whose rows and columns are written out with indicator tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.attention import Recorder, beside, projecting, tapped_config
from foveate.models.base import look_up
from foveate.models.encoded import Kept, Kind, Request, recorder_for
from foveate.models.tiles import Cut, TiledFamily, runs_of
from foveate.models.towers import unshuffled
from foveate.patches import Patch


class Ovis2(TiledFamily):
    """``Ovis2ForConditionalGeneration``. What is chosen from are mixtures of the visual vocabulary's embeddings."""

    title = "Ovis2"
    model_types = ("ovis2",)
    checkpoints = {"ovis2": "thisisiron/Ovis2-2B-hf (the -hf form: the other runs code of its own)"}
    saliency = "mean received attention, last layer"
    whole_first = True

    def check(self) -> None:
        self.last: Any = self.base.vision_tower.transformer.encoder.layers[-1].attention
        if len(self.indicators) != 5:
            raise ValueError(
                "Ovis2 writes five indicator tokens (image start, grid, column, row, image end); the config's "
                f"visual_indicator_token_ids are {self.indicators}"
            )

    @property
    def first_block(self) -> nn.Module:
        block: nn.Module = self.base.vision_tower.transformer.encoder.layers[0]
        return block

    def first_tokens(self, output: Tensor) -> Tensor:
        return output.flatten(0, -2)

    @property
    def indicators(self) -> tuple[int, ...]:
        """Ids of image start, grid, column, row, image end."""
        return tuple(self.config.visual_indicator_token_ids)

    @property
    def structure_token_ids(self) -> frozenset[int]:
        return super().structure_token_ids | frozenset(self.indicators)

    @property
    def factor(self) -> int:
        return int(self.config.vision_config.hidden_stride)

    def instruments(self) -> Sequence[Patch]:
        head = self.base.vision_tower.head_linear
        return [Patch(self.last, "config", tapped_config(self.last)), Patch(head, "forward", projecting(head))]

    def recorder(self, inputs: Mapping[str, Any], request: Request) -> Recorder:
        """What makes words of the visual vocabulary of the encoder's features is the head."""
        return recorder_for(
            request,
            "received",
            self.last,
            project=self.base.vision_tower.head_linear,
            patches=partial(unshuffled, factor=self.factor),
        )

    def cuts(self, row: Tensor, per_tile: int) -> list[Cut]:
        """start, the whole image, grid, then the crops with column and row marks between them, if any, end."""
        start, grid, column, line, end = self.indicators
        ids = row.tolist()
        found, runs = [], iter(runs_of(row, self.image_token_id))
        for run in runs:
            ours, widths, mark = [run], [1], ids[run[1] : run[1] + 1]
            whole = ids[max(0, run[0] - 1) : run[0]] == [start] and mark == [grid]
            if whole and ids[run[1] + 1 : run[1] + 2] != [end]:
                widths = [0]
                while mark != [end] and whole:
                    run = next(runs, (0, 0))
                    whole = bool(run[1]) and ids[run[0] - 1] in (grid, column, line)
                    ours.append(run)
                    widths[-1] += 1
                    mark = ids[run[1] : run[1] + 1]
                    whole &= mark in ([column], [line], [end])
                    widths += [0] * (mark == [line])
            if not whole or len(set(widths)) != 1 or any(last - first != per_tile for first, last in ours):
                raise ValueError(
                    f"the placeholders from column {ours[0][0]} on are not an image as Ovis2's processor writes it: "
                    f"start, a tile, grid, rows of tiles with marks between them, end, with {per_tile} placeholders "
                    "per tile. Pass what the model's own processor returned, whole."
                )
            found.append(Cut(len(ours), (len(widths), widths[0])))
        return found

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        """With the embeddings of the indicator tokens, which come from the visual vocabulary too."""
        table = self.base.visual_embeddings_table
        words = torch.arange(table.num_embeddings - len(self.indicators), table.num_embeddings, device="cpu")
        output = beside(self.base, "BaseModelOutputWithVisualIndicatorFeatures")
        return output(
            pooler_output=super().package(kept, kind).pooler_output,
            visual_indicator_features=look_up(table, words),
        )
