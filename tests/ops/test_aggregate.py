from __future__ import annotations

import numpy as np
import pytest
import torch

from metadnas_ext import aggregate

WEIGHTS = [10, 30, 0]


def updates() -> torch.Tensor:
    return torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))


def expected(stacked: torch.Tensor, weights=WEIGHTS) -> np.ndarray:
    return np.average(np.asarray(stacked, np.float64), axis=0, weights=weights)


def state_dicts() -> list[dict[str, torch.Tensor]]:
    return [
        {"weight": update, "bias": update[0].double(), "seen": torch.tensor(seen)}
        for update, seen in zip(updates(), [10, 13, 99], strict=True)
    ]


@pytest.mark.parametrize("weights", [WEIGHTS, torch.tensor(WEIGHTS), torch.tensor([1.0, 3.0, 0.0])])
def test_forms_of_updates_and_weights(weights):
    for form in (updates(), list(updates()), tuple(updates())):
        result = aggregate(form, weights)
        assert result.dtype == torch.float32
        np.testing.assert_allclose(result.numpy(), expected(updates()), rtol=1e-6, atol=1e-7)


def test_equal_weights_by_default():
    np.testing.assert_allclose(
        aggregate(updates()).numpy(), expected(updates(), [1, 1, 1]), rtol=1e-6, atol=1e-7
    )


def test_state_dicts():
    result = aggregate(state_dicts(), WEIGHTS)
    assert list(result) == ["weight", "bias", "seen"]
    for key, value in result.items():
        assert value.dtype == state_dicts()[0][key].dtype
    np.testing.assert_allclose(result["weight"], expected(updates()), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(result["bias"], expected(updates()[:, 0]), rtol=1e-12)
    assert result["seen"].item() == 12  # 12.25, rounded


def test_large_counters_stay_exact():
    seen = [{"n": torch.tensor(2**40 + 2 * i)} for i in range(2)]
    assert aggregate(seen)["n"].item() == 2**40 + 1


def test_one_client_is_itself():
    alone = state_dicts()[0]
    for key, value in aggregate([alone], [7]).items():
        assert torch.equal(value, alone[key])


def test_half_precision_keeps_its_dtype():
    result = aggregate(updates().half())
    assert result.dtype == torch.half
    torch.testing.assert_close(result, updates().half().double().mean(0).half())


def test_diverged_client_of_weight_0():
    poisoned = updates()
    poisoned[2] = torch.nan
    assert torch.equal(aggregate(poisoned, WEIGHTS), aggregate(updates(), WEIGHTS))


def test_differentiable():
    stacked = updates().requires_grad_()
    aggregate(stacked, WEIGHTS).sum().backward()
    shares = torch.tensor([0.25, 0.75, 0.0]).view(3, 1, 1)
    torch.testing.assert_close(stacked.grad, shares.expand(3, 4, 5))


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ([], {}, ValueError, "updates is empty"),
        (torch.ones(0, 3), {}, ValueError, "updates is empty"),
        (torch.ones(2, 3), {"how": "vote"}, ValueError, "how='vote' is unknown; known: mean"),
        (torch.ones(2, 3), {"weights": [1.0]}, ValueError, r"shape \(1,\), expected \(2,\)"),
        (torch.ones(2, 3), {"weights": [1.0, -1.0]}, RuntimeError, r"weights\[1\] is -1"),
        (torch.ones(2, 3), {"weights": [torch.nan, 1]}, RuntimeError, r"weights\[0\] is nan"),
        (torch.ones(2, 3), {"weights": [0, 0]}, RuntimeError, "weights sum to 0"),
        (
            [{"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1), "c": torch.ones(1)}],
            {},
            ValueError,
            r"updates\[1\] and updates\[0\] differ in the keys b, c",
        ),
    ],
)
def test_refuses(given, options, error, message):
    with pytest.raises(error, match=message):
        aggregate(given, **options)
