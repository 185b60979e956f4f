#!/bin/sh
# Makes .venv from the locked requirements. Needs Python >= 3.11 and a package index; nothing else.
# Called by `make`; safe to run again (uv changes only what differs).
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
        if usable "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

find_uv() {
    for candidate in .venv/bin/uv uv; do
        if "$candidate" --version >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

if ! usable .venv/bin/python; then
    python=$(find_python) || {
        say "error: no Python >= 3.11 found (tried \$PYTHON, python3.13, python3.12, python3.11, python3)."
        say "Install one, or name it: make PYTHON=/path/to/python3.12 ..."
        exit 1
    }
    say "creating .venv with $("$python" --version)"
    if ! find_uv >/dev/null; then
        "$python" -m venv --clear .venv || {
            say "error: $python cannot create a virtual environment. On Debian and Ubuntu:"
            say "apt install python3-venv; or put uv on your PATH (https://docs.astral.sh/uv)."
            exit 1
        }
        .venv/bin/python -m pip install --quiet --require-hashes -r requirements/uv.txt
    else
        "$(find_uv)" venv --quiet --clear --python "$python" .venv
    fi
fi

uv=$(find_uv) || {
    .venv/bin/python -m pip install --quiet --require-hashes -r requirements/uv.txt
    uv=.venv/bin/uv
}
say "installing the locked requirements into .venv"
"$uv" pip install --quiet --python .venv --require-hashes -r requirements/dev.txt
"$uv" pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
