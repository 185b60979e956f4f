"""The context window in the status: the engine's word, kept while it would still be the same."""

from __future__ import annotations

import pytest

from spotinference.core.window import arguments_hash
from tests.support.world import World, world

BASE = ["/cache/weights/abc", "--port", "8000", "--served-model-name", "a", "b", "--dtype", "auto"]


def woken(**changes: object) -> World:
    w = world(**changes)
    w.tells_window = 32_768
    serve(w)
    return w


def serve(w: World) -> None:
    """Woken, and nobody asks any more; it sleeps after its idle time."""
    w.demand(1)
    w.run(120, step_s=2)
    assert w.ready
    w.demand(0)


def asleep(w: World) -> World:
    w.run(1200, step_s=10)
    assert w.status.phase == "Asleep"
    return w


def shown(w: World) -> int | None:
    return None if w.status.engine is None else w.status.engine.context_window


def test_the_window_is_kept_while_the_tier_sleeps() -> None:
    w = world()
    w.tells_window = 32_768
    assert shown(w) is None, "nobody has told yet"
    serve(w)
    assert shown(w) == 32_768
    assert shown(asleep(w)) == 32_768


@pytest.mark.parametrize(
    "engine",
    [
        {"image": "vllm/vllm-openai:v0.99.0"},
        {"extraArgs": ["--rope-scaling", "{}"]},
        {"dtype": "float16"},
    ],
)
def test_a_changed_image_or_argument_makes_it_unknown_until_a_new_replica_tells(
    engine: dict[str, object],
) -> None:
    w = asleep(woken())
    w.edit(engine=engine)
    w.step()
    assert shown(w) is None
    w.tells_window = 1024
    serve(w)
    assert shown(w) == 1024


def test_a_replica_of_the_old_arguments_says_nothing_of_the_new_ones() -> None:
    w = woken(scaling={"minReplicas": 1, "maxReplicas": 2})
    w.edit(engine={"dtype": "float16"})
    w.step()
    assert w.ready, "the old replica still serves"
    assert shown(w) is None
    w.run(300, step_s=5)
    assert shown(w) == 32_768


def test_another_number_of_replicas_or_another_name_changes_nothing() -> None:
    w = asleep(woken())
    w.edit(scaling={"maxReplicas": 1}, model={"source": "hf://acme/tiny", "aliases": ["other"]})
    w.step()
    assert shown(w) == 32_768


@pytest.mark.parametrize(
    ("args", "same"),
    [
        ([*BASE, "--host", "::"], True),
        (["/cache/weights/abc", "--served-model-name", "c", "--dtype=auto"], True),
        (["/cache/weights/def", *BASE[1:]], False),
        ([*BASE, "--max-model-len", "1024"], False),
        ([*BASE[:-1], "half"], False),
        ([], False),
    ],
)
def test_engines_are_told_apart_by_what_may_change_their_window(
    args: list[str], *, same: bool
) -> None:
    assert (arguments_hash(args) == arguments_hash(BASE)) is same
