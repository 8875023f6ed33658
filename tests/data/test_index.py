"""Which shards a word names."""

import pytest

from medclip_oc.data import index
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0..999999999}.tar", "stands for over 1,000,000 names"),
        ("{0..999}/{0..999}/{0..9}.tar", "over 1,000,000"),
        (f"{'{a,b}' * 40}.tar", "over 1,000,000"),
        (f"{'{' * 3000}a,b{'}' * 3000}", "braces within braces"),
        (f"{'x' * 5000}.tar", "no such shard folder"),
        (f"{{0..{'9' * 5000}}}", "limit"),
        ("{0..9", "unbalanced braces"),
    ],
)
def test_an_absurd_brace_pattern_is_one_line(pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ShardSet.open(pattern, "train")
    assert len(str(caught.value)) < 300
    assert len(index.expand_braces("{a,b,c}/{00000..99999..2}.tar")) == 150_000
