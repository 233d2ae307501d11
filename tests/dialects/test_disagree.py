"""The page "Where libraries disagree" says what the dialects answer now, and the dialects what the libraries answer."""

import functools
import inspect
from types import SimpleNamespace

import numpy as np
import pytest

from tests.benchmarks import disagreements
from tests.benchmarks.disagreements import QUESTIONS, answers, asked, printed

TITLES = [question.title for question in QUESTIONS]


def test_the_page_says_what_the_dialects_answer():
    page = disagreements.PAGE.read_text(encoding="utf-8")
    assert disagreements.written(page) == page, "run: python tests/benchmarks/disagreements.py --write"


def test_the_page_has_a_heading_for_each_question():
    assert len(set(TITLES)) == len(TITLES)
    assert [line[3:] for line in disagreements.text().splitlines() if line.startswith("## ")] == TITLES


@pytest.mark.parametrize("question", QUESTIONS, ids=TITLES)
def test_every_question_has_an_answer_of_the_reference(question):
    assert any(name.split(",")[0] == "refattn" for name in question.ask)
    assert all(name.split(",")[0] in disagreements.LIBRARIES for name in question.ask)


def test_only_where_libraries_agree_there_is_one_answer():
    assert [question.title for question in QUESTIONS if len(answers(question)) == 1] == ["Which heads share"]


def test_answers_are_printed_briefly():
    assert printed((np.array([[-0.0, 1 / 3]]), np.array([np.inf, np.nan]))) == "0 0.33333 | inf nan"
    assert asked(lambda lib: lib.missing(), SimpleNamespace(missing=lambda: 1 + "1")) == "refused"


def on_backend(library, backend):
    """Return the functions of a dialect with another backend; what takes none stays."""

    def told(function):
        takes = inspect.isfunction(function) and "backend" in inspect.signature(function).parameters
        return functools.partial(function, backend=backend) if takes else function

    return SimpleNamespace(**{name: told(getattr(library, name)) for name in dir(library) if name[0] != "_"})


WITHOUT_A_BACKEND = {("Which dimensions a rotation pairs", "ONNX"), ("Dropout", "PyTorch SDPA, probability 1")}


@pytest.mark.parametrize("question", QUESTIONS, ids=TITLES)
def test_another_backend_answers_the_same(question):
    for name, ask in question.ask.items():
        library = disagreements.LIBRARIES[name.split(",")[0]]
        assert asked(ask, on_backend(library, "numba")) == asked(ask, library), name
        if asked(ask, library) != "refused" and (question.title, name) not in WITHOUT_A_BACKEND:
            with pytest.raises(LookupError, match="no backend 'nonesuch'"):
                ask(on_backend(library, "nonesuch"))


def converted(function, there, back, **fixed):
    """Return `function` that takes and gives NumPy arrays; `there` and `back` convert one."""

    @functools.wraps(function)
    def call(*arguments, **options):
        arguments = [there(x) for x in arguments]
        options = {name: there(x) for name, x in options.items()}
        found = function(*arguments, **options, **fixed)
        return tuple(back(x) for x in found) if isinstance(found, tuple) else back(found)

    return call


def torch_there(x):
    import torch

    return torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x


def torch_back(x):
    import torch

    return x.numpy() if isinstance(x, torch.Tensor) else x


def sdpa():
    """PyTorch's function on the path that its documentation writes out."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def ask(*arguments, dropout_mask=None, **options):
        with sdpa_kernel(SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(*arguments, **options)

    return SimpleNamespace(scaled_dot_product_attention=converted(ask, torch_there, torch_back))


def flex():
    from torch.nn.attention import flex_attention as module

    module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True  # plain eager mode, nothing compiled

    def ask(*arguments, return_lse=False, **options):  # that spelling is deprecated
        if not return_lse:
            return module.flex_attention(*arguments, **options)
        out, aux = module.flex_attention(*arguments, **options, return_aux=module.AuxRequest(lse=True))
        return out, aux.lse

    return SimpleNamespace(
        flex_attention=converted(ask, torch_there, torch_back),
        create_block_mask=functools.partial(module.create_block_mask, device="cpu"),
        and_masks=module.and_masks,
    )


def jax_nn():
    import jax

    def ask(*arguments, **options):
        with jax.enable_x64(True):
            arguments = [jax.numpy.asarray(x) for x in arguments]
            options = {name: jax.numpy.asarray(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
            found = jax.nn.dot_product_attention(*arguments, **options)
            return tuple(np.asarray(x) for x in found) if isinstance(found, tuple) else np.asarray(found)

    return SimpleNamespace(dot_product_attention=ask)


def hugging_face():
    """Transformers' eager functions; masks are made by our dialect, which has tests of its own."""
    import torch
    from transformers.models.gpt_oss import modeling_gpt_oss
    from transformers.models.llama import modeling_llama

    from refattn.dialects import transformers as ours

    def eager(function):
        def ask(module, *arguments, **options):
            theirs = torch.nn.Module()
            theirs.num_key_value_groups = module.num_key_value_groups
            theirs.sinks = None if module.sinks is None else torch.from_numpy(module.sinks)
            theirs.eval()
            return function(theirs, *arguments, **options)

        return converted(ask, torch_there, torch_back)

    return SimpleNamespace(
        eager_attention_forward=eager(modeling_llama.eager_attention_forward),
        gpt_oss_eager_attention_forward=eager(modeling_gpt_oss.eager_attention_forward),
        eager_mask=ours.eager_mask,
        sliding_window_causal_mask_function=ours.sliding_window_causal_mask_function,
        sliding_window_bidirectional_mask_function=ours.sliding_window_bidirectional_mask_function,
    )


def onnx_node():
    """The operators in onnx's reference evaluator."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    def ask(operator, outputs, *inputs, **attributes):
        names = [f"x{n}" if x is not None else "" for n, x in enumerate(inputs)]
        results = [f"y{n}" for n in range(outputs)]
        node = onnx.helper.make_node(operator, names, results, **attributes)
        return tuple(
            ReferenceEvaluator(node).run(None, {name: x for name, x in zip(names, inputs, strict=True) if name})
        )

    return SimpleNamespace(
        Attention=functools.partial(ask, "Attention", 1),
        RotaryEmbedding=lambda *inputs, **attributes: ask("RotaryEmbedding", 1, *inputs, **attributes)[0],
    )


REAL = {
    "PyTorch SDPA": ("torch", sdpa),
    "FlexAttention": ("torch", flex),
    "JAX": ("jax", jax_nn),
    "ONNX": ("onnx", onnx_node),
    "Transformers": ("transformers", hugging_face),
}
DRAWN = ("Dropout", "PyTorch SDPA")  # the library draws itself what it drops
ASKED = [
    (question, name)
    for question in QUESTIONS
    for name in question.ask
    if name.split(",")[0] in REAL and (question.title, name) != DRAWN
]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # theirs, about NaN and deprecations
@pytest.mark.parametrize(("question", "name"), ASKED, ids=[f"{q.title}: {name}" for q, name in ASKED])
def test_the_library_itself_answers_the_same(question, name):
    package, make = REAL[name.split(",")[0]]
    pytest.importorskip(package, reason=f"{package} is not installed")
    theirs = asked(question.ask[name], make())
    ours = asked(question.ask[name], disagreements.LIBRARIES[name.split(",")[0]])
    assert theirs == ours
