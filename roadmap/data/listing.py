"""What a data set consists of: one digest of its samples, whatever its kind."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def listing_digest(*parts: NDArray[Any] | str | int | None) -> str:
    """16 hex digits of `parts`, which identify the samples of a data set in order; the same in every process, for the same parts."""
    digest = blake2b(digest_size=8)
    for part in parts:
        if part is None or isinstance(part, str | int):
            digest.update(f"{part!r};".encode())
        else:
            digest.update(f"{part.dtype.str}{part.shape};".encode())  # or two arrays could stand for one
            digest.update(part.tobytes())
    return digest.hexdigest()
