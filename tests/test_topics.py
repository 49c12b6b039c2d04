"""Routing of one pair, by tables: no actor, no database."""

from __future__ import annotations

import pytest

from actors.topics import TopicRouter


@pytest.mark.parametrize(
    ("router", "current"),
    [
        (TopicRouter(), None),
        (TopicRouter(tmp=1), 1),
        (TopicRouter(active="a", by_title={"a": 2}), 2),
        (TopicRouter(tmp=1, active="a", by_title={"a": 2, "b": 3}), 2),
        (TopicRouter(tmp=1, by_title={"a": 2}), 1),
        (TopicRouter(by_title={"a": 2}), None),
    ],
)
def test_current_is_the_active_topic_else_the_tmp_chat(router: TopicRouter, current: int | None) -> None:
    assert router.current() == current


@pytest.mark.parametrize(
    ("router", "empty"),
    [
        (TopicRouter(), True),
        (TopicRouter(tmp=1), False),
        (TopicRouter(by_title={"a": 2}), False),
        (TopicRouter(tmp=1, active="a", by_title={"a": 2}), False),
    ],
)
def test_empty_is_without_tmp_chat_and_topics(router: TopicRouter, empty: bool) -> None:
    assert router.empty is empty


def test_reserve_makes_a_topic_active_and_says_which_was() -> None:
    router = TopicRouter(tmp=1)
    assert router.reserve("a", 2) is None
    assert router.reserve("b", 3) == "a"
    assert router == TopicRouter(tmp=1, active="b", by_title={"a": 2, "b": 3})
    assert router.current() == 3


@pytest.mark.parametrize(
    ("router", "title", "failed", "previous", "after"),
    [
        # the plain case: back to the topic before
        (
            TopicRouter(tmp=1, active="b", by_title={"a": 2, "b": 3}),
            "b",
            3,
            "a",
            TopicRouter(tmp=1, active="a", by_title={"a": 2}),
        ),
        # there was none before
        (TopicRouter(tmp=1, active="b", by_title={"b": 3}), "b", 3, None, TopicRouter(tmp=1)),
        # the sender has switched since
        (
            TopicRouter(active="a", by_title={"a": 2, "b": 3}),
            "b",
            3,
            "c",
            TopicRouter(active="a", by_title={"a": 2}),
        ),
        # the topic before was closed since
        (TopicRouter(tmp=1, active="b", by_title={"b": 3}), "b", 3, "a", TopicRouter(tmp=1)),
        # the title was opened anew since: that one stays
        (
            TopicRouter(active="b", by_title={"b": 4}),
            "b",
            3,
            "a",
            TopicRouter(active="b", by_title={"b": 4}),
        ),
        # the pair has left the topic by closing it
        (TopicRouter(tmp=1), "b", 3, "a", TopicRouter(tmp=1)),
    ],
)
def test_roll_back_undoes_a_reservation_and_nothing_else(
    router: TopicRouter, title: str, failed: int, previous: str | None, after: TopicRouter
) -> None:
    router.roll_back(title, failed, previous)
    assert router == after


@pytest.mark.parametrize(
    ("dropped", "after"),
    [
        (1, TopicRouter(active="a", by_title={"a": 2, "b": 3})),
        (2, TopicRouter(tmp=1, by_title={"b": 3})),
        (3, TopicRouter(tmp=1, active="a", by_title={"a": 2})),
        (9, TopicRouter(tmp=1, active="a", by_title={"a": 2, "b": 3})),
    ],
)
def test_drop_forgets_a_conversation_wherever_it_is_pointed_at(dropped: int, after: TopicRouter) -> None:
    router = TopicRouter(tmp=1, active="a", by_title={"a": 2, "b": 3})
    router.drop(dropped)
    assert router == after


def test_dropping_everything_leaves_an_empty_router() -> None:
    router = TopicRouter(tmp=1, active="a", by_title={"a": 2})
    for conversation_id in (2, 1):
        router.drop(conversation_id)
    assert router == TopicRouter()
    assert router.empty
