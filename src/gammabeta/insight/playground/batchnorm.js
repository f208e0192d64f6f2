/* Batch normalization of one channel: pure functions of arrays of numbers, named and ordered as in
   gammabeta/equations.py, against which the tests hold every one of them. ε, γ, β are numbers. */
"use strict";
const BatchNorm = (() => {
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const dot = (a, b) => sum(a.map((value, i) => value * b[i]));

  /* mean = Σx / m and the biased var = Σ(x − mean)² / m, in two passes. */
  function statistics(x) {
    const mean = sum(x) / x.length;
    return { mean, var: sum(x.map((value) => (value - mean) ** 2)) / x.length };
  }

  /* x̂ = (x − mean) / √(var + ε) and y = γ·x̂ + β. */
  function forward(x, gamma, beta, eps) {
    const { mean, var: variance } = statistics(x);
    const std = Math.sqrt(variance + eps);
    const xhat = x.map((value) => (value - mean) / std);
    return { mean, var: variance, std, xhat, y: xhat.map((value) => gamma * value + beta) };
  }

  /* (1 − a)·running + a·new with the unbiased variance; null for fewer than two values. */
  function updateRunning(running, batch, count, momentum) {
    if (count < 2) return null;
    const unbiased = (batch.var * count) / (count - 1);
    return {
      mean: (1 - momentum) * running.mean + momentum * batch.mean,
      var: (1 - momentum) * running.var + momentum * unbiased,
    };
  }

  /* The three paths of dy to x and their sum dx; dγ = Σ dy·x̂, dβ = Σ dy. */
  function backward(dy, x, gamma, eps) {
    const m = x.length;
    const { std, xhat } = forward(x, gamma, 0, eps);
    const dxhat = dy.map((value) => gamma * value);
    const along = dot(dxhat, xhat);
    const throughMean = -sum(dxhat) / (m * std);
    const direct = dxhat.map((value) => value / std);
    const mean = x.map(() => throughMean);
    const variance = xhat.map((value) => (-value * along) / (m * std));
    const dx = direct.map((value, i) => value + mean[i] + variance[i]);
    return { direct, mean, variance, dx, dgamma: dot(dy, xhat), dbeta: sum(dy) };
  }

  /* ∂y_i/∂x_j = γ/σ · (δij − 1/m − x̂i·x̂j/m), and the three parts of the bracket. */
  function jacobian(x, gamma, eps) {
    const m = x.length;
    const { std, xhat } = forward(x, gamma, 0, eps);
    const matrix = (entry) => x.map((_, i) => x.map((_, j) => entry(i, j)));
    const parts = {
      identity: matrix((i, j) => (i === j ? 1 : 0)),
      mean: matrix(() => 1 / m),
      variance: matrix((i, j) => (xhat[i] * xhat[j]) / m),
    };
    const total = matrix(
      (i, j) => (gamma / std) * (parts.identity[i][j] - parts.mean[i][j] - parts.variance[i][j]),
    );
    return { ...parts, total, scale: gamma / std };
  }

  return { statistics, forward, updateRunning, backward, jacobian };
})();
