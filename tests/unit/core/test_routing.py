"""Affinity moves few prompts and never overloads; without it the least loaded is chosen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spotinference.core import routing
from spotinference.core.routing import Work, choose, seed, work_of

KEYS = st.integers(min_value=0, max_value=2**64 - 1)
REPLICAS = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=12, unique=True)
LOADS = st.integers(min_value=0, max_value=10**6)


def seeds(names: list[str]) -> list[int]:
    return [seed(name) for name in names]


@given(REPLICAS, KEYS, st.booleans(), st.data())
def test_the_choice_is_one_of_them_and_always_the_same(
    names: list[str], key: int, sticky: bool, data: st.DataObject
) -> None:
    loads = data.draw(st.lists(LOADS, min_size=len(names), max_size=len(names)))
    index = choose(loads, seeds(names), key=key, sticky=sticky)
    assert index in range(len(names))
    turned = choose(loads[::-1], seeds(names)[::-1], key=key, sticky=sticky)
    assert len(names) - 1 - turned == index, "the order of the list does not matter"


@given(REPLICAS, KEYS, st.data())
def test_the_bound_is_never_exceeded(names: list[str], key: int, data: st.DataObject) -> None:
    loads = data.draw(st.lists(LOADS, min_size=len(names), max_size=len(names)))
    index = choose(loads, seeds(names), key=key, sticky=True)
    mean = sum(loads) / len(loads)
    assert loads[index] <= max(routing.SLACK_TOKENS, routing.FACTOR * mean)


@given(REPLICAS, st.lists(st.tuples(KEYS, st.integers(1, 5000)), max_size=200))
def test_any_sequence_of_work_stays_balanced_to_the_bound_and_one_request(
    names: list[str], requests: list[tuple[int, int]]
) -> None:
    """All on a few hot prompts: the worst case for affinity."""
    loads = [0] * len(names)
    hot = 3
    for key, tokens in requests:
        loads[choose(loads, seeds(names), key=key % hot, sticky=True)] += tokens
    mean = sum(loads) / len(loads)
    assert max(loads) <= max(routing.SLACK_TOKENS, routing.FACTOR * mean) + 5000


@given(REPLICAS, KEYS, st.data())
def test_without_affinity_nobody_has_less_to_do(
    names: list[str], key: int, data: st.DataObject
) -> None:
    loads = data.draw(st.lists(LOADS, min_size=len(names), max_size=len(names)))
    assert loads[choose(loads, seeds(names), key=key, sticky=False)] == min(loads)


@given(REPLICAS, st.text(min_size=13, max_size=20), KEYS)
def test_a_new_replica_only_takes_and_never_shuffles(names: list[str], new: str, key: int) -> None:
    before = names[choose([0] * len(names), seeds(names), key=key, sticky=True)]
    more = [*names, new]
    after = more[choose([0] * len(more), seeds(more), key=key, sticky=True)]
    assert after in {before, new}


def test_a_new_replica_takes_about_its_share_and_a_lost_one_gives_away_only_its_own() -> None:
    names = [f"demo-{n}" for n in range(9)]
    keys = [seed(f"prompt {n}") for n in range(10_000)]

    def owner(of: list[str], key: int) -> str:
        return of[choose([0] * len(of), seeds(of), key=key, sticky=True)]

    moved = sum(owner(names, key) != owner([*names, "demo-9"], key) for key in keys)
    assert 0.08 < moved / len(keys) < 0.12
    counts = [sum(owner(names, key) == name for key in keys) for name in names]
    assert max(counts) < 1.15 * len(keys) / len(names)
    assert all(
        owner(names[:-1], key) == owner(names, key)
        for key in keys
        if owner(names, key) != names[-1]
    )


def chat(*contents: object, **more: object) -> Work:
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return work_of({"messages": messages, **more})


def test_a_conversation_keeps_its_affinity_over_its_turns() -> None:
    system, question = "You are kind. " * 200, "What is a tier?"
    first = chat(system, question)
    assert first.sticky
    assert chat(system, question, "A model.", "And a replica?").key == first.key
    assert chat(system, "Something else").key != first.key


def test_a_session_goes_before_the_prompt() -> None:
    one = work_of({"prompt": "a"}, "session-1")
    assert one.sticky
    assert work_of({"prompt": "quite another"}, "session-1").key == one.key
    assert work_of({"prompt": "a"}, "session-2").key != one.key


def test_a_short_prompt_has_no_affinity() -> None:
    assert not work_of({"prompt": "once upon a time"}).sticky
    assert work_of({"prompt": "once upon a time " * 100}).sticky
    assert work_of({"prompt": list(range(300))}).sticky


def test_tokens_are_estimated_without_counting_a_picture_by_its_bytes() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    work = chat("be brief", [{"type": "text", "text": "x" * 400}, picture])
    assert 100 < work.prompt_tokens < 3000
    assert work_of({"prompt": list(range(100))}).prompt_tokens == 100
    assert work_of({"prompt": ["abcd" * 50, "abcd" * 50]}).prompt_tokens == 100


def test_the_answer_counts_by_its_limit_but_not_above_what_is_usual() -> None:
    assert work_of({"prompt": "a", "max_tokens": 10}).tokens(200) == 11
    assert work_of({"prompt": "a", "max_tokens": 10, "n": 3}).tokens(200) == 31
    assert work_of({"prompt": "a", "max_tokens": 10_000}).tokens(200) == 201
    assert work_of({"prompt": "a"}).tokens(200) == 201
    assert chat("s", "q", max_completion_tokens=5).answer_tokens() == 5


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["role", "content", "text", "x"]), inner, max_size=4),
    max_leaves=20,
))  # fmt: skip
def test_whatever_the_engine_will_refuse_is_still_estimated(value: object) -> None:
    for body in ({"messages": value}, {"prompt": value}):
        assert work_of(body).prompt_tokens >= 1


def test_each_prompt_of_a_completion_is_an_answer_of_its_own() -> None:
    work = work_of({"prompt": ["a", "b", "c"], "max_tokens": 100, "n": 2})
    assert (work.max_tokens, work.choices) == (600, 6)
    assert work_of({"prompt": [1, 2, 3], "max_tokens": 100}).max_tokens == 100
    assert work_of({"prompt": [[1], [2]], "max_tokens": 100}).max_tokens == 200
