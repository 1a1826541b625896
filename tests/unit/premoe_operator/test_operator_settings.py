"""The operator's settings: lists, times that must not cross, and unknown names."""

from __future__ import annotations

import pytest
from premoe_operator.run.settings import OperatorSettings
from premoe_servicekit.settings import load_settings

from premoe_runtime.formats.errors import InvalidInput


def read(*arguments: str) -> OperatorSettings:
    return load_settings(OperatorSettings, "premoe-operator", ["--release-file", "r.json", *arguments], {})


def test_namespaces_are_split_at_commas() -> None:
    assert read().watch_namespaces == ()
    assert read("--watch-namespaces", "a, b,").watch_namespaces == ("a", "b")


@pytest.mark.parametrize(("fence", "duration"), [("20", "15"), ("15", "15"), ("1", "15")])
def test_the_fence_lies_between_renewal_and_expiry(fence: str, duration: str) -> None:
    with pytest.raises(InvalidInput, match="does not hold"):
        read("--lease-fence-s", fence, "--lease-duration-s", duration, "--lease-renew-s", "2")


def test_a_release_file_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREMOE_OPERATOR_RELEASE_FILE", raising=False)
    with pytest.raises(InvalidInput, match="release-file"):
        load_settings(OperatorSettings, "premoe-operator", [], {})


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(InvalidInput, match="PREMOE_OPERATOR_WATCH_NAMESPACE is no setting"):
        load_settings(OperatorSettings, "premoe-operator", [], {"PREMOE_OPERATOR_WATCH_NAMESPACE": "a"})
