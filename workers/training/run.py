"""One training from a dataset's folder to an adapter's: it can be stopped at any step, and goes on as if it had not."""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from msgspec import Struct
from safetensors import SafetensorError

from domain.lora import WEIGHTS
from workers.engines.checkpoints import Checkpoint as Model
from workers.training import checkpoint, samples
from workers.training.checkpoint import Checkpoint
from workers.training.codes import Codes
from workers.training.config import Config
from workers.training.errors import NothingLearntError, Stopped, TrainingError
from workers.training.examples import Examples, read
from workers.training.material import gather
from workers.training.network import Network
from workers.training.objectives import Objective, TasteObjective, objective
from workers.training.result import RESULT, Figures, Result, Status
from workers.training.samples import Wanted
from workers.training.standing import FILE, Standing

CLIPPED_TO: Final = 1.0
BETAS: Final = (0.9, 0.99)
WORTHLESS: Final = (
    "Nothing learnt: on held-out prompts no evaluation was better than the base model's. No adapter was made. Rate "
    "more clips, or train with a smaller learning rate."
)
FLOOR: Final = 0.1  # of the learning rate, at the end


class Point(Struct, frozen=True, kw_only=True):
    """Where a training is. `figures` are of step `step`, None while it prepares itself in a `stage`."""

    stage: str
    step: int
    steps: int
    figures: Figures | None = None


class Training:
    """`work` is where checkpoints are kept, `output` where the adapter is put, `cache` where codes of clips are."""

    def __init__(
        self,
        config: Config,
        model: Model,
        data: Path,
        output: Path,
        *,
        cache: Path,
        device: str | None = None,
        checkpoint_seconds: float = 120.0,
        begins_anew: bool = False,
        on_point: Callable[[Point], None] = lambda _: None,
        on_checkpoint: Callable[[Path], None] = lambda _: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._model = model
        self._data = data
        self._output = output
        self._cache = cache
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._checkpoint_seconds = checkpoint_seconds
        self._begins_anew = begins_anew
        self._on_point = on_point
        self._on_checkpoint = on_checkpoint
        self._is_stopped = is_stopped
        self._began = time.monotonic()

    def run(self) -> Result:
        """Raises TrainingError. What is finished already is returned as it is."""
        examples = read(self._data)
        made_of = self._made_of(examples)
        if (done := self._finished(made_of)) is not None:
            return done
        standing = self._standing(made_of)
        if self._device == "cuda":
            torch.use_deterministic_algorithms(mode=True, warn_only=True)
        result, wanted = self._learn(examples, standing, made_of)
        if wanted:
            result = self._with_samples(result, wanted)
        return result if result.status == "stopped" else self._end(result)

    def _standing(self, made_of: str) -> Checkpoint | None:
        """To go on from. What was begun otherwise is refused, or left out where nobody could choose another folder."""
        try:
            found = checkpoint.load(self._output)
        except TrainingError as error:
            if error.transient or not self._begins_anew:
                raise
            return None
        if found is None or found.standing.made_of == made_of:
            return found
        if self._begins_anew:
            return None
        raise TrainingError(self._other("holds a training that was begun"))

    def _learn(self, examples: Examples, standing: Checkpoint | None, made_of: str) -> tuple[Result, list[Wanted]]:
        """What came of it, with the adapter in its place, and of which prompts it is to be heard."""
        network = Network(self._model, self._device)
        codes = Codes(self._cache, f"{self._model.model.id}@{self._model.model.revision}")
        material = gather(self._config, examples, network, codes, lambda at, of: self._stage("reading clips", at, of))
        network.adapt(self._config.rank, self._config.alpha, self._config.seed, checkpointing=self._device == "cuda")
        source = _Source(examples=examples, left_out=list(material.left_out), made_of=made_of)
        try:
            goal = objective(self._config, material, network, self._stage)
        except NothingLearntError as nothing:
            return self._result(source, "nothing_learnt", str(nothing), metrics=nothing.metrics), []
        loop = _Loop(self._config, network, goal, made_of)
        if standing is not None:
            loop.restore(standing)
        if not self._train(loop):
            return self._result(source, "stopped", self._stopped(loop.step), curve=loop.curve), []
        if loop.is_worthless:
            return self._result(source, "nothing_learnt", WORTHLESS, metrics=loop.figures, curve=loop.curve), []
        metrics = {**loop.figures, "steps": float(loop.step)}
        hears: list[dict[str, Any]] = []
        if isinstance(goal, TasteObjective):
            metrics |= goal.figures
            hears = [msgspec.structs.asdict(opinion) for opinion in goal.listener.opinions]
        said = goal.warning(loop.figures)
        wanted = samples.choose(self._config, material, network)
        if wanted:
            # Whoever is stopped while the samples are made learns nothing again.
            checkpoint.save(self._output, loop.checkpoint())
        network.lora = loop.best_lora
        result = self._result(
            source,
            "completed",
            f"Trained {loop.step} steps of {self._config.method} on {examples.rows} rows.",
            metrics=metrics,
            curve=loop.curve,
            hears=hears,
            warnings=[said] if said else [],
            sha256=self._put(network, goal),
        )
        return result, wanted

    def _with_samples(self, result: Result, wanted: Sequence[Wanted]) -> Result:
        try:
            return samples.add(
                result,
                wanted,
                self._model,
                self._output,
                device=self._device,
                on_clip=lambda at, of: self._stage("samples before and after", at, of),
            )
        except Stopped:
            message = self._stopped(len(result.curve))
            return msgspec.structs.replace(result, status="stopped", message=message, sha256=None)

    def _stopped(self, step: int) -> str:
        return f"Stopped at step {step} of {self._config.steps}; the same command goes on from there."

    def _train(self, loop: "_Loop") -> bool:
        """Whether it came to its end; otherwise it was stopped, and a checkpoint is kept."""
        kept_at = time.monotonic()
        if loop.step == 0:
            loop.evaluate()
        while not loop.is_done:
            if self._is_stopped():
                self._keep(loop)
                return False
            try:
                figures = loop.advance()
            except FloatingPointError as error:
                self._keep(loop)
                raise TrainingError(
                    f"{error} The last good state, of step {loop.step}, is kept in {self._output}. Train with a "
                    f"smaller learning rate than {self._config.learning_rate:g} into another folder."
                ) from None
            self._on_point(Point(stage="training", step=loop.step, steps=self._config.steps, figures=figures))
            if time.monotonic() - kept_at >= self._checkpoint_seconds:
                self._keep(loop)
                kept_at = time.monotonic()
        return True

    def _put(self, network: Network, goal: Objective) -> str:
        """The adapter's files where they belong; returns the digest of its weights."""
        folder = self._output / "unfinished"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            network.save(folder)
            if isinstance(goal, TasteObjective):
                goal.listener.save(folder)
            digest = sha256((folder / WEIGHTS).read_bytes()).hexdigest()
            for file in folder.iterdir():
                file.replace(self._output / file.name)
            folder.rmdir()
        except (OSError, SafetensorError) as error:
            raise self._disk(error) from None
        return digest

    def _stage(self, stage: str, at: int, of: int) -> None:
        self._on_point(Point(stage=stage, step=at, steps=of))
        if self._is_stopped():
            raise Stopped

    def _keep(self, loop: "_Loop") -> None:
        checkpoint.save(self._output, loop.checkpoint())
        self._on_checkpoint(self._output / FILE)

    def _end(self, result: Result) -> Result:
        try:
            self._output.mkdir(parents=True, exist_ok=True)
            partial = self._output / f"{RESULT}.part"
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
            partial.replace(self._output / RESULT)
            (self._output / FILE).unlink(missing_ok=True)
        except OSError as error:
            raise self._disk(error) from None
        return result

    def _result(self, source: "_Source", status: Status, message: str, **fields: Any) -> Result:
        manifest = source.examples.manifest
        return Result(
            status=status,
            message=message,
            config=self._config,
            base_model=self._model.model.id,
            base_revision=self._model.model.revision,
            dataset={
                "id": manifest.dataset_id,
                "name": manifest.name,
                "digest": manifest.digest,
                "positions": manifest.positions,
                "rows": source.examples.rows,
            },
            code_version=version("text2song-studio"),
            made_of=source.made_of,
            left_out=source.left_out[:100],
            seconds=round(time.monotonic() - self._began, 1),
            **fields,
        )

    def _made_of(self, examples: Examples) -> str:
        """Of all that decides what the adapter will be."""
        config = msgspec.to_builtins(self._config)
        # Which the adapter is the same without.
        del config["samples"]
        parts = {
            "config": config,
            "model": [self._model.model.id, self._model.model.revision],
            "data": msgspec.to_builtins([examples.pairs, examples.held_pairs, examples.clips, examples.held_clips]),
        }
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _finished(self, made_of: str) -> Result | None:
        path = self._output / RESULT
        try:
            done = msgspec.json.decode(path.read_bytes(), type=Result)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise TrainingError(f"{path} cannot be read: {error}. Name another folder with --output.") from None
        if done.made_of != made_of:
            raise TrainingError(self._other("holds an adapter that was trained"))
        return done

    def _other(self, what: str) -> str:
        return (
            f"{self._output} {what} with other data, options, or another base model. Give the same, or name another "
            "folder with --output."
        )

    def _disk(self, error: Exception) -> TrainingError:
        reason = getattr(error, "strerror", None) or error
        said = f"The adapter cannot be written to {self._output}: {reason}. Make room there and try again."
        return TrainingError(said, transient=True)


class _Source(Struct, frozen=True, kw_only=True):
    """What a result tells of the data."""

    examples: Examples
    left_out: list[str]
    made_of: str


class _Loop:
    """The steps, and what is best so far."""

    def __init__(self, config: Config, network: Network, goal: Objective, made_of: str) -> None:
        self._config = config
        self._network = network
        self._goal = goal
        self._made_of = made_of
        self._optimiser = torch.optim.AdamW(
            network.trained, lr=config.learning_rate, betas=BETAS, weight_decay=config.weight_decay
        )
        self.step = 0
        self.curve: list[Figures] = []
        self._best: Figures | None = None
        self._best_lora = network.lora
        self._best_step = 0
        self._without_better = 0

    @property
    def is_done(self) -> bool:
        return self.step >= self._config.steps or self._without_better >= self._config.patience

    @property
    def is_worthless(self) -> bool:
        """Whether the best evaluation is the one before the first step."""
        return self._best is not None and self._best_step == 0

    @property
    def best_lora(self) -> dict[str, torch.Tensor]:
        """Of the best evaluation; where nothing was held out, the last."""
        return self._best_lora if self._best else self._network.lora

    @property
    def figures(self) -> Figures:
        return dict(self._best or (self.curve[-1] if self.curve else {}))

    def advance(self) -> Figures:
        """One step. Raises FloatingPointError, and changes nothing, where a loss or a slope is not finite."""
        config = self._config
        memory = dict(self._goal.memory)
        self._optimiser.zero_grad()
        figures: Figures = {}
        for part in range(config.accumulation):
            loss, found = self._goal.loss(self.step, part)
            (loss / config.accumulation).backward()  # type: ignore[no-untyped-call]
            figures = {name: figures.get(name, 0.0) + value / config.accumulation for name, value in found.items()}
        norm = float(torch.nn.utils.clip_grad_norm_(self._network.trained, CLIPPED_TO))
        if not (math.isfinite(norm) and math.isfinite(figures["loss"])):
            self._goal.memory = memory
            raise FloatingPointError(f"The loss of step {self.step + 1} is not finite.")
        for group in self._optimiser.param_groups:
            group["lr"] = config.learning_rate * self._share(self.step)
        self._optimiser.step()
        self.step += 1
        point = {"step": float(self.step), **figures}
        if self.step % config.evaluate_every == 0 or self.step == config.steps:
            point |= self.evaluate()
        self.curve.append(point)
        return point

    def evaluate(self) -> Figures:
        found = self._goal.held_out()
        if not found:
            return {}
        if self._best is None or self._goal.value(found) > self._goal.value(self._best):
            self._best, self._best_lora, self._best_step = found, self._network.lora, self.step
            self._without_better = 0
        else:
            self._without_better += 1
        return found

    def checkpoint(self) -> Checkpoint:
        tensors = {f"lora.{name}": tensor for name, tensor in self._network.lora.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best_lora.items()}
        tensors |= checkpoint.optimiser_tensors(self._optimiser)
        standing = Standing(
            made_of=self._made_of,
            step=self.step,
            curve=self.curve,
            best=self._best,
            best_step=self._best_step,
            without_better=self._without_better,
            memory=dict(self._goal.memory),
        )
        return Checkpoint(standing=standing, tensors=tensors)

    def restore(self, kept: Checkpoint) -> None:
        standing = kept.standing
        self._network.lora = kept.part("lora")
        self._best_lora = kept.part("best")
        checkpoint.restore_optimiser(self._optimiser, kept.part("moments"))
        self.step, self.curve, self._best = standing.step, list(standing.curve), standing.best
        self._best_step, self._without_better = standing.best_step, standing.without_better
        if standing.memory:
            self._goal.memory = standing.memory

    def _share(self, step: int) -> float:
        """Of the learning rate: it rises over the warm-up and falls to FLOOR."""
        rising = min(1.0, (step + 1) / max(1, self._config.warmup_steps))
        return rising * (FLOOR + (1 - FLOOR) * (1 - step / self._config.steps))
