"""Molmo 2: a whole view and one of crops put together; squares of patches pooled by attention, along a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.attention import projecting, recording, skippable, tapped_config
from foveate.models.base import Family
from foveate.models.encoded import EncodedImage, Kind, Request, read_tokens, recorder_for
from foveate.models.pooling_table import pool_geometry
from foveate.patches import Patch


class Molmo2(Family):
    """``Molmo2ForConditionalGeneration``.

    A picture is encoded whole, as a square, and in crops that overlap; of these the processor's table takes what makes
    one larger square grid, and says which patches each token pools. Rows of tokens end in marks with an id of their
    own, which stay, as do starts and ends. All of a prompt's pictures see each other in the LLM: where, say
    ``mm_token_type_ids``, which are shortened with the prompt. The features are added to the placeholders' embedding.
    """

    title = "Molmo 2"
    model_types = ("molmo2",)
    checkpoints = {"molmo2": "allenai/Molmo2-8B"}
    image_inputs = ("pixel_values", "image_token_pooling", "image_grids", "image_num_crops")
    video_inputs = ("pixel_values_videos", "video_token_pooling", "video_grids")
    merge = "2x2 by attention, in videos 3x3"
    views = "whole + crops as one"
    saliency = "mean received attention, deepest layer read"

    def check(self) -> None:
        depth = len(self.base.vision_tower.layers)
        self.read = [layer % depth for layer in self.config.adapter_config.vision_feature_layer]

    @property
    def first_block(self) -> nn.Module:
        block: nn.Module = self.base.vision_tower.layers[0]
        return block

    @property
    def _attention(self) -> nn.Module:
        attention: nn.Module = self.base.vision_tower.layers[max(self.read)].self_attn
        return attention

    def instruments(self) -> Sequence[Patch]:
        adapter = self.base.multi_modal_projector
        return [
            Patch(self._attention, "config", tapped_config(self._attention)),
            Patch(adapter, "forward", projecting(adapter)),
            *(Patch(layer, "forward", skippable(layer)) for layer in self._unread),
        ]

    @property
    def _unread(self) -> Sequence[nn.Module]:
        """Layers behind the deepest that is read."""
        unread: Sequence[nn.Module] = self.base.vision_tower.layers[max(self.read) + 1 :]
        return unread

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        grids = self._whole_numbers(inputs, "image")
        views = [[one for one in ((a, b), (c, d)) if one[0] * one[1]] for a, b, c, d in grids]
        return self._encode(inputs, request, "image", views)

    def encode_videos(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        grids = self._whole_numbers(inputs, "video")
        return self._encode(inputs, request, "video", [[(rows, columns)] * times for times, rows, columns in grids])

    def _whole_numbers(self, inputs: Mapping[str, Any], kind: Kind) -> list[list[int]]:
        """What the grids of all pictures or videos say; checked, with what must come beside it."""
        pixels_name, table_name, grids_name = self.inputs_of(kind)[:3]
        pixels, table, grids = (inputs.get(name) for name in (pixels_name, table_name, grids_name))
        if table is None or grids is None:
            raise ValueError(
                f"{self.title} needs {table_name} and {grids_name} beside {pixels_name}: pass all that the processor "
                "returned"
            )
        if not torch.is_tensor(pixels) or pixels.ndim != 3 or math.isqrt(pixels.shape[1]) ** 2 != pixels.shape[1]:
            raise ValueError(
                f"{self.title} takes {pixels_name} as one tensor (square crops of all pictures, patches, values), got "
                f"{tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )
        if not torch.is_tensor(table) or table.is_floating_point():
            raise ValueError(
                f"{self.title} takes {table_name} as a tensor of whole numbers: pass what its processor returned with "
                'return_tensors="pt"'
            )
        found: list[list[int]] = torch.as_tensor(grids, device="cpu").tolist()
        return found

    def _encode(
        self, inputs: Mapping[str, Any], request: Request, kind: Kind, views: Sequence[Sequence[tuple[int, int]]]
    ) -> list[EncodedImage]:
        names = self.inputs_of(kind)[:3]
        table = inputs[names[1]].cpu().long()
        table = table[(table >= 0).any(dim=1)]  # stock drops a token that pools nothing
        counts = [[rows * columns for rows, columns in grids] for grids in views]
        if len(table) != sum(map(sum, counts)):
            raise ValueError(
                f"{names[2]} speak of {sum(map(sum, counts))} tokens and {names[1]} of {len(table)}: pass what the "
                "model's own processor returned, whole"
            )
        deepest, layers = self.read.index(max(self.read)), len(self.read)
        recorder = recorder_for(
            request,
            "received",
            self._attention,
            skip=self._unread,
            project=self.base.multi_modal_projector,
            patches=lambda given: given.chunk(layers, dim=-1)[deepest],
        )
        with recording(recorder) as record:
            handed = request.features(*(inputs[name] for name in names), return_dict=True).pooler_output
        # The model's own forward adds this; where tokens are merged, their sum gets it once.
        placeholder = self.embed(torch.tensor([self.image_token_id], device="cpu"))
        side, patch = math.isqrt(inputs[names[0]].shape[1]), int(self.config.vision_config.patch_size)
        images = []
        for grids, own, features, sources in zip(
            views, counts, handed, table.split([sum(one) for one in counts]), strict=True
        ):
            try:
                geometry = pool_geometry(grids, sources.split(own), side, patch, features.device)
            except ValueError as error:
                raise ValueError(
                    f"{self.title}: where tokens lie is not to be seen in {names[1]}: {error}. Pass what the model's "
                    "own processor returned, whole"
                ) from None
            stream = placeholder.to(features.device) + features
            image = EncodedImage.of_patches(read_tokens(record, stream, geometry, sources), kind=kind)
            images.append(dataclasses.replace(image, handed=features))
        return images

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        super().refuse(inputs)
        if self.has(inputs, "image") and self.has(inputs, "video"):
            raise ValueError(
                f"{self.title}: images and videos in one call have the same placeholder id, and stock transformers "
                "takes every placeholder for both. Ask about them in calls of their own."
            )

    @property
    def structure_token_ids(self) -> frozenset[int]:
        config = self.config
        more = (config.low_res_image_start_token_id, config.frame_start_token_id, config.frame_end_token_id)
        return super().structure_token_ids | frozenset(map(int, more))

    def marks(self, ids: Tensor) -> Tensor:
        """Also the ends of rows, whose id no config names: all between a start and an end; and times before frames."""
        found, config = super().marks(ids), self.config
        starts = [config.image_start_token_id, config.low_res_image_start_token_id, config.frame_start_token_id]
        ends = [config.image_end_token_id, config.frame_end_token_id]
        opened = torch.isin(ids, ids.new_tensor(starts)).long() - torch.isin(ids, ids.new_tensor(ends)).long()
        found |= opened.cumsum(dim=1) > 0
        breaks = torch.isin(ids, ids.new_tensor([-1, *sorted(self.special_token_ids)]))
        for row, broken, line in zip(ids, breaks, found, strict=True):
            frames = (row == config.frame_start_token_id).nonzero()[:, 0].tolist()
            closed = (row == config.frame_end_token_id).nonzero()[:, 0].tolist()
            first = 0  # frame of a video; the processor writes one in a turn, without a pause
            for number, (end, start) in enumerate(zip(closed, [*frames[1:], len(row)], strict=False), start=1):
                if number == len(frames) or bool(broken[end:start].any()):
                    film = frames[first:number]
                    line[film[0] - _first_time(row, film) : film[0]] = True
                    first = number
                else:
                    line[end:start] = True
        return found


def _first_time(row: Tensor, frames: Sequence[int]) -> int:
    """How many tokens before a video's first frame say its time, "0.0" or "0.0 ": a digit, the dot that the second
    frame's has in the same place, and the same digit. 0 where they do not.

    Args:
        row: (S,) int64 ids on the CPU, -1 where not to be looked at.
        frames: the columns where frames start.
    """
    for length in (3, 4) if len(frames) > 1 else ():
        label = row[max(0, frames[0] - length) : frames[0]].tolist()
        dot = int(row[frames[1] - length + 1])
        if len(label) == length and -1 not in label and label[0] == label[2] and label[1] == dot:
            return length
    return 0
