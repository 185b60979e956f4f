"""The rows of docs/reference/faults.md: what goes wrong, and what is seen of it.

A test that proves a row carries `@pytest.mark.fault(ROW)`; tests/unit/test_faults_reference.py
finds the marks, holds the page to them and fails when a row has no test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Row:
    fault: str
    verdict: str


ROWS: Mapping[int, Row] = {
    5: Row(
        "The operator's watches are dropped, and events are lost meanwhile.",
        "One new list per kind, and a comparison: what was lost is made good.",
    ),
    6: Row(
        "A watch is frozen: the connection stays, nothing comes.",
        "Noticed after `watch_silence_s` (70 s) and begun anew; nothing else stops meanwhile.",
    ),
    7: Row(
        "410 Gone: the watch's version is too old.",
        "A new list; nothing is deleted for it.",
    ),
    8: Row(
        "A list fails in its middle.",
        "The whole list is tried again; what is missing in half of one is never taken for deleted.",
    ),
    9: Row(
        "429 with Retry-After on every third call.",
        "It is waited for; the tier wakes all the same.",
    ),
    10: Row(
        "The API server answers 500, 503 or 504 for a while.",
        "Replicas and status stay as they are; afterwards it catches up.",
    ),
    11: Row(
        "The API server is away while tiers serve.",
        "The gateway stays ready and goes on with the replicas it knows; afterwards it catches up.",
    ),
    12: Row(
        "Somebody else writes the tier twenty times a second.",
        "No conflict, nothing of theirs is lost, and the status is right.",
    ),
    17: Row(
        "A clock is set an hour back or forward.",
        "What is learned goes on from there; a moment of the status that is yet to come holds no replica "
        "back, keeps no tier awake and makes no pause longer.",
    ),
    18: Row(
        "The clocks of API server or kubelet are not the operator's.",
        "With less than a minute between them moves end; nothing is written for it at each look.",
    ),
    21: Row(
        "Reading one tier's load raises, each time.",
        "It is logged and counted; the other tiers and the process go on.",
    ),
    24: Row(
        "A status of another version, or edited by hand.",
        "What is damaged is dropped and worked out anew, the rest is kept; nothing stops.",
    ),
    31: Row(
        "A thousand requests wake one sleeping tier.",
        "One demand for all of them; beyond the bound 429 with Retry-After.",
    ),
    36: Row(
        "A reclaim notice with streams in flight.",
        "Nothing new goes there and a replacement is asked for before anything drains; each stream "
        "ends there or is carried on elsewhere, unbroken.",
    ),
    37: Row(
        "A node vanishes mid-stream.",
        "The stream goes on from the exact token, at once or after a wake; what cannot be "
        "continued gets an error event and an aborted connection, never a normal end.",
    ),
    38: Row(
        "All replicas vanish at once.",
        "Everything is parked, the tier wakes; at the cap a true 504 or an error event.",
    ),
    39: Row(
        "No spot capacity for half an hour.",
        "The tier says NoCapacity and what was tried; markets are probed sparsely, on-demand "
        "bridges where it may.",
    ),
    40: Row(
        "A node is not ready for 40 s and comes back.",
        "No replica is deleted, none is served twice from one volume, and what was started "
        "elsewhere is called off; many nodes at once are held while their engines answer.",
    ),
    41: Row(
        "A replacement starts in another zone than its volume.",
        "VolumeZoneMismatch, with the scheduler's words; other markets are tried at once.",
    ),
    49: Row(
        "The model loads for a long time.",
        "Held streams get comments and empty chunks, and one unbroken answer in the end.",
    ),
    50: Row(
        "An engine's metrics hang, end, never end, or are another page.",
        "Given up after 2 s or 1 MiB; that replica is unknown, the others still count, and none "
        "of a thousand waits for it.",
    ),
    51: Row(
        "NaN, -1, infinity, a missing or renamed series, rubbish.",
        "No sample, with a counted reason; unknown is not zero: a tier is never made smaller or "
        "put to sleep for it.",
    ),
    52: Row(
        "Every replica of a tier is unknown.",
        "The number stays for half an hour, and MetricsAvailable says why; then it goes back to "
        "minReplicas, drained as always, and never to zero.",
    ),
    53: Row("Load as a square wave of the worst period.", "A bounded number of changes per hour."),
    54: Row(
        "The operator restarts while it waits before scaling down.",
        "It goes on from the status: nothing earlier, and what was learned is known.",
    ),
    55: Row("A counter goes back, because an engine restarted.", "No rate is negative."),
    56: Row(
        "minReplicas above maxReplicas, a target of 0, numbers beyond all bounds.",
        "Refused by `kubectl apply`, and by us, with a sentence.",
    ),
    57: Row(
        "Messages that two parsers could read differently.",
        "400 and close, nothing forwarded.",
    ),
    58: Row(
        "Huge or malformed heads and bodies.",
        "400, 413, 415 or 431 by a named bound; nobody is woken; never 500.",
    ),
    59: Row(
        "Slow heads, slow bodies, slow readers, idle and too many connections.",
        "Closed by a named deadline or bound; the others go on.",
    ),
    60: Row(
        "A client leaves while held or mid-stream.",
        "The engine is freed within a second; the last one who waits calls the wake off.",
    ),
    61: Row(
        "An engine that hangs, lies, redirects or sends rubbish.",
        "Another replica is asked, or 502 with our own error; nothing of it is passed on.",
    ),
    62: Row(
        "An engine fails before, in or just after its answer.",
        "Before the first byte it is tried elsewhere, a bounded number of times; afterwards "
        "only an exact continuation; no text is ever repeated.",
    ),
    63: Row("No key, a wrong one, two, or one in the wrong place.", "401, and nobody is woken."),
    64: Row("One tenant's key, another tenant's tier.", "404, as for a tier that does not exist."),
    65: Row(
        "Routing fields hidden in body, headers or target.",
        "Without effect; internal headers pass in neither direction.",
    ),
    66: Row(
        "Administrative paths and disguised ones.",
        "404 for all but the exact paths and methods; no engine is touched.",
    ),
    67: Row(
        "Many requests just under a limit, over several gateways, and a budget that is spent.",
        "Never above limit + (gateways - 1) x burst; 429 with the time of the reset.",
    ),
    68: Row(
        "Wakes by those who may not: no key, an invalid body, a paused tier, another method.",
        "No demand is written.",
    ),
    69: Row(
        "SIGTERM with streams in flight.",
        "Not ready first; answers end within the drain; the rest get an error event and a cut.",
    ),
    70: Row(
        "Newlines, terminal codes and made-up names in model, user or headers.",
        "Labels are bounded (`other`), log lines are escaped.",
    ),
}


@dataclass(frozen=True, slots=True, order=True)
class Proof:
    """One test that carries a mark."""

    row: int
    file: str
    name: str


def proofs(folder: Path = TESTS) -> list[Proof]:
    """Every mark in the suite, by row, file and name."""
    return sorted(
        Proof(row, str(path.relative_to(folder)), name)
        for path in folder.rglob("test_*.py")
        for name, row in _marks(ast.parse(path.read_text()))
    )


def _marks(module: ast.Module) -> Iterator[tuple[str, int]]:
    for node in module.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                for argument in mark.args:
                    yield node.name, int(ast.literal_eval(argument))
