"""The release file: read whole, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from premoe_operator.api.release import Drain, read_release
from support.pruned_models import IMAGE, RELEASE

from premoe_runtime.formats.errors import InvalidInput


def test_a_release_is_read_with_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "release.json"
    file.write_text(json.dumps(RELEASE))
    release = read_release(file)
    assert release.worker_image == IMAGE
    assert release.image_pull_policy == "IfNotPresent"
    assert release.expert_store.port == 50051
    assert release.drain == Drain(pre_stop_seconds=5, delay_seconds=30)
    assert release.tls.mode == "Disabled"
    assert release.egress.s3 is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workerImage": ""}, "workerImage: String should have at least 1 character"),
        ({"workerImages": "x"}, "workerImages: Extra inputs are not permitted"),
        ({"worker_image": "x"}, "worker_image: Extra inputs are not permitted"),
        ({"tls": {"mode": "Secret"}}, "tls: Value error, mode Secret needs secretName"),
        ({"tls": {"mode": "CertManager"}}, "tls: Value error, mode CertManager needs issuerRef"),
        ({"tls": {"checkRoles": True}}, "tls: Value error, checkRoles needs release"),
        (
            {"tls": {"duration": "90d"}},
            "tls.duration: String should match pattern '^[0-9]+h([0-9]+m)?([0-9]+s)?$'",
        ),
        ({"listenAddress": "all"}, "listenAddress: String should match pattern '^[0-9A-Fa-f:.]+$'"),
        ({"podSecurityContext": "restricted"}, "podSecurityContext: Input should be an object"),
        ({"expertStore": {"name": "store"}}, "expertStore.namespace: Field required"),
        ({"drain": {"delaySeconds": -1}}, "drain.delaySeconds: Input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_release_is_refused_in_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    file = tmp_path / "release.json"
    file.write_text(json.dumps({**RELEASE, **changes}))
    with pytest.raises(InvalidInput) as caught:
        read_release(file)
    assert str(caught.value) == f"release file {file}: {message}"
    assert caught.value.reason == "RELEASE_INVALID"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file or directory"), ("{", "the whole file: Invalid JSON")]
)
def test_a_missing_or_broken_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "release.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidInput, match=f"release file {file}: {message}"):
        read_release(file)
