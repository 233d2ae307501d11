"""Times, sizes and counts as a person reads them: three digits and a unit."""


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit.

    Examples
    --------
    >>> duration(0.01234), duration(1.5), duration(6.2e-05), duration(0.9996)
    ('12.3 ms', '1.50 s', '62.0 µs', '1.00 s')
    """
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{three(seconds * factor)} {unit}"
    return f"{three(seconds)} s"


def size(n: float) -> str:
    """Return a number of bytes with three digits and its unit.

    Examples
    --------
    >>> size(0), size(1536), size(50 * 2**20)
    ('0 B', '1.50 KiB', '50.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 999.5:
            return f"{three(n)} {unit}" if unit != "B" else f"{n:.0f} B"
        n /= 1024
    return f"{three(n)} TiB"


def count(n: float) -> str:
    """Return a count with three digits, in thousands, millions and so on where it is large.

    Examples
    --------
    >>> count(512), count(8_392_704)
    ('512', '8.39 M')
    """
    for unit in ("", " k", " M", " G"):
        if n < 999.5:
            return f"{three(n)}{unit}" if unit else f"{n:.0f}"
        n /= 1000
    return f"{three(n)} T"


def three(x: float) -> str:
    """Return a number with three digits, as long as it is below 1000.

    Examples
    --------
    >>> three(1.234), three(12.34), three(123.4)
    ('1.23', '12.3', '123')
    """
    return f"{x:.{2 if x < 9.995 else 1 if x < 99.95 else 0}f}"
