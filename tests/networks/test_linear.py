"""One linear layer: scikit-learn's logistic regression is its oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof import networks
from labelproof.core.encoder import body


@pytest.mark.parametrize(("shape", "features"), [((384,), 384), ((3, 4, 5), 60), ((1, 1), 1)])
def test_features_are_the_inputs_flattened(shape, features):
    net = networks.build("linear", shape, 7)
    assert sum(p.numel() for p in net.parameters()) == 7 * features + 7
    assert body(net) == {}
    x = torch.arange(2 * features, dtype=torch.float32).reshape(2, *shape)
    assert torch.equal(net.features(x), x.reshape(2, features))
    want = x.numpy().reshape(2, -1) @ net.head.weight.detach().numpy().T + net.head.bias.detach().numpy()
    np.testing.assert_allclose(net(x).detach().numpy(), want, rtol=1e-4, atol=1e-4)


def test_trained_to_the_end_it_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] + rng.normal(size=200) > 0).astype(np.int64) + (x[:, 2] > 1)
    torch.manual_seed(0)
    net = networks.build("linear", (5,), 3)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=200, line_search_fn="strong_wolfe")
    inputs, targets = torch.as_tensor(x), torch.as_tensor(y)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        decay = 0.5 * net.head.weight.square().sum()
        loss = nn.functional.cross_entropy(net(inputs), targets, reduction="sum") + decay
        loss.backward()
        return loss

    optimizer.step(closure)
    oracle = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(x, y)
    got = net(inputs).softmax(1).detach().numpy()
    np.testing.assert_allclose(got, oracle.predict_proba(x), atol=1e-3)
