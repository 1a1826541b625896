"""Model hubs: a repository at one commit as a store of ranged reads, and a hub's refusals in one line each.

The protocol is that of huggingface.co: ``/api/models/NAME/revision/REVISION``, ``/api/models/NAME/tree/COMMIT``,
``/NAME/resolve/COMMIT/FILE``, the header ``X-Error-Code``, and ``Retry-After`` or ``RateLimit`` for those who are too
fast (https://huggingface.co/docs/hub/rate-limits).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from time import sleep
from typing import IO, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from obstore.store import HTTPStore
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from premoe_runtime.formats.errors import InvalidInput, NotFound, PremoeError, Unavailable
from premoe_runtime.storage import ObjectInfo, Store
from premoe_runtime.storage.failures import mapped_errors

HUB = "hf://"
DEFAULT_ENDPOINT = "https://huggingface.co"
LONGEST_WAIT_S = 600.0
"""How long one read waits in all for a hub that slows its callers down; hubs count in windows of five minutes."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 4.0
"""Pauses, doubled each time, after failures that name no time to wait."""
ANSWER_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 64 << 20
MAX_PAGES = 1000

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.+-]+(?:/[\w.+-]+)*))?")
_NEXT_PAGE = re.compile(r'<([^>]+)>\s*;\s*rel="next"')
_RESET = re.compile(r"\bt=(\d+)")
_BUSY = (408, 425, 429, 500, 502, 503, 504)

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Repository:
    """A model at one commit; ``url`` is free of the commit."""

    url: str
    commit: str
    store: Store
    files: tuple[ObjectInfo, ...]


class Busy(Unavailable):
    """A hub that may answer later: in ``wait_s`` seconds, if it said so."""

    def __init__(self, message: str, wait_s: float | None) -> None:
        super().__init__(message, reason="HUB_BUSY")
        self.wait_s = wait_s


class _HubInfo(BaseModel):
    model_config = ConfigDict(extra="ignore")

    sha: str = Field(pattern=r"^[0-9a-f]{7,64}$")


class _HubFile(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: str
    path: str
    size: int = 0
    oid: str = ""


_HUB_FILES = TypeAdapter(list[_HubFile])


def open_repository(text: str) -> Repository:
    """``hf://org/name[@revision]``, pinned to the commit that the revision names now.

    A revision is a commit, a tag, a branch (slashes allowed) or a pull request (``refs/pr/N``). ``HF_ENDPOINT`` names
    another hub; for the token see ``find_token``. Raises InvalidInput (bad address, no access), NotFound, Unavailable.
    """
    match = _REPOSITORY.fullmatch(unquote(text.removeprefix(HUB)).rstrip("/"))
    if match is None or {".", ".."} & set(re.split("[/@]", match[0])):
        raise InvalidInput(
            f"{text}: write hf://org/name or hf://org/name@revision (a branch, a tag, a commit, or refs/pr/N)",
            reason="STORE_URL",
        )
    endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    if not re.fullmatch(r"https?://[^/:]+.*", endpoint):
        raise InvalidInput(f"HF_ENDPOINT {endpoint!r} is no http:// or https:// address", reason="STORE_URL")
    hub = _Hub(endpoint, match[1], match[2] or "main", find_token(os.environ))
    api = f"{endpoint}/api/models/{hub.name}"
    try:
        commit = _HubInfo.model_validate_json(next(hub.pages(f"{api}/revision/{quote(hub.revision, safe='')}"))).sha
        pages = hub.pages(f"{api}/tree/{commit}?recursive=true")
        files = [file for page in pages for file in _HUB_FILES.validate_json(page) if file.type == "file"]
    except ValidationError as error:
        raise Unavailable(f"{api}: this is not a model hub's answer; check HF_ENDPOINT", reason="HUB_ANSWER") from error
    store = HubStore(f"{endpoint}/{hub.name}/resolve/{commit}", hub)
    return Repository(HUB + hub.name, commit, store, tuple(ObjectInfo(one.path, one.size, one.oid) for one in files))


def find_token(environment: Mapping[str, str]) -> str:
    """The token that the variables or ``hf auth login`` give, or nothing.

    ``HF_TOKEN``, else the file ``HF_TOKEN_PATH``, else ``token`` in ``HF_HOME`` (by default
    ``$XDG_CACHE_HOME/huggingface``), unless ``HF_HUB_DISABLE_IMPLICIT_TOKEN`` is set
    (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables).
    """
    given = environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN") or ""
    if given.strip():
        return given.strip()
    if environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in ("1", "on", "yes", "true"):
        return ""
    cache = environment.get("XDG_CACHE_HOME") or f"{environment.get('HOME', '')}/.cache"
    home = environment.get("HF_HOME") or f"{cache}/huggingface"
    with suppress(OSError, UnicodeDecodeError):
        return Path(environment.get("HF_TOKEN_PATH") or f"{home}/token").read_text(encoding="utf-8").strip()
    return ""


class HubStore(Store):
    """A commit's files. Reads follow the hub's redirects, wait when it is busy, and say why it refuses."""

    def __init__(self, url: str, hub: _Hub) -> None:
        options: dict[str, object] = {"allow_http": url.startswith("http://"), "timeout": timedelta(minutes=5)}
        if hub.headers:
            options["default_headers"] = hub.headers
        with mapped_errors(url):  # the client's own retries do not know how long the hub wants to be left alone
            super().__init__(url, HTTPStore.from_url(url, client_options=options, retry_config={"max_retries": 0}))
        self._hub = hub

    def get(self, path: str) -> bytes:
        return self._explained(path, lambda: super(HubStore, self).get(path))

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        return self._explained(path, lambda: super(HubStore, self).get_range(path, offset, length))

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> int:
        return self._explained(path, lambda: super(HubStore, self).read_into(path, offset, views))

    def _explained(self, path: str, read: Callable[[], T]) -> T:
        """``read()``; when it fails, the hub is asked why: its answer's headers are not to be had from the client."""

        def attempt() -> T:
            try:
                return read()
            except (Unavailable, InvalidInput, NotFound):
                self._hub.ask(f"{self.url}/{quote(path)}", most=1)
                raise  # it answers now: the failure stands as it is

        return patiently(attempt)


@dataclass(frozen=True, slots=True)
class _Hub:
    """What is needed to ask a hub about one repository."""

    endpoint: str
    name: str
    revision: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def pages(self, url: str) -> Iterator[bytes]:
        """An answer and those that its ``Link`` headers lead to, all from the same server."""
        for _ in range(MAX_PAGES):
            body, link = patiently(partial(self.ask, url))
            yield body
            following = _NEXT_PAGE.search(link)
            if following is None:
                return
            url, before = urljoin(url, following[1]), urlsplit(url).netloc
            if urlsplit(url).netloc != before:
                break
        raise Unavailable(f"{self.endpoint}: its list of files goes on elsewhere, or without end", reason="HUB_ANSWER")

    def ask(self, url: str, most: int = MAX_ANSWER_BYTES) -> tuple[bytes, str]:
        """The first ``most`` bytes of an answer, and its ``Link`` header; what lies at another server is not followed.

        Raises PremoeError: what the hub's refusal means.
        """
        request = Request(url, headers={**self.headers, **({"range": "bytes=0-0"} if most == 1 else {})})
        try:
            with build_opener(_StayHere).open(request, timeout=ANSWER_TIMEOUT_S) as answer:
                return answer.read(most), answer.headers.get("link", "")
        except HTTPError as error:
            with error:
                if error.code < 400 or error.code == 416:  # it lies at another server, or is empty
                    return b"", ""
                raise self._refusal(error.code, error.headers) from error
        except (OSError, HTTPException) as error:
            raise Unavailable(f"{url}: {getattr(error, 'reason', error)}", reason="STORE_FAILED") from error

    def _refusal(self, status: int, headers: Message) -> PremoeError:
        """What a refusal means, and what to do."""
        code, said = headers.get("x-error-code", ""), " ".join(headers.get("x-error-message", "").split())[:200]
        model, token = HUB + self.name, "set HF_TOKEN, or run `hf auth login`"
        if status in _BUSY:
            wait = wait_seconds(headers, datetime.now(UTC))
            return Busy(f"{self.endpoint} answers with status {status}", wait)
        if code == "RevisionNotFound":
            return NotFound(
                f"{model} has no revision {self.revision} at {self.endpoint}", reason="CHECKPOINT_NOT_FOUND"
            )
        if code == "EntryNotFound":
            return NotFound(f"{model}@{self.revision}: a file is gone; {said}", reason="CHECKPOINT_NOT_FOUND")
        if code == "GatedRepo" or (status == 403 and not code):
            return InvalidInput(
                f"{model} is gated: ask for access at {self.endpoint}/{self.name}, and {token} with that account",
                reason="ACCESS_REFUSED",
            )
        if status == 401 and self.token:
            return InvalidInput(
                f"{self.endpoint} refuses the token for {model}; {token} again", reason="ACCESS_REFUSED"
            )
        if status in (401, 404):
            return NotFound(
                f"{model}: no such model or revision at {self.endpoint}, or it is private; check the name, or {token}",
                reason="CHECKPOINT_NOT_FOUND",
            )
        return InvalidInput(f"{self.endpoint} refuses {model}: status {status} {said or code}", reason="ACCESS_REFUSED")


class _StayHere(HTTPRedirectHandler):
    """Follows redirects within one server only, so that a token goes nowhere else."""

    def redirect_request(
        self, request: Request, answer: IO[bytes], status: int, reason: str, headers: HTTPMessage, url: str
    ) -> Request | None:
        if urlsplit(url).netloc != urlsplit(request.full_url).netloc:
            return None
        return super().redirect_request(request, answer, status, reason, headers, url)


def patiently(read: Callable[[], T]) -> T:
    """``read()``, again while it is Unavailable: after the time that the hub names, or a few growing pauses."""
    left, pause = LONGEST_WAIT_S, FIRST_PAUSE_S
    while True:
        try:
            return read()
        except Unavailable as error:
            wait = error.wait_s if isinstance(error, Busy) else None
            if wait is None:
                wait, pause = pause, pause * 2
            wait = max(wait, FIRST_PAUSE_S)
            if wait > left or pause > LAST_PAUSE_S:
                raise
            if isinstance(error, Busy):
                log.warning("%s: trying again in %.0f s", error, wait)
        sleep(wait)
        left -= wait


def wait_seconds(headers: Message, now: datetime) -> float | None:
    """What an answer's headers say: ``Retry-After`` (seconds, or a date) or ``RateLimit`` (``t=`` seconds)."""
    after = headers.get("retry-after", "").strip()
    if after.isdecimal():
        return float(after)
    with suppress(ValueError, TypeError):
        return max((parsedate_to_datetime(after) - now).total_seconds(), 0.0)
    reset = _RESET.search(headers.get("ratelimit", ""))
    return float(reset[1]) if reset else None
