"""Tables of tags are understood where their meaning is certain, and refused elsewhere."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from affinity_lib.data.tag_tables import read_table
from affinity_lib.errors import InputError


def tags_of(path: Path, content: str | bytes) -> dict[str, tuple[str, ...]]:
    path = path / "labels.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    table = read_table(path)
    assert not table.faults, table.faults
    found: dict[str, tuple[str, ...]] = {}
    for row in table.rows:
        found[row.name] = (*found.get(row.name, ()), *row.tags)
    return found


CAT_DOG = "file,tags\na.jpg,cat;dog\nb.jpg,cat\n"


@pytest.mark.parametrize(
    "content",
    [
        CAT_DOG,
        CAT_DOG.replace("\n", "\r\n"),
        CAT_DOG.replace("\n", "\r"),
        CAT_DOG.removesuffix("\n"),
        f"{CAT_DOG}\n,\n,,,\n\n",
        f"\n\n{CAT_DOG}",
        CAT_DOG.replace("\n", ",,\n"),
        codecs.BOM_UTF8 + CAT_DOG.encode(),
        CAT_DOG.encode("utf-16"),
        codecs.BOM_UTF16_BE + CAT_DOG.encode("utf-16-be"),
        "file;tags\na.jpg;cat,dog\nb.jpg;cat\n",
        'file;tags\na.jpg;"cat;dog"\nb.jpg;cat\n',
        "file\ttags\na.jpg\tcat;dog\nb.jpg\tcat\n",
        "sep=;\nfile;tags\na.jpg;cat|dog\nb.jpg;cat\n",
        'sep=;\r\nfile;tags\r\na.jpg;"cat;dog"\r\nb.jpg;cat\r\n',
        "File,Tags\na.jpg,cat;dog\nb.jpg,cat\n",
        'file, tags\na.jpg, "cat, dog"\nb.jpg, cat\n',
        '"filename","labels"\n"a.jpg","cat;dog"\n"b.jpg","cat"\n',
        "Tags,File Name\ncat;dog,a.jpg\ncat,b.jpg\n",
        "image,tags\na.jpg,cat|dog\nb.jpg,cat\n",
        'image_path,labels\na.jpg,"cat\ndog"\nb.jpg,cat\n',
        "image,tags\na.jpg,\"['cat', 'dog']\"\nb.jpg,['cat']\n",
        'image,tags\na.jpg,"[""cat"", ""dog""]"\nb.jpg,"[""cat""]"\n',
        "image;tags\na.jpg;[cat, dog]\nb.jpg;[cat]\n",
        "image;tags\na.jpg;('cat', 'dog')\nb.jpg;('cat',)\n",
        "image;tags\na.jpg;{'cat', 'dog'}\nb.jpg;cat\n",
        "filename,width,height,class\na.jpg,4,3,cat\na.jpg,4,3,dog\nb.jpg,4,3,cat\n",
        ",file,tags\n0,a.jpg,cat;dog\n1,b.jpg,cat\n",
        "filename,cat,dog\na.jpg,1,1\nb.jpg,1,0\n",
        "filename, cat, dog\na.jpg, 1, 1\nb.jpg, 1, 0\n",
        "cat;dog;bird;file\nTRUE;True;FALSE;a.jpg\ntrue;false;False;b.jpg\n",
        ",filename,dog,cat\n0,b.jpg,0.0,1.0\n1,a.jpg,1.0,1.0\n",
        "file,tags\na.jpg,cat dog\nb.jpg,cat\nc.jpg,dog\n",
        "file,tags\na.jpg,cat;dog;\nb.jpg,;cat;;\n",
        "file,tags\na.jpg,cat;\u200bdog\nb.jpg,\xa0cat\n",
        "file,tags\na.jpg,cat、dog\nb.jpg,cat，\n",
        "Unnamed: 0,filename,cat,dog\n0,a.jpg,1,1\n1,b.jpg,1,0\n",
        ",Unnamed: 0.1,Unnamed: 0,file,cat,dog\n3,1,0,a.jpg,1,1\n4,0,1,b.jpg,1,0\n",
    ],
)
def test_tables_that_mean_the_same_are_read_the_same(tmp_path: Path, content: str | bytes):
    found = tags_of(tmp_path, content)
    assert sorted(found["a.jpg"]) == ["cat", "dog"]
    assert found["b.jpg"] == ("cat",)


@pytest.mark.parametrize(
    "content",
    [
        "file,tags\na.jpg,traffic light;person\nb.jpg,person\n",
        "file,tags\na.jpg,traffic light|person\nb.jpg,person\n",
        'file,tags\na.jpg,"traffic light, person"\nb.jpg,person\n',
        "file,tags\na.jpg,\"['traffic light', 'person']\"\nb.jpg,person\n",
        "file,tags\na.jpg,traffic  light;person;\nb.jpg,person\n",
        "file,traffic light,person\na.jpg,1,1\nb.jpg,0,1\n",
    ],
)
def test_a_tag_of_two_words_stays_one(tmp_path: Path, content: str):
    assert tags_of(tmp_path, content) == {
        "a.jpg": ("traffic light", "person"),
        "b.jpg": ("person",),
    }


def test_in_a_column_of_one_tag_a_row_spaces_belong_to_names(tmp_path: Path):
    content = "ImageID,LabelName\na,Traffic light\na,Person\nb,Polar bear\n"
    assert tags_of(tmp_path, content) == {"a": ("Traffic light", "Person"), "b": ("Polar bear",)}


def test_rows_without_tags_are_kept(tmp_path: Path):
    content = "file,tags\na.jpg,cat\nb.jpg,\nc.jpg,[]\n"
    assert tags_of(tmp_path, content) == {"a.jpg": ("cat",), "b.jpg": (), "c.jpg": ()}
    content = "file,cat,dog\na.jpg,1,0\nb.jpg,0,0\n"
    assert tags_of(tmp_path, content) == {"a.jpg": ("cat",), "b.jpg": ()}
    for full, empty in (("\"('cat', 'dog')\"", "()"), ("\"{'cat', 'dog'}\"", "set()")):
        content = f"file,tags\na.jpg,{full}\nb.jpg,{empty}\n"  # as pandas writes Python's own
        found = tags_of(tmp_path, content)
        assert found["b.jpg"] == () and sorted(found["a.jpg"]) == ["cat", "dog"]


def test_spellings_that_differ_in_their_case_are_one_class(tmp_path: Path):
    content = "file,tags\na.jpg,Cat;Person\nb.jpg,cat;Person\nc.jpg,CAT;person\nd.jpg,cat\n"
    found = tags_of(tmp_path, content)
    assert found == dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), ("cat", "Person")) | {
        "d.jpg": ("cat",)
    }


def test_an_apostrophe_a_slash_and_parentheses_belong_to_names(tmp_path: Path):
    content = "file,tags\na.jpg,\"['bull\\'s eye', 'tv/monitor', 'crane (bird)', \"\"a, b\"\"]\"\n"
    names = ("bull's eye", "tv/monitor", "crane (bird)", "a, b")
    assert tags_of(tmp_path, content) == {"a.jpg": names}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must begin with the names of its columns, such as file,tags, got nothing"),
        ("name,label\na.jpg,cat\n", "must begin with the names of its columns, .* 'name,label'"),
        ("a.jpg,cat\nb.jpg,dog\n", "must begin with the names .* got 'a.jpg,cat'"),
        ("file tags\na.jpg cat\n", "must begin with the names"),
        ("file\na.jpg\n", "must begin with the names"),
        ("sep=#\nfile#tags\na.jpg#cat\n", "must begin with the names"),
        ("file,tags\n", "names no image"),
        ("file,tags\na.jpg,\n", "has no tag in any row"),
        ("file,tags\na.jpg,caf\xe9\n".encode("cp1252"), "no text in UTF-8 .* 0xe9 .*: save it as UTF-8"),
        (b"PK\x03\x04workbook", "is a workbook of a spreadsheet: save it as CSV UTF-8"),
        (CAT_DOG.encode("utf-16-le"), "has zero bytes: save it as UTF-8"),
        ('file,tags\na.jpg,"cat\n', "row 2 of .* cannot be read"),
        ('file,tags\na.jpg,"cat" dog\n', "row 2 of .* cannot be read"),
        (f"file,tags\na.jpg,{'x' * 200_000}\n", "row 2 of .* cannot be read"),
        ("file,tags,label\na.jpg,cat,dog\n", "has several columns of tags, tags, label: keep one"),
        ("file,label,confidence\na.jpg,cat,0\n", "column confidence: keep the rows whose tags are"),
        ("file,tags,\na.jpg,cat,dog\n", "column 3 of .* has no name"),
        ("file,Unnamed: 1,tags\na.jpg,dog,cat\n", "column 2 of .* has no name"),
        ("image,id,choice\na.jpg,1,cat\n", "column choice holds 'cat', .*: name the column of tags"),
        ("file,cat,dog\na.jpg,1,-1\n", "column dog holds -1: write 1 where the class is there"),
        ("file,cat,dog\na.jpg,1,2\n", "column dog holds '2', where 1 and 0 would tell"),
        ("file,cat,width\na.jpg,1,640\n", "column width holds '640'"),
        ("file,cat,dog\na.jpg,1,\n", "column dog holds ''"),
        ("file,cat,cat\na.jpg,1,0\n", "has two columns cat"),
        ("file,cat,is_valid\na.jpg,1,0\n", "column is_valid is hardly a class"),
        ("file,tags\na.jpg,cat;dog\nb.jpg,cat|dog\n", "semicolons .row 2. and by vertical bars .row"),
        ('file,tags\na.jpg,cat;dog\nb.jpg,"cat, dog"\n', "by semicolons .row 2. and by commas .row 3"),
        ("file,label\na.jpg,0\nb.jpg,1\n", "has numbers for tags .0, 1.: write the names"),
        ("file,label\na.jpg,1.0\nb.jpg,2.0\n", "has numbers for tags .1.0, 2.0.: write the names"),
        ("file,label\na.jpg,-1\nb.jpg,1\n", "has numbers for tags .-1, 1.: write the names"),
        ("file,tags\na.jpg,dining table;cat\nb.jpg,diningtable;cat\n", "write them the same"),
        ("file,tags\na.jpg,dining_table\nb.jpg,dining-table\n", "write them the same"),
        ("file,tags\na.jpg,tv/monitor\nb.jpg,tvmonitor\n", "write them the same"),
    ],
)  # fmt: skip
def test_a_table_whose_meaning_is_not_certain_is_refused(
    tmp_path: Path, content: str | bytes, message: str
):
    with pytest.raises(InputError, match=message):
        tags_of(tmp_path, content)


def test_a_table_that_is_missing_or_a_folder_is_named(tmp_path: Path):
    with pytest.raises(
        InputError, match=r"nowhere\.csv cannot be read .No such file.*: check its name"
    ):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,tags\na.jpg,traffic light person\n", "row 2 .* may be one tag or several: write "),
        ("file,label\na.jpg,golden retriever\n", "or 'golden retriever;' if it is one"),
        ("file,tags\na.jpg,cat;sofa\nb.jpg,sofa cat cat\n", "row 3 .* 'sofa;cat;cat', or 'sofa_cat"),
        ("file,tags\na.jpg,cat;dog\nb.jpg,background\n", "row 3 .* background is no tag"),
        ("file,tags\na.jpg,cat;__background__\n", "__background__ is no tag"),
        ("file,tags\na.jpg,cat;void\n", "void is no tag, it is what no tag names: take it out"),
        ("file, Unlabeled, cat\na.jpg, 0, 1\nb.jpg, 1, 0\n", "row 3 .* Unlabeled is no tag"),
        ("file,tags\na.jpg,<NA>\n", "<NA> is no name of a class"),
        ("file,tags\na.jpg,.\n", "[.] is no name of a class"),
        ("file,tags\na.jpg,nan\n", "nan is no name of a class: leave the cell of an image"),
        ("file,tags\na.jpg,#N/A\n", "#N/A is no name of a class"),
        ("file,tags\na.jpg,#NV\n", "#NV is no name of a class"),
        ("file,tags\na.jpg,—\n", "— is no name of a class"),
        ("file,tags\na.jpg,\"['cat' 'dog']\"\n", "is no list of tags: write cat;dog instead"),
        ("file,tags\na.jpg,\"['cat', ['dog']]\"\n", "is no list of tags"),
        ("file,tags\na.jpg,\"{'cat': 1}\"\n", "is no list of tags"),
        ("file,tags\na.jpg,\"['cat', 'dog'\"\n", "is no list of tags"),
        ("file,tags\na.jpg,'cat';'dog'\n", "is no plain name"),
        ("file,tags\na.jpg,„cat“\n", "is no plain name"),
        ("file,tags\na.jpg,\"[np.str_('cat'), np.str_('dog')]\"\n", "is no plain name"),
        ("file,tags\na.jpg,cat\x07\n", "is no plain name"),
        ("file,tags\na.jpg,\"[\"\"\\ud83d\"\"]\"\n", "is no plain name"),
        ("file,tags\na.jpg\n", "row 2 .* has too few cells, 1 instead of 2"),
        ("file,tags\na.jpg,cat,dog\n", "row 2 .* has too many cells"),
    ],
)  # fmt: skip
def test_a_row_whose_meaning_is_not_certain_is_a_fault(tmp_path: Path, content: str, message: str):
    (tmp_path / "labels.csv").write_text(content)
    (fault, *_) = read_table(tmp_path / "labels.csv").faults
    with pytest.raises(InputError, match=message):
        raise InputError(fault)
