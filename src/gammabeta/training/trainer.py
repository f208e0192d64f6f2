"""Training from the first step to the last, saved so that it can stop anywhere and go on.

A resumed run computes the same bits as one that was never stopped: a batch is a function of seed,
epoch and position; the rate is a function of the step; all else is in ``state.pt``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from gammabeta.data.dataset import Dataset
from gammabeta.data.loader import Loader
from gammabeta.errors import GammabetaError, NonFiniteLossError, RunError, advising
from gammabeta.files import sweep
from gammabeta.models import Net
from gammabeta.training.checkpoint import check_safetensors, load_state, save_model, save_state
from gammabeta.training.evaluate import Evaluation, evaluate
from gammabeta.training.events import (
    LOG_EVERY,
    BatchDone,
    EpochDone,
    Evaluating,
    Event,
    Listener,
    LossLogged,
    Record,
    read_metrics,
)
from gammabeta.training.run import Run
from gammabeta.training.state import Position, Progress, pack, progress_of, same_tensors, unpack
from gammabeta.training.step import Outcome, make_optimizer, train_step
from gammabeta.training.weights import load_into, load_weights


class StoppedError(GammabetaError):
    """Training stopped when asked to, after saving; ``signal`` is what asked."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def begin_with(model: Net, path: str) -> list[str]:
    """Load the weights that a training is to begin with; the last layer may be for other classes.

    Returns:
        Sentences for the user.

    Raises:
        RunError: If the file is missing or damaged, does not fit, or holds NaN.
    """
    return load_into(model, Path(path), head=("fc2.weight", "fc2.bias"))


class Trainer:
    """Trains the network of a run.

    Args:
        run: Where to save; its configuration says how to train.
        dataset: What to train on and measure with.
        resume: Continue from the run's ``state.pt``; a run that saved none yet starts anew.
        finish: Resume a complete run too, which is then measured again by :meth:`fit`.
        stop_requested: Returns the number of a signal that asks to stop, or 0.

    Raises:
        RunError: If the state cannot be read or does not fit.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        *,
        resume: bool = False,
        finish: bool = False,
        stop_requested: Callable[[], int] = lambda: 0,
    ) -> None:
        config = run.config
        self.run = run
        self.recipe = config.recipe
        self.dataset = dataset
        self.stop_requested = stop_requested
        torch.manual_seed(self.recipe.seed)
        model = run.build_model().to(config.device)
        self.model = model.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.loader = Loader(
            dataset.train,
            self.recipe.batch_size,
            dataset.normalization,
            dataset.augmentation,
            seed=self.recipe.seed,
        )
        self._refuse_other_data()
        self.position = Position()
        self.records: list[Record] = []
        sweep(run.path)
        if resume and any(path.exists() for path in (run.state, run.model, run.previous)):
            self._restore(finish)
        else:
            if config.init is not None:
                begin_with(self.model, config.init)
            self.save()

    @property
    def complete(self) -> bool:
        """Whether no step is left to take."""
        return self.position.epoch >= self.recipe.epochs

    @property
    def total_steps(self) -> int:
        """Number of steps in the whole training."""
        return self.recipe.epochs * len(self.loader)

    def fit(self, listeners: Iterable[Listener] = ()) -> Evaluation:
        """Train what is left, measuring and saving after every epoch.

        A checkpoint is saved before the listeners hear of its epoch, so that none of them can
        lose it.

        Returns:
            The measurement after the last epoch.

        Raises:
            NonFiniteLossError: If a loss is NaN or infinite; the last checkpoint is kept.
            StoppedError: If a stop was requested; everything is saved.
            RunError: If a checkpoint cannot be written; the last one is kept.
        """
        notify = [*listeners]

        def tell(event: Event) -> None:
            for listener in notify:
                listener(event)

        result = self._measure(tell) if self.complete else None
        while result is None or not self.complete:
            self._train_epoch(tell)
            result = self._measure_epoch(tell)
        return result

    def _train_epoch(self, tell: Listener) -> None:
        self.model.train()
        began = time.perf_counter()
        for images, labels in self.loader.epoch(self.position.epoch, self.position.batch):
            rate = self.recipe.learning_rate(self.position.step, self.total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            outcome = train_step(
                self.model,
                self.optimizer,
                images.to(self.run.config.device),
                labels.to(self.run.config.device),
                label_smoothing=self.recipe.label_smoothing,
                bf16=self.run.config.precision == "bf16",
            )
            self._check(outcome, rate)
            now = time.perf_counter()
            self.position.count(outcome, now - began)
            began = now
            self._report(rate, tell)
            self._stop_if_asked()

    def _check(self, outcome: Outcome, rate: float) -> None:
        if math.isfinite(outcome.loss):
            return
        at = self.position
        raise NonFiniteLossError(
            f"the loss is {outcome.loss} at step {at.step + 1} (epoch {at.epoch + 1}, batch "
            f"{at.batch + 1}) with lr {rate:.4g}; the weights were not moved and {self.run.path} "
            f"keeps its last good checkpoint. Try a new run with --lr {self.recipe.lr / 4:.3g}, "
            "or --precision fp32, or look for broken images"
        )

    def _report(self, rate: float, tell: Listener) -> None:
        at = self.position
        speed = at.epoch_images / at.epoch_seconds
        loss, accuracy = at.epoch_loss / at.epoch_images, at.epoch_correct / at.epoch_images
        tell(BatchDone(at.epoch + 1, at.batch, len(self.loader), loss, accuracy, rate, speed))
        if at.batch % LOG_EVERY == 0:
            mean = at.logged_loss / LOG_EVERY
            at.logged_loss = 0.0
            self.records.append(LossLogged(at.epoch + 1, at.batch, at.step, mean, rate, speed))
            tell(self.records[-1])

    def _measure(self, tell: Listener) -> Evaluation:
        def on_batch(done: int, total: int) -> None:
            tell(Evaluating(done, total))
            self._stop_if_asked()

        return evaluate(
            self.model, self.dataset.test, self.dataset.normalization, on_batch=on_batch
        )

    def _measure_epoch(self, tell: Listener) -> Evaluation:
        at = self.position
        began = time.perf_counter()
        result = self._measure(tell)
        at.seconds += time.perf_counter() - began
        if not math.isfinite(result.loss):
            raise NonFiniteLossError(
                f"the loss on the test split is {result.loss} after epoch {at.epoch + 1}; "
                f"{self.run.path} keeps its last good checkpoint. Try --lr {self.recipe.lr / 4:.3g}"
            )
        event = EpochDone(
            epoch=at.epoch + 1,
            epochs=self.recipe.epochs,
            step=at.step,
            train_loss=at.epoch_loss / at.epoch_images,
            train_accuracy=at.epoch_correct / at.epoch_images,
            test_loss=result.loss,
            test_accuracy=result.accuracy,
            lr=self.recipe.learning_rate(at.step - 1, self.total_steps),
            images_per_second=at.epoch_images / at.epoch_seconds,
            seconds=at.seconds,
        )
        if result.accuracy > at.best_accuracy or not at.best_epoch:
            at.best_accuracy, at.best_epoch = result.accuracy, at.epoch + 1
        at.next_epoch()
        self.records.append(event)
        self.save()
        tell(event)
        return result

    def _stop_if_asked(self) -> None:
        signal = self.stop_requested()
        if signal:
            self.save()
            at = self.position
            raise StoppedError(signal, f"stopped after step {at.step} of {self.total_steps}, saved")

    def save(self) -> None:
        """Write the model and the state; each file is whole, and the state alone can resume."""
        model = self.model.state_dict()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in model.values()):
            raise NonFiniteLossError(
                f"a weight became NaN or infinite by step {self.position.step}; {self.run.path} "
                f"keeps its last good checkpoint. Try --lr {self.recipe.lr / 4:.3g}"
            )
        progress = Progress(
            position=self.position, images=len(self.dataset.train), records=self.records
        )
        state = pack(progress, self.model, self.optimizer)
        save_state(self.run.state, state, self.run.previous)
        save_model(self.run.model, self.model, self.position.step)

    def _refuse_other_data(self) -> None:
        if len(self.dataset.train) < 2:
            raise GammabetaError(
                "the training split has a single image, but batch norm needs two values a channel"
            )
        begun = self.run.config.classes
        if self.dataset.classes != begun:
            raise RunError(
                f"{self.run.path} was begun on {', '.join(begun)}, but {self.dataset.name} now has "
                f"the classes {', '.join(self.dataset.classes)}"
            )

    def _restore(self, finish: bool) -> None:
        """Continue from ``state.pt``, and write what a kill after it kept from being written."""
        run = self.run
        if not run.state.exists():
            remedy = "so there is no training to continue; resume the run that it was made from"
            remedy = run.back_to_previous() if run.previous.exists() else remedy
            raise RunError(f"{run.path}: has no {run.state.name}; {remedy}")
        with advising(run.back_to_previous()):
            state = load_state(run.state)
        progress = progress_of(state, run.state)
        try:
            unpack(state, self.model, self.optimizer)
            self._refuse_other_length(progress.images)
            progress.position.check(self.recipe.epochs, len(self.loader))
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{run.state}: does not continue this run: {reason}") from None
        self.position = progress.position
        self.records = self._history(progress)
        if not self._is_model_written():
            save_model(run.model, self.model, self.position.step)
        elif self.complete and not finish and self._is_history_written():
            raise RunError(
                f"{run.path}: is complete ({self.position.epoch} of {self.recipe.epochs} "
                f"epochs); try `gammabeta evaluate {run.path}`"
            )

    def _history(self, progress: Progress) -> list[Record]:
        """Return the records of a state; of one of an older version, those of metrics.jsonl."""
        if progress.records is not None:
            return progress.records
        at = progress.position
        return [
            record
            for record in read_metrics(self.run.metrics)
            if record.step <= at.step
            and (isinstance(record, LossLogged) or record.epoch <= at.epoch)
        ]

    def _is_model_written(self) -> bool:
        try:
            check_safetensors(self.run.model, ours=True)
            written = load_weights(self.run.model)
        except RunError:
            return False
        return same_tensors(written, self.model.state_dict())

    def _is_history_written(self) -> bool:
        try:
            written = read_metrics(self.run.metrics)
        except RunError:
            return False
        return written == self.records

    def _refuse_other_length(self, images: int) -> None:
        if images != len(self.dataset.train):
            raise RunError(
                f"{self.run.path} was begun on {images} training images, but "
                f"{self.dataset.name} now has {len(self.dataset.train)}; start a new run"
            )
