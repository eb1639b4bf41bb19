from __future__ import annotations

import numpy as np
import pytest
import torch

from metadnas_ext import aggregate
from metadnas_ext.aggregation import METHODS

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
        (iter([torch.ones(3)]), {}, ValueError, "updates is a list_iterator, expected a tensor"),
        (
            [[1.0, 2.0]],
            {},
            ValueError,
            r"updates\[0\] is a list, expected a tensor or a state dict",
        ),
        ([{"a": 1.0}], {}, ValueError, r"updates\[0\]\['a'\] is a float, expected a tensor"),
        (torch.ones(0, 3), {}, ValueError, "updates is empty"),
        (torch.ones(2, 3), {"how": "vote"}, ValueError, "how='vote' is unknown; known: mean"),
        (torch.ones(2, 3), {"weights": [1.0]}, ValueError, r"shape \(1,\), expected \(2,\)"),
        (torch.ones(2, 3), {"weights": [1.0, -1.0]}, ValueError, r"weights\[1\] is -1"),
        (torch.ones(2, 3), {"weights": [torch.nan, 1]}, ValueError, r"weights\[0\] is nan"),
        (torch.ones(2, 3), {"weights": [0, 0]}, ValueError, "weights sum to 0"),
        (
            [{"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1), "c": torch.ones(1)}],
            {},
            ValueError,
            r"updates\[1\] and updates\[0\] differ in the keys b, c",
        ),
        (
            torch.ones(2, 3),
            {"how": "median", "weights": [1, 1]},
            ValueError,
            "weights is given, but how='median' takes none: mean, geometric_median, similarity do",
        ),
        (torch.ones(2, 3), {"how": "trimmed_mean", "trim": 0.5}, ValueError, "trim is 0.5"),
        (
            [torch.ones(3), torch.ones(1)],
            {},
            ValueError,
            r"updates\[1\] has shape \(1,\), expected \(3,\)",
        ),
        (
            [{"a": torch.ones(3)}, {"a": torch.ones(3, 1)}],
            {},
            ValueError,
            r"updates\[1\]\['a'\] has shape \(3, 1\), expected \(3,\)",
        ),
        (
            [torch.ones(3), torch.ones(3).long()],
            {},
            ValueError,
            r"updates\[1\] is torch.int64, expected torch.float32 as updates\[0\]",
        ),
        (
            [torch.ones(3), {"a": torch.ones(3)}],
            {},
            ValueError,
            r"updates\[1\] and updates\[0\] are not both tensors or state dicts",
        ),
        (
            [{"n": torch.tensor(1)}, {"n": torch.tensor(2)}],
            {"how": "krum"},
            ValueError,
            "no floating-point entry to compare",
        ),
        (torch.ones(2, 3), {"center": ["a"]}, ValueError, r"center is \['a'\], expected True or"),
        ([{"a": torch.ones(3)}], {"center": True}, ValueError, "center is True, expected .* keys"),
        ([{"a": torch.ones(3)}], {"center": "a"}, ValueError, "center is 'a', expected .* keys"),
        ([{"a": torch.ones(3)}], {"center": ["b"]}, ValueError, "center names b, which"),
        (torch.ones(3), {"center": True}, ValueError, r"center: updates has shape \(\)"),
        (torch.ones(2, 3).long(), {"center": True}, ValueError, "dtype torch.int64 a client"),
    ],
)
def test_refuses(given, options, error, message):
    with pytest.raises(error, match=message):
        aggregate(given, **options)


COORDINATEWISE = {
    "median": lambda x: np.median(x, axis=0),
    "trimmed_mean": lambda x: np.sort(x, axis=0)[1:-1].mean(0),
}


@pytest.mark.parametrize("how", COORDINATEWISE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_coordinatewise_methods(how, dtype):
    stacked = torch.randn(9, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = torch.from_numpy(COORDINATEWISE[how](np.asarray(stacked.double()))).to(dtype)
    for form in (stacked, list(stacked)):
        result = aggregate(form, how=how, trim=0.2)
        assert result.dtype == dtype
        torch.testing.assert_close(result, wanted)
    dicts = [{"x": x, "n": torch.tensor([n, 7])} for n, x in enumerate(stacked)]
    result = aggregate(dicts, how=how, trim=0.2)
    torch.testing.assert_close(result["x"], wanted)
    assert result["n"].tolist() == [4, 7]
    assert result["n"].dtype == torch.int64


@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_dtypes(how, dtype):
    stacked = (10 * torch.randn(9, 20, generator=torch.Generator().manual_seed(0))).to(dtype)
    wide = torch.float32 if dtype.is_floating_point else torch.float64
    wanted = aggregate(stacked.to(wide), how=how)
    wanted = wanted if dtype.is_floating_point else wanted.round()
    assert torch.equal(aggregate(stacked, how=how), wanted.to(dtype))


@pytest.mark.parametrize("how", METHODS)
def test_forms_agree(how):
    stacked = torch.randn(7, 6, 5, generator=torch.Generator().manual_seed(0))
    whole = aggregate(stacked, how=how)
    assert torch.equal(aggregate(list(stacked), how=how), whole)
    halves = aggregate([{"a": x[:3], "b": x[3:]} for x in stacked], how=how)
    if how == "similarity":
        joined = torch.stack([torch.cat([client["a"], client["b"]]) for client in halves])
    else:
        joined = torch.cat([halves["a"], halves["b"]])
    torch.testing.assert_close(joined, whole)


@pytest.mark.parametrize("how", METHODS)
def test_a_constant_added_to_an_edge_changes_nothing_when_centred(how):
    generator = torch.Generator().manual_seed(0)
    alpha = torch.randn(9, 2, 14, 8, generator=generator, dtype=torch.float64)
    moved = alpha + 100 * torch.randn(9, 2, 14, 1, generator=generator, dtype=torch.float64)
    weights = torch.randn(9, 30, generator=generator)
    plain = aggregate(alpha, how=how, center=True)
    torch.testing.assert_close(aggregate(moved, how=how, center=True), plain)
    torch.testing.assert_close(plain.mean(-1), torch.zeros_like(plain[..., 0]), rtol=0, atol=2)
    results = [
        aggregate(
            [{"alpha": a, "w": w} for a, w in zip(given, weights, strict=True)],
            how=how,
            center=["alpha"],
        )
        for given in (alpha, moved)
    ]
    torch.testing.assert_close(*results)


def test_centring_leaves_other_entries_alone():
    dicts = [{"alpha": torch.tensor([1.0, 3.0]), "w": torch.tensor([1.0, 3.0])}]
    result = aggregate(dicts, center=["alpha"])
    assert result["alpha"].tolist() == [-1, 1]
    assert result["w"].tolist() == [1, 3]


@pytest.mark.parametrize("how", [how for how in METHODS if how != "mean"])
def test_only_the_mean_carries_a_gradient(how):
    assert not aggregate(updates().requires_grad_(), how=how).requires_grad


def test_state_dicts_without_entries():
    assert aggregate([{}, {}]) == {}
