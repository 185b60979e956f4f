"""Amounts as Kubernetes writes them: `4`, `500m`, `16Gi`. A narrow form: no exponents, no signs."""

from __future__ import annotations

import re
from decimal import Decimal

PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,3})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
_FORM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_FACTORS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTP", start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTP", start=1)},
}


def amount(text: str) -> Decimal:
    """The number; ValueError when the text is not a quantity."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 4, 500m or 16Gi")
    return Decimal(match[1]) * _FACTORS[match[2] or ""]
