"""Numbers and lengths of time as short text for people."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def short_number(value: float) -> str:
    """A number in at most about seven characters.

    >>> [short_number(v) for v in (0.0, 12345.6, 3.14159, 0.0125, 0.0004, 1.0)]
    ['0', '12,346', '3.142', '0.0125', '0.0004', '1']
    """
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def with_prefix(value: float) -> str:
    """A number with three digits and a prefix of the metric system, to be followed by its unit.

    >>> [with_prefix(v) for v in (0.0, 950.0, 12_800.0, 1.5e9, 3.456e21)]
    ['0 ', '950 ', '12.8 k', '1.5 G', '3.46 Z']
    """
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_PREFIXES[power]}"


def short_time(seconds: float) -> str:
    """A length of time in its one or two largest units.

    >>> [short_time(s) for s in (4.2, 185.0, 7500.0, 1e5)]
    ['4 s', '3 min', '2 h 5 min', '1 d 4 h']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
