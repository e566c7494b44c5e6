"""The evaluator against cases computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from affinity_lib.data.files import load_json, save_json
from affinity_lib.data.voc import VOCData, write_labels
from affinity_lib.errors import InputError
from affinity_lib.evaluation import (
    PAPER_TABLE1,
    VOID,
    Evaluation,
    confusion,
    image_miou,
    iou,
)
from affinity_lib.stages.evaluation import evaluate

LABELS = 4
CONDITIONS = {"split": "train", "num_images": 1, "uses_tags": True}
label_maps = arrays(np.uint8, (6, 7), elements=st.integers(0, LABELS - 1))
truths = arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, VOID]))


@given(truths, label_maps)
def test_the_matrix_counts_every_pixel_that_is_not_void_once(truth, predicted):
    matrix = confusion(truth, predicted, LABELS)
    assert matrix.sum() == (truth != VOID).sum()
    for label in range(LABELS):
        assert matrix[label].sum() == (truth == label).sum()
        assert matrix[:, label].sum() == ((predicted == label) & (truth != VOID)).sum()


@given(truths, label_maps)
def test_iou_equals_intersection_over_union_of_sets_of_pixels(truth, predicted):
    measured = iou(confusion(truth, predicted, LABELS))
    for label in range(LABELS):
        true, said = truth == label, (predicted == label) & (truth != VOID)
        union = (true | said).sum()
        expected = 100 * (true & said).sum() / union if union else np.nan
        np.testing.assert_allclose(measured[label], expected)


@given(truths, label_maps, st.permutations(range(LABELS)))
def test_renaming_the_classes_permutes_the_result(truth, predicted, order):
    renamed = np.array([*order, *[0] * (VOID - LABELS), VOID])
    before = iou(confusion(truth, predicted, LABELS))
    after = iou(confusion(renamed[truth], renamed[predicted], LABELS))
    np.testing.assert_allclose(after[list(order)], before)


@given(truths.filter(lambda truth: (truth != VOID).any()))
def test_the_truth_itself_scores_a_hundred(truth):
    matrix = confusion(truth, truth, LABELS)
    result = Evaluation.from_confusion(matrix, ["a", "b", "c"], **CONDITIONS)
    assert result.miou == result.pixel_accuracy == 100
    assert len(result.per_class) == len(set(truth[truth != VOID].tolist()))


def test_the_papers_numbers_are_those_of_its_tables():
    assert [*PAPER_TABLE1.values()] == [
        ("CAM", 48.0),
        ("CAM + dCRF", None),
        ("CAM + RW", 58.1),
        ("CAM + RW + dCRF", 59.7),
    ]


@given(truths, label_maps)
def test_the_miou_of_an_image_is_over_the_labels_that_occur_in_it(truth, labels):
    if (truth == VOID).all():
        assert image_miou(truth, labels, LABELS) == 0
        return
    scores = iou(confusion(truth, labels, LABELS))
    assert image_miou(truth, labels, LABELS) == pytest.approx(np.nanmean(scores))
    assert image_miou(truth, labels, LABELS + 5) == pytest.approx(np.nanmean(scores))


def test_what_is_predicted_on_void_does_not_count():
    truth = np.array([[0, VOID], [1, VOID]])
    one = confusion(truth, np.array([[0, 1], [1, 0]]), 2)
    other = confusion(truth, np.array([[0, VOID], [1, 77]]), 2)
    np.testing.assert_array_equal(one, other)


def test_a_hand_computed_case_is_exact():
    truth = np.array([[0, 0, 0, 1], [0, 2, 2, VOID]])
    predicted = np.array([[0, 0, 1, 1], [2, 2, 0, 1]])
    matrix = confusion(truth, predicted, 4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[2, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    result = Evaluation.from_confusion(matrix, ["cat", "dog", "cow"], **CONDITIONS)
    # background 2 / (4 + 3 - 2), cat 1 / (1 + 2 - 1), dog 1 / (2 + 2 - 1); no cow anywhere
    assert result.per_class == {"background": 40.0, "cat": 50.0, "dog": pytest.approx(100 / 3)}
    assert result.miou == pytest.approx((40 + 50 + 100 / 3) / 3)
    assert result.pixel_accuracy == pytest.approx(100 * 4 / 7)


def test_a_class_that_is_only_predicted_counts_as_zero():
    matrix = confusion(np.zeros((1, 4), int), np.array([[0, 0, 0, 1]]), 2)
    result = Evaluation.from_confusion(matrix, ["cat"], **CONDITIONS)
    assert result.per_class == {"background": 75.0, "cat": 0.0}
    assert result.miou == 37.5


@pytest.mark.parametrize("bad", [VOID, 3])
def test_a_prediction_must_label_every_pixel_that_counts(bad: int):
    with pytest.raises(InputError, match=r"predicted labels must be 0\.\.2"):
        confusion(np.array([[0, 1]]), np.array([[0, bad]]), 3)


def test_a_true_label_of_no_class_is_refused():
    with pytest.raises(InputError, match=r"true labels must be 0\.\.2"):
        confusion(np.array([[0, 3]]), np.array([[0, 0]]), 3)


def test_labels_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"\(2, 3\) do not fit the true ones of shape \(3, 2\)"):
        confusion(np.zeros((3, 2), int), np.zeros((2, 3), int), 3)


def test_without_a_mask_nothing_is_measured_and_the_statement_says_so():
    matrix = confusion(np.full((2, 2), VOID), np.zeros((2, 2), int), 2)
    result = Evaluation.from_confusion(matrix, ["cat"], **CONDITIONS)
    assert np.isnan(result.miou) and list(result.per_class) == ["background", "cat"]
    assert result.statement() == "train split, not evaluated: there are no masks"


def test_a_matrix_of_another_number_of_classes_is_refused():
    matrix = np.eye(2, dtype=int)
    with pytest.raises(InputError, match="does not fit background and 2 classes"):
        Evaluation.from_confusion(matrix, ["cat", "dog"], **CONDITIONS)


@pytest.mark.parametrize(
    ("conditions", "statement"),
    [
        (
            {"chosen_with": {"alpha": "train"}},
            "train split, 400 images, tags used, alpha chosen with these masks, no dCRF",
        ),
        (
            {"chosen_with": {"alpha": "train", "beta": "train", "steps": "val"}, "crf": True},
            (
                "train split, 400 images, tags used, alpha and beta chosen with these masks, "
                "steps chosen with the masks of the val split, dCRF"
            ),
        ),
        (
            {"uses_tags": False, "num_images": 1},
            "train split, 1 image, no tags used, nothing chosen with masks, no dCRF",
        ),
    ],
)
def test_the_statement_says_how_a_number_came_about(conditions: dict, statement: str):
    full = CONDITIONS | {"num_images": 400} | conditions
    assert Evaluation.from_confusion(np.eye(2, dtype=int), ["cat"], **full).statement() == statement


@pytest.fixture
def data(tmp_path: Path) -> VOCData:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    write_labels(tmp_path / "SegmentationClass" / "a.png", np.array([[0, 1], [1, VOID]]))
    write_labels(tmp_path / "SegmentationClass" / "b.png", np.array([[0, 0, 2]]))
    return VOCData(tmp_path)


def test_pixels_of_all_images_are_summed_before_dividing(data: VOCData, tmp_path: Path):
    said = {"a": np.array([[0, 1], [0, 0]]), "b": np.array([[0, 2, 2]])}
    result = evaluate(
        data, iter("ab"), said.__getitem__, split="val", uses_tags=False, chosen_with={"t": "train"}
    )
    # background 2 / (3 + 3 - 2), cat 1 / (2 + 1 - 1), dog 1 / (1 + 2 - 1)
    assert result.per_class == {"background": 50.0, "cat": 50.0, "dog": 50.0}
    assert result.pixel_accuracy == pytest.approx(100 * 4 / 6)
    assert result.num_images == 2
    save_json(tmp_path / "metrics.json", result.to_dict())
    assert Evaluation(**load_json(tmp_path / "metrics.json")) == result


def test_a_prediction_of_another_size_names_its_image(data: VOCData):
    with pytest.raises(InputError, match="image b cannot be evaluated: .* do not fit"):
        evaluate(data, "b", lambda _: np.zeros((2, 2), int), split="val", uses_tags=False)


def test_images_without_a_mask_are_not_predicted_and_the_statement_counts_them(data: VOCData):
    masks = {"b": data.mask("b")}
    result = evaluate(data, "cbd", masks.__getitem__, split="val", uses_tags=False)
    assert (result.miou, result.num_images, result.without_mask) == (100, 1, 2)
    statement = "val split, 1 of 3 images (the others have no mask), no tags used, "
    assert result.statement() == f"{statement}nothing chosen with masks, no dCRF"


@pytest.mark.parametrize(
    ("ids", "why"), [("cd", "there are no masks"), ("", "there are no images")]
)
def test_where_nothing_can_be_evaluated_the_statement_says_why(data: VOCData, ids: str, why: str):
    result = evaluate(data, ids, {}.__getitem__, split="val", uses_tags=False)
    assert np.isnan(result.miou) and np.isnan(result.pixel_accuracy) and result.num_images == 0
    assert list(result.per_class) == ["background", "cat", "dog"]
    assert result.statement() == f"val split, not evaluated: {why}"
