from __future__ import annotations

import pytest
from premoe_servicekit.settings import ServerSettings, load_settings
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from premoe_runtime.formats.errors import InvalidInput


class OvenSettings(ServerSettings):
    """Bakes."""

    model_config = SettingsConfigDict(env_prefix="PREMOE_OVEN_")

    store_url: str
    """Where the dough is."""
    heat: int = Field(default=200, le=300)
    """Degrees."""
    cover: str | None = None
    """What to put on top."""


def load(*arguments: str) -> OvenSettings:
    return load_settings(OvenSettings, "premoe-oven", arguments)


@pytest.fixture(autouse=True)
def _store_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREMOE_OVEN_STORE_URL", "memory://dough")


def test_flags_win_over_environment_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load().heat, load().store_url, load().cover) == (200, "memory://dough", None)
    monkeypatch.setenv("PREMOE_OVEN_HEAT", "210")
    assert load().heat == 210
    assert load("--heat", "220").heat == 220
    assert load("--reflection").reflection
    assert load("--cover", "lid").cover == "lid"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load().heat = 3


def test_a_misspelt_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREMOE_OVEN_HAET", "210")
    with pytest.raises(
        InvalidInput, match=r"PREMOE_OVEN_HAET is no setting; did you mean PREMOE_OVEN_HEAT\?"
    ) as caught:
        load()
    assert caught.value.reason == "SETTING_UNKNOWN"


def test_service_links_of_a_service_with_our_name_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes writes them for a Service ``premoe-oven`` with a port named http."""
    for name, value in {
        "SERVICE_HOST": "10.0.0.7",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT": "tcp://10.0.0.7:8000",
        "PORT_8000_TCP": "tcp://10.0.0.7:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.7",
    }.items():
        monkeypatch.setenv(f"PREMOE_OVEN_{name}", value)
    assert load().port == 0
    monkeypatch.setenv("PREMOE_OVEN_PORT", "81")
    assert load().port == 81


def test_other_processes_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREMOE_FRIDGE_HAET", "1")
    assert load().heat == 200


@pytest.mark.parametrize(
    ("arguments", "names"),
    [(("--heat", "301"), "PREMOE_OVEN_HEAT"), (("--heat", "warm"), "--heat"), (("--port", "65536"), "--port")],
)
def test_a_wrong_value_is_one_line_with_flag_and_variable(arguments: tuple[str, ...], names: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(*arguments)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREMOE_OVEN_STORE_URL")
    with pytest.raises(InvalidInput, match="--store-url"):
        load()


def test_help_shows_every_field_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "premoe-oven" in text
    for words in ("Bakes.", "Where the dough is.", "Degrees.", "--store-url", "--grace-s", "--no-reflection"):
        assert words in text


def test_an_unknown_flag_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--haet", "3")
    assert caught.value.code == 2
    assert "--haet" in capsys.readouterr().err
