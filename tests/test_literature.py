"""The numbers that papers print stand complete in ``data/literature``, and fit one another."""

from __future__ import annotations

import pytest

from affinity_lib.data.literature import printed
from affinity_lib.data.voc import VOC_CLASSES
from affinity_lib.errors import InputError
from affinity_lib.evaluation import PAPER_NETWORKS

LABELS = ("background", *VOC_CLASSES)
TAGS_ALONE = ["EM-Adapt", "CCNN", "MIL+seg", "SEC", "AdvErasing", *sorted(PAPER_NETWORKS.values())]


@pytest.mark.parametrize("table", ["table2", "table3"])
def test_each_method_has_the_mean_of_its_classes(table: str):
    rows = printed(table)
    assert list(rows) == TAGS_ALONE
    without_classes = []
    for method, row in rows.items():
        assert list(row) == ["reference", *LABELS, "mean"]
        values = [row[label] for label in LABELS]
        if values == [None] * len(LABELS):
            without_classes.append(method)
            continue
        assert all(0 < value < 100 for value in values)
        assert sum(values) / len(values) == pytest.approx(row["mean"], abs=0.051)
    assert without_classes == (["AdvErasing"] if table == "table3" else [])


def test_table_4_has_all_its_rows_by_supervision():
    kinds = [row["supervision"] for row in printed("table4").values()]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    assert counts == {"image tags": 6, "points": 1, "scribbles": 2, "boxes": 3, "masks": 3}


def test_the_papers_own_rows_are_the_same_in_all_tables():
    val, test, both = printed("table2"), printed("table3"), printed("table4")
    for name in PAPER_NETWORKS.values():
        assert (val[name]["mean"], test[name]["mean"]) == (both[name]["val"], both[name]["test"])


def test_the_paper_recovers_as_much_of_full_supervision_as_it_says():
    rows = printed("table4")
    shares = {
        own: 100 * rows[f"Ours-{own}"]["test"] / rows[own]["test"]
        for own in ("DeepLab", "ResNet38")
    }
    assert {own: round(share) for own, share in shares.items()} == {"DeepLab": 86, "ResNet38": 77}


def test_every_number_of_later_work_has_its_source_and_what_it_builds_on():
    rows = printed("later")
    known = {"AffinityNet, by the same authors", "AffinityNet", *rows}
    for method, row in rows.items():
        assert row["source"].startswith("https://") and row["builds on"] in known - {method}
        assert row["supervision"] == "image tags" and row["extra data"] is None
        assert min(row["val"], row["test"]) > printed("table4")["Ours-ResNet38"]["val"]


def test_a_table_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"table9\.csv is missing"):
        printed("table9")
