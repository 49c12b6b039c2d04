"""The guarantees of docs/reliability.md by number, each in one sentence."""

from __future__ import annotations

GUARANTEES = {
    1: "what was acknowledged survives a killed process and a power loss",
    2: "an acknowledged message reaches exactly one of done, failed, cancelled and closed, once",
    3: "a step is stored whole or not at all, and so is the end of a turn",
    4: "the same key with the same content has one effect and one result",
    5: "one sender's messages run in the order in which they were accepted, and are stored so",
    6: "at most one turn runs in a conversation",
    7: "an accepted steer is applied to exactly one turn",
    8: "nothing starts in a conversation after an acknowledged close",
    9: "a compaction's marker and archive are stored together, and with the live entries make the transcript",
    10: "archive names are unique in their scope",
    11: "ids are never given twice, and a conversation has one live actor",
    12: "an actor that keeps crashing is restarted a few times, then parked; the others do not notice",
    13: "whatever a model, a tool or a hook raises ends one turn, and everybody who waits is answered",
    14: "memory is bounded, and over a bound nothing is stored",
    15: "an idle conversation that leaves memory loses nothing",
    16: "on a full disk nothing is acknowledged that is not stored, and writes work again when there is room",
    17: "whatever the model's endpoint does, the turn ends in a bounded time, and the next one works",
    18: "a host that is told to stop drains and commits",
    19: "when faults stop, all acknowledged work ends",
    20: "recovery may itself be killed, and does nothing twice",
}
