from __future__ import annotations

import pytest
from premoe_servicekit.settings import load_settings
from premoe_worker.settings import WorkerSettings

from premoe_runtime.formats.errors import InvalidInput


@pytest.mark.parametrize("given", ["ab12", "blake3:ab12"])
def test_a_model_id_may_name_its_algorithm(given: str) -> None:
    arguments = ["--store", "store:1", "--budget", "2/4", "--model-id", given]
    assert load_settings(WorkerSettings, "premoe-worker", arguments, {}).model_id == "ab12"


def test_a_pod_s_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "STORE": "dns:///store.ns.svc:50051",
        "BUDGET": "2/4",
        "HEALTH_HOST": "0.0.0.0",
        "HEALTH_PORT": "50053",
        "TLS_CERT": "/etc/premoe/tls/tls.crt",
        "TLS_KEY": "/etc/premoe/tls/tls.key",
        "TLS_CA": "/etc/premoe/tls/ca.crt",
        "DRAIN_DELAY_S": "8",
        "MAX_CONNECTION_AGE_S": "300",
        "RESIDENCY_DIR": "/etc/premoe/residency",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"PREMOE_WORKER_{name}", value)
    settings = load_settings(WorkerSettings, "premoe-worker", [])
    assert (settings.health_port, settings.drain_delay_s, settings.max_connection_age_s) == (50053, 8.0, 300.0)
    assert settings.residency_dir == "/etc/premoe/residency"


def test_denied_tasks_are_listed_and_need_a_service_that_knows_them() -> None:
    arguments = ["--store", "store:1", "--budget", "2/4", "--deny", "kb, lang"]
    settings = load_settings(WorkerSettings, "premoe-worker", [*arguments, "--retrieval", "retrieval:1"], {})
    assert settings.deny == ("kb", "lang")
    with pytest.raises(InvalidInput, match="deny needs retrieval"):
        load_settings(WorkerSettings, "premoe-worker", arguments, {})
