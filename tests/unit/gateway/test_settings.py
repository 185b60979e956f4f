"""What the gateway is told wrongly is said in one sentence that names it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from spotinference import errors
from spotinference.cli.app import app


def test_a_wrong_flag_and_a_wrong_variable_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["gateway", "run", "--port", "99999"])
    assert isinstance(result.exception, errors.ConfigInvalid)
    assert str(result.exception).startswith("--port (SPOTINFERENCE_GATEWAY_PORT) is 99999: ")
    monkeypatch.setenv("SPOTINFERENCE_GATEWAY_DRAIN_S", "soon")
    result = CliRunner().invoke(app, ["gateway", "run"])
    assert isinstance(result.exception, errors.ConfigInvalid)
    assert "SPOTINFERENCE_GATEWAY_DRAIN_S" in str(result.exception)


def test_an_unknown_log_level_is_wrong_usage() -> None:
    result = CliRunner().invoke(app, ["gateway", "run", "--log-level", "loud"])
    assert result.exit_code == 2
    assert "loud" in result.output
