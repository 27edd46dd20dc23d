"""V against the definitions of the rules, written out here once more in NumPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from variants import DRAWN, LOCAL

from sstune.rules import FEEDBACKS, Feedback, begin_step, convert
from sstune.rules.feedback import constant_scale, fixed, signed
from sstune.schema import Redraw, RequestError, RuleConfig, Scale, Start

Rule = Callable[..., RuleConfig]
Array = npt.NDArray[np.float64]

SCALES = list(Scale)
EXACT = {"rtol": 1e-10, "atol": 1e-10}

# Weight shapes: (out, in, *kernel); a grouped convolution's ``in`` is that of one group.
SHAPES = {
    "linear": (6, 5),
    "linear-out-1": (1, 8),
    "conv1d": (4, 3, 5),
    "conv2d": (4, 3, 3, 2),
    "conv2d-depthwise": (6, 1, 3, 3),
    "conv3d": (2, 3, 2, 3, 1),
}


def weight_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Gaussian in float64, with an exact zero."""
    weight = torch.from_numpy(np.random.default_rng(seed).normal(0, 0.3, shape))
    weight.view(-1)[3] = 0.0
    return weight


def scale_of(weight: Array, scale: Scale) -> float:
    out, into, *kernel = weight.shape
    taps = math.prod(kernel)
    if scale is Scale.unit:
        return 1.0
    if scale is Scale.weight_rms:
        return float(np.sqrt(np.mean(weight**2)))
    if scale is Scale.xavier:
        return math.sqrt(2 / (into * taps + out * taps))
    return math.sqrt(2 / (taps * out)) if kernel else 1 / math.sqrt(into)


def rms(values: Tensor | Array) -> float:
    return float(np.sqrt(np.mean(np.asarray(values) ** 2)))


def layer_of(weight: Tensor) -> Any:
    """A layer with this weight; as many groups as SHAPES says."""
    out, into, *kernel = weight.shape
    if not kernel:
        layer: Any = nn.Linear(into, out)
    else:
        groups = out if into == 1 else 1
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1]
        layer = kind(into * groups, out, tuple(kernel), groups=groups)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def make(weight: Tensor, rule: RuleConfig, seed: int = 0, layer: str = "conv1") -> Any:
    return FEEDBACKS[rule.name](layer_of(weight), rule, seed, layer)


def formed(feedback: Feedback, weight: Tensor) -> Tensor:
    """V of a forward pass that runs now."""
    form, operands, _ = feedback(weight)
    return form(weight, *operands)


def drawn_by(feedback: Any) -> Tensor:
    return feedback.frozen if hasattr(feedback, "frozen") else feedback.magnitude


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
class TestDefinitions:
    def test_usf(self, shape: tuple[int, ...], scale: Scale, rule_config: Rule) -> None:
        weight = weight_of(shape)
        feedback = make(weight, rule_config("usf", scale))
        for values in (weight, -2 * weight, weight_of(shape, seed=1)):  # signs and RMS are today's
            expected = scale_of(values.numpy(), scale) * np.sign(values.numpy())
            np.testing.assert_allclose(feedback.matrix(values), expected, **EXACT)
            np.testing.assert_allclose(formed(feedback, values), expected, **EXACT)

    @pytest.mark.parametrize("name", ["frsf", "brsf"])
    def test_random_magnitudes_and_live_signs(
        self, name: str, shape: tuple[int, ...], scale: Scale, rule_config: Rule
    ) -> None:
        weight = weight_of(shape)
        feedback = make(weight, rule_config(name, scale))
        magnitude = feedback.magnitude.numpy().copy()
        assert (magnitude >= 0).all()
        assert magnitude.std() > 0
        for values in (weight, -2 * weight, weight_of(shape, seed=1)):
            expected = scale_of(values.numpy(), scale) * magnitude * np.sign(values.numpy())
            np.testing.assert_allclose(feedback.matrix(values), expected, **EXACT)
            np.testing.assert_allclose(formed(feedback, values), expected, **EXACT)

    def test_fa_is_fixed_and_independent_of_the_weights(
        self, shape: tuple[int, ...], scale: Scale, rule_config: Rule
    ) -> None:
        weight, other = weight_of(shape), weight_of(shape, seed=1)
        feedback, same = make(weight, rule_config("fa", scale)), make(other, rule_config("fa", scale))
        fixed = feedback.matrix(weight).numpy() / scale_of(weight.numpy(), scale)
        assert (fixed < 0).any()
        assert (fixed > 0).any()
        for drawn, values in ((feedback, -weight), (feedback, other), (same, other), (same, weight)):
            expected = fixed * scale_of(values.numpy(), scale)
            np.testing.assert_allclose(drawn.matrix(values), expected, **EXACT)

    def test_sham_is_the_weight(self, shape: tuple[int, ...], scale: Scale, rule_config: Rule) -> None:
        weight, other = weight_of(shape), weight_of(shape, seed=1)
        feedback = make(weight, rule_config("sham", scale))
        assert torch.equal(feedback.matrix(weight), weight)
        assert torch.equal(formed(feedback, other), other)

    def test_fa_signed_keeps_the_signs_of_conversion(
        self, shape: tuple[int, ...], scale: Scale, rule_config: Rule
    ) -> None:
        weight, other = weight_of(shape), weight_of(shape, seed=1)
        feedback = make(weight, rule_config("fa_signed", scale))
        assert feedback.frozen.element_size() == 1
        for values in (weight, -2 * weight, other):  # its RMS is today's
            expected = scale_of(values.numpy(), scale) * np.sign(weight.numpy())
            np.testing.assert_allclose(feedback.matrix(values), expected, **EXACT)
            np.testing.assert_allclose(formed(feedback, values), expected, **EXACT)

    @pytest.mark.parametrize("name", ["kp", "wm", "pfa_o"])
    def test_trained_feedback_starts_at_the_weights(
        self, name: str, shape: tuple[int, ...], scale: Scale, rule_config: Rule
    ) -> None:
        weight = weight_of(shape)
        feedback = make(weight, rule_config(name, scale))
        assert torch.equal(feedback.matrix(weight), weight)
        assert not list(feedback.parameters())
        if name == "wm":  # learns from phases alone; the others follow W at once
            assert torch.equal(feedback.matrix(2 * weight), weight)
        else:
            assert torch.equal(feedback.matrix(2 * weight), 2 * weight)

    @pytest.mark.parametrize("name", ["kp", "wm"])
    def test_trained_feedback_starts_at_random(
        self, name: str, shape: tuple[int, ...], scale: Scale, rule_config: Rule
    ) -> None:
        weight = weight_of(shape)
        fa = make(weight, rule_config("fa", scale)).matrix(weight)  # one distribution, and one draw
        feedback = make(weight, rule_config(name, scale, start=Start.random))
        np.testing.assert_allclose(feedback.matrix(weight), fa, **EXACT)

    @pytest.mark.parametrize("name", DRAWN)
    def test_weight_rms_gives_v_the_rms_of_w(
        self, name: str, shape: tuple[int, ...], scale: Scale, rule_config: Rule
    ) -> None:
        weight = 7 * weight_of(shape)
        weight[weight == 0] = 1.0  # a zero weight has no sign, and V no entry there
        matrix = make(weight, rule_config(name, scale)).matrix(weight)
        ratio = rms(matrix) / rms(weight)
        assert (abs(ratio - 1) < 1e-10) == (scale is Scale.weight_rms)


@pytest.mark.parametrize("name", ["usf", *DRAWN])
@pytest.mark.parametrize("scale", SCALES)
def test_zero_weights_have_sign_zero_and_give_finite_feedback(
    name: str, scale: Scale, rule_config: Rule
) -> None:
    weight = torch.zeros(4, 3, dtype=torch.float64)
    matrix = make(weight, rule_config(name, scale)).matrix(weight)
    assert torch.isfinite(matrix).all()
    assert (matrix == 0).all() or (name == "fa" and scale is not Scale.weight_rms)


def test_xavier_and_he_values_that_one_can_check_by_hand() -> None:
    conv, linear = torch.Size((64, 32, 3, 3)), torch.Size((10, 64))
    transposed = torch.Size((32, 16, 3, 3))  # of 4 groups: 64 output channels
    assert constant_scale(conv, Scale.xavier, 64) == pytest.approx(math.sqrt(2 / (288 + 576)), rel=1e-12)
    assert constant_scale(linear, Scale.xavier, 10) == pytest.approx(math.sqrt(2 / 74), rel=1e-12)
    assert constant_scale(conv, Scale.he_fan_out, 64) == pytest.approx(1 / math.sqrt(288), rel=1e-12)
    assert constant_scale(transposed, Scale.he_fan_out, 64) == pytest.approx(1 / math.sqrt(288), rel=1e-12)
    assert constant_scale(linear, Scale.he_fan_out, 10) == pytest.approx(1 / 8, rel=1e-12)
    assert constant_scale(conv, Scale.unit, 64) == constant_scale(linear, Scale.unit, 10) == 1.0


# |V|/s of a large layer: (mean, RMS, largest possible value or None).
UNIFORM = (math.sqrt(3) / 2, 1.0, math.sqrt(3))
HALF_WIDTH = (0.5, 1 / math.sqrt(3), 1.0)  # Xiao et al.: s is the half-width for linear layers
NORMAL = (math.sqrt(2 / math.pi), 1.0, None)  # Xiao et al.: normal for convolutions


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize(
    ("shape", "scale", "moments"),
    [
        ((400, 500), Scale.xavier, UNIFORM),
        ((400, 500), Scale.weight_rms, UNIFORM),
        ((400, 500), Scale.unit, UNIFORM),
        ((400, 500), Scale.he_fan_out, HALF_WIDTH),
        ((150, 150, 3, 3), Scale.xavier, UNIFORM),
        ((150, 150, 3, 3), Scale.weight_rms, UNIFORM),
        ((150, 150, 3, 3), Scale.he_fan_out, NORMAL),
    ],
)
def test_distribution_of_large_draws(
    name: str,
    shape: tuple[int, ...],
    scale: Scale,
    moments: tuple[float, float, float | None],
    rule_config: Rule,
) -> None:
    mean, root, largest = moments
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 0.05, shape))
    matrix = make(weight, rule_config(name, scale)).matrix(weight)
    ratio = (matrix / scale_of(weight.numpy(), scale)).numpy()
    assert np.abs(ratio).mean() == pytest.approx(mean, rel=0.01)
    assert rms(ratio) == pytest.approx(root, rel=0.01)
    assert abs(ratio.mean()) < 0.01  # signs are balanced
    if largest is None:
        assert np.mean(ratio**4) == pytest.approx(3.0, rel=0.05)
        assert np.abs(ratio).max() > 4
    else:
        assert 0.99 * largest < np.abs(ratio).max() < 1.01 * largest


class TestDraws:
    @pytest.mark.parametrize("name", DRAWN)
    def test_are_keyed_by_seed_and_layer(self, name: str, rule_config: Rule) -> None:
        weight = weight_of((4, 3))
        keys = [(0, "a"), (1, "a"), (0, "b"), (12, "a")]
        drawn = [drawn_by(make(weight, rule_config(name), *key)) for key in keys]
        again = [drawn_by(make(weight + 1, rule_config(name), *key)) for key in keys]
        assert all(torch.equal(one, two) for one, two in zip(drawn, again, strict=True))
        assert len({tuple(magnitude.flatten().tolist()) for magnitude in drawn}) == len(keys)

    @pytest.mark.parametrize("name", [name for name in LOCAL if name not in ("brsf", "wm", "wm-random")])
    def test_a_step_changes_nothing_but_for_brsf_and_wm(self, name: str, rule_config: Rule) -> None:
        weight = weight_of((4, 3))
        feedback: Feedback = make(weight, rule_config(name))
        before = feedback.matrix(weight).clone()
        feedback.begin_step(weight)
        assert torch.equal(feedback.matrix(weight), before)

    def test_matrix_draws_nothing(self, rule_config: Rule) -> None:
        weight = weight_of((4, 3))
        feedback = make(weight, rule_config("brsf", redraw=Redraw.forward))
        assert torch.equal(feedback.matrix(weight), feedback.matrix(weight))
        assert feedback.draws == 1


class TestBrsf:
    @pytest.fixture
    def network(self) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))

    @staticmethod
    def magnitudes(network: nn.Sequential) -> list[Tensor]:
        return [network[i].feedback.magnitude.clone() for i in (0, 3)]

    @staticmethod
    def changed(before: list[Tensor], after: list[Tensor]) -> list[bool]:
        return [not torch.equal(one, two) for one, two in zip(before, after, strict=True)]

    def test_draws_anew_once_per_step(self, network: nn.Sequential, rule_config: Rule) -> None:
        convert(network, rule_config("brsf"), seed=0)
        seen = [self.magnitudes(network)]
        for _ in range(5):
            begin_step(network)
            seen.append(self.magnitudes(network))
            for micro_batch in torch.rand(2, 3, 2, 4, 4):
                network(micro_batch).sum().backward()
            network.eval()
            network(torch.rand(1, 2, 4, 4))
            network.train()
            assert self.changed(seen[-1], self.magnitudes(network)) == [False, False]
        for i in range(len(seen)):
            for j in range(i):
                assert self.changed(seen[i], seen[j]) == [True, True]

    def test_draws_in_every_forward_when_told(self, network: nn.Sequential, rule_config: Rule) -> None:
        convert(network, rule_config("brsf", redraw=Redraw.forward), seed=0)
        before = self.magnitudes(network)
        begin_step(network)
        assert self.changed(before, self.magnitudes(network)) == [False, False]
        for mode in (True, False, True):
            network.train(mode)
            network(torch.rand(1, 2, 4, 4))
            assert self.changed(before, self.magnitudes(network)) == [True, True]
            before = self.magnitudes(network)

    def test_both_settings_draw_the_same_sequence(self, rule_config: Rule) -> None:
        weight = weight_of((4, 3))
        by_step, by_forward = (make(weight, rule_config("brsf", redraw=redraw)) for redraw in Redraw)
        for _ in range(3):
            by_step.begin_step(weight)
            by_forward(weight)
            assert torch.equal(by_step.magnitude, by_forward.magnitude)

    @pytest.mark.parametrize("n_forwards", [1, 3])
    def test_each_backward_uses_the_draw_of_its_own_forward(self, n_forwards: int, rule_config: Rule) -> None:
        layer = nn.Linear(3, 4, dtype=torch.float64)
        network = nn.Sequential(layer)
        convert(network, rule_config("brsf", redraw=Redraw.forward), seed=0)
        feedback: Any = layer.feedback
        inputs = torch.rand(n_forwards, 2, 3, dtype=torch.float64).requires_grad_()
        outputs, used = [], []
        for x in inputs:
            outputs.append(network(x))
            used.append(feedback.matrix(layer.weight))
        torch.stack(outputs).sum().backward()
        assert inputs.grad is not None
        assert feedback.draws == 1 + n_forwards
        for dx, matrix in zip(inputs.grad, used, strict=True):
            np.testing.assert_allclose(dx, torch.ones(2, 4, dtype=torch.float64) @ matrix, **EXACT)

    def test_a_backward_that_is_overtaken_by_the_next_step_fails(self, rule_config: Rule) -> None:
        """The draw of a step replaces the last one in place: late is an error, never another M."""
        network = nn.Sequential(nn.Linear(3, 4))
        convert(network, rule_config("brsf"), seed=0)
        loss = network(torch.rand(2, 3, requires_grad=True)).sum()
        begin_step(network)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_goes_on_from_a_saved_state(self, rule_config: Rule) -> None:
        weight = weight_of((4, 3))
        uninterrupted, resumed = make(weight, rule_config("brsf")), make(weight, rule_config("brsf"))
        for _ in range(3):
            uninterrupted.begin_step(weight)
        resumed.load_state_dict(uninterrupted.state_dict())
        assert torch.equal(resumed.magnitude, uninterrupted.magnitude)
        for _ in range(2):
            uninterrupted.begin_step(weight)
            resumed.begin_step(weight)
            assert torch.equal(resumed.magnitude, uninterrupted.magnitude)


@pytest.mark.parametrize("groups", [1, 2])
def test_he_fan_out_of_a_transposed_convolution_counts_its_true_output_channels(
    groups: int, rule_config: Rule
) -> None:
    layer = nn.ConvTranspose2d(4, 6, (3, 2), groups=groups)
    feedback = FEEDBACKS["usf"](layer, rule_config("usf", Scale.he_fan_out), 0, "layer")
    expected = math.sqrt(2 / (3 * 2 * 6)) * np.sign(layer.weight.detach().numpy())
    np.testing.assert_allclose(feedback.matrix(layer.weight), expected, rtol=1e-6)


@pytest.mark.parametrize("form", [signed, fixed])
@pytest.mark.parametrize("scale", [None, torch.tensor(0.5, dtype=torch.float64)])
def test_forming_v_changes_none_of_its_operands(form: Callable[..., Tensor], scale: Tensor | None) -> None:
    weight, magnitude = weight_of((4, 3)), weight_of((4, 3), seed=1).abs()
    kept = weight.clone(), magnitude.clone()
    matrix = form(weight, scale, magnitude)
    expected = (0.5 if scale is not None else 1) * magnitude * (weight.sign() if form is signed else 1)
    np.testing.assert_allclose(matrix, expected, **EXACT)
    assert torch.equal(weight, kept[0])
    assert torch.equal(magnitude, kept[1])


def test_an_unknown_rule_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match=r"rule\.name: unknown 'frfs', did you mean 'frsf'\?"):
        FEEDBACKS["frfs"]


class TestStepsNotBegun:
    """A loop that updates weights and never says ``begin_step`` would keep the first draw for ever."""

    @staticmethod
    def train(network: nn.Module, begins: bool, steps: int = 3, micro_batches: int = 2) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for step in range(steps):
            if begins:
                begin_step(network)
            for _ in range(micro_batches):
                network(torch.rand(4, 3, generator=torch.Generator().manual_seed(step))).sum().backward()
            optimizer.step()

    def network(self, rule: RuleConfig, compiled: bool = False) -> nn.Module:
        network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
        convert(network, rule, seed=0)
        return torch.compile(network, backend="aot_eager", fullgraph=True) if compiled else network

    @pytest.mark.parametrize("name", ["brsf", "wm"])
    @pytest.mark.parametrize("compiled", [False, True])
    def test_are_warned_of(self, name: str, compiled: bool, rule_config: Rule) -> None:
        with pytest.warns(RuntimeWarning, match=f"{name}: weights were updated.*begin_step"):
            self.train(self.network(rule_config(name), compiled), begins=False)

    @pytest.mark.parametrize("name", ["brsf", "wm", "usf", "frsf"])
    def test_a_right_loop_hears_nothing(self, name: str, rule_config: Rule) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.train(self.network(rule_config(name)), begins=True)
            redrawn = rule_config("brsf", redraw=Redraw.forward)
            self.train(self.network(redrawn), begins=False)
            self.train(
                self.network(rule_config(name)), begins=False, steps=1
            )  # gradients of weights as given
            evaluated = self.network(rule_config(name)).eval()
            self.train(evaluated, begins=False)
