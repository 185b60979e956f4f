"""Images stand for local programs; unknown ones fail as a pull would."""

from __future__ import annotations

import pytest

from spotinference.devcluster import images


def test_the_engines_image_runs_the_engine_with_the_pods_args() -> None:
    image = images.table().find("vllm/vllm-openai:v0.32.0")
    assert image.entrypoint == images.sim_engine_argv()
    assert image.host_flag


def test_another_engine_takes_its_place() -> None:
    table = images.table(engine_argv=["/venv/bin/vllm", "serve"], engine_env={"A": "1"})
    image = table.find("docker.io/vllm/vllm-openai:latest")
    assert image.entrypoint == ("/venv/bin/vllm", "serve")
    assert image.programs["vllm"] == ("/venv/bin/vllm",)
    assert image.env == {"A": "1"}


def test_our_own_image_runs_our_own_commands() -> None:
    image = images.table().find("ghcr.io/spotinference/spotinference:0.1.0")
    assert image.entrypoint[1:] == ("-m", "spotinference")
    assert not image.host_flag


def test_an_unknown_image_is_named_together_with_the_known_ones() -> None:
    with pytest.raises(images.ImageUnknown, match=r"nginx:1.*vllm/vllm-openai\*"):
        images.table().find("nginx:1")
