"""Similarity-weighted mixtures against cosines of whole deviations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metadnas_ext import aggregate


def normal(clients, columns=30, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clients, columns, generator=generator, dtype=torch.float64).to(dtype)


def mixed(x, weights=None, temperature=0.2):
    wide = np.asarray(x, np.float64).reshape(len(x), -1)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    deviation = wide - np.median(wide[weights > 0], axis=0)
    length = np.linalg.norm(deviation, axis=1)
    result = np.empty_like(wide)
    for i in range(len(x)):
        with np.errstate(invalid="ignore"):
            cosine = np.nan_to_num(deviation @ deviation[i] / (length * length[i]))
        cosine[i] = 1
        share = weights * np.exp(cosine / temperature)
        result[i] = share @ wide / share.sum()
    return result.reshape(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clients", [1, 2, 3, 8, 41])
def test_equals_numpy(clients, dtype):
    x = normal(clients, dtype=dtype).view(clients, 5, 6)
    result = aggregate(x, how="similarity")
    assert result.dtype == dtype
    np.testing.assert_allclose(result, mixed(x), rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("temperature", [0.02, 0.5, 5])
def test_temperature_and_weights(temperature):
    x, weights = normal(6), [1, 4, 0, 2, 2, 0.5]
    result = aggregate(x, weights, how="similarity", temperature=temperature)
    np.testing.assert_allclose(result, mixed(x, weights, temperature), rtol=0, atol=1e-13)


def test_extreme_temperatures():
    x = normal(6)
    torch.testing.assert_close(aggregate(x, how="similarity", temperature=1e-3), x)
    everyone = aggregate(x, how="similarity", temperature=1e9)
    torch.testing.assert_close(everyone, x.mean(0).expand(6, 30))


def test_two_groups_stay_apart():
    centers = normal(2, 200).repeat_interleave(5, 0)  # 5 clients each
    result = aggregate(centers + 0.1 * normal(10, 200, seed=1), how="similarity")
    distance = torch.cdist(result, centers)
    assert (distance[:5, 0] < 2).all()
    assert (distance[5:, 5] < 2).all()
    assert (distance[:5, 5] > 15).all()


def test_equal_clients():
    x = normal(1).expand(5, 30)
    torch.testing.assert_close(aggregate(x, how="similarity"), x)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_client_that_is_not_finite_only_receives(value):
    x, weights = normal(9), list(range(1, 10))
    more = torch.cat([x, normal(1, seed=1)])
    more[9, 3] = value
    result = aggregate(more, [*weights, 5], how="similarity")
    assert torch.equal(result[:9], aggregate(x, weights, how="similarity"))
    torch.testing.assert_close(result[9], aggregate(x, weights))


def test_a_client_of_weight_0_only_receives():
    x, weights = normal(9), list(range(1, 10))
    more = torch.cat([x, x[:1] + 1e-6])
    result = aggregate(more, [*weights, 0], how="similarity")
    torch.testing.assert_close(result[:9], aggregate(x, weights, how="similarity"))
    assert (result[9] - result[0]).norm() < (result[9] - x.mean(0)).norm()


def test_threads():
    x = normal(300, 500, torch.float32)
    alone = aggregate(x, how="similarity")
    torch.set_num_threads(2)
    assert torch.equal(aggregate(x, how="similarity"), alone)


def test_state_dicts():
    x = normal(4)
    dicts = [{"a": row[:10].view(2, 5), "b": row[10:], "n": torch.tensor(4)} for row in x]
    result = aggregate(dicts, how="similarity")
    assert len(result) == 4
    for got, wanted in zip(result, mixed(x), strict=True):
        assert list(got) == ["a", "b", "n"]
        flat = torch.cat([got["a"].flatten(), got["b"]])
        np.testing.assert_allclose(flat, wanted, rtol=0, atol=1e-14)
        assert got["n"].item() == 4


@pytest.mark.parametrize("temperature", [0, -1, torch.nan, torch.inf])
def test_refuses(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*, expected more than 0"):
        aggregate(normal(3), how="similarity", temperature=temperature)
