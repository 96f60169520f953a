"""Values of options as users write them: shares, times, sizes, counts."""

from __future__ import annotations

import re

from precisionlab.errors import OptionError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_MOST_WORKERS = 1024
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def check_at_least(least: int, **options: float | None) -> None:
    """Raises OptionError for an option below `least`; None is an option that was not given."""
    for name, value in options.items():
        if value is not None and value < least:
            raise OptionError(f"{name} is {value}; it must be at least {least}")


def check_workers(threads: int | None, processes: int | None = None) -> None:
    """Raises OptionError for numbers of threads or processes that no machine has; None was not given."""
    check_at_least(1, threads=threads, processes=processes)
    for name, value in (("threads", threads), ("processes", processes)):
        if value is not None and value > _MOST_WORKERS:
            raise OptionError(f"{name} is {value}; it must be at most {_MOST_WORKERS}")


def parse_share(text: str | float | None, name: str) -> float | None:
    """A share such as 0.05 or "5%".

    Raises OptionError for what is neither, for less than 0, and for 1 or more without a percent sign: 5 may mean
    5 % or 500 %, and 1 may mean 1 %.
    """
    if text is None:
        return None
    written = str(text).strip()
    try:
        share = float(written[:-1]) / 100 if written.endswith("%") else float(written)
    except ValueError:
        raise OptionError(f"{name} {text!r}: write a share such as 0.05 or 5%") from None
    if not 0 <= share < float("inf"):
        raise OptionError(f"{name} {text!r}: a share is at least 0")
    if share >= 1 and not written.endswith("%"):
        raise OptionError(
            f"{name} {text!r}: that may mean {share:g} % or {100 * share:g} %; write it with a percent sign, such as "
            f"{share:g}%"
        )
    return share


def parse_duration(text: str | float | None, name: str) -> float | None:
    """Seconds, from 90, "90s", "30m" or "1h30m". Raises OptionError for anything else, or nothing at all."""
    if text is None:
        return None
    if isinstance(text, (int, float)) and 0 <= text < float("inf"):
        return float(text)
    match = _DURATION.fullmatch(str(text).strip())
    if not match or not any(match.groups()):
        raise OptionError(f"{name} {text!r}: write a time such as 90s, 30m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def parse_memory(text: str | int | None) -> int | None:
    """Bytes of memory, as `parse_size` reads them. Raises OptionError for nothing at all too."""
    found = parse_size(text, "memory")
    if found == 0:
        raise OptionError(f"memory {text!r}: write what the work may take, such as 512M or 4G")
    return found


def parse_size(text: str | int | None, name: str) -> int | None:
    """Bytes, from 4096, "512M" or "4G" (powers of 1024). Raises OptionError for anything else."""
    if text is None:
        return None
    match = _SIZE.fullmatch(str(text).strip())
    if not match:
        raise OptionError(f"{name} {text!r}: write a size such as 512M or 4G")
    return round(float(match[1]) * _UNITS[match[2].upper()])
