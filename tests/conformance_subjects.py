"""A batch norm written from the definition, and one deliberately wrong class for each mistake."""

from __future__ import annotations

import torch
from torch import nn

from gammabeta.norm.updates import updates_allowed

AXES = (0, 2, 3)


def spread(values):
    return values.view(1, -1, 1, 1)


class Correct(nn.BatchNorm2d):
    """Batch norm from elementary operators in float64; each method can be got wrong."""

    def forward(self, x):
        self._check_input_dim(x)
        if not self.training and self.track_running_stats:
            return self.scaled(x, self.running_mean, self.running_var)
        if x.numel() == x.shape[1]:
            raise ValueError(f"one value per channel in {tuple(x.shape)}")
        if x.numel() == 0:
            return x.clone()
        mean, var = self.moments(x)
        if self.training and self.track_running_stats and self.may_update():
            count = x.numel() // x.shape[1]
            self.update(mean.detach(), self.running(var.detach(), count))
        return self.scaled(x, mean, self.normalising(var, x.numel() // x.shape[1]))

    def moments(self, x):
        var, mean = torch.var_mean(x.double(), AXES, correction=0)
        return mean, var

    def running(self, var, count):
        return var * count / (count - 1)

    def normalising(self, var, count):  # noqa: ARG002 (mistakes need it)
        return var

    def may_update(self):
        return updates_allowed()

    def update(self, mean, var):
        self.num_batches_tracked.add_(1)
        weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.copy_((1 - weight) * self.running_mean + weight * mean)
        self.running_var.copy_((1 - weight) * self.running_var + weight * var)

    def scaled(self, x, mean, var):
        return self.affinely((x - spread(mean)) / self.deviation(spread(var))).to(x.dtype)

    def deviation(self, var):
        return (var + self.eps).sqrt()

    def affinely(self, normed):
        if self.weight is not None:
            normed = normed * spread(self.weight)
        return normed if self.bias is None else normed + spread(self.bias)


class UnbiasedNormalisation(Correct):
    def normalising(self, var, count):
        return var * count / (count - 1)


class BiasedRunningVariance(Correct):
    def running(self, var, count):  # noqa: ARG002 (that is the mistake)
        return var


class DetachedMean(Correct):
    def moments(self, x):
        mean, var = super().moments(x)
        return mean.detach(), var


class DetachedVariance(Correct):
    def moments(self, x):
        mean, var = super().moments(x)
        return mean, var.detach()


class SwappedMomentum(Correct):
    def update(self, mean, var):
        self.num_batches_tracked.add_(1)
        self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean)
        self.running_var.mul_(self.momentum).add_((1 - self.momentum) * var)


class EvalUpdates(Correct):
    def forward(self, x):
        y = super().forward(x)
        if not self.training:
            self.update(*(value.detach() for value in self.moments(x)))
        return y


class EvalUsesBatch(Correct):
    def forward(self, x):
        return super().forward(x) if self.training else self.scaled(x, *self.moments(x))


class GammaIgnoredInDx(Correct):
    def affinely(self, normed):
        if self.weight is None:
            return super().affinely(normed)
        return super().affinely(normed.detach()) + normed - normed.detach()


class HalvedDbeta(Correct):
    def affinely(self, normed):
        return super().affinely(normed) - spread(self.bias - self.bias.detach()) / 2


class EpsOutsideRoot(Correct):
    def deviation(self, var):
        return var.sqrt() + self.eps


class MeanOfSquares(Correct):
    def moments(self, x):
        mean = x.mean(AXES)
        return mean, (x * x).mean(AXES) - mean * mean


class BatchAxisOnly(Correct):
    def scaled(self, x, mean, var):
        if self.training:
            var, mean = torch.var_mean(x.double(), 0, correction=0, keepdim=True)
            return self.affinely((x - mean) / self.deviation(var)).to(x.dtype)
        return super().scaled(x, mean, var)


class ReboundBuffers(Correct):
    def update(self, mean, var):
        self.running_mean, self.running_var = self.running_mean.clone(), self.running_var.clone()
        super().update(mean, var)


class Uncounted(Correct):
    def update(self, mean, var):
        super().update(mean, var)
        self.num_batches_tracked.sub_(1)


class SwallowedNaN(Correct):
    def forward(self, x):
        return super().forward(x.nan_to_num())


class StridesMisread(Correct):
    def forward(self, x):
        return super().forward(x.as_strided(x.shape, torch.empty(x.shape).stride()))


class UpdatesTwice(Correct):
    def may_update(self):
        return True


class _Remembered(torch.autograd.Function):
    last: torch.Tensor

    @staticmethod
    def forward(ctx, normed, deviation):
        _Remembered.last = normed.detach()  # belongs in ctx
        ctx.deviation = deviation
        return normed.clone()

    @staticmethod
    def backward(ctx, dy):
        normed = _Remembered.last
        centred = dy - dy.mean(AXES, keepdim=True)
        dx = centred - normed * (dy * normed).mean(AXES, keepdim=True)
        return dx * ctx.deviation, None


class StateInAGlobal(Correct):
    """Right as long as each backward follows its own forward."""

    def scaled(self, x, mean, var):
        if not self.training:
            return super().scaled(x, mean, var)
        deviation = self.deviation(spread(var.detach()))
        normed = ((x - spread(mean.detach())) / deviation).detach()
        through = (x - x.detach()) / deviation**2  # zero, with a derivative
        return self.affinely(_Remembered.apply(normed + through, deviation)).to(x.dtype)


class BroadcastsAnyRank(Correct):
    def _check_input_dim(self, input):  # noqa: A002 (torch's name)
        pass


class AcceptsOneValue(Correct):
    def forward(self, x):
        if self.training and x.numel() == x.shape[1]:
            return x
        return super().forward(x)


class WithRelu(nn.BatchNorm2d):
    """A subclass whose activation conversion to SyncBatchNorm drops; it cannot be turned off."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


class EvalGradientOfIdentity(Correct):
    def forward(self, x):
        if self.training:
            return super().forward(x)
        return super().forward(x.detach()) + x - x.detach()


class WidensHalves(Correct):
    def scaled(self, x, mean, var):
        return super().scaled(x.double(), mean, var).float()


class IgnoresActivation(Correct):
    def __init__(self, num_features, *args, activation="relu", **options):  # noqa: ARG002
        super().__init__(num_features, *args, **options)


class IgnoresOptions(Correct):
    def __init__(self, num_features, **options):  # noqa: ARG002 (that is the mistake)
        super().__init__(num_features)


class MomentumOfConstruction(Correct):
    def __init__(self, num_features, *args, **options):
        super().__init__(num_features, *args, **options)
        self.rate = self.momentum or 0.1

    def update(self, mean, var):
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.float(), self.rate)
        self.running_var.lerp_(var.float(), self.rate)


class EmptyBatchResets(Correct):
    def forward(self, x):
        if x.numel() == 0:
            self.reset_running_stats()
        return super().forward(x)


class BreaksGraphs(Correct):
    def forward(self, x):
        return x if x.detach().abs().sum() > 1e30 else super().forward(x)


class ReadsCounter(Correct):
    def update(self, mean, var):
        self.num_batches_tracked.add_(1)
        weight = self.momentum
        if weight is None:
            weight = 1 if self.num_batches_tracked == 1 else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_(var.to(self.running_var), weight)


class CopiesAreTheSame(Correct):
    def __deepcopy__(self, memo):
        return self


class PicklesForget(Correct):
    def __reduce__(self):
        return type(self), (self.num_features,)


class ExtraKey(Correct):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("scale", torch.ones(1))


class SkipsHooks(Correct):
    def __call__(self, x):
        return self.forward(x)


class ThroughNumpy(Correct):
    def forward(self, x):
        return super().forward(x if self.training else torch.from_numpy(x.detach().numpy().copy()))
