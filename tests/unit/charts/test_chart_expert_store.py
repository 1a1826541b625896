"""The expert store's cache and its port for blobs: volumes, memory that adds up, who may read, what replicas share."""

from __future__ import annotations

from typing import Any

import pytest
from premoe_expert_store.settings import ExpertStoreSettings
from premoe_servicekit.settings import load_settings
from support.charts import CHART, HelmFailed, Object, merged, named, notes_of, of_kind, render, rendered, values_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FOLDER = "/var/lib/premoe/blobs"


def store(**values: Any) -> list[Object]:
    return render(CHART, merged(values_of("plain"), {"expertStore": values}))


def spec_of(objects: list[Object]) -> Object:
    found: Object = named(objects, "Deployment", "premoe-expert-store")["spec"]["template"]["spec"]
    return found


def settings_of(objects: list[Object]) -> ExpertStoreSettings:
    """As the process reads them in a pod whose address is 10.1.2.3."""
    environment = dict(named(objects, "ConfigMap", "premoe-expert-store")["data"])
    for item in spec_of(objects)["containers"][0]["env"]:
        environment[item["name"]] = item.get("value", "from-the-pod").replace("$(POD_IP)", "10.1.2.3")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return load_settings(ExpertStoreSettings, "premoe-expert-store", [], environment)


def cache_volume(objects: list[Object]) -> Object:
    spec = spec_of(objects)
    assert {"name": "blobs", "mountPath": FOLDER} in spec["containers"][0]["volumeMounts"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "blobs"]
    return {key: value for key, value in volume.items() if key != "name"}


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({}, {"emptyDir": {"sizeLimit": "8Gi"}}),
        ({"size": "1Gi", "medium": "memory"}, {"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}),
        ({"existingClaim": "blobs"}, {"persistentVolumeClaim": {"claimName": "blobs"}}),
        ({"hostPath": "/mnt/nvme/premoe"}, {"hostPath": {"path": "/mnt/nvme/premoe", "type": "Directory"}}),
    ],
)
def test_the_cache_is_a_volume_that_blobs_do_not_fill_to_the_brim(cache: Object, volume: Object) -> None:
    objects = store(cache=cache)
    assert cache_volume(objects) == volume
    settings = settings_of(objects)
    assert settings.cache_dir == FOLDER
    # A pod whose volume grows beyond its limit is evicted.
    assert settings.cache_bytes == (1 if cache.get("size") else 8) * (1 << 30) * 15 // 16


@pytest.mark.parametrize(("size", "num_bytes"), [("512Mi", 512 << 20), ("20G", 20 * 10**9), ("3Ti", 3 << 40)])
def test_sizes_are_quantities(size: str, num_bytes: int) -> None:
    assert settings_of(store(cache={"size": size})).cache_bytes == num_bytes * 15 // 16


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"cache": {"medium": "memory", "size": "2Gi"}},
            "expertStore.resources.limits.memory is 2Gi: it must hold memoryBytes, the cache in memory and 256Mi, "
            "2816Mi together",
        ),
        (
            {"memoryBytes": 4 << 30, "resources": {"limits": {"memory": "4.25Gi"}}, "cache": {"size": "1Ti"}},
            None,
        ),
        (
            {"memoryBytes": 2 << 30},
            "expertStore.resources.limits.memory is 2Gi: it must hold memoryBytes and 256Mi, 2304Mi together",
        ),
        (
            {"resources": {"limits": {"memory": 700_000_000}}},
            "it must hold memoryBytes and 256Mi, 768Mi together",
        ),
        ({"cache": {"medium": "memory"}, "resources": {"limits": {"memory": None}}}, None),
        (
            {"cache": {"existingClaim": "a", "hostPath": "/b"}},
            "expertStore.cache.existingClaim and expertStore.cache.hostPath exclude each other",
        ),
        (
            {"cache": {"existingClaim": "a", "medium": "memory"}},
            "expertStore.cache.medium is memory, and existingClaim",
        ),
        ({"cache": {"size": "lots"}}, "cache/size"),
        ({"cache": {"hostPath": "mnt"}}, "cache/hostPath"),
        ({"cache": {"hostPath": "/mnt/../etc"}}, "cache/hostPath"),
        ({"http": {"urlKey": {"key": "a/b"}}}, "urlKey/key"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(values: Object, line: str | None) -> None:
    if line is None:
        assert store(**values)
        return
    with pytest.raises(HelmFailed) as refused:
        store(**values)
    assert line in str(refused.value)


@pytest.mark.parametrize(("profile", "is_refused"), [("restricted", True), ("baseline", True), ("privileged", False)])
def test_a_folder_of_the_node_is_refused_where_the_namespace_forbids_it(profile: str, is_refused: bool) -> None:
    """A Namespace as `lookup` finds it; there is no cluster here to look into."""
    found = f"{{metadata: {{name: serving, labels: {{pod-security.kubernetes.io/enforce: {profile}}}}}}}"
    check = '{{ include "premoe.expert-store.validate.hostPath" (fromYaml "' + found + '") }}'
    values = values_of("plain") | {"extraObjects": [check]}
    if is_refused:
        with pytest.raises(HelmFailed, match=f"namespace serving enforces the Pod Security profile {profile}"):
            render(CHART, values)
    else:
        assert render(CHART, values)


def test_blobs_have_a_port_that_names_the_pod() -> None:
    objects = rendered("plain")
    settings = settings_of(objects)
    assert (settings.http_port, settings.advertise, settings.http_plain) == (50055, "10.1.2.3:50055", False)
    container = spec_of(objects)["containers"][0]
    assert {"name": "blobs", "containerPort": 50055, "protocol": "TCP"} in container["ports"]
    ports = named(objects, "Service", "premoe-expert-store")["spec"]["ports"]
    assert {"name": "blobs", "port": 50055, "targetPort": "blobs", "protocol": "TCP"} in ports
    variables = [item["name"] for item in container["env"]]
    # Kubernetes replaces $(NAME) only by variables that stand before.
    assert variables.index("POD_IP") < variables.index("PREMOE_EXPERT_STORE_ADVERTISE")


def test_addresses_of_ipv6_stand_in_brackets() -> None:
    objects = render(CHART, values_of("plain") | {"listenAddress": "::"})
    assert settings_of(objects).advertise == "[10.1.2.3]:50055"


def test_without_the_port_blobs_come_over_grpc_alone() -> None:
    objects = store(http={"enabled": False, "urlKey": {"existingSecret": "addresses"}})
    settings = settings_of(objects)
    assert (settings.http_port, settings.advertise, settings.peers, settings.url_key) == (None, "", (), "")
    assert "50055" not in str(of_kind(objects, "Deployment", "Service", "NetworkPolicy"))


def test_replicas_know_each_other_once_they_share_a_key() -> None:
    alone = settings_of(rendered("plain"))
    assert (alone.peers, alone.url_key) == ((), "")
    objects = store(http={"urlKey": {"existingSecret": "addresses", "key": "url"}})
    settings = settings_of(objects)
    assert settings.peers == ("premoe-expert-store.serving.svc:50055",)
    spec = spec_of(objects)
    folder, _, name = settings.url_key.rpartition("/")
    assert {"name": "url-key", "mountPath": folder, "readOnly": True} in spec["containers"][0]["volumeMounts"]
    secret = {"secretName": "addresses", "items": [{"key": "url", "path": name}]}
    assert {"name": "url-key", "secret": secret} in spec["volumes"]


def test_notes_say_what_follows() -> None:
    notes = notes_of(values_of("plain"))
    assert "8Gi of disk as cache, blobs over http\n" in notes
    assert "WARNING: expertStore.http.urlKey.existingSecret is empty. Each replica" in notes
    one = merged(values_of("plain"), {"expertStore": {"replicas": 1}})
    shared = merged(values_of("plain"), {"expertStore": {"http": {"urlKey": {"existingSecret": "addresses"}}}})
    for values in (one, shared):
        assert "urlKey" not in notes_of(values)
    read_along = merged(values_of("secret"), {"expertStore": {"http": {"plain": True}}})
    assert "WARNING: expertStore.http.plain is true. Workers check every byte" in notes_of(read_along)
    assert "blobs over http\n" in notes_of(read_along)
    assert "blobs over https\n" in notes_of(values_of("secret"))
    reads = {"read": True, "existingSecret": "object-store"}
    same = notes_of(merged(values_of("plain"), {"worker": {"objectStore": reads}}))
    assert "WARNING: worker.objectStore.existingSecret names the Secret that Jobs write packs with" in same
    own = notes_of(merged(values_of("plain"), {"worker": {"objectStore": {**reads, "existingSecret": "packs"}}}))
    assert "worker.objectStore" not in own
    host = merged(values_of("plain"), {"expertStore": {"cache": {"hostPath": "/mnt/nvme"}}})
    assert "WARNING: expertStore.cache.hostPath is set. The folder must be on every node" in notes_of(host)
