"""What a YAML file may say, what it means, and the message for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roadmap.config import RunConfig
from roadmap.errors import ConfigError, Mark
from roadmap.steps import flat_text, load_roadmap, resolve
from roadmap.strict_yaml import parse_yaml, read_yaml, show, write_yaml

NASTY = (
    "00008", "9816e70646543237", "1e5", "08", "0x10", "1_000", "+1", "1:30", "2020-01-01",
    ".5", ".inf", ".NaN", "yes", "true", "null", "~",
    "", " a", "a ", "#", "a #b", ": ", "a: b", "a:", "-", "- a", "---", "...",
    "&a", "*a", "!a", "%a", "@a", "`a", "<<", "=", "?", "|", ">",
    "[", "{a}", "a, b", "'", '"', "\\", "a\nb", "\n a\n\n b ",
    "\t", "\r\n", "\x07", "\x7f", "\x85", "\u2028", "\ufeff", "naïve", "☃ 😀",
)  # fmt: skip
texts = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]))
scalars = (
    texts
    | st.none()
    | st.booleans()
    | st.integers(1 - 10**18, 10**18 - 1)
    | st.floats(allow_nan=False)
    | st.sampled_from([1e-6, 1e22])
)
values = scalars | st.lists(scalars).map(tuple)
examples = settings(max_examples=300, deadline=None, derandomize=True)


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("4E3", 4000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("7", 7),
        ("+7", 7),
        ("-0", 0),
        ("017", 17),
        ("08", 8),
        ("0x10", "0x10"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("true", True),
        ("False", False),
        ("tRue", "tRue"),
        ("null", None),
        ("~", None),
        ("", None),
        ('"7"', "7"),
        ("'1e-6'", "1e-6"),
        ('"true"', "true"),
        ("''", ""),
        ("|\n  7", "7"),
        ("[1, 2.0, x, [on]]", (1, 2.0, "x", ("on",))),
        ("{b: 1, c: {d: 1e-6}}", {"b": 1, "c": {"d": 1e-6}}),
    ],
)
def test_a_value_means(text: str, value: Any) -> None:
    read = parse_yaml(f"a: {text}", "f.yaml").plain()["a"]
    assert (read, type(read)) == (value, type(value))


def same(one: Any, other: Any) -> bool:
    """Of the same value and type; repr tells 0.0 from -0.0, and the types of what is in a tuple."""
    return (one, type(one), repr(one)) == (other, type(other), repr(other))


@examples
@given(values)
def test_what_is_written_reads_back_equal(value: Any) -> None:
    assert same(parse_yaml(write_yaml({"a": {"b": value}}), "f.yaml").plain(), {"a": {"b": value}})
    assert same(parse_yaml(show(value), "--set").plain(), value)


@pytest.mark.parametrize(
    "value",
    [*NASTY, NASTY, (), ("",), 1e-6, 1e22, float("inf"), float("-inf"), None, True, (None, True, 0, -0.0)],
)
def test_a_nasty_value_reads_back_equal(value: Any) -> None:
    assert same(parse_yaml(write_yaml({"a": value}), "f.yaml").plain(), {"a": value})
    assert same(parse_yaml(show(value), "--set").plain(), value)
    assert show(value).isprintable()


def test_what_is_there_twice_is_written_twice() -> None:
    twice = [1, 2]
    assert parse_yaml(write_yaml({"a": twice, "b": twice}), "f.yaml").plain() == {"a": (1, 2), "b": (1, 2)}


TEXTS = (
    "data.train_split",
    "data.val_split",
    "data.image_key",
    "data.label_key",
    "system.data_dir",
    "system.stage_dir",
    "system.init_from",
)
DIGITS = resolve(load_roadmap(), "resnet50", profile="digits")
numbers = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@settings(examples, max_examples=60)
@given(
    st.dictionaries(st.sampled_from(TEXTS), texts),
    st.lists(texts, min_size=2),
    numbers,
    st.from_regex("[0-9a-f]{16}", fullmatch=True),
)
def test_a_configuration_that_is_written_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    fields: dict[str, str],
    classes: list[str],
    lr: float,
    digest: str,
) -> None:
    tree = DIGITS.model_dump()
    tree["data"]["classes"], tree["recipe"]["lr"], tree["recipe"]["init_digest"] = tuple(classes), lr, digest
    for path, value in fields.items():
        section, _, key = path.partition(".")
        tree[section][key] = value
    config = RunConfig.model_validate(tree)
    written = tmp_path_factory.getbasetemp() / "config.yaml"
    written.write_text(config.to_yaml(), encoding="utf-8")
    assert RunConfig.read(written) == config


def test_a_saved_steps_file_reads_back_equal(tmp_path: Path) -> None:
    text = (
        "extends: steps.yaml\nprofiles:\n  mine: {title: '08', parent: digits, set: {data.classes:"
        f" {show(NASTY)}, recipe.lr: 1e-6}}}}\n"
    )
    mine, kept = tmp_path / "mine.yaml", tmp_path / "kept.yaml"
    mine.write_text(text, encoding="utf-8")
    kept.write_text(flat_text(mine), encoding="utf-8")
    before, after = load_roadmap(mine), load_roadmap(kept)
    assert (after.profiles["mine"].title, resolve(after, "gelu", profile="mine").data.classes) == (
        "08",
        NASTY,
    )
    assert resolve(after, "gelu", profile="mine") == resolve(before, "gelu", profile="mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3:1: duplicate key 'a', first given in line 1"),
        ('x:\n  a: 1\n  "a": 2', "f.yaml:3:3: duplicate key 'a', first given in line 2"),
        ("a.b: 1\na.b: 1", "f.yaml:2:1: duplicate key 'a.b', first given in line 1"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "f.yaml:3:3: a key must be plain text, and `<<` is not supported"),
        ("a:\n  ? [1]\n  : 2", "f.yaml:2:5: a key must be plain text, and `<<` is not supported"),
        ('"": 1', "f.yaml:1:1: a key must be plain text, and `<<` is not supported"),
    ],
)
def test_what_yaml_would_let_slip_is_refused(text: str, message: str) -> None:
    assert errors(text) == [message]


@pytest.mark.parametrize("anchored", ["{b: 1}", "[1, 2]", "1", "text"])
def test_an_alias_is_refused(anchored: str) -> None:
    (message,) = errors(f"a: &x {anchored}\nc: *x")
    assert message.startswith("f.yaml:")
    assert "alias" in message


def test_all_duplicates_are_reported() -> None:
    assert errors("a: 1\na: 2\nb: {c: 1, c: 2}\na: 3") == [
        "f.yaml:2:1: duplicate key 'a', first given in line 1",
        "f.yaml:3:11: duplicate key 'c', first given in line 3",
        "f.yaml:4:1: duplicate key 'a', first given in line 1",
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("\ta: 1", "1:1"),
        ("a:\n\t- 1", "2:1"),
        ("a: b: c", "1:5"),
        ("a: - 1", "1:4"),
        ("a: [1\nb: 2", "2:2"),
        ('a: 1\nb: "\\q"', "2:5"),
        ("--- 1\n--- 2", "2:1"),
        ("a: 1\nb: \x00", "2:4"),
    ],
)
def test_bad_syntax_is_one_line_with_its_place(text: str, place: str) -> None:
    (message,) = errors(text)
    assert message.startswith(f"f.yaml:{place}: is not YAML: ")


def test_a_dotted_and_a_nested_key_are_the_same_leaf() -> None:
    dotted, nested = (parse_yaml(text, "f.yaml") for text in ("a.b: 1", "a: {b: 1}"))
    assert [(path, node.plain()) for path, node in dotted.flatten()] == [("a.b", 1)]
    assert [(path, node.plain()) for path, node in nested.flatten()] == [("a.b", 1)]


def test_a_value_knows_the_places_of_its_key_and_value() -> None:
    found = dict(parse_yaml("a:\n  b.c: {d:   1}\n  e: [2]", "f.yaml").flatten())
    places = {path: (node.key, node.mark) for path, node in found.items()}
    assert places == {
        "a.b.c.d": (Mark("f.yaml", 2, 9), Mark("f.yaml", 2, 14)),
        "a.e": (Mark("f.yaml", 3, 3), Mark("f.yaml", 3, 6)),
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("where", ["f.yaml", "sub/f.yaml"])
def test_a_file_is_named_as_seen_from_here(folder: Path, where: str) -> None:
    (folder / where).parent.mkdir(exist_ok=True)
    (folder / where).write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(folder / where)
    assert str(caught.value) == f"{where}:2:1: duplicate key 'a', first given in line 1"


def test_a_file_that_is_not_utf8(folder: Path) -> None:
    (folder / "f.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(Path("f.yaml"))
    assert str(caught.value) == "f.yaml is not UTF-8 text: invalid start byte at byte 8"


@pytest.mark.parametrize(
    ("where", "reason"), [("f.yaml", "No such file or directory"), (".", "Is a directory")]
)
def test_a_file_that_cannot_be_read(folder: Path, where: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(folder / where)
    assert str(caught.value) == f"{where} cannot be read: {reason}"


def test_utf8_text_is_read(folder: Path) -> None:
    (folder / "f.yaml").write_text("a: naïve\n", encoding="utf-8")
    assert read_yaml(folder / "f.yaml").plain() == {"a": "naïve"}
