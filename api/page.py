"""The specification as a page for people, at /v1/docs: one HTML text, nothing loaded from anywhere, no script.  (pure)"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator
from html import escape
from typing import Any

Schema = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; } nav ul { columns: 16rem; padding-left: 1rem; }
details { border: 1px solid #8886; border-radius: .4rem; margin: .5rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; } code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
border-top: 1px solid #8884; } pre { overflow: auto; max-height: 24rem; } .method { font-weight: 700; }
"""
CONTENT_POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(document: Schema) -> str:
    """The whole page. Texts come from the bubble; they are escaped all the same."""
    info = document["info"]
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
            f"<p>{escape(info['description'])} For programs: <a href='openapi.json'>openapi.json</a>.</p>",
            "<h2>Addresses</h2>",
            *_operations(document),
            "<h2>Schemas</h2>",
            *_schemas(document["components"]["schemas"]),
            "</body></html>",
        ]
    )


def _operations(document: Schema) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f'<details id="{escape(operation["operationId"])}"><summary><span class="method">{method.upper()}</span> '
            yield f"<code>{escape(path)}</code> {escape(operation.get('summary', ''))}</summary>"
            yield from _parameters(operation.get("parameters", []))
            yield from _responses(document, operation["responses"])
            yield "</details>"


def _parameters(parameters: list[Schema]) -> Iterator[str]:
    if not parameters:
        return
    yield "<table><thead><tr><th>Parameter</th><th>In</th><th>Type</th><th></th></tr></thead><tbody>"
    for each in parameters:
        required = " (required)" if each.get("required") else ""
        yield f"<tr><td><code>{escape(each['name'])}</code>{required}</td><td>{escape(each['in'])}</td>"
        yield f"<td>{_type(each['schema'])}</td><td>{escape(each.get('description', ''))}</td></tr>"
    yield "</tbody></table>"


def _responses(document: Schema, responses: Schema) -> Iterator[str]:
    yield "<table><thead><tr><th>Answer</th><th></th><th>Body</th></tr></thead><tbody>"
    for status, stated in responses.items():
        response = _resolved(document, stated)
        bodies = dict.fromkeys(_type(content["schema"]) for content in response.get("content", {}).values())
        yield f"<tr><td>{escape(status)}</td><td>{escape(response['description'])}</td><td>{', '.join(bodies)}</td></tr>"
    yield "</tbody></table>"


def _schemas(schemas: Schema) -> Iterator[str]:
    for name, schema in schemas.items():
        shown = escape(json.dumps(schema, indent=2, ensure_ascii=False))
        yield f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code> '
        yield f"{escape(schema.get('description', ''))}</summary><pre><code>{shown}</code></pre></details>"


def _resolved(document: Schema, stated: Schema) -> Schema:
    if "$ref" not in stated:
        return stated
    found: Any = document
    for part in stated["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    resolved: Schema = found
    return resolved


def _type(schema: Schema) -> str:
    """A schema in a word or two."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{escape(name)}"><code>{escape(name)}</code></a>'
    if "enum" in schema:
        return ", ".join(f"<code>{escape(str(choice))}</code>" for choice in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_type(each) for each in schema[several])
    kind = schema.get("format") or schema.get("type", "any")
    return escape(" or ".join(kind) if isinstance(kind, list) else str(kind))
