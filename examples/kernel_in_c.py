"""A kernel in C, checked: compile it, name its arguments, and see what the kit says of it and of one with a mistake."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import refattn.testing as rt

SOURCE = Path(__file__).parent / "kernel_in_c" / "attention.c"
ARGUMENTS = "q k v o lse B H Hk Tq Tk D Dv scale causal -> int"


def compiled(source, folder):
    library = Path(folder) / f"{source.stem}.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", source, "-o", library, "-lm"], check=True)
    return rt.from_ctypes(library, "attention", ARGUMENTS)


if shutil.which("cc") is None:
    print("this example needs a C compiler, cc")
    raise SystemExit

with tempfile.TemporaryDirectory() as folder:
    off_by_one = Path(folder) / "off_by_one.c"
    off_by_one.write_text(SOURCE.read_text().replace("i + Tk - Tq + 1 : Tk", "i + Tk - Tq : Tk"))
    for source in (SOURCE, off_by_one):
        report = rt.check(compiled(source, folder), rt.Contract(dtype="float32"), level="quick")
        print(f"{source.stem}: {len(report.failures)} of {len(report.results)} checks failed")
        for failure in report.failures[:2]:
            print(f"  {failure.check}: {failure.message.splitlines()[0]}")
        assert report.ok == (source == SOURCE)
