"""Ids of timers, which are never given again although their rows go."""

from __future__ import annotations

from sqlite_utils import Database


def highest_timer(db: Database) -> int:
    """The highest id that a timer ever had, 0 if there was none."""
    rows = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'timers'").fetchall()
    return int(rows[0][0]) if rows else 0


def no_timer_up_to(db: Database, highest: int) -> None:
    """Give no new timer an id up to this one."""
    if highest > highest_timer(db):
        db.execute("DELETE FROM sqlite_sequence WHERE name = 'timers'")
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('timers', ?)", [highest])
