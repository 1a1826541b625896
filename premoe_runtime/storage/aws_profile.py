"""What the AWS tools' shared files say about how to reach S3: keys, region and endpoint of a profile.

The S3 client itself knows the ``AWS_*`` variables, roles of machines and of pods; the files ``~/.aws/credentials`` and
``~/.aws/config`` are left to us
(https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html, .../settings-reference.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from configparser import Error, RawConfigParser
from pathlib import Path

from premoe_runtime.formats.errors import InvalidInput

_ELSEWHERE = (
    "sso_session",
    "sso_start_url",
    "role_arn",
    "credential_process",
    "web_identity_token_file",
    "login_session",
)
"""Settings with which a profile gets its keys from a service or a program."""
_OPTIONS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}


def profile_options(environment: Mapping[str, str]) -> dict[str, str]:
    """Options for the S3 client out of the shared files; what a variable gives is left to the variable.

    Keys: ``access_key_id``, ``secret_access_key``, ``session_token``, ``region``, ``endpoint``, as far as the profile
    has them. ``AWS_PROFILE`` names the profile, else it is ``default``. Raises InvalidInput when a named profile does
    not exist or has no keys in these files, and for files that cannot be read.
    """
    named = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE") or ""
    profile = named or "default"
    places = [
        _place(environment, "AWS_CONFIG_FILE", "~/.aws/config"),
        _place(environment, "AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
    ]
    found: dict[str, str] = {}
    for place in places:
        found |= _section(place, profile)
    files = " and ".join(str(place) for place in places)
    if named and not found:
        raise InvalidInput(f"AWS_PROFILE {named!r} is in neither of {files}; correct the name", reason="AWS_PROFILE")
    options = {}
    if not environment.get("AWS_ACCESS_KEY_ID"):
        options = {option: found[name] for name, option in _OPTIONS.items() if found.get(name)}
        if named and not {"access_key_id", "secret_access_key"} <= options.keys():
            raise InvalidInput(_without_keys(named, found, files), reason="AWS_PROFILE")
    if not (environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")) and found.get("region"):
        options["region"] = found["region"]
    if not endpoint_of(environment) and found.get("endpoint_url"):
        options["endpoint"] = found["endpoint_url"]
    return options


def endpoint_of(environment: Mapping[str, str]) -> str:
    """The S3 endpoint that the variables name, if they do."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((environment[name] for name in names if environment.get(name)), "")


def _without_keys(profile: str, found: Mapping[str, str], files: str) -> str:
    how = next((name for name in _ELSEWHERE if found.get(name)), "")
    why = f"gets its keys by {how}, which is not followed here" if how else f"has no keys in {files}"
    return (
        f"AWS_PROFILE {profile!r} {why}; set the variables that "
        f"`aws configure export-credentials --profile {profile} --format env` prints"
    )


def _place(environment: Mapping[str, str], variable: str, default: str) -> Path:
    # Not Path.expanduser, which raises where a pod's user has neither HOME nor a name.
    path = environment.get(variable) or default
    return Path(environment.get("HOME") or "/", path[2:]) if path.startswith("~/") else Path(path)


def _section(place: Path, profile: str) -> dict[str, str]:
    """The profile's settings in one file: ``[profile NAME]`` in a config, ``[NAME]`` in both; empty without them."""
    parser = RawConfigParser(strict=False, default_section="", comment_prefixes=("#", ";"))
    try:
        parser.read_string(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, Error) as error:  # the parser's own words quote lines, keys included
        raise InvalidInput(
            f"{place} cannot be read ({type(error).__name__}); correct it, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY",
            reason="AWS_PROFILE",
        ) from error
    names = (f"profile {profile}", profile)
    return {key: value.strip() for name in names if parser.has_section(name) for key, value in parser.items(name)}
