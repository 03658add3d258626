"""YAML to a tree with positions: what is refused, where, and that hostile text is bounded."""

from __future__ import annotations

import pytest

from cachebus.config.document import MAX_DEPTH, MAX_NODES, natural, parse
from cachebus.config.problems import ConfigErrors, Problem


def refused(text: str) -> Problem:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "f")
    (problem,) = caught.value.problems
    return problem


def test_scalars_are_text_whatever_yaml_1_1_would_make_of_them() -> None:
    document, problems = parse("a: off\nb: 1:30\nc: 010\nd: 2026-01-01\ne: ~\nf: ''\ng: 'null'\nh: no\n", "f")
    assert problems == []
    assert document.value() == {
        "a": "off", "b": "1:30", "c": "010", "d": "2026-01-01", "e": None, "f": "", "g": "null", "h": "no",
    }  # fmt: skip


def test_natural_gives_the_core_schema_types() -> None:
    document, _ = parse("a: [1, -2, 1.5, 1e3, true, False, off, '1', ~, {b: 2}]\n", "f")
    node = document.at("a")
    assert node is not None
    assert natural(node) == [1, -2, 1.5, 1000.0, True, False, "off", "1", None, {"b": 2}]


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "the file is empty"),
        ("# nothing\n", 1, 1, "the file is empty"),
        ("- a\n", 1, 1, "must be a mapping of keys to values"),
        ("  word\n", 1, 3, "must be a mapping of keys to values"),
        ("a: 1\n---\nb: 2\n", 2, 1, "a second document: the file must hold one"),
        ("a:\n  b: !!python/object:os.system x\n", 2, 6, "a tag (`!...`): a configuration has plain values only"),
        ("a: !x {}\n", 1, 4, "a tag (`!...`): a configuration has plain values only"),
        ("a: *b\n", 1, 4, "an alias without its anchor"),
        ("a: &b [1, *b]\n", 1, 11, "an alias inside its own anchor"),
        ("a: &b\n  c: *b\n", 2, 6, "an alias inside its own anchor"),
        ("? [a]\n: b\n", 1, 3, "a key must be text"),
        ("'': b\n", 1, 1, "a key must be text"),
        ("~: b\n", 1, 1, "a key must be text"),
        ('a: "x\\0y"\n', 1, 4, "an unprintable character"),
        ('a: "\\ud800"\n', 1, 4, "an unprintable character"),
        ("a: 1\nb: \x07\n", 2, 4, "a character that YAML does not allow"),
    ],
)
def test_refuses_with_the_place(text: str, line: int, column: int, message: str) -> None:
    assert refused(text) == Problem("f", line, column, "", message)


@pytest.mark.parametrize(
    "text",
    ["a: [1\n", "a: {b\n", "a: 'x\n", "a: \t- b\n", "\tb: 1\n", '"\\UFFFFFFFF": 1\n',
     "a: @b\n", "a: b: c\n", "%TAG ! x\n", "%YAML " + "9" * 5000 + ".1\n--- a\n"],
)  # fmt: skip
def test_broken_yaml_is_one_problem(text: str) -> None:
    assert refused(text).message.startswith("not YAML")


def test_the_exception_does_not_carry_the_files_text() -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse("secret: hunter2hunter2hunter2\na: [1\n", "f")
    assert caught.value.__context__ is None
    assert "hunter2" not in repr(caught.value)


def test_a_key_given_twice_is_reported_and_the_first_one_counts() -> None:
    document, problems = parse("a: 1\nb:\n  - {c: 1}\n  - {c: 1, c: 2}\na: 3\n", "f")
    assert problems == [
        Problem("f", 4, 12, "b.1.c", "'c' is given twice, first on line 4"),
        Problem("f", 5, 1, "a", "'a' is given twice, first on line 1"),
    ]
    assert document.value() == {"a": "1", "b": [{"c": "1"}, {"c": "1"}]}


def test_an_alias_stands_for_its_anchor() -> None:
    document, _ = parse("a: &x [1, 2]\nb: *x\n", "f")
    assert document.value() == {"a": ["1", "2"], "b": ["1", "2"]}


def test_a_billion_laughs_end_at_the_bound() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 10)]
    problem = refused("\n".join(lines))
    assert problem.message == f"more than {MAX_NODES} values"
    assert problem.line <= 5


def test_depth_is_bounded_before_anything_recurses() -> None:
    assert refused("a: " + "[" * 100_000).message == f"nested deeper than {MAX_DEPTH} levels"
    assert refused("\n".join(" " * n + "- " for n in range(50))).message.startswith(("nested", "not YAML"))


@pytest.mark.parametrize(
    ("place", "at_key", "expected"),
    [
        ((), False, (1, 1)),
        (("a",), False, (1, 4)),
        (("a",), True, (1, 1)),
        (("b",), False, (3, 3)),
        (("b", "c"), False, (3, 6)),
        (("b", "c"), True, (3, 3)),
        (("b", "missing"), False, (2, 1)),
        (("d", 1), False, (4, 8)),
        (("d", 1, "x"), False, (4, 8)),
        (("d", 7), False, (4, 1)),
        (("missing",), False, (1, 1)),
        (("missing", "more"), True, (1, 1)),
    ],
)
def test_place_to_position(place: tuple[str | int, ...], at_key: bool, expected: tuple[int, int]) -> None:
    document, _ = parse("a: 1\nb:\n  c: 2\nd: [1, 2]\n", "f")
    problem = document.problem(place, "m", at_key=at_key)
    assert (problem.line, problem.column) == expected


def test_a_problem_prints_as_the_contract_says() -> None:
    assert str(Problem("c.yaml", 3, 7, "a.b", "is wrong")) == "c.yaml:3:7: a.b: is wrong"
    assert str(Problem("c.yaml", 1, 1, "", "the file is empty")) == "c.yaml:1:1: the file is empty"
