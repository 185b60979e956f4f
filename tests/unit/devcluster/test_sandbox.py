"""Containers without namespaces: what is rewritten, and what must not be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.devcluster import sandbox
from spotinference.devcluster.images import Image
from spotinference.devcluster.sandbox import Mounts

MOUNTS = Mounts({"/cache": Path("/v/c"), "/cache/sub": Path("/v/s"), "/dev/shm": Path("/v/shm")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/cache", "/v/c"),
        ("/cache/weights/abc", "/v/c/weights/abc"),
        ("/cache/sub/x", "/v/s/x"),
        ("/cache/subject", "/v/c/subject"),
        ("--dir=/cache/x", "--dir=/v/c/x"),
        ('{"a": "/cache/x", "b": "/dev/shm"}', '{"a": "/v/c/x", "b": "/v/shm"}'),
        ("file:///cache/x", "file:///v/c/x"),
        ("/cache:/dev/shm", "/v/c:/v/shm"),
        ("/cached", "/cached"),
        ("/data/cache", "/data/cache"),
        ("http://host/cache", "http://host/cache"),
        ("cache/x", "cache/x"),
        ("./cache", "./cache"),
    ],
)
def test_mount_paths_become_folders_only_where_they_are_paths(text: str, expected: str) -> None:
    assert MOUNTS.rewrite(text) == expected


def test_a_folder_that_contains_a_mount_path_is_not_rewritten_again() -> None:
    mounts = Mounts({"/tmp": Path("/tmp/state/tmp"), "/cache": Path("/tmp/state/cache")})
    assert mounts.rewrite("/cache/x") == "/tmp/state/cache/x"


@given(st.text())
def test_without_mounts_nothing_is_rewritten(text: str) -> None:
    assert Mounts().rewrite(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x-$(A)-$(B)", "x-1-two"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(A)", "$(A)"),
        ("$A ${A}", "$A ${A}"),
    ],
)
def test_variables_are_expanded_as_the_kubelet_does(text: str, expected: str) -> None:
    assert sandbox.expand(text, {"A": "1", "B": "two"}) == expected


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("0.0.0.0", "127.9.1.1"),
        ("--host=0.0.0.0", "--host=127.9.1.1"),
        ("::", "127.9.1.1"),
        ("--host=[::]", "--host=127.9.1.1"),
        ("0.0.0.0:8080", "127.9.1.1:8080"),
        ("10.0.0.0", "10.0.0.0"),
        ("0.0.0.0.example.com", "0.0.0.0.example.com"),
    ],
)
def test_all_addresses_become_the_pods(argument: str, expected: str) -> None:
    assert sandbox.bind_to("127.9.1.1", argument) == expected


def test_args_follow_the_images_entrypoint() -> None:
    image = Image(entrypoint=("engine", "serve"))
    words = sandbox.argv(
        image,
        command=[],
        args=["/cache/m", "--host", "0.0.0.0", "--name", "$(N)"],
        env={"N": "x"},
        mounts=MOUNTS,
        address="127.9.1.1",
    )
    assert words == ["engine", "serve", "/v/c/m", "--host", "127.9.1.1", "--name", "x"]


def test_a_command_replaces_the_entrypoint_and_finds_the_images_programs() -> None:
    image = Image(entrypoint=("e",), programs={"vllm": ("/venv/bin/vllm",)})
    words = sandbox.argv(
        image, command=["vllm", "bench"], args=["a"], env={}, mounts=Mounts(), address="127.9.1.1"
    )
    assert words == ["/venv/bin/vllm", "bench", "a"]


def test_an_engine_that_would_listen_everywhere_is_bound_to_its_pod() -> None:
    image = Image(entrypoint=("serve",), host_flag=True)
    words = sandbox.argv(
        image, command=[], args=["m"], env={}, mounts=Mounts(), address="127.9.1.1"
    )
    assert words == ["serve", "m", "--host", "127.9.1.1"]


def test_the_pods_variables_win_over_the_images() -> None:
    env = sandbox.environment(
        Image(env={"A": "image", "B": "/cache"}),
        {"A": "/cache/a"},
        mounts=MOUNTS,
        address="127.9.1.1",
    )
    assert env == {"A": "/v/c/a", "B": "/cache"}
