"""The Kubernetes API through the official client: every call goes through one method, ``KubernetesApi._call``.

Objects are plain JSON. Before each write, and before each further try of one, the fence is asked.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import aiohttp
from kubernetes.aio.client import ApiClient

from premoe_operator.api.names import FIELD_MANAGER
from premoe_operator.kube.cluster import ApiFailure, Listed
from premoe_operator.kube.kinds import EVENT, POD, REVISION, Kind, kind_of
from premoe_operator.kube.objects import Json, uid_of, version_of
from premoe_runtime.formats.errors import InvalidInput

REQUEST_TIMEOUT_S = 10.0
"""To connect, and between two pieces of an answer."""
THROTTLED_TRIES = 4
THROTTLED_WAIT_MAX_S = 30.0
PAGE_OBJECTS = 500

_APPLY = "application/apply-patch+yaml"
_YAML = "application/yaml"
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"

_log = logging.getLogger(__name__)


class KubernetesApi:
    """Implements ``cluster.Cluster``. ``fence`` raises FenceClosed when this process must not write."""

    def __init__(
        self,
        client: ApiClient,
        *,
        fence: Callable[[], None],
        on_call: Callable[[str, str, int], None] = lambda verb, plural, code: None,
    ) -> None:
        client.user_agent = FIELD_MANAGER
        self._client = client
        self._fence = fence
        self._on_call = on_call
        self._applied: set[str] = set()
        """uids of objects that we own by apply."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.close()

    async def list(
        self, kind: Kind, namespace: str | None, *, label_selector: str = "", field_selector: str = ""
    ) -> Listed:
        # A page's limit sends API servers before 1.34 past their cache to etcd, where they read the whole namespace for
        # one model's pods.
        params = {} if kind is POD else {"limit": str(PAGE_OBJECTS)}
        if label_selector:
            params["labelSelector"] = label_selector
        if field_selector:
            params["fieldSelector"] = field_selector
        found: list[Json] = []
        while True:
            page = await self._call("list", "GET", kind, kind.path(namespace), params=params)
            # A list's items carry neither apiVersion nor kind.
            found += [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in page.get("items", [])]
            following = page["metadata"].get("continue", "")
            if not following:
                return Listed(tuple(found), version_of(page))
            params["continue"] = following

    async def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        try:
            return await self._call("get", "GET", kind, kind.path(namespace, name))
        except ApiFailure as failure:
            if failure.code == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def openapi(self, kind: Kind) -> Json:
        """The OpenAPI v3 document of a kind's group and version. Raises ApiFailure."""
        return await self._call("get", "GET", kind, f"openapi/v3/apis/{kind.api_version}")

    async def create(self, obj: Json) -> Json:
        kind = kind_of(obj)
        path = kind.path(obj["metadata"]["namespace"])
        params = {"fieldManager": FIELD_MANAGER}
        if kind is not REVISION:
            return await self._call("create", "POST", kind, path, params=params, body=obj)
        # The API server keeps a revision's data byte for byte and lets nobody change a byte. The client's JSON has
        # blanks, which every later patch would lose; as YAML, which JSON is too, the text goes out as it is.
        text = json.dumps(obj, separators=(",", ":"), ensure_ascii=False)
        return await self._call("create", "POST", kind, path, params=params, body=text, content_type=_YAML)

    async def apply(self, obj: Json) -> Json:
        kind = kind_of(obj)
        path = kind.path(obj["metadata"]["namespace"], obj["metadata"]["name"])
        await self._own_by_apply(kind, obj)
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        applied = await self._call("apply", "PATCH", kind, path, params=params, body=obj, content_type=_APPLY)
        self._applied.add(uid_of(applied))
        return applied

    async def apply_status(self, obj: Json, *, manager: str = FIELD_MANAGER) -> Json:
        kind = kind_of(obj)
        path = kind.path(obj["metadata"]["namespace"], obj["metadata"]["name"], "status")
        params = {"fieldManager": manager, "force": "true"}
        return await self._call("apply_status", "PATCH", kind, path, params=params, body=obj, content_type=_APPLY)

    async def merge_patch(self, kind: Kind, namespace: str, name: str, patch: Json) -> Json:
        params = {"fieldManager": FIELD_MANAGER}
        path = kind.path(namespace, name)
        return await self._call("patch", "PATCH", kind, path, params=params, body=patch, content_type=_MERGE)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._call("delete", "DELETE", kind, kind.path(namespace, name), body=body)
        except ApiFailure as failure:
            # 409: another object has the name now, so ours is gone.
            if failure.code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise

    async def replace(self, obj: Json) -> Json:
        kind = kind_of(obj)
        path = kind.path(obj["metadata"]["namespace"], obj["metadata"]["name"])
        return await self._call("update", "PUT", kind, path, params={"fieldManager": FIELD_MANAGER}, body=obj)

    async def _own_by_apply(self, kind: Kind, obj: Json) -> None:
        """Turn what we own by the POST into what we own by apply, once.

        Otherwise the POST's entry in managedFields keeps every field that a later apply no longer names.
        """
        namespace, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
        if uid_of(obj) in self._applied:
            return
        present = await self.get(kind, namespace, name)
        if present is None or uid_of(present) != uid_of(obj):
            return  # the apply itself then fails with 409
        fields = present["metadata"].get("managedFields", [])
        migrated = migrated_fields(fields)
        if migrated == fields:
            return
        patch = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": present["metadata"]["resourceVersion"]},
            {"op": "replace", "path": "/metadata/managedFields", "value": migrated},
        ]
        params = {"fieldManager": FIELD_MANAGER}
        path = kind.path(namespace, name)
        await self._call("patch", "PATCH", kind, path, params=params, body=patch, content_type=_JSON_PATCH)

    async def _call(
        self,
        verb: str,
        method: str,
        kind: Kind,
        path: str,
        *,
        params: dict[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Json:
        """Send one request; wait out 429 and 503 as the server asks, a few times. Raises ApiFailure, FenceClosed."""
        writes = method != "GET" and kind is not EVENT
        for tries_left in reversed(range(THROTTLED_TRIES)):
            if writes:
                self._fence()
            try:
                response, text = await self._send(method, path, params, body, content_type)
            except (aiohttp.ClientError, TimeoutError, OSError, InvalidInput) as error:
                self._on_call(verb, kind.plural, 0)
                detail = f"{type(error).__name__}: {error}".rstrip(": ")
                raise ApiFailure(0, "Unreachable", f"the API server did not answer: {detail}") from error
            self._on_call(verb, kind.plural, response.status)
            if HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                answer: Json = json.loads(text)
                return answer
            wait_s = _asked_wait_s(response)
            if wait_s is None or not tries_left:
                raise _failure(response.status, text)
            _log.info("%s %s: asked to wait %.0f s", verb, path, wait_s)
            await asyncio.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    async def _send(
        self, method: str, path: str, params: dict[str, str] | None, body: object, content_type: str
    ) -> tuple[Any, str]:
        request = await self._client.param_serialize(
            method,
            f"/{path}",
            query_params=list((params or {}).items()),
            header_params={"Content-Type": content_type, "Accept": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        timeout = aiohttp.ClientTimeout(total=None, connect=REQUEST_TIMEOUT_S, sock_read=REQUEST_TIMEOUT_S)
        response = await self._client.call_api(*request, _request_timeout=timeout)
        return response, (await response.read()).decode(errors="replace")


def migrated_fields(fields: list[Json]) -> list[Json]:
    """ManagedFields with our Update entry as an Apply entry, where we have no Apply entry yet."""

    def ours(entry: Json, operation: str) -> bool:
        return (
            entry.get("manager") == FIELD_MANAGER
            and entry.get("operation") == operation
            and not entry.get("subresource")
        )

    if any(ours(entry, "Apply") for entry in fields):
        return [entry for entry in fields if not ours(entry, "Update")]
    return [{**entry, "operation": "Apply"} if ours(entry, "Update") else entry for entry in fields]


def _asked_wait_s(response: Any) -> float | None:
    if response.status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return None
    text = response.headers.get("Retry-After", "")
    return min(float(text), THROTTLED_WAIT_MAX_S) if text.isdigit() else None


def _failure(code: int, text: str) -> ApiFailure:
    reason, message = "", text[:300]
    try:
        status: dict[str, Any] = json.loads(text)
        reason, message = str(status.get("reason", "")), str(status.get("message", message))
    except (json.JSONDecodeError, AttributeError):
        pass  # a proxy's page, not the API's Status
    return ApiFailure(code, reason, " ".join(message.split()))
