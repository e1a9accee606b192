"""JSON that shows whether it was changed: it carries a hash of its own text."""

import hashlib
import json
from typing import Any

DIGEST = "digest"
_BLANK = "0" * 64


def seal(values: dict[str, Any], *, indent: int | None = None) -> str:
    """Return values as JSON text that ends with "digest", the SHA-256 of all the rest.

    Hashed is the text itself, with zeros for the digest: any changed byte shows, spaces included.
    """
    blank = json.dumps({**values, DIGEST: _BLANK}, indent=indent, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(blank.encode()).hexdigest()
    head, _, tail = blank.rpartition(_BLANK)
    return head + digest + tail


def unseal(text: str) -> dict[str, Any]:
    """Return the values of a sealed text.

    Raises:
        ValueError: What is wrong with it, without the name of the file.
    """
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError("is not a JSON object")
    digest = values.pop(DIGEST, None)
    if not isinstance(digest, str) or len(digest) != len(_BLANK):
        raise ValueError(f'has no "{DIGEST}", so it does not come from this version of viewrank')
    head, _, tail = text.rpartition(digest)
    if hashlib.sha256(f"{head}{_BLANK}{tail}".encode()).hexdigest() != digest:
        raise ValueError("was changed after it was written: its digest does not fit its text")
    return values
