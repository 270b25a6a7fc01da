"""Random inputs: only for who asks, the same every time, and never without a word."""

from __future__ import annotations

import numpy as np
import pytest

from qir.calibration.data import open_data
from qir.calibration.synthetic import RandomData, is_random, random_feeds
from qir.errors import DataError, OptionError
from qir.runtime.specs import InputSpec

FIXED = InputSpec("x", np.dtype(np.float32), (2, 3))
OPEN = InputSpec("ids", np.dtype(np.int64), ("batch", "length"))


def test_feeds_have_the_declared_shapes_and_types_and_repeat() -> None:
    data = RandomData.parse("random:3:batch=1,length=7")
    feeds = list(random_feeds([FIXED, OPEN], data))
    assert len(feeds) == 3
    assert feeds[0]["x"].shape == (2, 3) and feeds[0]["x"].dtype == np.float32
    assert feeds[0]["ids"].shape == (1, 7) and set(np.unique(feeds[0]["ids"])) <= {0, 1}
    again = list(random_feeds([FIXED, OPEN], data))
    np.testing.assert_array_equal(feeds[2]["x"], again[2]["x"])
    assert not np.array_equal(feeds[0]["x"], feeds[1]["x"])


def test_a_source_says_that_it_is_random() -> None:
    source = open_data("random:5", [FIXED])
    assert source.count == 5 and source.name == "RANDOM DATA" and len(list(source)) == 5
    assert is_random("random") and is_random("random:8") and not is_random("random.npz") and not is_random(None)


@pytest.mark.parametrize(
    ("text", "specs", "error", "expected"),
    [
        (
            "random:4",
            [OPEN],
            DataError,
            "the axis 'length' of no fixed size: say how long it is (--dim length=1, random:16:length=1)",
        ),
        ("random:4:bach=1", [OPEN], OptionError, "no input has an axis 'bach' (did you mean 'batch'"),
        ("random:4:batch=0", [OPEN], OptionError, "'batch=0' is not NAME=SIZE"),
        ("random:0", [FIXED], OptionError, "ask for one sample"),
        ("random", [InputSpec("s", None, None, "sequence")], DataError, "cannot be made up"),
        ("random", [InputSpec("s", np.dtype(np.float32), (None,))], DataError, "an axis without a name"),
    ],
)
def test_mistakes(text: str, specs: list[InputSpec], error: type[Exception], expected: str) -> None:
    with pytest.raises(error) as caught:
        list(open_data(text, specs))
    assert expected in str(caught.value)
