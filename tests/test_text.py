"""What text from outside is refused, what is mended, and how a topic becomes a slug."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import InvalidConfig, InvalidInput, InvalidTitle
from actors.text import check_text, check_title, cut_text, describe_error, mend_text, slug

any_text = st.text(st.characters(exclude_categories=()), max_size=50)  # lone surrogates included


@pytest.mark.parametrize("text", ["a", " a ", "a\nb\tc", "é", "🦀", "\x01\x7f", "\ufeffa", "a" * 1_000_000])
def test_text_that_can_be_stored_is_taken_unchanged(text: str) -> None:
    assert check_text(text, what="it") is text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "it is empty"),
        (" \n\t\u2003", "it is empty"),
        ("ab\x00c", "it has a NUL character at position 2"),
        ("\ud83e", "it has half of a surrogate pair at position 0"),
        ("crab\udd80", "it has half of a surrogate pair at position 4"),
        (None, "it must be text, not NoneType"),
        (b"bytes", "it must be text, not bytes"),
        (7, "it must be text, not int"),
        ("abcdef", "it has 6 characters; at most 5 are taken"),
    ],
)
def test_text_that_cannot_be_used_is_refused_in_words(value: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(words)):
        check_text(value, what="it", most=5)
    with pytest.raises(InvalidConfig, match=re.escape(words)):
        check_text(value, what="it", most=5, error=InvalidConfig)


def test_empty_text_is_taken_where_it_may_be_empty() -> None:
    assert check_text("", what="it", empty=True) == ""
    assert check_text("  ", what="it", empty=True) == "  "


@pytest.mark.parametrize(
    ("given", "taken"),
    [("work", "work"), ("  work\u2003", "work"), ("auth 🦀", "auth 🦀"), ("a" * 200, "a" * 200), ("!", "!")],
)
def test_a_title_is_taken_without_the_space_around_it(given: str, taken: str) -> None:
    assert check_title(given) == taken


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("a" * 201, "201 characters; at most 200"),
        ("a" * 1_000, "1,000 characters"),
        ("two\nlines", "control characters"),
        ("a\ttab", "control characters"),
        ("a\x1b[0m", "control characters"),
        ("a\x85b", "control characters"),
        ("nul\x00", "NUL"),
        ("half \ud83e", "surrogate"),
        (None, "must be text"),
        (["work"], "must be text"),
    ],
)
def test_a_title_that_cannot_be_one_is_refused(title: object, words: str) -> None:
    with pytest.raises(InvalidTitle, match=f"topic's title.*{words}"):
        check_title(title)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("fine 🦀", "fine 🦀"),
        ("a\x00b", "a\ufffdb"),
        ("a\ud800b\udfff", "a\ufffdb\ufffd"),
        ("é\x00", "é\ufffd"),
        ("", ""),
    ],
)
def test_mending_shows_what_cannot_be_stored(text: str, mended: str) -> None:
    assert mend_text(text) == mended


@given(any_text)
def test_mended_text_can_be_stored_and_sent_and_is_not_mended_again(text: str) -> None:
    mended = mend_text(text)
    mended.encode()
    assert "\x00" not in mended
    assert len(mended) == len(text)
    assert mend_text(mended) == mended
    if mended.strip():
        assert check_text(mended, what="it") == mended


def test_a_cut_says_how_much_is_left_out() -> None:
    assert cut_text("abc", 3) == "abc"
    assert cut_text("abcd", 3) == "abc\n[... 1 characters left out]"
    assert cut_text("a" * 5_000, 10).endswith("[... 4,990 characters left out]")


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("Auth refactor!", "auth-refactor"),
        ("auth-refactor", "auth-refactor"),
        ("  v2.0 -- the  plan ", "v2-0-the-plan"),
        ("snake_case", "snake-case"),
        ("Über café", "über-café"),
        ("日本語", "日本語"),
        ("!!!", "topic"),
        ("🦀", "topic"),
        ("-1", "1"),
        ("", "topic"),
    ],
)
def test_a_slug_is_lower_case_alphanumerics_with_dashes(topic: str, expected: str) -> None:
    assert slug(topic) == expected


@given(any_text)
def test_a_slug_is_never_empty_and_slugs_stay_as_they_are(topic: str) -> None:
    made = slug(topic)
    assert made
    assert not made.startswith("-")
    assert not made.endswith("-")
    assert "--" not in made
    assert all(part.isalnum() or part == "-" or not part.isascii() for part in made)


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyError("no")


@pytest.mark.parametrize(
    ("error", "words", "message"),
    [
        (ValueError("too much"), "ValueError: too much", "too much"),
        (ValueError(), "ValueError", "ValueError"),
        (InvalidInput("it is empty"), "InvalidInput: it is empty", "it is empty"),
        (
            _Unprintable(),
            "_Unprintable: (its message cannot be read)",
            "(its message cannot be read)",
        ),
    ],
)
def test_an_error_is_described_whatever_its_own_str_does(
    error: BaseException, words: str, message: str
) -> None:
    assert describe_error(error) == words
    assert describe_error(error, named=False) == message
