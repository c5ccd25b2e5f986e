"""The memory of one tier: blocks x block_bytes, block-first, in huge pages.

Knows no slot's meaning and no engine. Safe from any thread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from superinfer_trt import _duplexkv
from superinfer_trt.core.errors import ConfigError


def allocate_pool(blocks: int, block_bytes: int) -> NDArray[np.uint8]:
    """Zeroed [blocks, block_bytes] bytes, 2 MiB-aligned; they live as long as the array or a view of it.

    Raises ConfigError, with the field and the limit, for a size of 0, for more blocks than slot ids
    (2^31 - 1), and for more bytes than the machine has or gives.
    """
    for field, value in (("blocks", blocks), ("block_bytes", block_bytes)):
        if not 0 < value < 1 << 63:
            raise ConfigError(f"pool: {field} {value} outside 1..2^63 - 1")
    try:
        return _duplexkv.allocate(blocks, block_bytes)
    except (ValueError, MemoryError) as error:
        raise ConfigError(f"pool: {error}") from error
