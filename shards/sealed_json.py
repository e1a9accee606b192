"""JSON text with a hash of itself, which shows whether it was changed."""

import hashlib
import json
from typing import Any

DIGEST = "digest"
_BLANK = "0" * 64


def seal(values: dict[str, Any], *, indent: int | None = None) -> str:
    """Return values as JSON text that ends with "digest", the SHA-256 of all the rest.

    It is the hash of the text itself with zeros for the digest, so any changed byte shows.
    """
    blank = json.dumps({**values, DIGEST: _BLANK}, indent=indent, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(blank.encode()).hexdigest()
    head, _, tail = blank.rpartition(_BLANK)
    return head + digest + tail


def unseal(text: str) -> dict[str, Any]:
    """Return the values of a sealed text.

    Raises:
        ValueError: it is damaged; the message does not name the file.
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
