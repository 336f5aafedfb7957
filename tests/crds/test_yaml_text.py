"""YAML as kubectl reads it, and mistakes in it with their places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.yaml_text import dump, parse


def value_of(text: str) -> JsonValue:
    document, remarks = parse(f"key: {text}", "job.yaml")
    assert remarks == []
    return document["key"]


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(FineTuneError) as raised:
        parse(text, "job.yaml")
    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    return raised.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-5E+6", -5e6),
        ("1.5", 1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("08", 8.0),
        ("1_000.5", 1000.5),
        ("150_323_855_360", 150_323_855_360),
        ("+5", 5),
        ("010", 8),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b101", 5),
        ("0", 0),
        ("true", True),
        ("Yes", True),
        ("off", False),
        ("n", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-05-04", "2026-05-04"),
        ("2026-05-04T12:00:00Z", "2026-05-04T12:00:00Z"),
        ("12:30", "12:30"),
        ("1e", "1e"),
        ("0x", "0x"),
        ("0o", "0o"),
        ("0b2", "0b2"),
        ("_1", "_1"),
        ("1-2", "1-2"),
        ("'8'", "8"),
        ('"1e-4"', "1e-4"),
        ("yEs", "yEs"),
        ("=", "="),
    ],
)
def test_plain_values_are_what_kubectl_takes_them_for(text: str, value: JsonValue) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


def test_anchors_and_merges_are_put_in_place() -> None:
    document, _ = parse("a: &a {p: 1, q: 2}\nb: *a\nc: {<<: *a, q: 3}\n", "job.yaml")

    assert document == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 2}, "c": {"p": 1, "q": 3}}


@pytest.mark.parametrize(
    "text",
    [
        "---\nkey: 1\n",
        "key: 1\n---\n",
        "key: 1\n...\n",
        "\ufeffkey: 1",
        "key: 1\r\n",
        "# nothing\nkey: 1 # more\n",
    ],
)
def test_marks_around_one_document_do_no_harm(text: str) -> None:
    assert parse(text, "job.yaml") == ({"key": 1}, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "job.yaml: is empty"),
        ("# only a comment\n", "job.yaml: is empty"),
        ("---\n---\n", "job.yaml: is empty"),
        ("- a\n- b\n", "job.yaml: must be a map of fields, is a list"),
        ("just words\n", "job.yaml: must be a map of fields, is a text"),
        ("a: 1\n---\nb: 2\n", "job.yaml:3:1: a second document begins here; give each a file of its own"),
        ("a: b: c\n", "job.yaml:1:5: mapping values are not allowed here"),
        ("a:\n  b: 1\n c: 2\n", "job.yaml:3:2: expected <block end>, but found '<block mapping start>'"),
        (
            "a:\n\tb: 1\n",
            r"job.yaml:2:1: found character '\t' that cannot start any token; indent with spaces",
        ),
        ("a: [1, 2\n", "job.yaml:2:1: expected ',' or ']', but got '<stream end>'"),
        ("a: 'b\n", "job.yaml:2:1: found unexpected end of stream"),
        (
            'a: 1\nb: """{instruction}"""\n',
            (
                "job.yaml:2:6: expected <block end>, but found '<scalar>'; YAML has no triple quotes,"
                " write one on each side"
            ),
        ),
        ("a: *b\n", "job.yaml:1:4: found undefined alias 'b'"),
        (
            "a: !!python/name:os.system x\n",
            (
                "job.yaml:1:4: could not determine a constructor for the tag"
                " 'tag:yaml.org,2002:python/name:os.system'"
            ),
        ),
        ("a: \x00\n", "job.yaml: unacceptable character #x0000: special characters are not allowed"),
        ("a: " + "[" * 10_000, "job.yaml: is nested too deeply"),
        ("8: a\n", "job.yaml:1: a key must be a text, is 8; put it in quotes"),
        ("a: 1\non: b\n", "job.yaml:2: a key must be a text, is on; put it in quotes"),
        ("? [a]\n: b\n", "job.yaml:1: a key must be a text, is a list or a map"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, problem: str) -> None:
    assert problems_of(text) == (problem,)


def test_all_keys_that_contradict_each_other_are_told() -> None:
    text = "a: 1\nb:\n  c: 1\n  c: 2\nlist:\n- {d: 1, d: 3}\na: 2\n"

    assert sorted(problems_of(text)) == [
        "job.yaml:4: c is given twice with different values; keep one",
        "job.yaml:6: d is given twice with different values; keep one",
        "job.yaml:7: a is given twice with different values; keep one",
    ]


@pytest.mark.parametrize("again", ["10_000", "10000", "1_0000", "0x2710"])
def test_a_key_that_is_given_twice_with_the_same_value_is_a_remark(again: str) -> None:
    assert parse(f"a: 10_000\nb: 1\na: {again}\n", "job.yaml") == (
        {"a": 10_000, "b": 1},
        ["job.yaml:3: a is given twice with the same value"],
    )


def test_a_key_that_decides_nothing_may_be_given_twice_with_different_values() -> None:
    text = "a: 1\nb:\n- {c: {d: 1, d: 2}}\na: 2\n"

    document, remarks = parse(text, "job.yaml", lambda place: place in (("a",), ("b", "c", "d")))

    assert document == {"a": 2, "b": [{"c": {"d": 2}}]}
    assert sorted(remarks) == [
        "job.yaml:3: d is given twice with different values; neither has an effect",
        "job.yaml:4: a is given twice with different values; neither has an effect",
    ]


@pytest.mark.parametrize("text", ["a: &x {b: 1, b: 2}\nc: *x\n", "c: &x {b: 1, b: 2}\na: *x\n"])
def test_what_decides_something_in_one_of_its_places_is_not_given_twice(text: str) -> None:
    with pytest.raises(FineTuneError, match="b is given twice with different values; keep one"):
        parse(text, "job.yaml", lambda place: place[:1] == ("a",))


@pytest.mark.parametrize(("first", "second"), [("1", "true"), ("1", "1.0"), ("1", "'1'"), ("[1]", "[2]")])
def test_values_that_look_alike_are_different(first: str, second: str) -> None:
    assert problems_of(f"a: {first}\na: {second}\n") == (
        "job.yaml:2: a is given twice with different values; keep one",
    )


def test_an_anchor_that_is_used_often_is_looked_at_once() -> None:
    levels = "\n".join(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 12))
    document, _ = parse(f"l0: &l0 [x]\n{levels}\n", "job.yaml")

    assert len(document) == 12


def test_a_document_that_holds_itself_is_read() -> None:
    document, _ = parse("a: &a [*a]\n", "job.yaml")

    assert isinstance(document["a"], list)
    assert document["a"][0] is document["a"]


@pytest.mark.parametrize(
    "text",
    [
        "1e-4",
        "12e5678",
        "08",
        "0o17",
        "y",
        "No",
        "null",
        "~",
        "",
        "<<",
        ".inf",
        "1_000",
        "2026-05-04",
        "a: b",
        " x",
        "x\ny",
        "'",
        "{",
        "=",
        "é",
    ],
)
def test_a_text_that_looks_like_something_else_is_written_as_a_text(text: str) -> None:
    assert parse(dump({"key": text, text: 1}), "job.yaml")[0] == {"key": text, text: 1}


def test_parts_that_are_the_same_are_written_out() -> None:
    part: JsonValue = [1, 2]

    assert dump({"a": part, "b": part}) == "a:\n- 1\n- 2\nb:\n- 1\n- 2\n"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(), parts, max_size=4),
    max_leaves=8,
)


@given(document=st.dictionaries(st.text(), values, min_size=1, max_size=4))
def test_what_is_written_is_read_again(document: dict[str, JsonValue]) -> None:
    assert parse(dump(document), "job.yaml") == (document, [])
