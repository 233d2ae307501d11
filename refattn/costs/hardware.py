"""Processors by name: what their makers say they do at most, with the document and its date.

Products are dense: where a document gives only the rate for matrices with two zeros in four, half of it stands here.
No document gives exponentials. Those of NVIDIA's parts are 16 a clock and multiprocessor, the special function units of
the CUDA C++ Programming Guide's table of arithmetic throughput, times multiprocessors, times the boost clock; for the
H100 that is the 3.9 T/s of Shah et al., 2024, arXiv:2407.08608. CPUs are not listed: what they do depends on the
library and on what else runs, so it is measured where it matters, by `refattn calibrate`.
"""

from dataclasses import dataclass

from refattn.costs.names import unknown

SPECIAL = 16
"""Exponentials of an NVIDIA multiprocessor a clock, from Volta to Blackwell."""


@dataclass(frozen=True)
class Hardware:
    """The roofs of one processor.

    Examples
    --------
    >>> h = hardware("h200")
    >>> h.rate("bfloat16") / h.bandwidth  # FLOPs a byte, from which on products are the bound
    206.14583333333334
    """

    name: str
    peak: dict[str, float]
    """FLOP/s of dense matrix products by dtype of the operands."""
    bandwidth: float
    """Bytes a second of its main memory."""
    memory: int
    """Bytes."""
    exp_rate: float
    """Exponentials a second; infinite where nothing is known, so that they bound nothing."""
    source: str
    """The document that says so."""
    date: str
    """Of the document."""
    note: str = ""
    """What is derived, or assumed."""
    kind: str = "gpu"
    """"gpu", "tpu", or "cpu"."""

    def rate(self, dtype: str) -> float:
        """Return the FLOP/s of products in a dtype.

        Parameters
        ----------
        dtype : str

        Returns
        -------
        float

        Raises
        ------
        LookupError
            Where that is not known; the message has those that are.

        Examples
        --------
        >>> hardware("v100").rate("bfloat16")
        Traceback (most recent call last):
        ...
        LookupError: v100 has no rate for 'bfloat16'; there are: float16, float32
        """
        if dtype not in self.peak:
            raise LookupError(f"{self.name} has no rate for {dtype!r}; there are: {', '.join(self.peak)}")
        return self.peak[dtype]


def hardware(name: str) -> Hardware:
    """Return a processor by its name.

    Parameters
    ----------
    name : str
        One of `HARDWARE`.

    Returns
    -------
    Hardware

    Raises
    ------
    LookupError
        For another name; the nearest ones are offered.

    Examples
    --------
    >>> hardware("h100-sxm").memory // 10**9
    80
    >>> hardware("h100")
    Traceback (most recent call last):
    ...
    LookupError: no hardware 'h100'; did you mean v100, h200, h100-sxm?
    """
    if name not in HARDWARE:
        raise unknown("hardware", name, HARDWARE)
    return HARDWARE[name]


def _nvidia(
    name: str,
    rates: dict[str, float],
    terabytes: float,
    gigabytes: int,
    multiprocessors: int,
    gigahertz: float,
    source: str,
    date: str,
    note: str = "",
) -> Hardware:
    """Return a row; rates are in T/s, the bandwidth in TB/s."""
    derived = f"exponentials: {multiprocessors} multiprocessors, {gigahertz} GHz"
    return Hardware(
        name,
        {dtype: rate * 1e12 for dtype, rate in rates.items()},
        terabytes * 1e12,
        gigabytes * 10**9,
        SPECIAL * multiprocessors * gigahertz * 1e9,
        f"NVIDIA, {source}",
        date,
        f"{derived}; {note}" if note else derived,
    )


def _rates(
    bfloat16: float, float32: float, tfloat32: float | None = None, float8: float | None = None
) -> dict[str, float]:
    found = {"bfloat16": bfloat16, "float16": bfloat16, "float32": float32, "tfloat32": tfloat32, "float8": float8}
    return {dtype: rate for dtype, rate in found.items() if rate is not None}


_HALF = "rates of 8 and 16 bits: half of those with sparsity"
_TPU = "no rate of exponentials is published"
_ROWS = (
    _nvidia("v100", {"float16": 125, "float32": 15.7}, 0.9, 32, 80, 1.53, "V100 datasheet, SXM2 of 32 GB", "2020-01"),
    _nvidia("t4", {"float16": 65, "float32": 8.1}, 0.32, 16, 40, 1.59, "T4 datasheet", "2019-03"),
    _nvidia("a100-40gb", _rates(312, 19.5, 156), 1.555, 40, 108, 1.41, "A100 datasheet, SXM of 40 GB", "2021-06"),
    _nvidia("a100-80gb", _rates(312, 19.5, 156), 2.039, 80, 108, 1.41, "A100 datasheet, SXM of 80 GB", "2021-06"),
    _nvidia("a10g", _rates(70, 35, 35), 0.6, 24, 80, 1.71, "A10G datasheet for AWS", "2022-02"),
    _nvidia(
        "rtx-4090",
        _rates(165.2, 82.6, 82.6, 330.3),
        1.008,
        24,
        128,
        2.52,
        "Ada GPU Architecture, appendix A",
        "2023",
        "products are added up in 32 bits",
    ),
    _nvidia("l4", _rates(121, 30.3, 60, 242.5), 0.3, 24, 58, 2.04, "L4 datasheet", "2023-03", _HALF),
    _nvidia("l40s", _rates(362.05, 91.6, 183, 733), 0.864, 48, 142, 2.52, "L40S datasheet", "2023-08"),
    _nvidia("h100-pcie", _rates(756, 51, 378, 1513), 2.0, 80, 114, 1.62, "H100 datasheet, PCIe", "2023", _HALF),
    _nvidia("h100-sxm", _rates(989.5, 67, 494.5, 1979), 3.35, 80, 132, 1.83, "H100 datasheet, SXM", "2023", _HALF),
    _nvidia("h200", _rates(989.5, 67, 494.5, 1979), 4.8, 141, 132, 1.83, "H200 datasheet, SXM", "2024", _HALF),
    _nvidia(
        "b200",
        _rates(2250, 80, 1100, 4500),
        8.0,
        180,
        148,
        1.85,
        "Blackwell Architecture Technical Brief, HGX B200",
        "2024",
        "the clock is what makes 2.25 P/s of 8,192 FLOPs a multiprocessor; memory as HGX systems have it",
    ),
    Hardware(
        "mi300x",
        {x: rate * 1e12 for x, rate in _rates(1307.4, 163.4, 653.7, 2614.9).items()},
        5.3e12,
        192 * 10**9,
        16 * 304 * 2.1e9,
        "AMD, Instinct MI300X data sheet",
        "2023-12",
        "exponentials, assumed: 16 a clock, 304 compute units, 2.1 GHz",
    ),
    Hardware(
        "tpu-v5e",
        {"bfloat16": 197e12},
        819e9,
        16 * 10**9,
        float("inf"),
        "Google Cloud documentation, TPU v5e",
        "2024",
        _TPU,
        "tpu",
    ),
    Hardware(
        "tpu-v5p",
        {"bfloat16": 459e12},
        2.765e12,
        95 * 10**9,
        float("inf"),
        "Google Cloud documentation, TPU v5p",
        "2024",
        _TPU,
        "tpu",
    ),
)

HARDWARE: dict[str, Hardware] = {row.name: row for row in _ROWS}
"""Name -> roofs."""
