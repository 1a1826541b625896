"""`premoe keys`: make, list and revoke the API keys that a gateway asks for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click
from premoe_gateway.access.keys import Key, KeyFile, digest, new_key, read_keys, written
from pydantic import ValidationError

from premoe_local.console import json_option, note, print_json, print_table
from premoe_local.output_file import write_file
from premoe_runtime.formats.errors import Conflict, InvalidInput, NotFound

_FILE = click.argument("file", type=click.Path(path_type=Path))
_POSITIVE = click.IntRange(1)


@click.group("keys")
def command() -> None:
    """Make, list and revoke API keys in FILE, which a gateway reads: `premoe up --keys-file FILE`.

    A gateway notices a change within a second. FILE holds no keys, only what they are recognised by.
    """


@command.command()
@_FILE
@click.argument("name")
@click.option("--requests-per-minute", type=_POSITIVE, help="Requests that may come in a minute [default: any].")
@click.option("--tokens-per-minute", type=_POSITIVE, help="Tokens of prompts and answers in a minute [default: any].")
@click.option("--concurrent", type=_POSITIVE, help="Requests at a time [default: any].")
@json_option
def add(
    file: Path,
    name: str,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrent: int | None,
    as_json: bool,
) -> None:
    """Make a key for NAME and print it: it is shown this once. FILE is made if need be."""
    known = read_keys(file).keys if file.exists() else ()
    if any(key.name == name for key in known):
        raise Conflict(f"{file} has a key {name} already; revoke it first, or name the new one otherwise")
    made = new_key()
    try:
        key = Key(
            name=name,
            sha256=digest(made.encode()),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrent=concurrent,
            created=time.strftime("%Y-%m-%d", time.gmtime()),
        )
    except ValidationError:
        raise InvalidInput(
            f"{name!r} is no name for a key: letters, digits and . _ @ -, at most 63, a letter or digit first"
        ) from None
    _write(file, (*known, key))
    if as_json:
        print_json({"name": name, "key": made})
        return
    note(f"the key of {name}, which is shown this once:")
    click.echo(made)


@command.command("list")
@_FILE
@json_option
def list_(file: Path, as_json: bool) -> None:
    """List the keys by name, with their limits."""
    keys = read_keys(file).keys
    if as_json:
        print_json([key.model_dump(exclude={"sha256"}) for key in keys])
        return
    rows = [[key.name, key.requests_per_minute, key.tokens_per_minute, key.concurrent, key.created] for key in keys]
    print_table(f"{len(keys)} keys", ["name", "requests/min", "tokens/min", "concurrent", "created"], rows)


@command.command()
@_FILE
@click.argument("name")
def revoke(file: Path, name: str) -> None:
    """Take the key of NAME out of FILE: gateways refuse it from then on. Answers that run go on to their end."""
    keys = read_keys(file).keys
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        raise NotFound(f"{file} has no key {name}", reason="KEY_NOT_FOUND")
    _write(file, left)
    note(f"revoked {name}; {len(left)} keys are left")


def _write(file: Path, keys: Sequence[Key]) -> None:
    try:
        whole = KeyFile(keys=tuple(keys))
    except ValidationError as error:
        raise InvalidInput(f"{file}: {error.errors()[0]['msg']}", reason="KEYS_INVALID") from None
    write_file(file, written(whole))
