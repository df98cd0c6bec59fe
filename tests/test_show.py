"""What was kept lies clear on the picture's own pixels, for every view, any size of picture and any method's scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import show
from foveate.painting import striped
from foveate.tokens import Geometry, Selection


def grid(view: int, rows: int, columns: int, box: tuple[float, float, float, float]) -> list[tuple]:
    x0, y0, x1, y1 = box
    across, down = (x1 - x0) / columns, (y1 - y0) / rows
    return [
        (view, row, column, x0 + column * across, y0 + row * down, x0 + (column + 1) * across, y0 + (row + 1) * down)
        for row in range(rows)
        for column in range(columns)
    ]


def selection(kept: list[int], scores: dict[str, torch.Tensor] | None = None) -> Selection:
    """A 40 x 20 picture: a base view of 2 x 2 patches, then two crops of 2 x 2."""
    tokens = [*grid(0, 2, 2, (0, 0, 40, 20)), *grid(1, 2, 2, (0, 0, 20, 20)), *grid(2, 2, 2, (20, 0, 40, 20))]
    numbers = torch.tensor(tokens)
    geometry = Geometry(
        *(numbers[:, column].long() for column in range(3)),
        boxes=numbers[:, 3:].float(),
        image_size=(20, 40),
        grids=((2, 2), (2, 2), (2, 2)),
    )
    return Selection(torch.tensor(kept), geometry, scores or {})


def picture(size: tuple[int, int] = (40, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def clear(image: Image.Image, shown: Image.Image) -> np.ndarray:
    return (np.asarray(image) == np.asarray(shown)).all(axis=2)


def test_kept_patches_are_clear_and_the_others_dimmed():
    image = picture()
    shown = show.overlay(image, selection([5, 10]))  # crop 1 top right; crop 2 bottom left
    expected = np.zeros((20, 40), dtype=bool)
    expected[0:10, 10:20] = True
    expected[10:20, 20:30] = True
    same = clear(image, shown)
    assert same[expected].all() and same[~expected].mean() < 0.05
    assert shown.size == image.size and shown.mode == "RGB"


def test_views_are_shown_each_for_itself():
    image, chosen = picture(), selection([0, 11])
    base = clear(image, show.overlay(image, chosen, views=[0]))
    crops = clear(image, show.overlay(image, chosen, views=[1, 2]))
    assert base[:10, :20].all() and base[10:, 20:].mean() < 0.05
    assert crops[10:, 30:].all() and crops[:10, :20].mean() < 0.05


def test_the_picture_may_have_another_size_than_the_boxes():
    image = picture((400, 200))
    same = clear(image, show.overlay(image, selection([5])))
    assert same[:100, 100:200].all() and same[:, 200:].mean() < 0.05


def test_a_centre_crop_leaves_the_sides_dimmed():
    tokens = torch.tensor(grid(0, 1, 1, (0, 0, 56, 56)))
    geometry = Geometry(
        *(tokens[:, column].long() for column in range(3)),
        boxes=tokens[:, 3:].float(),
        image_size=(56, 56),
        grids=((1, 1),),
        cropped=True,
    )
    image = picture((300, 100))
    same = clear(image, show.overlay(image, Selection(torch.tensor([0]), geometry)))
    assert same[:, 100:200].all() and same[:, :100].mean() < 0.05 and same[:, 200:].mean() < 0.05


def test_nothing_dimmed_and_everything_kept_are_the_picture():
    image = picture()
    assert clear(image, show.overlay(image, selection([0]), dim=0.0, outline=False)).all()
    assert clear(image, show.overlay(image, selection(list(range(12))))).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="dim must be in"):
        show.overlay(picture(), selection([0]), dim=float("nan"))
    with pytest.raises(ValueError, match="not among the 3"):
        show.overlay(picture(), selection([0]), views=[3])
    with pytest.raises(ValueError, match="one selection per image"):
        show.figure([picture()], [])


@pytest.mark.parametrize(
    "names,panels", [((), 2), (("saliency",), 4), (("saliency", "text_to_image"), 6), (("own_score",), 4)]
)
def test_a_panel_per_view_kind_and_score(names, panels):
    chosen = selection([1, 7], {name: torch.rand(12) for name in names})
    figure = show.figure(picture(), chosen, question="What is this?", answer="a $5 cat", method="adafv")
    titled = [axes for block in figure.subfigs for axes in block.axes if axes.get_title(loc="left")]
    assert len(titled) == panels
    assert "base view: 1 of 4 kept" in titled[0].get_title(loc="left")
    assert "Q: What is this?" in figure.get_suptitle() and "2 of 12" in figure.get_suptitle()
    assert "16.7 %" in figure.get_suptitle() and r"\$5" in figure.get_suptitle()


@pytest.mark.parametrize("size", [(1, 1), (4000, 20), (20, 4000), (800, 600)])
def test_any_size_is_saved(tmp_path, size):
    path = tmp_path / "kept.png"
    constant = {"saliency": torch.full((12,), 0.5)}  # a flat map has no scale of its own
    show.save(path, picture(size), selection([3], constant), question="x " * 300, answer="")
    assert min(Image.open(path).size) > 200


def test_several_images_stand_in_one_figure(tmp_path):
    scores = {"saliency": torch.rand(12)}
    figure = show.figure([picture(), picture((20, 40))], [selection([0], scores), selection([1])], question="both?")
    assert len(figure.subfigs) == 2
    assert "image 2: 1 of 12" in figure.subfigs[1].get_suptitle()
    figure.savefig(tmp_path / "both.pdf")


def test_bad_paths_are_refused_before_drawing(tmp_path):
    with pytest.raises(ValueError, match="suffixes png"):
        show.save(tmp_path / "kept.xyz", picture(), selection([0]))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        show.save(tmp_path / "nowhere" / "kept.png", picture(), selection([0]))


def test_no_pyplot_state_is_touched():
    import subprocess
    import sys

    code = "import foveate.show, matplotlib.figure, sys; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def routed(kept: list[int], views: tuple[int, ...], scores: dict[str, torch.Tensor] | None = None) -> Selection:
    """The same picture with only some views encoded: what was not is NaN."""
    whole = selection(kept)
    encoded = torch.tensor([int(view) in views for view in whole.geometry.view])
    given = {name: torch.where(encoded, score, torch.nan) for name, score in (scores or {}).items()}
    return Selection(whole.indices, whole.geometry, given, encoded=encoded)


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for block in figure.subfigs for axes in block.axes if axes.get_title(loc="left")]


def test_what_was_not_encoded_is_striped_and_not_faded():
    image = picture()
    chosen = routed([0, 6], (0, 1))  # the base view top left; crop 1 bottom left; crop 2 is not encoded
    shown = np.asarray(show.overlay(image, chosen, views=[1, 2])).astype(float)
    stripes = striped(np.asarray(image, dtype=np.float32)).repeat(3, axis=2)
    assert clear(image, shown)[10:, :10].all()
    np.testing.assert_allclose(shown[:, 20:], stripes[:, 20:], atol=0.5)
    faded = np.asarray(show.overlay(image, selection([6]), views=[1, 2])).astype(float)
    np.testing.assert_array_equal(shown[:, :20], faded[:, :20])
    assert np.abs(shown[:, 20:] - faded[:, 20:]).mean() > 20
    # Of all views, what the base view keeps is clear over a crop that was not encoded as well.
    both = show.overlay(image, routed([1], (0, 1)))
    assert clear(image, both)[:10, 20:].all()
    np.testing.assert_allclose(np.asarray(both)[12:, 20:], stripes[12:, 20:], atol=0.5)  # below the outline
    base = np.asarray(show.overlay(image, chosen, views=[0]))
    np.testing.assert_array_equal(base, np.asarray(show.overlay(image, selection([0]), views=[0])))


@pytest.mark.parametrize(
    "views, told, labels",
    [((0, 2), "2 crops: 1 of 8 kept, 4 encoded", 1), ((0,), "2 crops: 0 of 8 kept, 0 encoded", 2)],
)
def test_a_figure_says_which_crops_were_not_encoded(tmp_path, views, told, labels):
    kept = [1, 11] if 2 in views else [1]
    chosen = routed(kept, views, {"saliency": torch.linspace(0.1, 1.2, 12)})
    figure = show.figure(picture(), chosen, method="adafv")
    found = titles(figure)
    assert found[0] == "base view: 1 of 4 kept, 4 encoded" and found[2] == told
    assert f"by adafv, {4 * len(views)} encoded" in figure.get_suptitle()
    panels = [axes for block in figure.subfigs for axes in block.axes if axes.get_title(loc="left")]
    texts = [[text.get_text() for text in axes.texts] for axes in panels]
    assert texts == [[], [], ["not encoded"] * labels, ["not encoded"] * labels]
    x, y = panels[2].texts[-1].get_position()  # in pixels of the picture at 720 x 360
    assert (x, y) == ((540, 180) if 2 not in views else (180, 180))
    # The map's scale is that of what was encoded, and where nothing was, it shows the stripes of the overlay.
    image = panels[3].get_images()[0].get_array()
    small = np.asarray(show._shown(picture()), dtype=np.float32)
    np.testing.assert_allclose(image[:, :360], striped(small)[:, :360].repeat(3, axis=2) / 255, atol=1e-5)
    figure.savefig(tmp_path / "kept.png")


def test_a_figure_without_crops_says_nothing_of_encoding():
    figure = show.figure(picture(), selection([1, 7], {"saliency": torch.rand(12)}))
    assert not any("encoded" in title for title in [*titles(figure), figure.get_suptitle()])


def test_scores_of_nothing_are_drawn(tmp_path):
    chosen = routed([1], (0,), {"saliency": torch.full((12,), torch.nan)})
    show.save(tmp_path / "kept.png", picture(), chosen)
    assert min(Image.open(tmp_path / "kept.png").size) > 200
