"""Programs as kernels: the bytes, a runner in C and one in Python, and everything that can go wrong with a process."""

import gc
import io
import os
import shlex
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import refattn
from refattn.testing.adapters import INCLUDE, KernelFault, from_layout, from_subprocess, protocol, serve
from refattn.testing.adapters import subprocess_ as adapter

FOREIGN = Path(__file__).parent / "foreign"
PYTHON = [sys.executable, "-W", "error", str(FOREIGN / "runner.py")]
LONG = 60.0


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: no program cc")
    program = tmp_path_factory.mktemp("programs") / "runner"
    flags = ["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-O1", "-I", str(INCLUDE)]
    subprocess.run([compiler, *flags, str(FOREIGN / "runner.c"), "-o", str(program), "-lm"], check=True)
    return str(program)


@pytest.fixture
def kernel():
    """A kernel in Python source that speaks the protocol itself, with whatever it does before each answer."""
    started = []

    def build(code, **options):
        program = (
            "import os, sys, time; from refattn.testing.adapters import protocol\n"
            "while (asked := protocol.read(sys.stdin.buffer)) is not None:\n"
            f"    {code}\n"
        )
        started.append(from_subprocess([sys.executable, "-c", program], **options))
        return started[-1]

    yield build
    for one in started:
        one.close()


def arrays(Tq=5, Tk=7, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = ((2, 4, Tq, 8), (2, 2, Tk, 8), (2, 2, Tk, 6))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def same(got, want):
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


EVERY = {
    "q": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
    "double": np.float64(0.25),
    "half": np.array([1.5], np.float16),
    "bfloat16": np.array([1.5, -2], ml_dtypes.bfloat16),
    "ints": np.array([[1], [2]], np.int32),
    "n": np.int64(-5),
    "bytes": np.arange(5, dtype=np.uint8),
    "bools": np.array([True, False, True]),
    "pages": np.array([7], np.uint32),
    "fifteen_letters": np.zeros((1, 2, 0, 3, 4, 5), np.float32),
}


def test_a_message_comes_back_as_it_went():
    stream = io.BytesIO()
    protocol.write(stream, EVERY)
    protocol.write(stream, {"bits": np.array([0x3F80], np.uint16)})
    stream.seek(0)
    back = protocol.read(stream)
    assert list(back) == list(EVERY)
    for name, x in EVERY.items():
        assert back[name].dtype == x.dtype and back[name].shape == x.shape and (back[name] == x).all()
        assert back[name].flags.writeable
    assert protocol.read(stream)["bits"] == ml_dtypes.bfloat16(1)
    assert protocol.read(stream) is None


def test_the_bytes_are_those_that_are_written_down():
    message = protocol.encoded({"q": np.array([1.0, -2.0, 0.5], np.float32)})
    head = b"RFAT" + bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    entry = b"q" + bytes(15) + bytes([1, 0, 0, 0, 1, 0, 0, 0]) + bytes([3, *[0] * 47]) + bytes([12, *[0] * 7])
    data = bytes.fromhex("0000803f 000000c0 0000003f") + bytes(4)
    assert message == head + entry + data and (len(head), len(entry)) == (16, 80)


def spoilt(change):
    message = bytearray(protocol.encoded({"q": np.ones(3, np.float32)}))
    change(message)
    return bytes(message)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"hello, world", "begins with b'RFAT', got b'hell'"),
        (b"RF", "ended within the header: 2 of 4 bytes"),
        (spoilt(lambda m: m.__setitem__(4, 2)), "version of the message is 2"),
        (spoilt(lambda m: m.__setitem__(32, 77)), "dtype 77"),
        (spoilt(lambda m: m.__setitem__(36, 7)), "ndim 7"),
        (spoilt(lambda m: m.__setitem__(47, 0xFF)), "dims"),
        (spoilt(lambda m: m.__setitem__(88, 13)), "says that it has 13 bytes"),
        (spoilt(lambda m: m.__delitem__(slice(-1, None))), "ended within the data of an entry: 15 of 16"),
        (spoilt(lambda m: m.__delitem__(slice(50, None))), "ended within the header of an entry: 34 of 80"),
    ],
)
def test_what_is_no_message(message, says):
    with pytest.raises(protocol.NotAMessage, match=says):
        protocol.read(io.BytesIO(message))


def test_what_cannot_be_sent():
    for entries in ({"sixteen_letters_": 1.0}, {"q": np.array(["a"])}, {"q": np.ones((1,) * 7)}):
        with pytest.raises(ValueError, match="cannot send"):
            protocol.encoded(entries)


def test_options_go_over_and_back():
    options = {"causal": True, "window": (3, None), "scale": 0.5, "num_splits": 2, "q_offset": 4, "seqlens_k": [1, 2]}
    q, k, v = arrays()
    entries = protocol.packed({"q": q, "k": k, "v": v}, {**options, "sinks": np.ones(4), "bias": None})
    stream = io.BytesIO(protocol.encoded(entries))
    read, back = protocol.unpacked(protocol.read(stream))
    assert [x.tobytes() for x in read] == [x.tobytes() for x in (q, k, v)]
    assert back.pop("causal") is True and back.pop("window") == (3, None) and (back.pop("sinks") == 1).all()
    assert back.pop("scale") == 0.5 and back.pop("num_splits") == 2
    assert back.pop("q_offset").tolist() == [4, 4] and back.pop("seqlens_k").tolist() == [1, 2] and back == {}


@pytest.mark.parametrize("window", [None, (2, 1), (None, 0), (1, None)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_runner_in_c(runner, causal, window):
    kernel = from_subprocess([runner], options=("causal", "window", "scale"))
    mask = refattn.masks.causal() if causal else None
    options = {"causal": causal, "scale": 0.3}
    if window is not None:
        options["window"] = window
        mask = refattn.masks.window(*window) if mask is None else mask & refattn.masks.window(*window)
    for sizes in ({}, {"Tq": 9, "Tk": 4}, {"Tk": 0}, {"Tq": 0}):
        q, k, v = arrays(**sizes)
        same(kernel(q, k, v, **options), refattn.attention(q, k, v, mask=mask, scale=0.3, return_lse=True))
    kernel.close()


def test_the_header_is_right_for_cpp(runner, tmp_path):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler: no program c++")
    program = tmp_path / "runner"
    flags = ["-x", "c++", "-Wall", "-Wextra", "-Werror", "-I", str(INCLUDE)]
    subprocess.run([compiler, *flags, str(FOREIGN / "runner.c"), "-o", str(program), "-lm"], check=True)
    kernel = from_subprocess([program])
    same(kernel(*arrays()), refattn.attention(*arrays(), return_lse=True))
    kernel.close()


def test_a_runner_in_rust(tmp_path):
    compiler = shutil.which("rustc")
    if compiler is None:
        pytest.skip("there is no Rust compiler: no program rustc")
    program = tmp_path / "runner"
    flags = ["--edition", "2021", "-D", "warnings", "-o", str(program)]
    subprocess.run([compiler, *flags, str(FOREIGN / "runner.rs")], check=True)
    kernel = from_subprocess([program])
    q, k, v = arrays()
    for _ in range(2):
        same([kernel(q, k, v)], [refattn.attention(np.zeros_like(q), k, v)])
    kernel.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.uint16])
def test_a_runner_in_python(dtype):
    kernel = from_subprocess(PYTHON, options=("causal", "window", "sinks", "seqlens_k"))
    q, k, v = arrays() if dtype is np.uint16 else arrays(dtype=dtype)
    if dtype is np.uint16:
        q, k, v = (x.astype(ml_dtypes.bfloat16) for x in (q, k, v))
    sinks = np.linspace(-1, 1, 4).astype(q.dtype)
    mask = refattn.masks.causal() & refattn.masks.window(2, 0)
    want = refattn.attention(q, k, v, mask=mask, sinks=sinks, return_lse=True)
    given = [x.view(np.uint16) if dtype is np.uint16 else x for x in (q, k, v)]
    o, lse = kernel(*given, causal=True, window=(2, None), sinks=sinks)
    assert o.dtype == given[0].dtype and o.tobytes() == want[0].tobytes() and lse.tobytes() == want[1].tobytes()
    o, _ = kernel(*given, seqlens_k=[3, 0])
    assert not o[1].any() and o[0].any()
    kernel.close()


def test_a_backward_runner():
    kernel = from_subprocess([*PYTHON, "backward"], options=("bias", "sinks"))
    q, k, v = arrays()
    do, bias = np.ones((2, 4, 5, 6), np.float32), np.ones((4, 5, 7), np.float32)
    got = kernel(do, q, k, v, bias=bias)
    same(got, refattn.attention_vjp(do, q, k, v, bias=bias)[:4])
    assert len(kernel(do, q, k, v)) == 3
    kernel.close()


def test_serve_on_streams_of_ones_own():
    asked, answers = io.BytesIO(), io.BytesIO()
    for _ in range(2):
        protocol.write(asked, dict(zip("qkv", arrays(), strict=True)))
    asked.seek(0)
    serve(lambda q, k, v: v, asked, answers)
    answers.seek(0)
    for _ in range(2):
        assert (protocol.read(answers)["o"] == arrays()[2]).all()
    assert protocol.read(answers) is None


def test_the_program_lives_on(kernel):
    number = kernel("protocol.write(sys.stdout.buffer, {'o': float(os.getpid())})")
    first = number(*arrays())
    assert first == number(*arrays())
    number.close()
    assert number(*arrays()) != first


def test_messages_larger_than_any_pipe(kernel):
    echo = kernel("protocol.write(sys.stdout.buffer, {'o': asked['v'], 'lse': asked['k']})")
    x = np.arange(2 * 300_000, dtype=np.float64).reshape(1, 2, 300, 1000)
    o, lse = echo(x, x, x)
    assert (o == x).all() and (lse == x).all()


def test_results_and_inputs_of_other_names(kernel):
    scan = kernel(
        "protocol.write(sys.stdout.buffer, {'o': asked['u'], 'state': asked['delta']})", inputs=("u", "delta")
    )
    o, state = scan(np.ones((1, 2)), np.zeros((1, 3)))
    assert o.shape == (1, 2) and state.shape == (1, 3)


def test_a_packed_program(kernel):
    lengths = "protocol.write(sys.stdout.buffer, {'o': asked['q'][..., :6] * 0 + asked['cu_seqlens_k'][-1]})"
    o = from_layout(kernel(lengths, options=("causal",)), "packed")(*arrays(), seqlens_k=[3, 1])
    assert o.shape == (2, 4, 5, 6) and (o == 4).all()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("exit", "^the program died: exit status 3; its last words: no such device$"),
        ("crash", "^the program died: SIGABRT"),
        ("hang", "^no answer within 1 s$"),
        ("print", r"^wrote to standard output what is no answer: b'hello, world\\nRFAT"),
        ("late", r"^wrote to standard output what is no answer: b'thank you'$"),
        ("half", "^the program died: exit status 0, in the middle of its answer$"),
        ("refuse", "^D must be a multiple of 8$"),
    ],
)
def test_what_goes_wrong_in_a_runner(runner, how, says):
    kernel = from_subprocess(f"{shlex.quote(runner)} {how}", timeout=1.0 if how == "hang" else LONG)
    for _ in range(2):  # the second call starts it anew
        with pytest.raises(KernelFault, match=says):
            kernel(*arrays())
    kernel.close()


def test_the_shape_of_a_result_is_left_to_the_judge(runner):
    kernel = from_subprocess([runner, "shape"])
    o, lse = kernel(*arrays(Tq=4))
    assert o.shape == (2, 4, 2, 6) and lse.shape == (2, 4, 2)
    kernel.close()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("protocol.write(sys.stdout.buffer, {'lse': 1.0})", "^the answer has no entry o; it has lse$"),
        ("protocol.write(sys.stdout.buffer, {})", "^the answer has no entry o; it has none at all$"),
        ("sys.exit('out of memory')", "^the program died: exit status 1; its last words: out of memory$"),
        ("sys.stdout.buffer.write(b'RFAT' + bytes(12)); sys.stdout.flush()", "^wrote a broken answer: the version"),
        (
            "sys.stdout.write('hi'); sys.stdout.flush(); os._exit(4)",
            "no answer: b'hi'; the program died: exit status 4",
        ),
        ("os.kill(os.getpid(), 11)", "^the program died: SIGSEGV$"),
        ("os.close(1); time.sleep(60)", "^the program died: it closed its standard output and ran on$"),
    ],
)
def test_what_goes_wrong_in_the_protocol(kernel, code, says):
    with pytest.raises(KernelFault, match=says):
        kernel(code)(*arrays())


def test_an_exception_of_a_python_kernel_is_told():
    kernel = from_subprocess([*PYTHON, "raise"])
    for _ in range(2):
        with pytest.raises(KernelFault, match=r"^ValueError: no heads of 7$"):
            kernel(*arrays())
    kernel.close()


def test_programs_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no program '\./no_such_runner'"):
        from_subprocess("./no_such_runner --fast")
    with pytest.raises(ValueError, match="the command is empty"):
        from_subprocess("")
    text = tmp_path / "text"
    text.write_bytes(b"\x7fELF, but no program")
    text.chmod(0o755)
    with pytest.raises(OSError, match=r"from_subprocess: cannot run '.*text'"):
        from_subprocess([text])(*arrays())


def test_a_program_ends_with_its_kernel(monkeypatch):
    started = []
    popen = subprocess.Popen

    def noted(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(adapter.subprocess, "Popen", noted)
    kernel = from_subprocess(PYTHON)
    kernel(*arrays())
    gone = weakref.ref(kernel)
    del kernel
    gc.collect()
    assert gone() is None and started[0].returncode == 0  # reaped, and by the end of its input
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)


def test_a_program_ends_with_the_interpreter(tmp_path):
    code = (
        "import numpy as np, sys; from refattn.testing.adapters import from_subprocess\n"
        f"kernel = from_subprocess({PYTHON!r})\n"
        "kernel(*[np.ones((1, 1, 1, 1))] * 3); print('fine')"
    )
    path = str(Path(refattn.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=LONG, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
