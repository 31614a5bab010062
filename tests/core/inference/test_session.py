"""The session: arrays as their specs say, in and out, and nothing else; every runtime answers as torch does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core.contract import Arrays, TensorSpec
from core.errors import ArtifactError, ConfigError
from core.inference import artifact
from core.inference.session import SessionConfig, TorchSession
from tests.core.inference.conftest import FORMATS, Opened, assert_same, drawn, network_of, record_of
from tests.core.inference.networks import Attention, Convolution, Recurrent, Scaled, Through, Wide

ROOT = Path(__file__).resolve().parents[3]


class Doubler(nn.Module):
    inputs = (TensorSpec("x", ("B", 3)), TensorSpec("time", ("B",), "float64"))
    outputs = (TensorSpec("y", ("B", 3)), TensorSpec("later", ("B",), "float64"))

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.drop(x) * self.scale, time + 1


def test_named_arrays_in_and_out_without_dropout_or_gradient() -> None:
    session = TorchSession(Doubler().train())
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    results = session({"x": x, "time": np.array([1.0, 2.0])})
    assert list(results) == ["y", "later"]
    np.testing.assert_array_equal(results["y"], 2 * x)
    assert results["later"].dtype == np.float64


def test_inputs_are_not_changed_and_may_be_slices() -> None:
    session = TorchSession(Doubler())
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    kept = wide.copy()
    results = session({"x": wide[:, ::2], "time": np.zeros(2)})
    np.testing.assert_array_equal(results["y"], 2 * wide[:, ::2])
    np.testing.assert_array_equal(wide, kept)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, "needed are"),
        ({"x": np.zeros((1, 3), np.float32), "time": np.zeros(1), "more": np.zeros(1)}, "needed are"),
        ({"x": np.zeros((1, 4), np.float32), "time": np.zeros(1)}, "x is float32"),
        ({"x": np.zeros((1, 3)), "time": np.zeros(1)}, "x is float64"),
        ({"x": np.zeros(3, np.float32), "time": np.zeros(1)}, "allowed is float32"),
    ],
)
def test_other_arrays_are_refused_by_name(arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TorchSession(Doubler())(arrays)


class Single(Doubler):
    def one(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": arrays["x"] * 3, "later": arrays["time"]}


def test_a_single_row_goes_the_networks_own_way() -> None:
    session = TorchSession(Single())
    row = np.ones((1, 3), np.float32)
    assert session({"x": row, "time": np.zeros(1)})["y"].tolist() == [[3.0, 3.0, 3.0]]
    assert session({"x": np.ones((2, 3), np.float32), "time": np.zeros(2)})["y"].max() == 2.0
    with pytest.raises(ValueError, match="x is float64"):
        session({"x": np.ones((1, 3)), "time": np.zeros(1)})


# every runtime


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Convolution, [{"B": 1, "H": 1, "W": 1}, {"B": 2, "H": 9, "W": 4}, {"B": 5, "H": 3, "W": 16}]),
        (Recurrent, [{"B": 0}, {"B": 1}, {"B": 33}]),
        (Attention, [{"B": 1, "T": 1}, {"B": 3, "T": 7}, {"B": 7, "T": 3}]),
        (Through, [{"B": 1}, {"B": 4}]),
        (Scaled, [{"B": 1}, {"B": 4}]),
        (Wide, [{"B": 1}, {"B": 40}]),
    ],
)
def test_every_runtime_answers_as_torch_at_every_size(
    opened: Opened, kind: type[nn.Module], format: artifact.Format, sizes: list[dict[str, int]]
) -> None:
    true, session = opened(kind, format)
    for seed, lengths in enumerate(sizes * 2):
        arrays = drawn(session, seed, **lengths)
        before = {name: array.copy() for name, array in arrays.items()}
        assert_same(session(arrays), true(arrays))
        assert all(np.array_equal(arrays[name], array) for name, array in before.items())


@pytest.mark.parametrize("format", FORMATS)
def test_a_carried_state_stays_the_same_over_many_steps(opened: Opened, format: artifact.Format) -> None:
    true, session = opened(Recurrent, format)
    carried = [drawn(session, B=3), drawn(session, B=3)]
    for step in range(50):
        x = drawn(session, step, B=3)["x"]
        results = []
        for side, one in enumerate((true, session)):
            results.append(one({**carried[side], "x": x}))
            carried[side] = {name: results[side][f"new_{name}"] for name in ("state", "count")}
        assert_same(results[1], results[0], 1e-5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("layout", ["plain", "strided", "turned", "inputs"])
def test_results_go_into_the_given_buffers(opened: Opened, format: artifact.Format, layout: str) -> None:
    true, session = opened(Recurrent, format)
    arrays = drawn(session, B=4)
    wanted = {name: array.copy() for name, array in true(arrays).items()}
    out: Arrays = {
        "score": np.empty(4, np.float32),
        "new_state": np.empty((4, 8), np.float32),
        "new_count": np.empty(4, np.int64),
    }
    if layout == "strided":
        out = {name: np.empty((2 * len(a), *a.shape[1:]), a.dtype)[::2] for name, a in out.items()}
    elif layout == "turned":
        out["new_state"] = np.empty((8, 4), np.float32).T
    elif layout == "inputs":  # the state is written over
        out |= {"new_state": arrays["state"], "new_count": arrays["count"]}
    given = dict(out)
    results = session(arrays, out=out)
    assert all(results[name] is given[name] for name in wanted)
    assert_same(results, wanted)


@pytest.mark.parametrize("format", FORMATS)
def test_buffers_that_are_used_again_hold_the_newest_answer(opened: Opened, format: artifact.Format) -> None:
    true, session = opened(Convolution, format)
    out = {"map": np.empty((2, 2, 5, 6), np.float32), "pooled": np.empty((2, 2), np.float32)}
    for seed in range(3):
        arrays = drawn(session, seed, B=2, H=5, W=6)
        assert_same(session(arrays, out=out), true(arrays))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"score": np.empty(3, np.float32)},
        {"score": np.empty((4, 1), np.float32)},
        {"new_state": np.empty((4, 8), np.float64)},
        {"new_count": np.empty(4, np.int32)},
        {"new_count": None},
    ],
)
def test_a_buffer_that_does_not_fit_is_refused_and_nothing_is_written(
    opened: Opened, format: artifact.Format, wrong: dict[str, Any]
) -> None:
    _, session = opened(Recurrent, format)
    out: dict[str, Any] = {
        "score": np.zeros(4, np.float32),
        "new_state": np.zeros((4, 8), np.float32),
        "new_count": np.zeros(4, np.int64),
    }
    out = {name: array for name, array in {**out, **wrong}.items() if array is not None}
    untouched = {name: array.copy() for name, array in out.items() if name not in wrong}
    with pytest.raises(ValueError, match=rf"out\.{next(iter(wrong))} has to be"):
        session(drawn(session, B=4), out=out)
    assert all(np.array_equal(out[name], array) for name, array in untouched.items())


@pytest.mark.parametrize("format", FORMATS)
def test_results_are_nobody_elses_memory(opened: Opened, format: artifact.Format) -> None:
    true, session = opened(Through, format)
    arrays = drawn(session, B=3)
    results = session(arrays)
    wanted = {name: array.copy() for name, array in results.items()}
    for array in arrays.values():
        array.fill(0)
    session(arrays)  # its buffers are used again
    assert all(np.array_equal(results[name], array) for name, array in wanted.items())
    results["weight"].fill(0)
    assert_same({"weight": session(arrays)["weight"]}, {"weight": true(arrays)["weight"]})
    swap = drawn(session, B=3)
    a, b = swap["a"].copy(), swap["b"].copy()
    session(swap, out={"new_a": swap["a"], "new_b": swap["b"], "weight": np.empty(3, np.float32)})
    np.testing.assert_array_equal(swap["a"], b)
    np.testing.assert_array_equal(swap["b"], a)


@pytest.mark.parametrize("format", FORMATS)
def test_arrays_may_be_read_only_or_slices(opened: Opened, format: artifact.Format) -> None:
    true, session = opened(Recurrent, format)
    arrays = drawn(session, B=6)
    wanted = true({name: array[::2].copy() for name, array in arrays.items()})
    for array in arrays.values():
        array.flags.writeable = False
    assert_same(session({name: array[::2] for name, array in arrays.items()}), wanted)
    assert_same(session(arrays), true({name: array.copy() for name, array in arrays.items()}))
    backwards = {name: array[::-1] for name, array in arrays.items()}
    assert_same(session(backwards), true({name: array.copy() for name, array in backwards.items()}))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("kind", "arrays", "words"),
    [
        (Attention, {"steps": np.zeros((2, 3, 6), "f4"), "mask": np.ones((2, 4), bool)}, "mask is 4 long along T"),
        (Attention, {"steps": np.zeros((2, 3, 6), "f4"), "mask": np.ones((1, 3), bool)}, "mask is 1 long along B"),
        (Attention, {"steps": np.zeros((2, 3, 6), "f4"), "mask": np.ones((2, 3), "u1")}, "mask is uint8"),
        (Attention, {"steps": np.zeros((2, 6), "f4"), "mask": np.ones((2, 6), bool)}, "steps is float32"),
        (Scaled, {"x": np.zeros((2, 3), "f4"), "factor": np.zeros(1, "f4")}, r"factor is float32\[1\]; allowed is"),
        (Scaled, {"x": np.zeros((2, 3), ">f4"), "factor": np.zeros((), "f4")}, "x is >f4"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_every_runtime(
    opened: Opened, kind: type[nn.Module], format: artifact.Format, arrays: Arrays, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        opened(kind, format)[1](arrays)


@pytest.mark.parametrize("format", FORMATS)
def test_threads_on_one_session_each_get_their_own_answer(opened: Opened, format: artifact.Format) -> None:
    true, session = opened(Recurrent, format, streams=2)
    batches = [drawn(session, seed, B=1 + seed % 7) for seed in range(80)]
    with ThreadPoolExecutor(8) as pool:
        for arrays, results in zip(batches, pool.map(session, batches), strict=True):
            assert_same(results, true(arrays))


# precision and devices


def test_float32_in_openvino_is_float32_and_bfloat16_is_asked_for(opened: Opened) -> None:
    import openvino as ov

    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    true, exact = opened(Wide, "openvino")
    _, coarse = opened(Wide, "openvino", "bfloat16")
    arrays = drawn(exact, B=64)
    wanted = true(arrays)["y"]
    errors = [float(np.abs(session(arrays)["y"] - wanted).max() / np.abs(wanted).max()) for session in (exact, coarse)]
    assert errors[0] < 2e-6
    assert 1e-3 < errors[1] < 2e-2


def test_a_signal_after_models_came_and_went_is_handled(folder_of: Callable[..., Path]) -> None:
    """As a service that changes versions and is then stopped; in a process of its own, which would end in a segmentation fault."""
    (network,) = folder_of(Wide, "openvino").glob("*.xml")
    code = f"""
import gc, os, signal, time
from pathlib import Path
from core.inference.session_openvino import OpenVinoSession
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
def made():
    return OpenVinoSession(Path({str(network)!r}), inputs=(), outputs=())
first = made()
second = made()
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.1)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def test_bfloat16_on_a_processor_without_it_is_refused(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.inference import session_openvino

    monkeypatch.setitem(session_openvino.HINTS, "bfloat16", "f32")  # what OpenVINO makes of it there
    opened(Wide, "openvino", "bfloat16")
    monkeypatch.setattr(session_openvino, "HINTS", Asked({"bfloat16": "f32"}))
    with pytest.raises(ConfigError, match="this processor has no bfloat16: OpenVINO would compute in f32"):
        opened(Wide, "openvino", "bfloat16")


class Asked(dict[str, str]):
    """Says f32 when asked first and bf16 from then on."""

    def __getitem__(self, key: str) -> str:
        found = super().__getitem__(key)
        self[key] = "bf16"
        return found


def test_torch_in_bfloat16_gives_float32_arrays(opened: Opened) -> None:
    true, session = opened(Wide, "torch", "bfloat16")
    arrays = drawn(session, B=8)
    assert_same(session(arrays), true(arrays), 2e-2)
    assert np.abs(session(arrays)["y"] - true(arrays)["y"]).max() > 1e-3


@pytest.mark.parametrize(
    ("format", "precision", "device", "words"),
    [
        ("onnx", "bfloat16", "cpu", "ONNX Runtime has no bfloat16 on a CPU; allowed"),
        (
            "openvino",
            "float16",
            "cpu",
            "OpenVINO computes in float32, int8, bfloat16, int8-bfloat16 here, not in float16",
        ),
        ("openvino", "float32", "cuda", "OpenVINO runs on the CPU here; use cpu"),
        ("torch", "float32", "abacus", "device 'abacus' is unknown; allowed"),
    ],
)
def test_precisions_and_devices_that_are_not_there_are_refused(
    opened: Opened, format: artifact.Format, precision: str, device: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        opened(Wide, format, precision, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_cuda_without_cuda_says_so(opened: Opened, format: artifact.Format) -> None:
    with pytest.raises(ConfigError, match=r"device 'cuda:0'.* use .*cpu"):
        opened(Wide, format, device="cuda:0")


@pytest.mark.parametrize("settings", [{"threads": 0}, {"streams": 0}, {"threads": 1.5}, {"cores": 2}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, ValueError), match=next(iter(settings))):
        SessionConfig(**settings)


def test_thread_and_stream_counts_reach_the_runtimes(opened: Opened) -> None:
    _, session = opened(Wide, "openvino", threads=2, streams=2)
    assert session._idle.qsize() == 2  # type: ignore[attr-defined]
    _, session = opened(Wide, "onnx", threads=2)
    assert session._session.get_session_options().intra_op_num_threads == 2  # type: ignore[attr-defined]
    assert_same(session(drawn(session, B=3)), network_answer(Wide, drawn(session, B=3)))


def network_answer(kind: type[nn.Module], arrays: Arrays) -> Arrays:
    return TorchSession(network_of(kind))(arrays)


# files


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign"])
def test_a_damaged_network_is_refused_by_its_path(
    folder_of: Any, tmp_path: Path, format: artifact.Format, damage: str
) -> None:
    for name in artifact.NETWORK_FILES[format]:
        folder = tmp_path / name
        folder.mkdir()
        for path in folder_of(Wide, format).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        content = (folder / name).read_bytes()
        damaged = {"missing": None, "empty": b"", "cut": content[: len(content) // 2], "foreign": b"PK" + bytes(3000)}
        (folder / name).unlink()
        if (changed := damaged[damage]) is not None:
            (folder / name).write_bytes(changed)
        with pytest.raises(ArtifactError, match=rf"{folder}.*; export it again") as raised:
            artifact.open_network(folder, record_of(Wide, format))
        assert len(str(raised.value)) < 600


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_network_with_other_tensors_than_its_record_is_refused(folder_of: Any, format: artifact.Format) -> None:
    with pytest.raises(ArtifactError, match="export it again"):
        artifact.open_network(folder_of(Wide, format), record_of(Scaled, format))


def test_runtimes_are_imported_when_they_are_opened() -> None:
    code = (
        "import sys; from core.inference import artifact, export, model, parity, program; "
        "print([name for name in ('onnx', 'onnxruntime', 'openvino', 'tensorrt') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_runtime_reports_its_use_to_its_makers() -> None:
    code = (
        "import sys, core.compression.aware, core.inference.session_openvino, core.inference.session_onnx\n"
        "told = [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
        "assert not told, told\n"
        "from nncf.telemetry import wrapper\n"
        "assert 'Stub' in type(wrapper.telemetry).__name__ or 'Mock' in type(wrapper.telemetry).__name__\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
