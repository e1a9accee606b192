"""What was freed is the system's again."""

from pathlib import Path

from training import allocator


def resident_mib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024


def test_memory_freed_between_what_is_kept_is_given_back() -> None:
    blocks = [bytearray(64 * 1024) for _ in range(6400)]  # 400 MiB, of a size that is not mapped
    kept = blocks[::100] + blocks[-1:]
    full = resident_mib()
    del blocks
    allocator.give_back()
    assert resident_mib() < full - 350
    assert all(not any(block[::4096]) for block in kept)
