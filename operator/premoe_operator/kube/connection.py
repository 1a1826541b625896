"""Where the API server is and who we are: the pod's ServiceAccount, or a kubeconfig.

Both the client and kopf's watches take it from here, so that identity, proxy and certificates are the same for both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from premoe_runtime.formats.errors import InvalidInput

TOKEN_AGE_S = 60.0
"""A token that has been read so long ago is read again before the next call: files and plug-ins rotate it."""
POOL_CONNECTIONS = 32

_FAULTS = (ConfigException, OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError)


class Connection:
    """``configuration`` is the client's; its token stays fresh. ``read`` fills it in anew."""

    def __init__(
        self,
        configuration: Configuration,
        read: Callable[[], Awaitable[object]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.configuration = configuration
        self._read = read
        self._clock = clock
        self._read_at = float("-inf")
        self._sessions: list[aiohttp.ClientSession] = []
        configuration.connection_pool_maxsize = POOL_CONNECTIONS
        configuration.refresh_api_key_hook = self._refresh  # type: ignore[assignment]  # typed by its default

    async def token(self) -> str:
        """The Authorization header, read just now; empty where a client certificate says who we are.

        Raises InvalidInput (KUBECONFIG_INVALID) in one line.
        """
        try:
            await self._read()
        except _FAULTS as error:
            raise _invalid(_detail(error)) from None
        self._read_at = self._clock()
        # A file's last line break would be refused as part of a header.
        token = str(self.configuration.api_key.get("BearerToken") or "").strip()
        if token:
            self.configuration.api_key["BearerToken"] = token
        if token.startswith("Basic "):
            raise _invalid("the kubeconfig logs in by password; use a token or a client certificate")
        if not token and not self.configuration.cert_file:
            raise _invalid("no context with a user")
        if self.configuration.tls_server_name:
            raise _invalid("tls-server-name cannot be set for watches; name the API server as its certificate does")
        return token

    def watch_session(self, token: str, response_class: type[aiohttp.ClientResponse]) -> aiohttp.ClientSession:
        """A session for watches, with the client's certificates and proxy; open until ``aclose`` at the latest."""
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=RESTClientObject(self.configuration).ssl_context, limit=0),
            headers={"Authorization": token} if token else {},
            response_class=response_class,
            proxy=self.configuration.proxy,
            trust_env=True,  # as the client does
        )
        self._sessions = [*(known for known in self._sessions if not known.closed), session]
        return session

    async def aclose(self) -> None:
        """Close what watches left open: kopf closes nothing when it is cancelled."""
        for session in self._sessions:
            await session.close()

    async def _refresh(self, _: Configuration) -> None:
        if self._clock() - self._read_at >= TOKEN_AGE_S:
            await self.token()


async def load_connection(kubeconfig: str = "") -> Connection:
    """The given kubeconfig; else the pod's ServiceAccount, $KUBECONFIG or ~/.kube/config, whichever is there first.

    Raises InvalidInput (KUBECONFIG_INVALID) in one line.
    """
    configuration = Configuration()
    connection = Connection(configuration, await _reader(kubeconfig, configuration))
    await connection.token()
    return connection


async def _reader(kubeconfig: str, configuration: Configuration) -> Callable[[], Awaitable[object]]:
    async def from_pod() -> None:
        load_incluster_config(client_configuration=configuration, try_refresh_token=False)

    if not kubeconfig:
        try:
            await from_pod()
            return from_pod
        except ConfigException:
            pass  # not in a pod
    files = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    if not any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file):
        raise _invalid(f"{files} is not there")
    try:
        loader = await load_kube_config(config_file=files, client_configuration=configuration, persist_config=False)
    except _FAULTS as error:
        raise _invalid(_detail(error)) from None

    async def from_file() -> None:
        await loader.load_and_set(configuration)

    return from_file


def _detail(error: Exception) -> str:
    """The client's loader trips over what is missing; its own refusals say what that is."""
    if isinstance(error, (TypeError, AttributeError)):
        return "the file is no kubeconfig with a context, its cluster and its user"
    return " ".join(str(error).split())


def _invalid(detail: str) -> InvalidInput:
    return InvalidInput(f"no Kubernetes connection: {detail}", reason="KUBECONFIG_INVALID")
