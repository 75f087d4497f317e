"""Where a token stands: wherever tokens are counted in this package, they are counted from the end of the prompt.

-1 is the prompt's last token and -2 the one before it; 0 is the first token of the reply and 1 the next. REPLY is no token
but the mean over all tokens of the reply that comes with a prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from torch import Tensor

REPLY: Final = "reply"
LAST: Final = -1  # the prompt's last token
Position = int | Literal["reply"]


def positions_of(real: Tensor, replies: Tensor) -> Tensor:
    """The position of every token [row, token]; `real` [row, token] are no pads, `replies` [row] is how many of a row's last tokens
    are reply. What pads get means nothing."""
    following = real.flip(1).cumsum(1).flip(1) - real.long()  # real tokens after each token
    return replies[:, None] - following - 1
