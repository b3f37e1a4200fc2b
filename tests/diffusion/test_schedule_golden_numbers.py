"""The standard schedule against numbers computed independently, to the digits printed there."""

import pytest
import torch

from extensions_lib.diffusion.loss import debiased_weights, min_snr_weights
from extensions_lib.diffusion.timesteps import rescale_zero_terminal_snr, scaled_linear_alphas_cumprod, snr

# fmt: off
COLUMNS = (
    "alpha", "alpha_zt", "snr", "snr_zt", "min_snr_eps", "min_snr_v", "debiased_eps", "debiased_v", "debiased_v_root",
)
ROWS = {
    0: (".999150", ".999150", "1175.5", "1175.5", ".0043", ".0043", ".0316", ".0010", ".0316"),
    10: (".990431", ".989794", "103.51", "96.979", ".0483", ".0478", ".0983", ".0096", ".0978"),
    100: (".894223", ".886761", "8.4539", "7.8309", ".5914", ".5289", ".3439", ".1058", ".3252"),
    250: (".673793", ".652457", "2.0655", "1.8773", "1", ".6738", ".6958", ".3262", ".5711"),
    500: (".276333", ".241019", ".38185", ".31756", "1", ".2763", "1.6183", ".7237", ".8507"),
    750: (".056170", ".032799", ".059513", ".033911", "1", ".0562", "4.0992", ".9438", ".9715"),
    900: (".014151", ".002960", ".014354", ".0029692", "1", ".0142", "8.3466", ".9858", ".9929"),
    999: (".004660", "0", ".0046819", "0", "1", ".0047", "14.6146", ".9953", ".9977"),
}
# fmt: on
ALPHAS = scaled_linear_alphas_cumprod()
SNR = snr(ALPHAS)
TABLE = {
    "alpha": ALPHAS,
    "alpha_zt": rescale_zero_terminal_snr(ALPHAS),
    "snr": SNR,
    "snr_zt": snr(rescale_zero_terminal_snr(ALPHAS)),
    "min_snr_eps": min_snr_weights(SNR, "epsilon", 5.0),
    "min_snr_v": min_snr_weights(SNR, "v_prediction", 5.0),
    "debiased_eps": debiased_weights(SNR, "epsilon"),
    "debiased_v": debiased_weights(SNR, "v_prediction"),
    "debiased_v_root": debiased_weights(SNR, "v_prediction", square_root=True),
}


def assert_prints_as(value, printed):
    digits = len(printed.partition(".")[2])
    assert abs(value - float(printed)) <= 0.5 * 10**-digits * (1 + 1e-9) if digits else value == float(printed)


@pytest.mark.parametrize("timestep", ROWS)
@pytest.mark.parametrize("column", COLUMNS)
def test_golden_numbers(timestep, column):
    assert_prints_as(TABLE[column][timestep].item(), ROWS[timestep][COLUMNS.index(column)])


def test_where_the_snr_falls_below_five_and_one():
    assert int((SNR < 5).nonzero()[0]) == 147
    assert int((SNR < 1).nonzero()[0]) == 354


@pytest.mark.parametrize(
    ("column", "mean"),
    [
        ("min_snr_eps", ".917"),
        ("min_snr_v", ".294"),
        ("debiased_eps", "3.02"),
        ("debiased_v", ".627"),
        ("debiased_v_root", ".748"),
    ],
)
def test_mean_weights(column, mean):
    assert_prints_as(TABLE[column].mean().item(), mean)


def test_the_schedule_falls_and_has_the_dtype_asked_for():
    assert ALPHAS.shape == (1000,) and ALPHAS.dtype == torch.float64
    assert (ALPHAS.diff() < 0).all()
    single = scaled_linear_alphas_cumprod(dtype=torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), ALPHAS, rtol=1e-7, atol=0)


def test_zero_terminal_snr_keeps_the_first_and_ends_in_exact_zero():
    for alphas in (ALPHAS, ALPHAS.float()):
        rescaled = rescale_zero_terminal_snr(alphas)
        assert rescaled.dtype == alphas.dtype
        assert rescaled[-1] == 0
        torch.testing.assert_close(rescaled[0], alphas[0])
        assert (rescaled.diff() < 0).all()
