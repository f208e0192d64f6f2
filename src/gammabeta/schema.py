"""One strict reading of every JSON document of ours that is read back.

A dataclass describes a document, and pydantic compares it field by field: a number is no string,
1.5 no whole number, NaN no number, an unknown field no field. Give the dataclass ``STRICT`` as its
``__pydantic_config__``.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from gammabeta.errors import GammabetaError, RunError

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter
    from pydantic_core import ErrorDetails

STRICT: ConfigDict = {"extra": "forbid", "allow_inf_nan": False}
_SHOWN = 60

# A file name may hold bytes that are no Unicode. Python keeps each as half a surrogate pair, which
# JSON can write and pydantic does not read, so a private character stands for it on the way in.
_ESCAPE = re.compile(r"\\\\|\\ud[89ab]..\\ud[c-f]..|\\udc([89a-f][0-9a-f])")
_ODD = {0x10FF00 + byte: 0xDC00 + byte for byte in range(0x80, 0x100)}


def parse(kind: Any, content: str | bytes, source: object) -> Any:
    """Return the document that ``content`` is.

    Args:
        kind: A dataclass, or another type that pydantic knows.
        content: JSON.
        source: What the message names first: a file, or a file and a line.

    Raises:
        RunError: In one line: which field is what, and what it should be.

    Example:
        >>> parse(list[int], "[3, 4]", "x.json")
        [3, 4]
    """
    from pydantic import ValidationError

    try:
        text = content.decode() if isinstance(content, bytes) else content
        hidden = _ESCAPE.sub(_hide, text)
        found = _adapter(kind).validate_json(hidden, strict=True)
        return found if hidden == text else _reveal(found)
    except UnicodeDecodeError as error:
        reason = f"it is no JSON: {error}"
    except ValidationError as error:
        reason = _sentence(error.errors(include_url=False, include_context=False)[0])
    except GammabetaError as error:  # what a dataclass says of itself
        reason = str(error)
    raise RunError(f"{source}: is damaged or of another version: {reason}") from None


def _hide(escape: re.Match[str]) -> str:
    """Write an odd byte of a file name as the character that stands for it, if it is one."""
    return rf"\udbff\udf{escape[1]}" if escape[1] else escape[0]


def _reveal(value: Any) -> Any:
    """Put the odd bytes of file names back into a document."""
    if isinstance(value, str):
        return value.translate(_ODD)
    if isinstance(value, list | tuple):
        return type(value)(map(_reveal, value))
    if isinstance(value, dict):
        return {key: _reveal(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return type(value)(**{field.name: _reveal(getattr(value, field.name)) for field in fields})
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _sentence(error: ErrorDetails) -> str:
    """Say what is wrong with one field, in one line."""
    field = ".".join(map(str, error["loc"])) or "it"
    if error["type"] == "json_invalid":
        return f"it is no JSON: {error['msg'].removeprefix('Invalid JSON: ')}"
    if error["type"] == "missing":
        return f"{field} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{field} is unknown"
    value = repr(error["input"])  # the message begins with "Input" or "String"
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return f"{field} is {shown}, but {error['msg'].partition(' ')[2]}"
