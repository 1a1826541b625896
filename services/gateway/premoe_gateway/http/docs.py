"""A page for people: the API's own description, written out. It loads nothing and runs no script."""

from __future__ import annotations

from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

Json = dict[str, Any]

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code{font-size:.9em}table{border-collapse:collapse;width:100%}td{border-top:1px solid #8886;padding:.2rem .5rem}"
    "summary{cursor:pointer;padding:.4rem 0}"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


async def docs(described: Json, request: Request) -> Response:
    return HTMLResponse(page(described), headers={"content-security-policy": _POLICY})


def page(described: Json) -> str:
    """HTML of an OpenAPI description."""
    title = escape(f"{described['info']['title']} {described['info']['version']}")
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f'<p>For machines: <a href="openapi.json">openapi.json</a></p>{operations}</body></html>\n'
    )


def _operation(method: str, path: str, operation: Json) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    required = body.get("required", [])
    fields = [
        (f"<b>{escape(name)}</b>" if name in required else escape(name), escape(_kind(schema)))
        for name, schema in body.get("properties", {}).items()
    ]
    answers = [(escape(code), escape(answer["description"])) for code, answer in operation["responses"].items()]
    return (
        f"<details><summary><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}</summary>"
        f"{_table('Fields', fields)}{_table('Answers', answers)}</details>"
    )


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<tr><td><code>{name}</code></td><td>{text}</td></tr>" for name, text in rows)
    return f"<h3>{title}</h3><table>{cells}</table>"


def _kind(schema: Json) -> str:
    """What a value may be, in a few words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(each) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return "only " + ", ".join(str(value) for value in values)
    limits = [
        f"{word} {schema[key]}"
        for key, word in (
            ("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"),
            ("maxItems", "at most"), ("maxProperties", "at most"),
        )
        if key in schema
    ]  # fmt: skip
    return " ".join([str(schema.get("type", "anything")), *limits])
