"""Settings of the gateway: `PREMOE_GATEWAY_*` variables and flags."""

from __future__ import annotations

from typing import Literal

from premoe_servicekit.settings import Names, ServerSettings
from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from premoe_gateway.targets import parse_target
from premoe_runtime.formats.choices import OnUnknown

KEEP_ALIVE_S = 120.0
RECEIVE_S = 60.0
SEND_S = 60.0
CONNECTIONS = 1000
SEARCH_ANSWERS = 16
MAX_BODY_BYTES = 16 * 2**20


class GatewaySettings(ServerSettings):
    """OpenAI HTTP in front of workers."""

    model_config = SettingsConfigDict(env_prefix="PREMOE_GATEWAY_")

    http_host: str = "127.0.0.1"
    """Address of the HTTP API. `host` and `port` are those of the gRPC health service."""
    http_port: int = Field(default=8000, ge=0, le=65535)
    """Port of the HTTP API; 0 takes a free one, which the ready line names."""
    http_tls_cert: str = ""
    """PEM file of the HTTP API's certificate chain; with `http_tls_key` it speaks HTTPS. The files are read again when
    they change. `tls_cert` and its like are for calls between our own processes."""
    http_tls_key: str = ""
    """PEM file of its private key, without a passphrase."""
    workers: Names
    """Workers, separated by commas: `host:port`, or `dns:///name:port` for all addresses behind a name, looked up again
    and again. With names, or with nothing at all, the gateway is ready before any worker is."""
    workers_file: str = ""
    """File with more of them, one a line, read again when it changes; it need not be there yet. The operator's list of
    workers in other namespaces."""
    retrieval: str = ""
    """Address of the retrieval service; without one every request must name its pattern."""
    on_unknown: OnUnknown | Literal[""] = ""
    """What runs when no stored task fits; empty leaves it to the live pattern set."""
    request_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds a request may take, from its first byte to its last."""
    poll_s: float = Field(default=1.0, gt=0)
    """Seconds between two looks at the workers."""

    keep_alive_s: float = Field(default=KEEP_ALIVE_S, ge=1)
    """Seconds that an idle HTTP connection stays open; longer than clients and proxies in front keep theirs, or they
    send into one that closes."""
    max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1 << 10, le=MAX_BODY_BYTES)
    """Largest request body."""
    receive_timeout_s: float = Field(default=RECEIVE_S, gt=0)
    """Seconds that a client may take to send a request, from the first byte of its headers to the last of its body."""
    send_timeout_s: float = Field(default=SEND_S, gt=0)
    """Seconds after which a client that does not read its answer is left, and its request ended."""
    max_connections: int = Field(default=CONNECTIONS, ge=1)
    """HTTP connections at a time; more get 503."""
    keys_file: str = ""
    """File of API keys (`premoe keys add`), read again when it changes; empty: the gateway asks for none."""
    search_answers: int = Field(default=SEARCH_ANSWERS, ge=0, le=128)
    """Most answers that one request may search among (`premoe.search`); 0: no searches."""
    verifiers_file: str = ""
    """File of the models that may score a search's answers, read again when it changes; empty: none."""
    console: bool = False
    """Serve the console, a web page for people, at `/`, and the data behind it under `/premoe/v1/`."""
    cors_origins: Names = ()
    """Origins of web pages that may call from a browser, separated by commas, `*` for any; empty: none."""

    @field_validator("workers")
    @classmethod
    def _targets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_target(text)
        return value
