"""The figures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib import font_manager

from affinity_lib import plots
from affinity_lib.affinity import affinities, half_plane_offsets, pair_labels
from affinity_lib.data.voc import palette
from affinity_lib.evaluation import VOID

COLORS, NAMES = palette()[:4], ("ball", "box", "cross")
PHOTO = np.full((6, 8, 3), 90, np.uint8)


@pytest.fixture(autouse=True)
def without_a_screen():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def legend_of(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_dollar_in_the_name_of_a_class_is_no_formula():
    names, labels = ("$5%", "US$ _^ $"), np.ones((6, 8), np.uint8)
    titles = ["$5%, US$ _^ $"]
    figure = plots.show([[PHOTO], [labels]], titles, names, row_titles=[*names])
    figure.canvas.draw()
    assert legend_of(figure) == ["$5%"] and figure.axes[0].get_title() == titles[0]
    plots.bars({"CAM": dict.fromkeys(names, 50.0)}, "IoU").canvas.draw()


@pytest.mark.filterwarnings("error:Glyph")
def test_letters_that_the_font_lacks_come_from_an_installed_one(monkeypatch):
    name = "\u1d81og"  # its first letter is in Matplotlib's second font alone
    fonts = [font_manager.findfont(font) for font in ("cmr10", "STIXGeneral")]
    image, labels = np.zeros((330, 330, 3), np.uint8), np.ones((330, 330), np.uint8)
    plots._fallback.cache_clear()
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    boxes = plots.labelled(image, labels, [name])
    plots._fallback.cache_clear()
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: fonts)
    assert not np.array_equal(plots.labelled(image, labels, [name]), boxes)
    with plt.rc_context():
        plots.show([[image, labels]], ["image", name], [name]).canvas.draw()
        plots.bars({"CAM": {name: 50.0}}, "IoU").canvas.draw()
        assert plt.rcParams["font.family"][-1] == "STIXGeneral"
    plots._fallback.cache_clear()
    assert plots._fallback("chien, собака") is None  # which need no other


def test_of_two_fonts_with_what_is_missing_that_with_the_other_letters_is_taken(monkeypatch):
    lacked = {"few": set("dog"), "all": set(), "own": {"猫"}}
    monkeypatch.setattr(plots, "_lacked", lambda file, some: lacked.get(file, {"猫"}) & some)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["own", "few", "all"])
    plots._fallback.cache_clear()
    assert plots._fallback("猫 dog") == "all"
    plots._fallback.cache_clear()


def test_a_grid_has_a_panel_for_each_picture_and_leaves_gaps_empty():
    scores, labels = np.linspace(0, 1, 48).reshape(6, 8), np.ones((6, 8), np.uint8)
    figure = plots.show(
        [[PHOTO, scores, labels], [None, torch.from_numpy(scores)]],
        ["image", "score"],
        NAMES,
        row_titles=["first", "second"],
    )
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 0, 1, 0]
    assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "score", ""]
    assert [figure.axes[k].get_ylabel() for k in (0, 3)] == ["first", "second"]
    figure.canvas.draw()


def test_scores_of_all_panels_share_one_scale():
    figure = plots.show([[np.full((2, 2), 0.2), np.full((2, 2), 0.9)]])
    assert [axis.images[0].get_clim() for axis in figure.axes] == [(0, 1), (0, 1)]


def test_the_legend_names_the_labels_that_occur():
    labels = np.array([[0, 2], [2, VOID]], np.uint8)
    figure = plots.show([[labels, torch.tensor([[3]])]], names=NAMES)
    assert legend_of(figure) == ["background", "box", "cross", "neutral or void"]
    assert legend_of(plots.show([[labels]])) == []


@given(labels=arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 2, 3, VOID])))
def test_labels_have_their_colour_and_void_is_grey(labels):
    rgb = plots.colorize(labels, COLORS)
    assert rgb.dtype == np.uint8
    for label in range(4):
        assert (rgb[labels == label] == COLORS[label]).all()
    assert (rgb[labels == VOID] == 204).all()


def test_labels_are_drawn_over_the_photograph_of_their_row_or_column():
    labels, other = np.ones((6, 8), np.uint8), np.ones((3, 4), np.uint8)
    drawn = plots.labelled(PHOTO, labels, NAMES, text=1 / 13)
    for rows, place in (([[PHOTO, labels]], 1), ([[PHOTO], [labels]], 1)):
        picture = plots.show(rows, names=NAMES).axes[place].images[0].get_array()
        np.testing.assert_array_equal(picture, drawn)
    alone = plots.show([[PHOTO, other]], names=NAMES).axes[1].images[0].get_array()
    np.testing.assert_array_equal(alone, plots.colorize(other, plots.class_colors(3)))


def test_neutral_areas_are_brighter_than_the_background():
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = VOID
    picture = plots.labelled(np.full((40, 40, 3), 90, np.uint8), labels, NAMES)
    assert picture[:, -80:].mean() > picture[:, :80].mean() + 50


def test_an_overlay_goes_from_the_image_to_the_scores():
    scores = np.linspace(0, 1, 48).reshape(6, 8)
    np.testing.assert_array_equal(plots.overlay(PHOTO, scores, strength=0), PHOTO)
    heat = plots.overlay(PHOTO, scores, strength=1)
    np.testing.assert_array_equal(heat, plots.overlay(PHOTO // 2, scores, strength=1))
    half = plots.overlay(PHOTO, torch.from_numpy(scores), strength=0.5).astype(float)
    np.testing.assert_allclose(half, (PHOTO + heat.astype(float)) / 2, atol=1)
    np.testing.assert_array_equal(
        plots.overlay(PHOTO, scores * 9), plots.overlay(PHOTO, scores * 9)
    )


@given(y=st.integers(0, 5), x=st.integers(0, 6), gamma=st.sampled_from([2, 3.5, 5]))
def test_the_square_around_a_pixel_holds_its_affinity_to_every_neighbour(y, x, gamma):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(1, 3, 6, 7, generator=generator)
    offsets = half_plane_offsets(gamma)
    square = plots.neighbourhood(affinities(features, offsets)[0], offsets, y, x)
    radius = len(square) // 2
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            value = square[radius + dy, radius + dx]
            inside = 0 <= y + dy < 6 and 0 <= x + dx < 7 and dy**2 + dx**2 < gamma**2
            assert bool(value.isnan()) != inside
            if inside:
                apart = (features[0, :, y, x] - features[0, :, y + dy, x + dx]).abs().sum()
                torch.testing.assert_close(value, torch.exp(-apart))


def test_pairs_around_a_pixel_have_the_colours_of_their_kinds():
    labels = torch.tensor([[[0, 0, 3, 3, VOID]]])
    offsets = torch.tensor([[0, 1]])
    pairs = pair_labels(labels, offsets)
    for x, left, right in ((1, 1, 3), (2, 3, 2), (3, 2, 0)):
        grid, axis = plots.pairs_around(labels[0].numpy(), pairs, offsets, 0, x, 3).axes
        assert grid.lines[0].get_xydata().tolist() == [[x, 0]]
        drawn = np.ma.filled(axis.images[0].get_array().astype(float), np.nan)
        assert drawn[1, [0, 2]].tolist() == [left, right]
        assert np.isnan(drawn[1, 1])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(plots.PAIR_NAMES)


def test_affinities_around_cells_are_shown_beside_the_image_with_their_stars():
    offsets = half_plane_offsets(3)
    W = affinities(torch.rand(1, 4, 6, 8), offsets)[0]
    places = [(2, 1), (3, 7)]
    image, *squares, bar = plots.affinities_around(
        np.zeros((24, 32, 3), np.uint8), W, offsets, places
    ).axes
    assert [star.get_xydata().tolist() for star in image.lines] == [[[1, 2]], [[7, 3]]]
    assert [text.get_text() for text in image.texts] == ["1", "2"]
    for (y, x), axis in zip(places, squares, strict=True):
        expected = plots.neighbourhood(W, offsets, y, x).numpy()
        np.testing.assert_array_equal(axis.images[0].get_array().filled(np.nan), expected)
    assert bar.get_ylabel() == "affinity"


def test_edges_are_where_the_features_change():
    features = torch.zeros(5, 6, 8)
    features[:, :, 4:] = 2
    edges = plots.feature_edges(features)
    assert edges[:, 3].tolist() == [1] * 6
    assert edges.sum() == 6
    assert not plots.feature_edges(torch.ones(5, 6, 8)).any()
    assert plots.feature_edges(torch.rand(5, 1, 1)).shape == (1, 1)


def test_a_curve_starts_at_epoch_one():
    figure = plots.curve([3.0, 2.0, 1.5], "loss")
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 2, 3]
    assert figure.axes[0].get_ylim()[0] == 0


def test_bars_stand_in_groups_and_a_class_that_a_method_lacks_has_none():
    figure = plots.bars({"CAM": {"ball": 40.0}, "walk": {"ball": 50.0, "box": 60.0}}, "IoU")
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["ball", "box"]
    heights = [[bar.get_height() for bar in group] for group in axis.containers]
    assert heights[1] == [50, 60]
    assert heights[0][0] == 40 and np.isnan(heights[0][1])
    left = [bar.get_x() for group in axis.containers for bar in group]
    assert len(set(left)) == 4
    figure.canvas.draw()


def test_the_pipeline_names_its_seven_stages():
    figure = plots.pipeline()
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    for word in ("tags", "class activation", "affinity", "AffinityNet", "random walk", "network"):
        assert word in words
    figure.canvas.draw()


def test_a_table_has_a_line_for_each_row_and_one_decimal():
    lines = plots.markdown_table(["m", "mIoU"], [["CAM", 48.04], ["walk", 58.06], ["n", 3]])
    assert lines.split("\n") == [
        "| m | mIoU |",
        "|---|---|",
        "| CAM | 48.0 |",
        "| walk | 58.1 |",
        "| n | 3 |",
    ]


def test_a_bar_in_a_name_does_not_end_its_cell():
    table = plots.markdown_table(["class", "IoU"], [["cat|dog", 1.0]])
    assert table.splitlines()[-1] == r"| cat\|dog | 1.0 |"


def test_scores_can_be_told_apart_in_grey():
    rgb = plt.get_cmap(plots.SCORES)(np.linspace(0, 1, 32))[:, :3]
    assert (np.diff(rgb @ [0.299, 0.587, 0.114]) > 0).all()


def test_a_name_stands_in_the_largest_area_of_its_class_and_below_the_picture():
    image, labels = np.full((400, 600, 3), 90, np.uint8), np.zeros((400, 600), np.uint8)
    labels[100:300, 100:300] = labels[10:20, 500:510] = 2
    nameless, named = (plots.labelled(image, labels, ["", name]) for name in ("", "box"))
    rows, columns = np.nonzero((nameless != named).any(axis=-1))
    assert rows.min() > 180 and rows.max() < 220 and columns.min() > 160 and columns.max() < 240
    pages = [plots.with_legend(named, labels, ["", name]) for name in ("", "box")]
    assert [page.shape[1] for page in pages] == [600, 600]
    assert (pages[0][:400] == named).all() and (pages[0][400:] != pages[1][400:]).any()


def test_contours_are_light_and_void_has_no_colour():
    labels = np.zeros((400, 400), np.uint8)
    labels[:, 200:], labels[:, 300:] = 1, VOID
    picture = plots.labelled(np.full((400, 400, 3), 90, np.uint8), labels, [""])
    assert (picture[50, 199] == 255).all() and (picture[50, 299] == 255).all()
    assert (picture[50, 350] > picture[50, 50] + 50).all()  # neutral, not background
    assert np.ptp(picture[50, 350].astype(int)) == 0
    assert np.ptp(picture[50, 250].astype(int)) > 50


def test_a_legend_breaks_its_lines_and_makes_room_for_a_long_name():
    picture, labels = np.zeros((320, 100, 3), np.uint8), np.arange(1, 10)
    page = plots.with_legend(picture, labels, ["class"] * 8 + ["a name of many words" * 3])
    assert page.shape[1] > 400 and page.shape[0] > 320 + 9 * 20
    assert plots.with_legend(picture, labels * 0, ["class"]).shape[0] < 320 + 40


def test_the_colours_of_20_classes_stay_apart_for_colour_blind_eyes():
    # Machado, Oliveira and Fernandes 2009, in linear RGB
    deuteranopia = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    protanopia = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    colors = plots.class_colors(20)[1:] / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    for eyes in (np.eye(3), deuteranopia, protanopia):
        lab = _lab(np.clip(linear @ np.transpose(eyes), 0, 1))
        distances = np.linalg.norm(lab[:, None] - lab, axis=-1) + 999 * np.eye(20)
        assert distances.min() > 15  # 2 can just be seen side by side
    assert len(plots.class_colors(100)) == 101


def _lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB under D65."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(linear @ to_xyz.T / [0.9505, 1, 1.089]).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
