"""Study files: the traps of YAML, and mistakes explained all at once with key, line and what is allowed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_validator

from fluence.errors import Mistake, StudyError
from fluence.plainyaml import Document
from fluence.study import CsvDataset, Study
from fluence.studyfile import expand_root, load_study, parse_study

STUDY = """\
name: tiny
data:
  datasets:
    faces:
      kind: csv
      root: ${FACES}
  training: faces
  rated: faces
models:
  small:
    kind: vae
training:
  learning_rate: 1e-4
"""


def parse(text: str, **roots: str) -> Study:
    return parse_study(text, "study.yaml", roots)


def mistakes(text: str, **roots: str) -> list[Mistake]:
    with pytest.raises(StudyError) as caught:
        parse(text, **roots)
    assert caught.value.exit_code == 2
    return list(caught.value.mistakes)


def the_mistake(text: str) -> Mistake:
    (mistake,) = mistakes(text)
    return mistake


def values(text: str) -> object:
    return Document(text, "x.yaml").value


def refusal(text: str) -> str:
    with pytest.raises(StudyError) as caught:
        Document(text, "x.yaml")
    return str(caught.value)


# ── Values ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-4", 1e-4),
        ("1E+3", 1000.0),
        ("2.5e3", 2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0.5", -0.5),
        ("007.5", "007.5"),
        ("12", 12),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("010", "010"),
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("190:20", "190:20"),
        ("2023-01-01", "2023-01-01"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("NO", "NO"),
        ("y", "y"),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".nan", ".nan"),
        (".inf", ".inf"),
        ("=", "="),
        ("e5", "e5"),
        (".", "."),
        ("1e", "1e"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("asian-female", "asian-female"),
    ],
)
def test_a_value_is_what_it_looks_like(written: str, meant: object) -> None:
    found = values(f"a: {written}\n")
    assert found == {"a": meant}
    assert type(found["a"]) is type(meant)  # type: ignore[index]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read_back(number: float) -> None:
    assert values(f"a: {number!r}") == {"a": number}


def test_keys_are_text_as_written() -> None:
    assert values("{no: 1, 010: 2, 1: 3, true: 4, 2023-01-01: 5}") == {
        "no": 1,
        "010": 2,
        "1": 3,
        "true": 4,
        "2023-01-01": 5,
    }


def test_the_line_of_each_setting() -> None:
    document = Document("a:\n  b: 1\n\n  c:\n  - x\n  - {d: 2}\n", "x.yaml")
    assert document.lines == {"a": 1, "a.b": 2, "a.c": 4, "a.c.0": 5, "a.c.1": 6, "a.c.1.d": 6}
    assert document.line_of("a.b.nothing.here") == 2
    assert document.line_of("z") is None


def test_anchors_and_merge_keys() -> None:
    text = (
        "a: &a {x: 1, y: {z: 2}}\nb: &b {x: 5, w: 6}\nc: {<<: *a, x: 3}\nd: {<<: [*a, *b]}\ne: *a\nf: {x: 9, <<: *b}\n"
    )
    found = values(text)
    assert found["c"] == {"x": 3, "y": {"z": 2}}  # type: ignore[index]
    assert found["d"] == {"x": 1, "y": {"z": 2}, "w": 6}  # type: ignore[index]
    assert found["e"] == found["a"]  # type: ignore[index]
    assert found["f"] == {"x": 9, "w": 6}  # type: ignore[index]


def test_a_merged_mistake_is_shown_where_it_is_written() -> None:
    text = STUDY.replace("  small:\n    kind: vae\n", "  small: &s\n    kind: vae\n    width: -1\n  two:\n    <<: *s\n")
    found = mistakes(text)
    assert [(m.key, m.line) for m in found] == [("models.small.width", 12), ("models.two.width", 12)]


# ── What is no YAML, or not ours ─────────────────────────────────────────────────────────────────────────────────


def test_a_duplicate_key_names_both_lines_and_all_are_listed() -> None:
    text = refusal("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    assert "x.yaml: 2 mistakes" in text
    assert "line 4: b.c: is written twice, first on line 3 (keep one of the two)" in text
    assert "line 5: a: is written twice, first on line 1" in text


def test_two_merge_keys_are_a_duplicate() -> None:
    assert "line 3: c.<<: is written twice" in refusal("a: &a {x: 1}\nb: &b {y: 1}\nc: {<<: *a, <<: *b}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:\n\tb: 1\n", "line 2: YAML: a tab in column 1 (indent with spaces)"),
        ("a: [1, 2\nb: 3\n", "line 2: YAML: column 2: "),
        ("a: 'x\n", "line 2: YAML: column 1: found unexpected end of stream (it began on line 1)"),
        ("a: 1\n b: 2\n", "line 2: YAML: column 3: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "line 2: YAML: a second document begins"),
        ("a: *x\n", "line 1: YAML: column 4: found undefined alias 'x'"),
        ("a: 1\x07\n", "line 1: text: the character U+0007 is not allowed"),
        ("[a, b]: 1\n", "line 1: study: a key must be a word"),
        ("a: {{b}}\n", "line 1: a: a key must be a word"),
        ("a: {<<: 3}\n", "line 1: a: `<<` needs an anchor"),
        ("a: !!python/object/apply:os.system [ls]\n", "tags such as !!python/object/apply:os.system have no meaning"),
        ("a: !mine x\n", "line 1: a: tags such as !mine have no meaning"),
        ("a: !!set {x}\n", "tags such as !!set"),
        ("a: !!binary aGk=\n", "tags such as !!binary"),
        ("a: !!int abc\n", "line 1: a: 'abc' is no int"),
        ('a: "\\ud800"\n', "is no str"),
        ("- a\n- b\n", "a study is a list of settings"),
        ("just words\n", "a study is a list of settings"),
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
    ],
)
def test_refusals(text: str, words: str) -> None:
    assert words in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 3000,
        "a: " + "[" * 200 + "]" * 200,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a {<<: *a}",
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}]\n"
            for p, c in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 1000}]",
    ],
)
def test_bombs_are_refused_soon(text: str) -> None:
    start = time.perf_counter()
    assert "nested too deeply" in refusal(text)
    assert time.perf_counter() - start < 5


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"none.yaml: no such file; `fluence new NAME`"):
        load_study(tmp_path / "none.yaml")
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: a\ndescription: caf\xe9\n".encode("latin-1"))
    with pytest.raises(StudyError, match=r"line 2: encoding: byte 0xe9 is not UTF-8 \(save the file as UTF-8\)"):
        load_study(tmp_path / "latin.yaml")
    (tmp_path / "image.yaml").write_bytes(b"x" * 200_001)
    with pytest.raises(StudyError, match="larger than 200 kB"):
        load_study(tmp_path / "image.yaml")


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"\xef\xbb\xbf" + STUDY.encode())
    assert load_study(tmp_path / "s.yaml") == parse(STUDY)


# ── Mistakes in the settings ─────────────────────────────────────────────────────────────────────────────────────


def test_a_study_is_read() -> None:
    study = parse(STUDY)
    assert (study.name, study.training.learning_rate) == ("tiny", 1e-4)
    assert study.grid.seeds == (0,)


def with_line(line: str, under: str = "training:\n") -> str:
    return STUDY.replace(under, under + line + "\n")


@pytest.mark.parametrize(
    ("line", "under", "words"),
    [
        ("  epochs: -1", "training:\n", "line 13: training.epochs: must be a whole number, at least 0; found -1"),
        ("  epochs: 3.0", "training:\n", "must be a whole number, at least 0; found 3.0 (write 3)"),
        ("  epochs: 3e1", "training:\n", "found 30.0 (write 30)"),
        ("  epochs: 010", "training:\n", 'found "010" (write 10, '),
        ("  epochs: 1_000", "training:\n", 'found "1_000" (write 1000, '),
        ("  epochs: true", "training:\n", "must be a whole number, at least 0; found true"),
        ("  epochs:", "training:\n", "must be a whole number, at least 0; found nothing"),
        ("  weight_decay: 0,5", "training:\n", "(write 0.5, "),
        ("  weight_decay: .nan", "training:\n", 'must be a number, at least 0; found ".nan"'),
        ("  weight_decay: 1e999", "training:\n", "must be a number, at least 0; found Infinity"),
        ("  horizontal_flip: no", "training:\n", 'must be true or false; found "no" (write false)'),
        ("  horizontal_flip: on", "training:\n", "(write true)"),
        ("  horizontal_flip: 1", "training:\n", "must be true or false; found 1"),
        ("  schedule: cosin", "training:\n", 'must be constant or cosine; found "cosin" (did you mean cosine?)'),
        ("  precision: fp64", "training:\n", "must be auto, fp32, bf16 or fp16; found"),
        ("  epoch: 3", "training:\n", "training.epoch: is not a setting; allowed here: epochs, batch_size"),
        ("  epoch: 3", "training:\n", "(did you mean training.epochs?)"),
        ("    epochs: 3", "    kind: vae\n", "models.small.epochs: is not a setting"),
        ("    epochs: 3", "    kind: vae\n", "(it belongs under training)"),
        (
            "    latent: {kind: dens}",
            "    kind: vae\n",
            'models.small.latent.kind: must be conv or dense; found "dens"',
        ),
        (
            "    latent: {size: 3}",
            "    kind: vae\n",
            "line 12: models.small.latent.kind: is missing; it must be conv or",
        ),
        ("    latent: conv", "    kind: vae\n", "must be a section with `kind:` conv or dense"),
        ("    latent: {kind: conv, size: 3}", "    kind: vae\n", "models.small.latent.size: is not a setting"),
        ("    reconstruction: [{loss: l3}]", "    kind: vae\n", "models.small.reconstruction.0.loss: must be l1, l2"),
        ("    reconstruction: []", "    kind: vae\n", "models.small.reconstruction: must be a list"),
        ("    training: {epochs: 1.5}", "    kind: vae\n", "models.small.training.epochs: must be a whole number"),
        (
            "      columns: {beauty: 3}",
            "      kind: csv\n",
            "columns.beauty: must be text; found 3 (write it",
        ),
        (
            "  group_by: sex",
            "data:\n",
            'data.group_by: must be a list of at least one item, each text; found "sex" (write [sex])',
        ),
        ("  fit: stretch", "data:\n", "data.fit: must be crop or pad"),
    ],
)
def test_a_mistake_says_where_what_and_what_is_allowed(line: str, under: str, words: str) -> None:
    assert words in str(the_mistake(with_line(line, under)))


def test_a_missing_setting_is_shown_at_its_section() -> None:
    mistake = the_mistake(STUDY.replace("      root: ${FACES}\n", ""))
    assert (mistake.key, mistake.line) == ("data.datasets.faces.root", 4)
    assert mistake.message == "is missing; it must be text"
    assert the_mistake(STUDY.replace("name: tiny\n", "")).line is None


def test_a_misspelt_setting_is_not_also_called_missing() -> None:
    mistake = the_mistake(STUDY.replace("rated:", "ratd:"))
    assert (mistake.key, mistake.hint) == ("data.ratd", "did you mean data.rated?")


def test_an_unknown_kind() -> None:
    mistake = the_mistake(STUDY.replace("kind: csv", "kind: cvs"))
    assert (mistake.key, mistake.line) == ("data.datasets.faces.kind", 5)
    assert mistake.message == 'must be csv, folder, cfd, fairface or synthetic; found "cvs"'
    assert mistake.hint == "did you mean csv?"


def test_a_number_where_text_is_meant_is_to_be_quoted() -> None:
    text = STUDY.replace("kind: csv", "kind: fairface\n      padding: 0.25")
    assert the_mistake(text).hint == 'write it in quotes: "0.25"'
    assert parse(text.replace("0.25", '"0.25"')).data.datasets["faces"].kind == "fairface"


def test_a_name_that_is_no_name() -> None:
    mistake = the_mistake(STUDY.replace("  small:", "  my model:"))
    assert (mistake.key, mistake.line) == ("models.my model", 10)
    assert mistake.message.startswith("must be a name of at most 64 letters")


def test_a_key_that_is_named_like_a_kind() -> None:
    mistake = the_mistake(STUDY.replace("  small:\n    kind: vae", "  vae:\n    kind: vae\n    width: 0"))
    assert (mistake.key, mistake.line) == ("models.vae.width", 12)


def test_an_empty_section_is_told_from_a_missing_one() -> None:
    mistake = the_mistake(STUDY.replace("  learning_rate: 1e-4\n", "  # learning_rate: 1e-4\n"))
    assert (mistake.key, mistake.line) == ("training", 12)
    assert mistake.hint == "it is empty: give it settings, or delete the line"


def test_a_validator_names_its_key() -> None:
    mistake = the_mistake(STUDY.replace("rated: faces", "rated: cfd"))
    assert (mistake.key, mistake.line) == ("data.rated", 8)
    assert mistake.message == "no data set is called 'cfd'; there are: faces"


def test_an_unknown_model_or_data_set_may_be_a_misspelt_one() -> None:
    mistake = the_mistake(STUDY + "grid: {models: [smal]}\n")
    assert (mistake.key, mistake.line, mistake.hint) == ("grid.models", 14, "did you mean small?")
    assert the_mistake(STUDY.replace("rated: faces", "rated: face")).hint == "did you mean faces?"


def test_a_validator_may_name_several_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(Study):
        @model_validator(mode="after")
        def _two_mistakes(self) -> Study:
            raise ValueError("data.rated: is odd\ntraining: is odd too")

    monkeypatch.setattr("fluence.studyfile.Study", Strict)
    assert [str(mistake) for mistake in mistakes(STUDY)] == [
        "line 8: data.rated: is odd",
        "line 12: training: is odd too",
    ]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_studies_of_the_repository_are_valid(path: Path) -> None:
    assert load_study(path).name == path.stem


def test_all_mistakes_at_once_in_the_order_of_the_file() -> None:
    text = STUDY.replace("tiny", "ti ny").replace("kind: vae", "kind: vea").replace("1e-4", "fast")
    found = mistakes(text)
    assert [m.line for m in found] == [1, 11, 13]
    with pytest.raises(StudyError, match=r"^study.yaml: 3 mistakes\n  line 1: name: "):
        parse(text)


def test_pydantic_does_not_show_through() -> None:
    models = "{a: 1, b: {kind: vae, width: [], reconstruction: 1}}"
    text = f"name: {{}}\ndata: []\nmodels: {models}\ngrid: {{models: 1, seeds: x}}\n"
    shown = "\n".join(map(str, mistakes(text)))
    for word in ("Input should", "tuple[", "literal[", "pydantic", "Value error", "dict"):
        assert word not in shown


# ── Roots ────────────────────────────────────────────────────────────────────────────────────────────────────────


def root_of(study: Study) -> str:
    dataset = study.data.datasets["faces"]
    assert isinstance(dataset, CsvDataset)
    return dataset.root


def test_a_root_is_kept_as_written_and_can_be_replaced() -> None:
    assert root_of(parse(STUDY)) == "${FACES}"
    assert root_of(parse(STUDY, faces="/elsewhere")) == "/elsewhere"
    assert root_of(parse(STUDY.replace("      root: ${FACES}\n", ""), faces="/elsewhere")) == "/elsewhere"


def test_a_root_for_an_unknown_data_set() -> None:
    with pytest.raises(StudyError, match=r"--data face=/x: study.yaml has no such data set; there are: faces; did you"):
        parse(STUDY, face="/x")


def test_a_root_for_faces_that_fluence_draws() -> None:
    text = STUDY.replace("      kind: csv\n      root: ${FACES}\n", "      kind: synthetic\n")
    with pytest.raises(StudyError, match="draws this data set itself"):
        parse(text, faces="/x")


def test_roots_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACES", "/data/faces")
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_root("${FACES}/cfd") == Path("/data/faces/cfd")
    assert expand_root("$FACES/cfd") == Path("/data/faces/cfd")
    assert expand_root("~/cfd") == Path("/home/me/cfd")
    assert expand_root("here/$/x") == Path("here/$/x")


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("FACES", raising=False)
    else:
        monkeypatch.setenv("FACES", value)
    with pytest.raises(StudyError, match="set FACES, or give --data faces=FOLDER"):
        expand_root("${FACES}", "faces")


def test_a_number_among_numbers_needs_no_quotes() -> None:
    text = STUDY.replace("    kind: vae\n", "    kind: vae\n    separable: {kernel_px: 4}\n", 1)
    mistake = the_mistake(text)
    assert (mistake.message, mistake.hint) == ("must be 3, 5, 7, 9 or 11; found 4", "")
