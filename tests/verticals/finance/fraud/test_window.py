"""Both forms of the network as they are exported, and the form that runs through a window again for each event."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from core.contract import Session
from core.inference.export import write_network
from core.inference.program import ExportedNetwork
from core.inference.session import TorchSession
from core.inference.session_onnx import OnnxSession
from tests.verticals.finance.fraud.model import trained
from tests.verticals.finance.fraud.test_step import made
from verticals.finance.fraud import APPLICATION
from verticals.finance.fraud.events import DAY
from verticals.finance.fraud.model import FraudNet, pooled
from verticals.finance.fraud.predictor import FraudPredictor
from verticals.finance.fraud.records import ordered, read_events
from verticals.finance.fraud.states import CardStates, StateLayout
from verticals.finance.fraud.step import Form, ScoreStep
from verticals.finance.fraud.window import WindowStep

WINDOW = 11
"""Events that the tests' windows hold."""


def exported(form: Form, folder: Path, format: str) -> Session:
    write_network(form, folder, format)  # type: ignore[arg-type]
    specs = {"inputs": form.inputs, "outputs": form.outputs}
    if format == "torch":
        return TorchSession(ExportedNetwork(folder, **specs))
    return OnnxSession(folder / "model.onnx", **specs)


def run(session: Session, features: torch.Tensor, days: torch.Tensor) -> np.ndarray:
    """[B, L, F] and [B, L] -> [B, L] logits, an event of each card at a time, from nothing."""
    states, logits = CardStates(StateLayout(session)), []
    for k in range(features.shape[1]):
        time = (days[:, k].numpy() * DAY).round().astype(np.int64)
        logits.append(states.advance(session, np.arange(len(time)), time, features[:, k].numpy()))
    return np.stack(logits, 1)


def events(num_cards: int, num_events: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Seconds to days apart, 20,000 days after the clock began."""
    gaps = 10 ** (torch.rand(num_cards, num_events, dtype=torch.float64) * 5 - 4)
    days = ((20_000 + gaps.cumsum(1)) * DAY).round() / DAY
    return torch.randn(num_cards, num_events, 7) * 3, days


def whole(net: FraudNet, features: torch.Tensor, days: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return pooled(net(features, days, net.initial(len(features)))[0]).numpy()


@pytest.mark.parametrize("num_heads", [0, 2])
@pytest.mark.parametrize("num_cards", [1, 5])
@pytest.mark.parametrize("format", ["torch", "onnx"])
@pytest.mark.parametrize("form", ["step", "window"])
def test_an_exported_form_equals_the_network(
    form: str, format: str, num_cards: int, num_heads: int, tmp_path: Path
) -> None:
    torch.manual_seed(num_cards)
    net = made(num_heads=num_heads)
    made_form = ScoreStep(net) if form == "step" else WindowStep(net, WINDOW)
    features, days = events(num_cards, WINDOW)
    wanted = whole(net, features, days)
    np.testing.assert_allclose(run(TorchSession(made_form), features, days), wanted, atol=1e-5)
    np.testing.assert_allclose(run(exported(made_form, tmp_path, format), features, days), wanted, atol=1e-5)


def test_a_full_window_forgets_what_left_it() -> None:
    """It answers as if the card had begun with the window's first event."""
    net = made()
    features, days = events(2, WINDOW + 6)
    session = TorchSession(WindowStep(net, WINDOW))
    logits = run(session, features, days)
    for last in range(WINDOW, WINDOW + 6):
        kept = slice(last + 1 - WINDOW, last + 1)
        np.testing.assert_allclose(logits[:, last], whole(net, features[:, kept], days[:, kept])[:, -1], atol=1e-5)
    before = np.abs(logits - whole(net, features, days))
    assert before[:, :WINDOW].max() < 1e-5
    assert before[:, WINDOW:].max() > 1e-5


def test_the_window_is_one_lstm_with_plain_weights(tmp_path: Path) -> None:
    """What has a form in int8."""
    write_network(WindowStep(made(), WINDOW), tmp_path, "onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    (lstm,) = (node for node in graph.node if node.op_type == "LSTM")
    assert {*lstm.input[1:4]} <= {weights.name for weights in graph.initializer}
    assert not {"Loop", "Scan", "If"} & {node.op_type for node in graph.node}


def test_a_window_has_to_hold_what_attention_looks_back_to() -> None:
    with pytest.raises(ValueError, match="a window of 5 events is not longer than num_states, 5"):
        WindowStep(made(), 5)


def test_the_predictor_runs_on_either_form_in_either_runtime(tmp_path: Path) -> None:
    model = trained()
    network = model.session._model.net  # type: ignore[attr-defined]
    source = tmp_path / "transactions.parquet"
    APPLICATION.synthesize(model.config.override(["data.synthetic.num_days=12"]), source)
    answers = {}
    for name, form in APPLICATION.forms.items():
        made_form = form(network)
        (tmp_path / name).mkdir()
        for session in (TorchSession(made_form), exported(made_form, tmp_path / name, "onnx")):  # type: ignore[arg-type]
            predictor = FraudPredictor(model.config, model.constants, session)
            predictor.rehearse()
            with ordered(model.config.data, str(source)) as rows:
                found = np.concatenate([scores.logit for scores in predictor.stream(read_events(rows))])
            answers[name, type(session).__name__] = found
        one, other = (answers[name, kind] for kind in ("TorchSession", "OnnxSession"))
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert np.corrcoef(answers["step", "OnnxSession"], answers["window", "OnnxSession"])[0, 1] > 0.99
