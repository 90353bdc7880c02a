from __future__ import annotations

import torch

from livereel.engine.layers.per_frame import per_frame


def test_each_frame_goes_through_the_layer_by_itself() -> None:
    x = torch.randn(2, 3, 4, 6, 5)
    conv = torch.nn.Conv2d(3, 7, 3, stride=2)
    y = per_frame(conv, x)
    assert y.shape == (2, 7, 4, 2, 2)
    for frame in range(4):
        torch.testing.assert_close(y[:, :, frame], conv(x[:, :, frame]))
