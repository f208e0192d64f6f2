"""Tracing a model disturbs nothing that other threads run meanwhile."""

from __future__ import annotations

import threading

import torch
import torchvision
from torch import nn

from gammabeta import fold
from surgery_helpers import Doubled


def test_models_and_functions_of_other_threads_run_while_one_is_folded():
    done, failed, runs = threading.Event(), [], []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()

    def work():
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        while not done.is_set():
            try:
                Doubled.apply(model(x)).sum().backward()
                runs.append(1)
            except Exception as error:  # noqa: BLE001 (whatever it is)
                failed.append(error)
                return

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            fold(model)  # the very model that the others run
        fold(torchvision.models.resnet18().eval())
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert runs
