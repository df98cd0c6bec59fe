"""Llama 4: tiles with separators of rows and columns between them, padded to the canvas, the whole picture last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveate.attention import Recorder, projecting, tapped_config
from foveate.models.encoded import EncodedImage, Kept, Kind, Request, recorder_for
from foveate.models.tiles import Cut, TiledFamily, runs_of
from foveate.patches import Patch


class Llama4(TiledFamily):
    """``Llama4ForConditionalGeneration``. Its class holds the encoder itself, without an inner model.

    Its ``get_image_features`` gives what the encoder's adapter makes; the projector, which is a linear map, is applied
    by its forward.
    """

    title = "Llama 4"
    model_types = ("llama4",)
    fails_in = {"5.24.0": "stock's forward reads image_outputs, which the output of its LLM has not"}
    checkpoints = {"llama4": "meta-llama/Llama-4-Scout-17B-16E-Instruct"}
    saliency = "CLS row, last layer"

    @staticmethod
    def inner(model: Any) -> Any:
        return model if hasattr(model, "multi_modal_projector") else None

    def check(self) -> None:
        self.vision: Any = self.base.vision_model
        self.last: Any = self.vision.model.layers[-1].self_attn
        if self.base.multi_modal_projector.linear_1.bias is not None:
            raise ValueError(f"{self.title}: a projector with a bias is not known; stock transformers has none")

    @property
    def factor(self) -> int:
        return round(1 / self.config.vision_config.pixel_shuffle_ratio)

    @property
    def first_block(self) -> nn.Module:
        block: nn.Module = self.vision.model.layers[0]
        return block

    def first_tokens(self, output: Any) -> Tensor:
        states: Tensor = output if torch.is_tensor(output) else output[0]  # a tuple before 5.22
        return states[:, :-1].flatten(0, -2)

    def instruments(self) -> Sequence[Patch]:
        adapter = self.vision.vision_adapter
        return [Patch(self.last, "config", tapped_config(self.last)), Patch(adapter, "forward", projecting(adapter))]

    def recorder(self, inputs: Mapping[str, Any], request: Request) -> Recorder:
        """CLS stands behind the patches; the adapter gets these alone."""
        return recorder_for(request, "cls_last", self.last, project=self.vision.vision_adapter)

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        # 5.5 asks for a strategy that it does not use.
        unused = "vision_feature_select_strategy"
        return super().encode({**inputs, unused: inputs.get(unused) or "default"}, request)

    def handed(self, output: Any) -> Tensor:
        features: Tensor = output.last_hidden_state
        return features

    def projected(self, handed: Tensor) -> Tensor:
        rows: Tensor = self.base.multi_modal_projector(handed.reshape(-1, handed.shape[-1]))
        return rows.view(*handed.shape[:-1], -1)

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        together = torch.cat([one.features for one in kept])[:, None]
        return BaseModelOutputWithPooling(last_hidden_state=together)  # type: ignore[arg-type]

    def cuts(self, row: Tensor, per_tile: int) -> list[Cut]:
        """start, then for each row of tiles these with a mark between two and another behind the last, then a mark and
        the whole picture, end; of a picture of one tile only the last three. No config names the marks' ids."""
        found = []
        for runs in self._images(row):
            gaps = [row[before[1] : after[0]].tolist() for before, after in pairwise(runs)]
            opening = int(row[max(0, runs[0][0] - 2)]) if len(runs) == 1 else int(row[runs[0][0] - 1])
            ended = runs[-1][1] < len(row) and int(row[runs[-1][1]]) == self.config.eoi_token_index
            grid = (1, 1)
            line = gaps[-1][:1] if gaps else []
            if gaps:
                ends = [number for number, gap in enumerate(gaps) if gap[:1] == line]
                grid = (len(ends), ends[0] + 1)
            regular = [len(gap) for gap in gaps] == [*[1] * (len(gaps) - 1), 2][: len(gaps)] and all(
                (gap[:1] == line) == ((number + 1) % grid[1] == 0) for number, gap in enumerate(gaps)
            )
            whole = opening == self.config.boi_token_index and ended and regular
            if not whole or any(end - first != per_tile for first, end in runs):
                raise ValueError(
                    f"the placeholders from column {runs[0][0]} on are not a picture as Llama 4's processor writes it: "
                    "start, rows of tiles with a mark between two tiles and another behind a row, a mark and the whole "
                    f"picture, end, with {per_tile} placeholders per tile. Pass what the model's own processor "
                    "returned, whole."
                )
            found.append(Cut(len(runs), grid))
        return found

    def marks(self, ids: Tensor) -> Tensor:
        """Also all that stands between a picture's start and end."""
        found = super().marks(ids)
        for number, row in enumerate(ids):
            for runs in self._images(row):
                found[number, max(0, runs[0][0] - 1 - (len(runs) == 1)) : runs[-1][1] + 1] = True
        return found

    def _images(self, row: Tensor) -> list[list[tuple[int, int]]]:
        """The runs of placeholders of every picture: an end stands between two pictures."""
        found: list[list[tuple[int, int]]] = []
        for first, end in runs_of(row, self.image_token_id):
            if found and not bool((row[found[-1][-1][1] : first] == self.config.eoi_token_index).any()):
                found[-1].append((first, end))
            else:
                found.append([(first, end)])
        return found

    def extents(self, grids: Sequence[tuple[int, int]], views: Sequence[Tensor]) -> list[tuple[int, int]]:
        """Crops are padded to the right and below with what their last corner holds. How much of the same colour
        belongs to the picture is seen in the whole view, which has no padding."""
        corners = [tiles[max(0, len(tiles) - 2), :, -1, -1] for tiles in views]
        bare = torch.cat([
            (tiles == corner[:, None, None]).all(dim=1) for tiles, corner in zip(views, corners, strict=True)
        ])  # fmt: skip
        # One read for all: how far down and to the right anything else is seen in each tile.
        lines = torch.stack([(~bare).any(dim=2), (~bare).any(dim=1)], dim=1)
        reach = (lines * torch.arange(1, bare.shape[-1] + 1, device=lines.device)).amax(dim=-1).cpu()
        found = []
        for (rows, columns), own in zip(grids, reach.split([len(tiles) for tiles in views]), strict=True):
            side = bare.shape[-1]
            crops = own[: rows * columns].view(rows, columns, 2)
            offsets = [torch.arange(count, device="cpu") * side for count in (rows, columns)]
            content = [
                torch.where(crops[..., 0] > 0, crops[..., 0] + offsets[0][:, None], 0).max(),
                torch.where(crops[..., 1] > 0, crops[..., 1] + offsets[1], 0).max(),
            ]
            whole = own[-1] if len(own) > 1 else torch.tensor([side, side], device="cpu")
            sides = [rows * side, columns * side]
            for axis, (seen, of_whole) in enumerate(zip(content, whole, strict=True)):
                if seen and of_whole:
                    sides[axis] = min(sides[axis], max(int(seen), round(int(seen) * side / int(of_whole))))
            found.append((sides[0], sides[1]))
        return found

    def tokens_of_views(self, image: tuple[int, int], tokens: int) -> list[int]:
        config = self.config.vision_config
        per_tile = (config.image_size // config.patch_size // self.factor) ** 2
        return [per_tile] * (tokens // per_tile)
