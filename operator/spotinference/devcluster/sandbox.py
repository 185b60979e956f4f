"""What a container runtime would isolate, by rewriting instead: pure functions.

Mount paths become folders of the volume, a listen address of 0.0.0.0 becomes the pod's address,
`$(VAR)` is expanded as the kubelet does. No I/O here; used by `containers.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spotinference.devcluster.images import Image

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.\-][A-Za-z0-9_.\-]*)\)")
ALL_ADDRESSES = ("0.0.0.0", "::", "[::]")


@dataclass(frozen=True, slots=True)
class Mounts:
    """Mount path → folder (or file) that stands for it."""

    folders: Mapping[str, Path] = field(default_factory=dict)

    def rewrite(self, text: str) -> str:
        """Replaces every mount path that stands as a path of its own in the text.

        `/cache/x`, `--dir=/cache`, `"/cache/y"` and `file:///cache` are paths; `/cached`,
        `a/cache` and `http://host/cache` are not.
        """
        if not self.folders:
            return text
        longest_first = sorted(self.folders, key=len, reverse=True)
        pattern = "|".join(re.escape(path.rstrip("/")) for path in longest_first if path != "/")
        by_path = {path.rstrip("/"): str(folder) for path, folder in self.folders.items()}
        return re.sub(
            rf"(?:(?<![\w.\-/])|(?<=file://))(?P<path>{pattern})(?![\w.\-])",
            lambda match: by_path[match["path"]],
            text,
        )


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` from env; unknown names stay as they are; `$$` is one dollar sign."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def bind_to(address: str, argument: str) -> str:
    """The argument with "all addresses" replaced by one: `--host=0.0.0.0`, `0.0.0.0:80`, `::`."""
    head, equals, tail = argument.rpartition("=")
    if tail in ALL_ADDRESSES:
        return f"{head}{equals}{address}"
    if tail.startswith("0.0.0.0:"):
        return f"{head}{equals}{address}{tail.removeprefix('0.0.0.0')}"
    return argument


def argv(
    image: Image,
    *,
    command: Sequence[str],
    args: Sequence[str],
    env: Mapping[str, str],
    mounts: Mounts,
    address: str,
) -> list[str]:
    """What to execute: the pod's command or the image's entrypoint, then the args, rewritten."""
    written = [bind_to(address, mounts.rewrite(expand(word, env))) for word in [*command, *args]]
    if not command:
        words = [*image.entrypoint, *written]
    else:
        words = [*image.programs.get(written[0], (written[0],)), *written[1:]]
    if image.host_flag and not any(w == "--host" or w.startswith("--host=") for w in words):
        words += ["--host", address]
    return words


def environment(
    image: Image, declared: Mapping[str, str], *, mounts: Mounts, address: str
) -> dict[str, str]:
    """The image's variables, then the pod's with paths and listen addresses rewritten."""
    rewritten = {name: bind_to(address, mounts.rewrite(value)) for name, value in declared.items()}
    return {**image.env, **rewritten}
