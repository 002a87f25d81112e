"""Random bits that are a function of a counter and a key: known ones, and the numbers that are made of them."""

import numpy as np
import pytest
from scipy import stats

from fastperm.kernels.reference.philox import normals, philox, uniforms

COUNT = 20_000
# Of the right probability one in a thousand; keys are fixed.
LEAST = 1e-3


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers_of_the_authors(counter, key, expected):
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, expected)]
    np.testing.assert_array_equal(philox(np.array([words[0]]), words[1])[0], words[2])


def test_uniforms_are_uniform_and_pairs_are_independent():
    u = uniforms(np.arange(COUNT), 1, 7)
    assert u.min() > 0
    assert u.max() < 1
    for numbers in u:
        assert stats.kstest(numbers, "uniform").pvalue > LEAST
    counts = np.histogram2d(*u, bins=8)[0]
    assert stats.chisquare(counts.ravel()).pvalue > LEAST


def test_index_stream_and_key_name_a_draw():
    draws = [
        uniforms([index], stream, key)[0, 0]
        for index in (0, 1, 2**32, 2**40)
        for stream in (0, 1)
        for key in (0, 1, 2**32, 2**62)
    ]
    assert len(set(draws)) == 32
    np.testing.assert_array_equal(
        uniforms([5, 2**32], 1, 3), np.column_stack([uniforms([i], 1, 3) for i in (5, 2**32)])
    )


def test_normals():
    assert stats.kstest(normals(np.arange(COUNT), 3, 7), "norm").pvalue > LEAST
