"""Fast convolutions are convolutions, at every length around their blocks."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d

from focalcodec.fastconv import (
    conv_by_columns,
    conv_by_spectra,
    conv_in_pairs,
    conv_side_by_side,
)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [3, 4, 5, 6, 7, 8, 100, 101])
def test_conv_in_pairs_is_the_convolution(batch, size):
    x = torch.randn(batch, size, 6, dtype=torch.float64)
    kernel = torch.randn(3, 6, 5, dtype=torch.float64)
    expected = conv1d(x.transpose(1, 2), kernel.permute(2, 1, 0), stride=2).transpose(1, 2)
    with_sum = torch.cat([kernel, kernel[:1] + kernel[2:]])
    torch.testing.assert_close(conv_in_pairs(x, with_sum), expected)


@torch.no_grad()
@pytest.mark.parametrize("taps", [1, 2, 5])
@pytest.mark.parametrize("size", [5, 6, 9, 10])
def test_taps_side_by_side_are_one_product(taps, size):
    x = torch.randn(2, size, 6, dtype=torch.float64)
    kernel = torch.randn(taps, 6, 4, dtype=torch.float64)
    expected = conv1d(x.transpose(1, 2), kernel.permute(2, 1, 0), stride=taps).transpose(1, 2)
    torch.testing.assert_close(conv_side_by_side(x, kernel), expected)


@torch.no_grad()
@pytest.mark.parametrize("function", [conv_by_spectra, conv_by_columns])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 50])
@pytest.mark.parametrize("taps", [1, 2, 15, 16])
def test_many_taps_by_matrix_products_are_the_convolution(function, batch, size, taps):
    conv = nn.Conv1d(6, 8, taps, groups=2, dtype=torch.float64)
    x = torch.randn(batch, size + taps - 1, 6, dtype=torch.float64)
    expected = conv(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(function(x, conv), expected)
