"""The checks that every manifest goes through, whatever it was read from."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fluence.data.manifest import MOST_MISTAKES, clean_path
from fluence.data.readers import read_manifest
from fluence.errors import StudyError

HEADER = "path,beauty,ethnicity,sex\n"


@pytest.fixture
def read(table_set, data_of):
    """Reads a manifest from its text."""

    def read(text, dataset=None, **settings):
        data = data_of({"kind": "csv", "root": str(table_set(text)), **(dataset or {})}, **settings)
        return read_manifest(data.datasets["faces"], data)

    return read


def refusal(read, *args, **kwargs) -> str:
    with pytest.raises(StudyError) as caught:
        read(*args, **kwargs)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_columns_are_named_typed_and_grouped(read):
    manifest = read(
        "Path,path,score,rater_00,note,ethnicity,sex\n"
        "x,a/1.jpg,3.5,1,7 of 9,East Asian,Female\n"
        "y,b.png,2,NA,,white,male\n",
        {"columns": {"beauty": "score"}},
    )
    table = manifest.table
    assert list(table["image_id"]) == ["a/1", "b"]
    assert list(table["beauty"]) == [3.5, 2.0]
    assert table["rater_00"].dtype == np.float64
    assert np.isnan(table["rater_00"][1])
    assert list(table["note"]) == ["7 of 9", ""]
    assert list(table["group"]) == ["east_asian-female", "white-male"]
    assert manifest.lines == [2, 3]
    assert manifest.problems == []


def test_all_bad_numbers_are_named_at_once(read):
    rows = "a.jpg,high,x,f,31\nb.jpg,2,x,f,20-29\nc.jpg,inf,x,f,-1\n"
    message = refusal(read, HEADER.replace("sex", "sex,age") + rows)
    assert "manifest.csv" in message
    assert "line 2: beauty: 'high' is not a number" in message
    assert "line 3: age: '20-29' is not a number (write ages as years; call ranges age_range)" in message
    assert "line 4: beauty: 'inf' is not a number" in message
    assert "line 4: age: '-1' is negative" in message


@pytest.mark.parametrize("value", ["0", "-3", "2.5"])
def test_a_number_of_ratings_is_whole_and_positive(read, value):
    text = f"path,beauty,n_ratings,ethnicity,sex\na.jpg,1,{value},x,f\n"
    assert "line 2: n_ratings" in refusal(read, text)


@pytest.mark.parametrize("value", ["1_000", "0x10", "1e400", "३"])
def test_what_python_would_take_for_a_number_is_none(read, value):
    assert f"{value!r} is not a number" in refusal(read, HEADER + f"a.jpg,{value},x,f\n")


def test_a_long_list_of_mistakes_is_cut(read):
    message = refusal(read, HEADER + "".join(f"{i}.jpg,bad,x,f\n" for i in range(35)))
    assert "35 mistakes" in message
    assert message.count("is not a number") == MOST_MISTAKES
    assert "and 15 more" in message


def test_an_id_that_occurs_twice_is_named_with_both_lines(read):
    message = refusal(read, "image_id,path,beauty,ethnicity,sex\n7,a.jpg,1,x,f\n8,b.jpg,1,x,f\n7,c.jpg,1,x,f\n")
    assert "line 4: image_id: '7' is also on line 2" in message


def test_a_path_that_occurs_twice_is_named_with_both_lines(read):
    assert "line 3: image_id: 'a.jpg' is also on line 2" in refusal(read, HEADER + "a.jpg,1,x,f\na.jpg,1,x,f\n")


def test_ids_of_files_that_differ_in_their_ending_stay_apart(read):
    table = read(HEADER + "a.jpg,1,x,f\na.png,1,x,f\nb.png,1,x,f\n").table
    assert list(table["image_id"]) == ["a.jpg", "a.png", "b"]


def test_an_empty_id_is_a_mistake(read):
    assert "line 2: image_id: is empty" in refusal(read, "image_id,path,beauty,ethnicity,sex\n,a.jpg,1,x,f\n")


@pytest.mark.parametrize(
    ("path", "reason"),
    [("../a.jpg", "leaves"), ("a/../../b.jpg", "leaves"), ("/etc/a.jpg", "absolute"), ("C:\\a.jpg", "absolute")],
)
def test_paths_outside_the_root_are_refused(read, path, reason):
    assert reason in clean_path(path)[1]
    message = refusal(read, HEADER + f"{path},1,x,f\n")
    assert "line 2: path" in message
    assert reason in message


def test_windows_paths_and_blanks_are_understood(read):
    assert read(HEADER + " faces\\asian\\1.jpg , 4 , x , f\n").table["path"][0] == "faces/asian/1.jpg"


def test_a_missing_rating_is_allowed_but_not_all_of_them(read):
    assert np.isnan(read(HEADER + "a.jpg,,x,f\nb.jpg,2,x,f\n").table["beauty"][0])
    assert "beauty: not one image has a value" in refusal(read, HEADER + "a.jpg,,x,f\nb.jpg,NA,x,f\n")


def test_the_score_column_must_exist_where_it_is_needed(read):
    message = refusal(read, "path,beauti,ethnicity,sex\na.jpg,1,x,f\n")
    assert "beauty: no such column (data.score names it" in message
    assert "did you mean 'beauti'?" in message


def test_another_column_may_be_the_score(read):
    message = refusal(read, "path,charm,ethnicity,sex\na.jpg,much,x,f\n", score="charm")
    assert "line 2: charm: 'much' is not a number" in message


def test_the_columns_of_the_groups_must_exist(read):
    message = refusal(read, "path,beauty,gender\na.jpg,1,f\n", group_by=("gende",))
    assert "gende: no such column (data.group_by names it); there are: path, beauty, gender" in message
    assert "did you mean 'gender'?" in message


def test_an_image_without_a_group_value_is_kept_with_a_word(read):
    manifest = read(HEADER + "a.jpg,1,,f\nb.jpg,1,x,f\n")
    assert list(manifest.table["group"]) == ["unknown-f", "x-f"]
    (problem,) = manifest.problems
    assert (problem.image_id, problem.line, problem.kept) == ("a", 2, True)
    assert "no ethnicity" in problem.reason


def test_a_column_group_of_the_user_is_kept_aside(read):
    table = read("path,beauty,ethnicity,sex,group\na.jpg,1,x,f,mine\n").table
    assert (table["group"][0], table["source_group"][0]) == ("x-f", "mine")


def test_values_are_renamed_and_the_original_is_kept(read):
    values = {"ethnicity": {"East Asian": "asian", "Southeast Asian": "asian"}}
    text = HEADER + "a.jpg,1,East Asian,f\nb.jpg,1,Southeast Asian,f\nc.jpg,1,Black,f\n"
    table = read(text, {"values": values}).table
    assert list(table["ethnicity"]) == ["asian", "asian", "Black"]
    assert list(table["source_ethnicity"]) == ["East Asian", "Southeast Asian", "Black"]
    assert list(table["group"]) == ["asian-f", "asian-f", "black-f"]


def test_a_value_that_never_occurs_is_a_mistake(read):
    message = refusal(read, HEADER + "a.jpg,1,East Asian,f\n", {"values": {"ethnicity": {"EastAsian": "asian"}}})
    assert "values.ethnicity.EastAsian: no image has it; there are: East Asian (did you mean 'East Asian'?)" in message


def test_a_renamed_column_that_does_not_exist_is_a_mistake(read):
    message = refusal(read, HEADER + "a.jpg,1,x,f\n", {"values": {"etnicity": {"a": "b"}}})
    assert "etnicity: no such column" in message
    assert "did you mean 'ethnicity'?" in message


def test_numbers_that_are_names_stay_text(read):
    table = read("path,beauty,ethnicity,sex,person_id,code\na.jpg,1,x,f,12,007\n").table
    assert (table["person_id"][0], table["code"][0]) == ("12", "007")
    assert pd.api.types.is_float_dtype(table["beauty"])
