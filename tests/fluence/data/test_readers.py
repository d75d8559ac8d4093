"""Each kind of data set, on an invented miniature of its real layout."""

from __future__ import annotations

import math
import shutil

import openpyxl
import pytest

from fluence.data.cfd import WORKBOOK
from fluence.data.readers import READERS, fingerprint, read_manifest
from fluence.errors import StudyError
from fluence.study import Dataset

HEADER = "path,beauty,ethnicity,sex\n"


@pytest.fixture
def read(data_of):
    """Reads the manifest of one data set."""

    def read(dataset, **settings):
        data = data_of(dataset, **settings)
        return read_manifest(data.datasets["faces"], data)

    return read


@pytest.fixture
def print_of(data_of):
    """The fingerprint of one data set."""

    def print_of(dataset, **settings):
        data = data_of(dataset, **settings)
        return fingerprint(data.datasets["faces"], data)

    return print_of


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(StudyError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_every_kind_of_the_schema_has_a_reader():
    kinds = {kind.model_fields["kind"].annotation.__args__[0] for kind in Dataset.__origin__.__args__}
    assert set(READERS) == kinds


# ── Any folder ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_that_does_not_exist_is_named(read, tmp_path):
    message = refusal(read, {"kind": "csv", "root": str(tmp_path / "none")})
    assert "data.datasets.faces.root" in message
    assert "no such folder" in message


def test_a_variable_that_is_not_set_is_named(read, monkeypatch):
    monkeypatch.delenv("MY_FACES", raising=False)
    assert "MY_FACES" in refusal(read, {"kind": "folder", "root": "${MY_FACES}/x"})


def test_a_variable_is_expanded(read, monkeypatch, table_set):
    monkeypatch.setenv("MY_FACES", str(table_set(HEADER + "a.jpg,1,x,f\n").parent))
    assert len(read({"kind": "csv", "root": "$MY_FACES/faces"}).table) == 1


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + HEADER.encode() + b"a.jpg,3.5,x,f\n",
        "path;beauty;ethnicity;sex\r\na.jpg;3,5;x;f\r\n",
        "path\tbeauty\tethnicity\tsex\na.jpg\t3.5\tx\tf\n",
        '"path","beauty","ethnicity","sex"\n"a.jpg","3.5","x","f"\n',
        "\n" + HEADER + "\n,,,\na.jpg,3.5,x,f,,\n\n",
    ],
    ids=["byte order mark", "semicolons", "tabs", "quotes", "blank lines and cells"],
)
def test_csv_files_as_people_have_them(read, table_set, text):
    (row,) = read({"kind": "csv", "root": str(table_set(text))}).table.to_dict("records")
    assert (row["path"], row["beauty"], row["ethnicity"], row["sex"]) == ("a.jpg", 3.5, "x", "f")


def test_odd_rows_are_listed_with_their_lines(read, table_set):
    text = HEADER + 'a.jpg,1,"x\ny",f\nb.jpg,1,x\n,2,x,f\nc.jpg,1,x,f,extra\nd.jpg,1,x,f\n'
    manifest = read({"kind": "csv", "root": str(table_set(text))})
    assert list(manifest.table["path"]) == ["a.jpg", "d.jpg"]
    assert manifest.lines == [2, 7]
    assert [(p.line, p.reason, p.kept) for p in manifest.problems] == [
        (4, "has 3 cells, the header names 4", False),
        (6, "has 5 cells, the header names 4", False),
        (5, "names no image: path is empty", False),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty file"),
        ("\n \n", "empty file"),
        (HEADER, "no rows below the header"),
        ("path,beauty,path,sex\na,1,b,f\n", "line 1: path: names two columns"),
        (HEADER + 'a.jpg,1,"x,f\nb.jpg,1,x,f\n', "line 2: quotes"),
        (HEADER.encode() + b"a.jpg,1,x,f\n\xe9.jpg,1,x,f\n", "line 3: encoding: byte 0xe9 is not UTF-8"),
    ],
    ids=["empty", "blank", "no rows", "column twice", "open quote", "latin-1"],
)
def test_files_that_are_no_table_are_refused(read, table_set, text, words):
    assert words in refusal(read, {"kind": "csv", "root": str(table_set(text))})


def test_a_table_without_path_names_its_columns(read, table_set):
    message = refusal(read, {"kind": "csv", "root": str(table_set("paths,beauty\na.jpg,1\n"))})
    assert "there are: paths, beauty" in message
    assert "did you mean 'paths'?" in message


def test_a_mapped_column_that_does_not_exist_is_named(read, table_set):
    root = str(table_set("file,score,ethnicity,sex\na.jpg,1,x,f\n"))
    message = refusal(read, {"kind": "csv", "root": root, "columns": {"path": "files", "beauty": "scor"}})
    assert "files: no such column (columns.path names it)" in message
    assert "did you mean 'file'?" in message
    assert "did you mean 'score'?" in message


def test_one_column_may_have_two_meanings_and_displaced_ones_are_kept(read, table_set):
    root = str(table_set("file,beauty,mean,ethnicity,sex\na.jpg,9,1,x,f\n"))
    columns = {"path": "file", "person_id": "file", "beauty": "mean"}
    (row,) = read({"kind": "csv", "root": root, "columns": columns}).table.to_dict("records")
    assert (row["path"], row["person_id"], row["beauty"]) == ("a.jpg", "a.jpg", 1)
    assert row["source_beauty"] == "9"
    assert "mean" not in row
    assert "file" not in row


def test_a_missing_manifest_names_what_is_there(read, table_set):
    root = str(table_set(HEADER))
    message = refusal(read, {"kind": "csv", "root": root, "manifest": "manifests.csv"})
    assert "did you mean 'manifest.csv'?" in message


# ── Folders ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_folders_name_the_groups(read, tmp_path, save_image, data_of):
    for name in ("asian/female/b.jpg", "asian/female/session 2/a.JPG", "white/male/c.png"):
        save_image(tmp_path / name)
    for litter in (".DS_Store", "asian/Thumbs.db", "asian/female/.hidden.jpg"):
        (tmp_path / litter).write_text("x")
    (tmp_path / "asian" / "notes.txt").write_text("x")
    save_image(tmp_path / "asian" / "lost.jpg")
    data = data_of({"kind": "folder", "root": str(tmp_path)})
    data = data.model_copy(update={"rated": "elsewhere"})
    manifest = read_manifest(data.datasets["faces"], data)
    assert list(manifest.table["image_id"]) == ["asian/female/b", "asian/female/session 2/a", "white/male/c"]
    assert list(manifest.table["group"]) == ["asian-female", "asian-female", "white-male"]
    assert [(p.path, p.reason) for p in manifest.problems] == [
        ("asian/lost.jpg", "not in a folder ethnicity/sex"),
        ("asian/notes.txt", "not an image by its ending"),
    ]


def test_a_folder_without_images_is_refused(read, tmp_path):
    assert "no image lies where expected, such as ethnicity/sex/x.jpg" in refusal(
        read, {"kind": "folder", "root": str(tmp_path)}
    )


def test_links_are_followed_once(tmp_path, save_image):
    from fluence.data.tree import files_below

    save_image(tmp_path / "there" / "a.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there" / "loop").symlink_to(tmp_path / "root")
    assert list(files_below(tmp_path / "root")) == ["link/a.jpg"]


# ── CFD ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def cfd(root, *subsets, **options):
    return {"kind": "cfd", "root": str(root), "subsets": subsets or ("CFD",), **options}


def test_cfd_joins_neutral_photographs_to_their_norms(read, cfd_root):
    """Mistake: rows and file names of different length, joined by their order."""
    manifest = read(cfd(cfd_root))
    table = manifest.table.set_index("image_id")
    assert list(table.index) == ["CFD-AF-200-228-N", "CFD-BM-001-014-N", "CFD-LF-250-160-N", "CFD-WM-009-002-N"]
    first = table.loc["CFD-AF-200-228-N"]
    assert first["path"] == "Images/CFD/AF-200/CFD-AF-200-228-N.jpg"
    assert (first["beauty"], first["beauty_sd"], first["age"]) == (3.1, 1.25, 32.5)
    assert (first["score_variable"], first["rater_pool"], first["person_id"]) == ("R013", "US", "AF-200")
    assert list(table["group"]) == ["asian-female", "black-male", "latino-female", "white-male"]
    assert first["LuminanceMedian"] == 170
    assert manifest.problems == []
    assert list(manifest.lines) == [10, 11, 12, 13]


def test_cfd_multiracial_lies_flat(read, cfd_root):
    table = read(cfd(cfd_root, "CFD-MR")).table
    assert list(table["group"]) == ["multiracial-female", "multiracial-male"]
    assert list(table["beauty"]) == [4.5, 3.25]


@pytest.mark.parametrize(("pool", "beauty"), [("US", 5.5), ("INDIA", 6.5)])
def test_cfd_india_has_two_rater_pools_and_keys_without_a_dash(read, cfd_root, pool, beauty):
    manifest = read(cfd(cfd_root, "CFD-INDIA", india_raters=pool))
    table = manifest.table.set_index("image_id")
    assert table.loc["CFD-IF-601-519-N", "beauty"] == beauty
    assert set(table["score_variable"].iloc[:2]) == {"R013B"}
    assert set(table["rater_pool"]) == {pool}
    assert table.loc["CFD-IF-644-306-1-N", "beauty"] == beauty - 1
    assert math.isnan(table.loc["CFD-IF-644-306-2-N", "beauty"])


def test_cfd_names_photographs_without_norms_and_norms_without_a_photograph(read, cfd_root, save_image):
    save_image(cfd_root / "Images" / "CFD-INDIA" / "portrait.jpg")
    problems = read(cfd(cfd_root, "CFD-INDIA")).problems
    assert {(p.image_id or p.path, p.kept) for p in problems if p.path} == {
        ("CFD-IF-644-306-2-N", True),
        ("CFD-IM-719-221-N", True),
        ("Images/CFD-INDIA/portrait.jpg", False),
    }
    (row,) = [p for p in problems if not p.path]
    assert (row.line, row.reason) == (12, "IM-719-220 is in the workbook, but has no neutral photograph")


def test_cfd_is_found_one_folder_up(read, cfd_root):
    assert read(cfd(cfd_root.parent)).table["path"][0].startswith("CFD Version 3.0/Images/CFD/")


def test_cfd_subsets_can_be_pooled_on_purpose(read, cfd_root):
    table = read(cfd(cfd_root, "CFD", "CFD-MR", "CFD-INDIA")).table
    assert list(table["subset"].value_counts(sort=False)) == [4, 2, 4]


def test_a_bad_rating_in_the_workbook_is_named_with_its_sheet_and_row(read, cfd_root):
    book = openpyxl.load_workbook(cfd_root / WORKBOOK)
    book["CFD U.S. Norming Data"]["E11"] = "pretty"
    book.save(cfd_root / WORKBOOK)
    message = refusal(read, cfd(cfd_root))
    assert "sheet" not in message or "CFD U.S. Norming Data" in message
    assert "line 11: beauty: 'pretty' is not a number" in message


def test_cfd_without_its_parts_is_refused(read, cfd_root):
    for photograph in (cfd_root / "Images" / "CFD-MR").iterdir():
        photograph.unlink()
    assert "no neutral photograph" in refusal(read, cfd(cfd_root, "CFD-MR"))
    shutil.rmtree(cfd_root / "Images" / "CFD-MR")
    assert "holds CFD, CFD-INDIA" in refusal(read, cfd(cfd_root, "CFD-MR"))
    book = openpyxl.load_workbook(cfd_root / WORKBOOK)
    del book["CFD-I INDIA Norming Data"]
    book.save(cfd_root / WORKBOOK)
    assert "no sheet 'CFD-I INDIA Norming Data'" in refusal(read, cfd(cfd_root, "CFD-INDIA", india_raters="INDIA"))
    (cfd_root / WORKBOOK).write_bytes(b"PK nonsense")
    assert "not a readable workbook" in refusal(read, cfd(cfd_root))
    (cfd_root / WORKBOOK).unlink()
    assert "is not there; the folder holds Images" in refusal(read, cfd(cfd_root))


# ── FairFace ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def read_fairface(data_of):
    def read(root, **options):
        data = data_of({"kind": "fairface", "root": str(root), **options}).model_copy(update={"rated": "elsewhere"})
        return read_manifest(data.datasets["faces"], data)

    return read


@pytest.mark.parametrize(("padding", "margin"), [("0.25", "025"), ("1.25", "125")])
def test_fairface_in_both_paddings(read_fairface, fairface_root, padding, margin):
    manifest = read_fairface(fairface_root, padding=padding)
    table = manifest.table
    assert list(table["image_id"]) == ["train/1", "train/2", "train/3", "val/1"]
    assert list(table["split"]) == ["train", "train", "train", "val"]
    assert list(table["sex"]) == ["male", "female", "female", "male"]
    assert list(table["age_range"]) == ["50-59", "more than 70", "0-2", "3-9"]
    assert list(table["group"])[:2] == ["east_asian-male", "latino_hispanic-female"]
    assert all((fairface_root / path).is_file() for path in table["path"])
    assert f"margin{margin}" in table["path"][0]
    assert manifest.lines == [2, 3, 4, 2]


def test_fairface_may_be_given_by_the_folder_of_its_images(read_fairface, fairface_root):
    images = fairface_root / "fairface-img-margin025-trainval"
    table = read_fairface(images).table
    assert all((images / path).is_file() for path in table["path"])
    with pytest.raises(StudyError, match="no folder fairface-img-margin125-trainval"):
        read_fairface(images, padding="1.25")


def test_fairface_races_are_mapped_onto_other_groups(read_fairface, fairface_root):
    values = {"ethnicity": {"East Asian": "asian", "Southeast Asian": "asian"}}
    table = read_fairface(fairface_root, values=values).table
    assert list(table["group"])[::3] == ["asian-male", "asian-male"]
    assert table["source_ethnicity"][3] == "Southeast Asian"


def test_fairface_names_the_file_of_a_mistake(read_fairface, fairface_root):
    labels = fairface_root / "fairface_label_val.csv"
    labels.write_text(labels.read_text() + "../val/9.jpg,3-9,Male,Black,False\n")
    with pytest.raises(StudyError, match=r"line 3: fairface_label_val\.csv: path"):
        read_fairface(fairface_root)
    labels.write_text("file,age,sex,race\nval/1.jpg,3-9,Male,Black\n")
    with pytest.raises(StudyError, match="gender: no such column"):
        read_fairface(fairface_root)
    labels.unlink()
    with pytest.raises(StudyError, match="no such file"):
        read_fairface(fairface_root)


# ── Synthetic ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_synthetic_faces_are_listed_with_their_ratings(read):
    manifest = read({"kind": "synthetic", "num_images": 12, "num_ethnicities": 2, "num_raters": 3})
    assert manifest.root is None
    assert manifest.table["image_id"].is_unique
    assert manifest.table["beauty"].notna().all()
    assert manifest.table["group"].nunique() == 4
    assert {"rater_00", "rater_01", "rater_02"} <= set(manifest.table)


# ── Fingerprints ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fingerprint_does_not_depend_on_the_place(print_of, table_set, tmp_path):
    root = table_set(HEADER + "a.jpg,1,x,f\n", ("a.jpg",))
    before = print_of({"kind": "csv", "root": str(root)})
    shutil.copytree(root, tmp_path / "copy")
    assert print_of({"kind": "csv", "root": str(tmp_path / "copy")}) == before
    assert print_of({"kind": "csv", "root": str(root), "redistribute": True}) == before


def test_a_fingerprint_of_a_table_sees_table_images_and_settings(print_of, table_set, save_image):
    root = table_set(HEADER + "a.jpg,1,x,f\n", ("a.jpg",))
    dataset = {"kind": "csv", "root": str(root)}
    seen = {print_of(dataset), print_of({**dataset, "columns": {"beauty": "beauty"}})}
    save_image(root / "a.jpg", (30, 30))
    seen.add(print_of(dataset))
    (root / "a.jpg").unlink()
    seen.add(print_of(dataset))
    (root / "manifest.csv").write_text(HEADER + "a.jpg,2,x,f\n")
    seen.add(print_of(dataset))
    assert len(seen) == 5


def test_a_fingerprint_of_folders_sees_names_and_sizes(print_of, tmp_path, save_image):
    dataset = {"kind": "folder", "root": str(tmp_path)}
    save_image(tmp_path / "x" / "f" / "a.png")
    seen = {print_of(dataset)}
    save_image(tmp_path / "x" / "f" / "a.png", (30, 30))
    seen.add(print_of(dataset))
    (tmp_path / "x" / "f" / "a.png").rename(tmp_path / "x" / "f" / "b.png")
    seen.add(print_of(dataset))
    assert len(seen) == 3


def test_a_fingerprint_of_cfd_sees_workbook_photographs_and_pool(print_of, cfd_root, save_image):
    seen = {print_of(cfd(cfd_root)), print_of(cfd(cfd_root, "CFD-MR")), print_of(cfd(cfd_root, india_raters="INDIA"))}
    save_image(cfd_root / "Images" / "CFD" / "WF-001" / "CFD-WF-001-003-N.jpg")
    seen.add(print_of(cfd(cfd_root)))
    book = openpyxl.load_workbook(cfd_root / WORKBOOK)
    book["CFD U.S. Norming Data"]["E10"] = 5
    book.save(cfd_root / WORKBOOK)
    seen.add(print_of(cfd(cfd_root)))
    assert len(seen) == 5


def test_a_fingerprint_of_fairface_sees_labels_and_names(print_of, fairface_root):
    dataset = {"kind": "fairface", "root": str(fairface_root)}
    seen = {print_of(dataset)}
    (fairface_root / "fairface-img-margin025-trainval" / "val" / "1.jpg").unlink()
    seen.add(print_of(dataset))
    labels = fairface_root / "fairface_label_val.csv"
    labels.write_text(labels.read_text().replace("3-9", "0-2"))
    seen.add(print_of(dataset))
    assert len(seen) == 3


def test_a_fingerprint_of_synthetic_faces_sees_their_settings(print_of):
    assert print_of({"kind": "synthetic"}) == print_of({"kind": "synthetic"})
    assert print_of({"kind": "synthetic"}) != print_of({"kind": "synthetic", "seed": 1})
