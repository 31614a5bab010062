"""The network for one event (`ScoreStep`, which ships) beside the network for chunks (`forward`, which trains): the same numbers."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from core.inference.export import write_network
from core.inference.program import ExportedNetwork
from core.inference.session import TorchSession
from core.inference.session_onnx import OnnxSession
from core.nn.sequence import RecallState
from verticals.finance.fraud.events import DAY
from verticals.finance.fraud.model import FraudNet, ModelConfig, pooled
from verticals.finance.fraud.states import CardStates, StateLayout
from verticals.finance.fraud.step import ScoreStep

SIZES = ModelConfig(num_bins=3, num_embedding=12, num_hidden=10, num_states=5, num_evidence=16, num_members=3)
COLUMNS = ["amount", "customer_a", "customer_b", "pair_a", "terminal_a", "terminal_b", "mcc=5411"]


def made(**changes: object) -> FraudNet:
    torch.manual_seed(0)
    net = FraudNet(SIZES.model_copy(update=changes), COLUMNS).eval()
    net.encoding.fit(torch.randn(200, 7), torch.rand(200) < 0.1)
    return net


@pytest.mark.parametrize("num_heads", [0, 1, 3])
def test_event_by_event_equals_the_whole_history(num_heads: int) -> None:
    """More events than the memory holds, so that it is empty, partly full and full."""
    net = made(num_heads=num_heads)
    features = torch.randn(4, 13, 7)
    days = 17_000 + torch.rand(4, 13, dtype=torch.float64).cumsum(1)
    step = ScoreStep(net)
    with torch.inference_mode():
        whole, end = net(features, days, net.initial(4))
        assert whole.shape == (4, 13, 3)
        state, singly = net.initial(4), []
        for k in range(13):
            logit, *carried = step(features[:, k], days[:, k], *state)
            state = RecallState(*carried)
            singly.append(logit)
    torch.testing.assert_close(torch.stack(singly, 1), pooled(whole), atol=1e-5, rtol=0)
    for mine, its in zip(state, end, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=0)
    session = TorchSession(step)
    states = CardStates(StateLayout(session))
    for card in range(4):
        times, rows = (days[card].numpy() * DAY).round().astype(np.int64), features[card].numpy()
        for k in range(13):  # one card at a time: the session's way for single rows
            logit = states.advance(session, np.array([card]), times[k : k + 1], rows[k : k + 1])
            assert logit[0] == pytest.approx(float(pooled(whole)[card, k]), abs=1e-5)
    kept = np.stack([np.frombuffer(row, np.uint8) for _, row in states.items()])
    for one, its in zip(states.layout.arrays(kept).values(), end, strict=True):
        np.testing.assert_allclose(one, its, atol=1e-5)


def differ(step: ScoreStep) -> float:
    """Largest difference between a step and its network, now."""
    net, features, days = step.net, torch.randn(9, 7), torch.full((9,), 17_000.0, dtype=torch.float64)
    with torch.inference_mode():
        whole, _ = net(features[:, None], days[:, None], net.initial(9))
        wanted = pooled(whole[:, 0])
        together = float((step(features, days, *net.initial(9))[0] - wanted).abs().max())
    start = {spec.name: part.numpy() for spec, part in zip(step.state, net.initial(1), strict=True)}
    alone = [step.one({"features": row[None], "time": np.array([17_000.0]), **start}) for row in features.numpy()]
    return max(together, *(abs(float(one["logit"][0]) - float(want)) for one, want in zip(alone, wanted, strict=True)))


def test_a_step_is_never_left_behind_by_its_weights() -> None:
    step, other = ScoreStep(made()), made()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert differ(step) < 1e-5
    step.net.load_state_dict(other.state_dict())
    assert differ(step) < 1e-5
    step.load_state_dict(ScoreStep(made()).state_dict())
    assert differ(step) < 1e-5
    copied = deepcopy(step)
    copied.net.load_state_dict(other.state_dict())
    assert differ(copied) < 1e-5
    assert differ(step) < 1e-5
    step.train()
    with torch.no_grad():
        step.net.of_card.first.weight.mul_(2)
        step.net.encoding.fit(torch.randn(300, 7) * 3, torch.rand(300) < 0.1)
    assert differ(step.eval()) < 1e-5


def test_logits_far_from_zero_keep_their_size() -> None:
    """Members as sure as they can be: no infinity, no NaN."""
    net = made()
    for sign in (-1, 1):
        with torch.no_grad():
            for side in (net.of_card, net.of_terminal):
                side.bias.fill_(sign * 60.0)
        assert differ(ScoreStep(net)) < 1e-3


@pytest.mark.parametrize("bias", [-2000.0, -800.0, -700.0, 700.0, 800.0, 2000.0])
def test_logits_beyond_float64_are_clamped_alike_alone_and_together(bias: float) -> None:
    net = made()
    with torch.no_grad():
        for side in (net.of_card, net.of_terminal):
            side.bias.fill_(bias)
    step, features = ScoreStep(net), torch.randn(3, 7)
    with torch.inference_mode():
        together = step(features, torch.full((3,), 17_000.0, dtype=torch.float64), *net.initial(3))[0].numpy()
    start = {spec.name: part.numpy() for spec, part in zip(step.state, net.initial(1), strict=True)}
    alone = [step.one({"features": row[None], "time": np.array([17_000.0]), **start}) for row in features.numpy()]
    assert np.isfinite(together).all()
    assert (np.sign(together) == np.sign(bias)).all()
    np.testing.assert_allclose(together, [one["logit"][0] for one in alone], rtol=1e-5)


def test_the_step_exports_with_a_free_number_of_cards() -> None:
    step = ScoreStep(made())
    state = step.net.initial(2)
    given = (torch.randn(2, 7), torch.tensor([1.0, 2.0], dtype=torch.float64), *state)
    cards = torch.export.Dim("cards", min=1, max=4096)
    free = tuple({0: cards} for _ in given)
    exported = torch.export.export(
        step, given, dynamic_shapes={"features": free[0], "time": free[1], "state": free[2:]}
    )
    other = (torch.randn(5, 7), torch.rand(5, dtype=torch.float64), *step.net.initial(5))
    with torch.no_grad():
        for mine, its in zip(exported.module()(*other), step(*other), strict=True):
            torch.testing.assert_close(mine, its, atol=1e-6, rtol=1e-5)


def test_weights_files_do_not_hold_what_the_sizes_decide() -> None:
    assert "history.mask" not in made().state_dict()
    assert {name.partition(".")[0] for name in ScoreStep(made()).state_dict()} == {"net"}


def test_a_lone_event_equals_its_place_in_a_batch() -> None:
    session = TorchSession(ScoreStep(made()))
    rng = np.random.default_rng(0)
    cards = rng.integers(0, 4, 60)
    time = np.cumsum(rng.integers(1, DAY, 60))
    features = rng.normal(size=(60, 7)).astype(np.float32)
    together, alone = CardStates(StateLayout(session)), CardStates(StateLayout(session))
    before, met = together.layout.zeros(60), alone.layout.zeros(1)
    batch = together.advance(session, cards, time, features, before)
    for k in range(60):
        place = slice(k, k + 1)
        logit = alone.advance(session, cards[place], time[place], features[place], met)
        np.testing.assert_allclose(logit, batch[place], atol=1e-5)
        for name, array in met.items():
            np.testing.assert_allclose(array, before[name][place], atol=1e-5)


def test_states_survive_as_bytes() -> None:
    session = TorchSession(ScoreStep(made()))
    states = CardStates(StateLayout(session))
    rng = np.random.default_rng(0)
    cards = np.arange(-20, 20)
    states.advance(session, cards, np.full(40, DAY), rng.normal(size=(40, 7)).astype(np.float32))
    kept = dict(states.items())
    assert set(kept) == set(cards.tolist())
    assert {len(row) for row in kept.values()} == {states.layout.nbytes}
    again = CardStates(states.layout)
    again.put(kept)
    assert dict(again.items()) == kept
    features = rng.normal(size=(40, 7)).astype(np.float32)
    one, other = (held.advance(session, cards, np.full(40, 2 * DAY), features) for held in (states, again))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": np.zeros((1, 8), np.float32)}, "features"),
        ({"features": np.zeros((1, 7))}, "float64"),
        ({"features": np.zeros(7, np.float32)}, "features"),
        ({"time": np.zeros((), np.float64)}, "time"),
        ({"memory": None}, "needed are"),
        ({"more": np.zeros(1)}, "needed are"),
    ],
)
def test_a_session_refuses_arrays_that_are_not_its_specs(change: dict[str, np.ndarray | None], words: str) -> None:
    session = TorchSession(ScoreStep(made()))
    arrays = {"features": np.zeros((1, 7), np.float32), "time": np.zeros(1), **StateLayout(session).zeros(1)}
    assert session(arrays)["logit"].shape == (1,)
    arrays = {name: array for name, array in {**arrays, **change}.items() if array is not None}
    with pytest.raises(ValueError, match=words):
        session(arrays)


def test_pooling_is_the_logit_of_the_mean_probability() -> None:
    logits = torch.randn(5, 4) * 3
    expected = torch.logit(torch.sigmoid(logits.double()).mean(-1))
    torch.testing.assert_close(pooled(logits).double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(pooled(torch.tensor([[-200.0, -150.0], [150.0, 200.0]]))).all()


def test_either_kind_of_evidence_makes_a_fraud() -> None:
    """1 - p is the product of the two sides' chances of no fraud."""
    net = made()
    features = torch.randn(6, 7)
    with torch.inference_mode():
        recalled = torch.zeros(6, net.history.num_outputs)
        card = net.of_card(torch.cat([net._encoded(features, net.card), recalled], -1))
        terminal = net.of_terminal(net._encoded(features, net.terminal))
        either = net.weigh(features, recalled)
    none = (1 - torch.sigmoid(card.double())) * (1 - torch.sigmoid(terminal.double()))
    torch.testing.assert_close(torch.sigmoid(either.double()), 1 - none, atol=1e-6, rtol=1e-4)


def test_a_step_exported_after_a_change_of_mode_or_weights_holds_the_new_ones(tmp_path: Path) -> None:
    step = ScoreStep(made().train())
    with torch.no_grad():
        step.net.of_card.out.mul_(3)
    write_network(step, tmp_path, "torch")
    network = ExportedNetwork(tmp_path, inputs=step.inputs, outputs=step.outputs)
    given = (torch.randn(4, 7), torch.full((4,), 17_000.0, dtype=torch.float64), *step.net.initial(4))
    with torch.inference_mode():
        torch.testing.assert_close(network(*given)[0], step(*given)[0], atol=1e-5, rtol=0)


def test_an_exported_step_equals_the_network_for_features_of_any_size(tmp_path: Path) -> None:
    """Also at the bends of steep ramps and beyond the last."""
    net = made(num_bins=8, num_steps=3)
    rows = torch.randn(400, 7)
    rows[:, 1], rows[:, 2] = (rows[:, 1] > 0).float(), 5 + rows[:, 2].round() * 5e-7
    net.encoding.fit(rows, torch.arange(400) < 40)
    step = ScoreStep(net)
    write_network(step, tmp_path, "onnx")
    session = OnnxSession(tmp_path / "model.onnx", inputs=step.inputs, outputs=step.outputs)
    bends = torch.cat([net.encoding.lows, net.encoding.lows + 1 / net.encoding.slopes.clamp(min=1e-3)], 1).t()
    sizes = torch.tensor([0.0, 1e-30, 1e-6, 1.0, 6.0, 1e3, 1e30])[:, None] * torch.randn(7, 7).sign()
    features = torch.cat([rows[:50], bends, torch.nextafter(bends, torch.tensor(1e9)), sizes])
    count = len(features)
    days = torch.full((count,), 20_000.0, dtype=torch.float64)
    with torch.inference_mode():
        wanted = pooled(net(features[:, None], days[:, None], net.initial(count))[0][:, 0])
    arrays = {"features": features.numpy(), "time": days.numpy(), **StateLayout(session).zeros(count)}
    np.testing.assert_allclose(session(arrays)["logit"], wanted.numpy(), atol=1e-5)
