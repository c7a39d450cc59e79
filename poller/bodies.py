"""The body of an answer as plain values: JSON, XML or CSV.

XML becomes dicts and lists: an element's attributes are `@name`, its text is the value of a leaf and `#text` of any
other, elements of one name under one parent are a list when there are several, namespaces are left out. The document is
one dict with the root's name. Document types, entities and external references are refused (defusedxml).
"""

from __future__ import annotations

import csv
import io
from typing import Any, Literal
from xml.etree.ElementTree import Element, ParseError

import msgspec
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from poller.rows import Odd
from tidegate.feeds import Csv

Kind = Literal["json", "xml"] | Csv
_DEPTH = 100
"""XML that nests deeper is an attack or a mistake."""


def parsed(body: bytes, kind: Kind, charset: str) -> object:
    """The document. `charset` is what the answer says, "" when it says nothing. Raises Odd."""
    if kind == "xml":
        return _xml(body)
    if isinstance(kind, Csv):
        return _csv(_text(body, charset), kind)
    plain = charset.lower() in ("", "utf-8", "utf8")
    return _json(body if plain else _text(body, charset).encode())


def _text(body: bytes, charset: str) -> str:
    try:
        return body.decode(charset or "utf-8").removeprefix("\ufeff")
    except (LookupError, UnicodeDecodeError) as error:
        raise Odd(f"its answer is not in {charset or 'utf-8'}: {error}") from error


def _json(body: bytes) -> object:
    try:
        document: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Odd(f"its answer is not JSON: {error}") from error
    except RecursionError as error:
        raise Odd("its answer nests too deep") from error
    return document


def _csv(text: str, kind: Csv) -> list[dict[str, Any]]:
    try:
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=kind.delimiter, quotechar=kind.quote, restkey="", strict=True
        )
        if reader.fieldnames is None:
            raise Odd("its answer has no line of column names")
        return [dict(row) for row in reader]
    except csv.Error as error:
        raise Odd(f"its answer is not CSV: {error}") from error


def _xml(body: bytes) -> dict[str, Any]:
    try:
        root = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise Odd(f"its answer is not XML that may be read: {type(error).__name__}: {error}") from error
    return {_name(root.tag): _element(root, 0)}


def _element(element: Element, depth: int) -> Any:
    if depth > _DEPTH:
        raise Odd("its answer nests too deep")
    text = (element.text or "").strip()
    if not len(element) and not element.attrib:
        return text
    found: dict[str, Any] = {f"@{_name(name)}": value for name, value in element.attrib.items()}
    for child in element:
        name, value = _name(child.tag), _element(child, depth + 1)
        if name not in found:
            found[name] = value
        elif isinstance(found[name], list):
            found[name].append(value)
        else:
            found[name] = [found[name], value]
    if text:
        found["#text"] = text
    return found


def _name(tag: str) -> str:
    return tag.rpartition("}")[2]
