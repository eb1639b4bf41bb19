"""rank_mean, median and trimmed_mean against numpy's sort in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metadnas_ext.ops import median, rank_mean, reference_aggregate, trimmed_mean

SIZES = [*range(1, 71), 128, 129, 255, 256, 300, 512, 1000, 1025]
RANK_MEANS = [rank_mean, reference_aggregate.rank_mean]


def normal(clients, columns=33, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clients, columns, generator=generator, dtype=torch.float64).to(dtype)


def expected(x, begin, end):
    """NaN sorts last in numpy too."""
    with np.errstate(invalid="ignore"):
        return np.sort(np.asarray(x, np.float64), axis=0)[begin:end].mean(0)


def assert_rank_mean(x, begin, end):
    result = rank_mean(x, begin, end)
    assert result.dtype == x.dtype
    # Added up in float64, in another order than numpy's, and rounded once.
    wanted = expected(x, begin, end)
    largest = np.sort(np.abs(np.asarray(x, np.float64)), axis=0)[-1]
    doubles = np.where(np.isfinite(largest), largest, 1) * (len(x) * 2.0**-52)
    denormal = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
    allowed = denormal + doubles + 2 * torch.finfo(x.dtype).eps * np.abs(wanted)
    same = (wanted == result.numpy()) | (np.isnan(wanted) & result.isnan().numpy())
    with np.errstate(invalid="ignore"):
        close = np.abs(result.numpy() - wanted) <= allowed
    assert (same | (close & np.isfinite(wanted))).all()


def ranks(clients):
    cut = clients // 4
    return {
        ((clients - 1) // 2, clients // 2 + 1),
        (0, 1),
        (clients - 1, clients),
        (0, clients),
        (cut, clients - cut),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clients", SIZES)
def test_equals_sorting(clients, dtype):
    for begin, end in ranks(clients):
        assert_rank_mean(normal(clients, dtype=dtype), begin, end)


@pytest.mark.parametrize("clients", [1, 2, 9, 24, 64, 65, 101])
def test_every_rank(clients):
    x = normal(clients, 5)
    for begin in range(clients):
        assert_rank_mean(x, begin, begin + 1)
        assert_rank_mean(x, begin // 2, begin + 1)


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 31, 255, 1023, 1024, 1025, 3001])
@pytest.mark.parametrize("clients", [3, 30, 66, 300])
def test_any_number_of_columns(clients, columns):
    assert_rank_mean(normal(clients, columns), clients // 3, clients // 2 + 1)


def test_shapes():
    x = normal(6, 60).view(6, 3, 4, 5)
    assert torch.equal(median(x), median(x.view(6, 60)).view(3, 4, 5))
    assert median(normal(5, 1)[:, 0]).shape == ()
    assert median(torch.ones(3, 0)).shape == (0,)
    crossed = x.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(median(crossed), median(x))


VALUES = {
    "ties": lambda x: (2 * x).round(),
    "all equal": lambda x: torch.full_like(x, 0.1),
    "two values": lambda x: (x > 0).to(x.dtype),
    "signed zeros": lambda x: torch.where(x > 1, 1, torch.where(x > 0, 0.0, -0.0)),
    "close together": lambda x: 1000 + 1e-4 * x,
    "heavy tails": lambda x: x**15,
    "huge and tiny": lambda x: torch.where(x > 0.5, 1e38 * x, 1e-40 * x),
    "largest": lambda x: x.sign() * torch.finfo(x.dtype).max,
    "denormal": lambda x: (x * 5).round() * 1e-45,
    "a fifth far away": lambda x: torch.cat([1e30 * x[: len(x) // 5], x[len(x) // 5 :]]),
    "infinite": lambda x: torch.where(x > 1.5, torch.inf, torch.where(x < -1.5, -torch.inf, x)),
    "all infinite": lambda x: torch.full_like(x, torch.inf),
    "all minus infinity": lambda x: torch.full_like(x, -torch.inf),
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clients", [7, 64, 65, 150, 501])
def test_values(clients, dtype, values):
    x = VALUES[values](normal(clients, 40, dtype))
    for begin, end in ranks(clients):
        if values == "largest" and end - begin > 1 and dtype == torch.float64:
            continue  # their sum overflows
        assert_rank_mean(x, begin, end)


@pytest.mark.parametrize("mean", RANK_MEANS)
@pytest.mark.parametrize("clients", [9, 97])
def test_nan_sorts_last(mean, clients):
    x = normal(clients, 20)
    for column in range(20):
        x[:column, column] = torch.nan
    middle = clients // 2
    result = mean(x, middle, middle + 1)
    kept = np.sort(np.asarray(x, np.float64), axis=0)[middle]
    np.testing.assert_array_equal(result.numpy(), kept.astype(np.float32))
    assert result.isnan().tolist() == [column > middle for column in range(20)]


@pytest.mark.parametrize("clients", [9, 97])
def test_trimmed_nan_is_gone_and_others_are_seen(clients):
    x = normal(clients, 3)
    cut = clients // 4
    x[:cut, 0] = torch.nan
    x[: cut + 1, 1] = torch.nan
    x[:cut, 2] = torch.inf
    assert rank_mean(x, cut, clients - cut).isnan().tolist() == [False, True, False]
    assert_rank_mean(x, cut, clients - cut)


@pytest.mark.parametrize("clients", [1, 2, 3, 10, 64, 65, 66, 99, 100])
def test_median_is_numpys(clients):
    x = normal(clients)
    np.testing.assert_allclose(median(x), np.median(x.double(), axis=0), rtol=2e-7)


def test_median_is_in_the_middle_of_two_in_float64():
    x = torch.tensor([[1.0], [torch.finfo(torch.float32).max], [torch.finfo(torch.float32).max]])
    assert median(x[:2]).isfinite()
    assert torch.equal(median(x[1:]), x[1])


@pytest.mark.parametrize(
    ("clients", "trim", "cut"),
    [(10, 0.1, 1), (10, 0.19, 1), (10, 0, 0), (100, 0.29, 29), (3, 0.49, 1), (30, 0.1, 3)],
)
def test_trimmed_mean(clients, trim, cut):
    x = normal(clients)
    np.testing.assert_allclose(
        trimmed_mean(x, trim), expected(x, cut, clients - cut), rtol=2e-7, atol=1e-12
    )


def test_untrimmed_is_the_mean():
    x = normal(50)
    torch.testing.assert_close(trimmed_mean(x, 0), x.double().mean(0).float())


@pytest.mark.parametrize("clients", [12, 300])
def test_order_of_clients_and_threads(clients):
    x = normal(clients, 5000)
    alone = trimmed_mean(x, 0.2)
    torch.set_num_threads(2)
    assert torch.equal(trimmed_mean(x, 0.2), alone)
    assert torch.equal(median(x), median(x.flip(0)))


@pytest.mark.parametrize("clients", [5, 8, 90, 91])
def test_equals_the_twin(clients):
    x = normal(clients, 50, torch.float64)
    for begin, end in ranks(clients):
        torch.testing.assert_close(
            rank_mean(x, begin, end), reference_aggregate.rank_mean(x, begin, end)
        )


def test_operator_promises():
    torch.library.opcheck(torch.ops.metadnas_ext.rank_mean.default, (normal(5), 1, 4))


def test_compiles():
    x = normal(70)
    compiled = torch.compile(median, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), median(x))


def test_carries_no_gradient():
    assert not median(normal(5).requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("x", "ranks", "message"),
    [
        (torch.ones(()), (0, 1), r"x has shape \(\), expected \(G, ...\)"),
        (torch.ones(0, 2), (0, 1), r"x has shape \(0, 2\), expected \(G, ...\)"),
        (torch.ones(2, 3).half(), (0, 1), "x is Half, expected Float or Double"),
        (torch.ones(2, 3), (-1, 1), r"ranks are \[-1, 1\), expected 0 <= begin < end <= 2"),
        (torch.ones(2, 3), (1, 1), r"ranks are \[1, 1\)"),
        (torch.ones(2, 3), (0, 3), r"ranks are \[0, 3\)"),
    ],
)
def test_refuses(x, ranks, message):
    with pytest.raises(RuntimeError, match=f"^rank_mean: {message}"):
        rank_mean(x, *ranks)


def test_median_of_no_clients():
    for x in (torch.ones(()), torch.ones(0, 2)):
        with pytest.raises(RuntimeError, match=r"expected \(G, ...\)"):
            median(x)


@pytest.mark.parametrize("trim", [-0.1, 0.5, 1, float("nan")])
def test_trim_out_of_range(trim):
    with pytest.raises(ValueError, match=r"trim is .*, expected at least 0 and less than 0\.5"):
        trimmed_mean(torch.ones(4, 2), trim)
