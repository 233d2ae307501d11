"""The C reader of golden vectors: it compiles as C99 and C++11, finds a kernel right or wrong, and survives damage."""

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from refattn.testing.formats import encode
from refattn.testing.vectors import INCLUDE, Vectors, check_vectors, export_vectors

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "check_vectors_c" / "attention.c"
OPERATIONS = ("attention", "flash_attention", "attention_split_kv")
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow")
READER = """
#include "refattn_vectors.h"
int main(int argc, char **argv) {
    const char *why;
    rv_file *file = rv_open(argc > 1 ? argv[1] : "", &why);
    if (!file) return printf("%s\\n", why), 2;
    for (uint32_t n = 0; n < rv_count(file); n++) {
        const rv_vector *v = rv_entry(file, n);
        printf("%s %s %s %u", v->id, v->operation, v->dtype, v->normal);
        for (uint32_t i = 0; i < v->n_numbers; i++)
            printf(" %s=%g", v->numbers[i].name, rv_scalar(v, v->numbers[i].name, -1));
        for (uint32_t i = 0; i < v->n_arrays; i++) {
            const rv_array *x = &v->arrays[i];
            double total = 0;
            for (int64_t e = 0; e < x->count; e++) total += isfinite(rv_get(x, e)) ? fabs(rv_get(x, e)) : 0;
            printf(" %s:%u:%lld:%.17g", x->name, x->ndim, (long long)x->count, total);
        }
        printf("\\n");
    }
    if (rv_entry(file, rv_count(file)) || rv_find(rv_entry(file, 0), "none")) return 3;
    if (rv_scalar(rv_entry(file, 0), "none", 7) != 7) return 3;
    rv_close(file);
    return 0;
}
"""


def compiler(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no compiler: no program {name}")
    return found


def build(source, target, *flags, program="cc", standard="c99"):
    command = [compiler(program), f"-std={standard}", *STRICT, *flags, f"-I{INCLUDE}", str(source), "-o", str(target)]
    done = subprocess.run([*command, "-lm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(*command):
    return subprocess.run([str(x) for x in command], capture_output=True, errors="replace", timeout=120)


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("vectors_c")


@pytest.fixture(scope="module")
def folder(where):
    return export_vectors(where / "vectors", format="bin")


@pytest.fixture(scope="module")
def reader(where):
    (where / "reader.c").write_text(READER)
    return build(where / "reader.c", where / "reader", "-O1")


def test_the_example_is_right(where, folder):
    done = run(build(EXAMPLE, where / "right", "-O1"), folder / "vectors.bin")
    tried = sum(entry.operation in OPERATIONS for entry in Vectors(folder).entries)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(f"{tried} entries, all within their bounds\n") and "FAIL" not in done.stdout


@pytest.mark.parametrize("mistake", ["WRONG_SCALE", "WRONG_HEAD"])
def test_a_wrong_kernel_is_found_out(where, folder, mistake):
    done = run(build(EXAMPLE, where / mistake, "-O1", f"-D{mistake}"), folder / "vectors.bin")
    assert done.returncode == 1
    assert "FAIL attention/" in done.stdout and done.stdout.endswith("not all within their bounds\n")


def test_what_it_leaves_is_judged_by_check_vectors(where, folder):
    program = build(EXAMPLE, where / "leaves", "-O1")
    outputs = where / "outputs"
    assert run(program, folder / "vectors.bin", outputs).returncode == 1, "there is no such folder"
    outputs.mkdir()
    assert run(program, folder / "vectors.bin", outputs).returncode == 0
    report = check_vectors(folder, outputs)
    done = {entry.id for entry in Vectors(folder).entries if entry.operation in OPERATIONS}
    assert report.ok and report.count("PASS") == len(done), str(report.failures[:2])
    assert {result.check for result in report.results if result.verdict == "PASS"} == done


def test_no_file_is_an_error(where):
    done = run(build(EXAMPLE, where / "none", "-O1"), where / "nothing.bin")
    assert done.returncode == 2 and "it cannot be opened" in done.stderr


def test_it_reads_what_was_written(reader, folder):
    done = run(reader, folder / "vectors.bin")
    assert done.returncode == 0, done.stdout
    vectors, lines = Vectors(folder), done.stdout.splitlines()
    assert len(lines) == len(vectors.entries)
    for line, entry in zip(lines, vectors.entries, strict=True):
        words = line.split(" ")
        assert words[:4] == [entry.id, entry.operation, entry.dtype, str(int(entry.normal))]
        numbers = {name: x for name, x in entry.options.items() if isinstance(x, bool | int | float)}
        assert dict(x.split("=") for x in words[4 : 4 + len(numbers)]) == {n: f"{x:g}" for n, x in numbers.items()}
        for word, (name, x) in zip(words[4 + len(numbers) :], vectors.load(entry).items(), strict=True):
            got = word.split(":")
            if entry.arrays[name]["dtype"] == "bfloat16":
                x = (x.astype(np.uint32) << 16).view(np.float32)
            x = x.astype(np.float64)
            assert got[:3] == [name, str(x.ndim), str(x.size)]
            assert float(got[3]) == pytest.approx(float(np.abs(x[np.isfinite(x)]).sum()), rel=1e-12)


def test_it_compiles_as_cpp(where, folder):
    (where / "reader.cpp").write_text(READER)
    program = build(where / "reader.cpp", where / "reader_cpp", program="c++", standard="c++11")
    assert run(program, folder / "vectors.bin").returncode == 0


def test_two_files_may_include_it(where):
    for name, body in (
        ("one.c", "int two(void); int main(void) { return two(); }"),
        ("two.c", "int two(void) { return 0; }"),
    ):
        (where / name).write_text(f'#include "refattn_vectors.h"\n{body}\n')
    assert run(build(where / "one.c", where / "both", str(where / "two.c"))).returncode == 0


def test_half_precision_becomes_float(where):
    (where / "half.c").write_text("""
#include "refattn_vectors.h"
int main(void) {
    for (uint32_t i = 0; i < 65536; i++)
        printf("%.17g %.17g\\n", (double)rv_fp16((uint16_t)i), (double)rv_bf16((uint16_t)i));
    return 0;
}
""")
    got = np.array([line.split() for line in run(build(where / "half.c", where / "half")).stdout.splitlines()], float)
    bits = np.arange(65536, dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got[:, 0], bits.astype(np.uint16).view(np.float16).astype(np.float64))
        want = (bits << 16).view(np.float32).astype(np.float64)
    np.testing.assert_array_equal(got[:, 1], want)


def test_comparison(where, folder):
    """Wrong lengths, unknown names, NaN and other dtypes."""
    entry = next(x for x in Vectors(folder).entries if x.id == "rope/one_head_2d/float32")
    want = Vectors(folder).load(entry)["o"]
    (where / "o.f64").write_bytes(want.tobytes())
    (where / "o.bf16").write_bytes(encode(want, "bfloat16", uint16=True).tobytes())
    (where / "compare.c").write_text("""
#include "refattn_vectors.h"
int main(int argc, char **argv) {
    const char *why;
    rv_file *file = rv_open(argv[1], &why);
    double wide[72];
    uint16_t narrow[72];
    const rv_vector *v = NULL;
    FILE *in = fopen(argv[2], "rb");
    if (!file || !in || argc < 4 || fread(wide, 8, 72, in) != 72) return 2;
    fclose(in);
    in = fopen(argv[3], "rb");
    if (!in || fread(narrow, 2, 72, in) != 72) return 2;
    fclose(in);
    for (uint32_t n = 0; n < rv_count(file); n++)
        if (!strcmp(rv_entry(file, n)->id, "rope/one_head_2d/float32")) v = rv_entry(file, n);
    if (!v) return 2;
    float got[72];
    for (int i = 0; i < 72; i++) got[i] = (float)wide[i];
    printf("%d", rv_compare(v, "o", got, 72).share <= 1);
    printf("%d", rv_compare_as(v, "o", wide, RV_FLOAT64, 72).share == 0);
    printf("%d", rv_compare_as(v, "o", narrow, RV_BFLOAT16, 72).share > 1);
    printf("%d", isinf(rv_compare(v, "o", got, 71).share) && rv_compare(v, "o", got, 71).index == -1);
    printf("%d", isinf(rv_compare(v, "y", got, 72).share));
    printf("%d", isinf(rv_compare(v, "x", got, 72).share));
    printf("%d", isinf(rv_compare_as(v, "o", got, 99, 72).share));
    got[40] = NAN;
    printf("%d", isinf(rv_compare(v, "o", got, 72).share) && rv_compare(v, "o", got, 72).index == 40);
    got[40] = (float)wide[40] + 1;
    printf("%d", rv_compare(v, "o", got, 72).share > 1e3 && rv_compare(v, "o", got, 72).index == 40);
    rv_close(file);
    return 0;
}
""")
    program = build(where / "compare.c", where / "compare")
    assert run(program, folder / "vectors.bin", where / "o.f64", where / "o.bf16").stdout == "1" * 9


def test_damaged_files_are_refused(where, reader, folder):
    whole = export_vectors(where / "rope", ops=["rope"], format="bin") / "vectors.bin"
    data, path = whole.read_bytes(), where / "damaged.bin"

    def says(changed):
        path.write_bytes(changed)
        done = run(reader, path)
        assert done.returncode in (0, 2), (done.returncode, done.stdout[-200:], done.stderr)
        return done.stdout.strip() if done.returncode == 2 else ""

    assert "does not begin with RFVC" in says(b"")
    assert "does not begin with RFVC" in says(b"PK" + data[2:])
    assert "a version that this header does not know" in says(data[:4] + b"\2" + data[5:])
    assert "it is cut off" in says(data[:-1])
    assert "it is cut off" in says(data[:30])
    for size in (20, 40, 60, 100, 200, 400):  # cut, and its length put right: the index ends too early
        assert says(data[:8] + struct.pack("<Q", size) + data[16:size]) == "it is damaged"
    assert says(data[:16] + b"\xff\xff\xff\xff" + data[20:]) == "it is damaged"


@pytest.mark.slow
def test_random_damage_never_leaves_the_file(where, folder):
    """Under the address sanitizer, bytes of the index changed at random are refused or read, and nothing else."""
    (where / "guarded.c").write_text(READER)
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    found = subprocess.run(
        [compiler("cc"), "-std=c99", *flags, f"-I{INCLUDE}", str(where / "guarded.c"), "-o", str(where / "g"), "-lm"],
        capture_output=True,
    )
    if found.returncode:
        pytest.skip("the compiler has no address sanitizer")
    data = (export_vectors(where / "small", ops=["rope"], format="bin") / "vectors.bin").read_bytes()
    index = min(x["offset"] for x in Vectors(where / "small").entries[0].arrays.values())
    rng, path = np.random.default_rng(0), where / "random.bin"
    for _ in range(200):
        changed = bytearray(data)
        for place in rng.integers(4, index, size=3):
            changed[place] = int(rng.integers(0, 256))
        path.write_bytes(changed)
        done = run(where / "g", path)
        assert done.returncode in (0, 2, 3), done.stderr
