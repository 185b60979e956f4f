"""The engine's argv and environment."""

from __future__ import annotations

from spotinference.core import engine_args
from spotinference.devcluster.sandbox import expand
from tests.support.world import tier


def test_the_argv_begins_with_the_weights_of_the_commit() -> None:
    argv = engine_args.argv("chat", tier(), "abc123")
    assert argv[:5] == ["/cache/weights/abc123", "--host", "0.0.0.0", "--port", "8000"]
    assert argv[argv.index("--served-model-name") + 1] == "chat"


def test_weights_on_a_claim_of_the_users_are_read_from_there() -> None:
    spec = tier(model={"source": "pvc://models/llama/8b"})
    assert engine_args.argv("chat", spec, None)[0] == "/model/llama/8b"


def test_all_names_of_a_model_are_served_and_none_twice() -> None:
    spec = tier(model={"source": "hf://a/b", "servedName": "big", "aliases": ["gpt", "large"]})
    assert engine_args.served_names("chat", spec) == ["big", "gpt", "large"]


def test_the_grace_period_outlasts_pre_stop_and_drain() -> None:
    spec = tier(interruption={"drain": "60s"})
    argv = engine_args.argv("chat", spec, "c")
    assert argv[argv.index("--shutdown-timeout") + 1] == "60"
    assert engine_args.grace_s(spec) > engine_args.PRE_STOP_S + 60


def test_extra_arguments_come_last_and_stay_words_of_their_own() -> None:
    spec = tier(engine={"extraArgs": ["--seed=7", "--override-generation-config={}; ls"]})
    assert engine_args.argv("chat", spec, "c")[-2:] == list(spec.engine.extra_args)


WORDS = ["--trust-remote-code", "$(X)", "$$", "a$", "$(", "$(HOME)$", "^[a-z]+$(X)$$(X)"]


def test_the_kubelet_expands_nothing_that_a_tier_says() -> None:
    variables = [{"name": f"V{i}", "value": word} for i, word in enumerate(WORDS)]
    env = [{"name": "X", "value": "--trust-remote-code"}, *variables]
    spec = tier(engine={"extraArgs": ["--seed", "7", *WORDS[1:]], "env": env})
    seen: dict[str, str] = {}
    for entry in engine_args.environment(spec):
        seen[entry["name"]] = expand(entry.get("value", ""), seen)
    argv = [expand(word, seen) for word in engine_args.argv("chat", spec, "c")]
    assert argv[-len(WORDS) + 1 :] == WORDS[1:]
    assert [seen[f"V{i}"] for i in range(len(WORDS))] == WORDS


def test_the_environment_is_the_same_whatever_the_order_of_asking() -> None:
    spec = tier(engine={"env": [{"name": "FOO", "value": "1"}, {"name": "BAR"}]})
    env = engine_args.environment(spec)
    assert env == engine_args.environment(spec)
    assert {"name": "BAR"} in env
    assert {"name": "VLLM_CACHE_ROOT", "value": "/cache/vllm"} in env


def test_optional_flags_appear_only_when_asked_for() -> None:
    assert "--quantization" not in engine_args.argv("chat", tier(), "c")
    spec = tier(engine={"quantization": "fp8", "toolCallParser": "hermes"})
    argv = engine_args.argv("chat", spec, "c")
    assert argv[argv.index("--quantization") + 1] == "fp8"
    assert "--enable-auto-tool-choice" in argv
