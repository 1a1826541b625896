"""Settings: one frozen class per process, from ``PREMOE_<PROC>_*`` variables and flags; misspelt names are refused.

A mistyped variable would otherwise be ignored in silence, and a process would run with a default nobody asked for.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, CliApp, NoDecode, SettingsConfigDict

from premoe_runtime.formats.errors import InvalidInput

S = TypeVar("S", bound="ProcessSettings")


def split_commas(value: object) -> object:
    """``"a, b"``, or a list of such texts, as ``("a", "b")``; other values as they are."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple(part.strip() for item in value for part in str(item).split(",") if part.strip())
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]
"""A setting of several words: separated by commas in a variable; as a flag also repeatable."""


Release = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
OptionalRelease = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")]


class ProcessSettings(BaseSettings):
    """What every process can be told. Subclasses set ``env_prefix`` to ``PREMOE_<PROC>_``."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    tls_cert: str = ""
    """PEM file of this process's certificate chain. With `tls_key` and `tls_ca`: mutual TLS on the server and on
    all calls to other processes. The files are read again when they change."""
    tls_key: str = ""
    """PEM file of the certificate's private key, without a passphrase."""
    tls_ca: str = ""
    """PEM file of the authorities that peers' certificates must come from."""
    tls_server_name: str = ""
    """Name that peers' certificates carry where it is not the address; empty: the address."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log records to write."""
    log_format: Literal["plain", "json"] = "plain"
    """Log lines for people or for collectors."""


class ServerSettings(ProcessSettings):
    """What every process with a gRPC server can be told."""

    tls_release: OptionalRelease = ""
    """Name of the release. Callers need a role in it that may call here, by the URI `premoe://RELEASE/ROLE` in their
    certificate; empty: every certificate of the authority will do."""
    tls_guests: Annotated[tuple[Release, ...], NoDecode, BeforeValidator(split_commas)] = ()
    """Names of other releases whose workers and operator may call as those of the own one do."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to listen on; 0 takes a free one, which the ready line names."""
    health_host: str = ""
    """Address of the separate health port; empty: the same as `host`."""
    health_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of a plain-text health service for probes; empty: none. With TLS it also tries the main port."""
    metrics_host: str = ""
    """Address of the metrics port; empty: the same as `host`."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of the metrics in Prometheus' text format, plain HTTP; empty: none. 0 takes a free one, which the ready line
    names."""
    reflection: bool = False
    """Offer gRPC server reflection, for grpcurl."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """Seconds after SIGTERM or SIGINT in which health says NOT_SERVING but requests are still taken, so that callers
    hear of it before the port closes."""
    max_connection_age_s: float | None = Field(default=None, gt=0)
    """Seconds after which a client is asked to connect anew, so that it finds new replicas; default: never. Running
    calls end in peace."""
    grace_s: float = Field(default=20.0, ge=0)
    """Seconds that running requests get to end after the drain delay; a second signal ends them at once."""
    max_message_bytes: int = Field(default=16 << 20, ge=1 << 16)
    """Largest message taken or sent. Bulk bytes go in frames of 1 MiB, so only manifests come near it."""

    @field_validator("health_port", "metrics_port", "max_connection_age_s", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        """A variable set to nothing, or to "none", turns the setting off."""
        return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value


def load_settings(
    settings: type[S],
    program: str,
    arguments: Sequence[str] | None = None,
    environment: MutableMapping[str, str] = os.environ,
) -> S:
    """Read flags (first) and environment. ``--help`` and unknown flags end the process as argparse does, with code 2.

    Raises InvalidInput in one line for a wrong value or an unknown ``PREMOE_<PROC>_*`` variable.
    """
    drop_service_links(environment)
    check_environment(settings, environment)
    named = type(
        settings.__name__,
        (settings,),
        {"model_config": SettingsConfigDict(cli_prog_name=program), "__doc__": settings.__doc__},
    )
    try:
        loaded: S = CliApp.run(named, cli_args=list(sys.argv[1:] if arguments is None else arguments))
    except ValidationError as error:
        raise InvalidInput(_first_fault(error, settings), reason="SETTING_INVALID") from None
    return loaded


_LINK = re.compile(r"_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?", re.IGNORECASE)


def drop_service_links(environment: MutableMapping[str, str]) -> None:
    """Take out what Kubernetes and Docker write about a Service beside us, which may bear our name.

    ``PREMOE_GATEWAY_PORT=tcp://10.0.0.7:8000`` is no setting of ours.
    """
    for name, value in list(environment.items()):
        is_ours = name.upper().startswith("PREMOE_")
        if is_ours and (_LINK.search(name) or (name.upper().endswith("_PORT") and "://" in value)):
            del environment[name]


def check_environment(settings: type[ProcessSettings], environment: Mapping[str, str]) -> None:
    """Raise InvalidInput for a variable with our prefix that names no setting; says the nearest one."""
    prefix = settings.model_config.get("env_prefix", "").upper()
    known = {prefix + name.upper() for name in settings.model_fields}
    for name in sorted(environment):
        if name.upper().startswith(prefix) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)
            raise InvalidInput(
                f"environment variable {name} is no setting; did you mean {near[0]}?", reason="SETTING_UNKNOWN"
            )


def _first_fault(error: ValidationError, settings: type[ProcessSettings]) -> str:
    fault = error.errors()[0]
    name = str(fault["loc"][0]) if fault["loc"] else "settings"
    prefix = settings.model_config.get("env_prefix", "").upper()
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"--{name.replace('_', '-')} ({prefix}{name.upper()}): {fault['msg']}{more}"
