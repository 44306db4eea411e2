"""The policy under training: what the loop calls. Every rank holds one and calls each method with the same arguments."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from transformers import AutoTokenizer

from megatron_mmsr1.algorithm.composition import compose
from megatron_mmsr1.algorithm.kl_control import adapted
from megatron_mmsr1.cluster import stages
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data import shares
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.megatron import batch as batches
from megatron_mmsr1.megatron import checkpoint, export, fp8, parallel, platform
from megatron_mmsr1.megatron.attention.choice import shares_prefixes
from megatron_mmsr1.megatron.batch import MicroBatch, PackingSpec
from megatron_mmsr1.megatron.device_memory import DeviceMemory, gradients_of, states_of, weights_of
from megatron_mmsr1.megatron.forward_backward import ForwardBackward
from megatron_mmsr1.megatron.layout import Share
from megatron_mmsr1.megatron.model import Built, build
from megatron_mmsr1.megatron.nonfinite import Guard
from megatron_mmsr1.megatron.optimizer import build_optimizer
from megatron_mmsr1.megatron.saving import HostMemory, Save
from megatron_mmsr1.megatron.schedule import learning_rate
from megatron_mmsr1.megatron.update import Update
from megatron_mmsr1.megatron.vision import VisionFeatures
from megatron_mmsr1.megatron.weights_id import weights_id
from megatron_mmsr1.trajectory import Trajectory


class MegatronActor:
    """A policy of any model family on megatron-core, its optimizer and, where the algorithm needs one, its frozen reference.

    `parallel` says who this rank is, `step` how many train steps are done. `random_weights`: see `model.build`.
    Raises UsageError for a configuration or checkpoint that does not fit, RunError for a damaged checkpoint.
    """

    def __init__(self, cfg: RunConfig, images: ImageStore, *, total_steps: int, random_weights: bool = False) -> None:
        self.cfg, self.total_steps, self.step = cfg, total_steps, 0
        self.parallel = parallel.init(cfg)
        path = Path(cfg.model.path)
        self.model = build(cfg, path, trainable=True, random_weights=random_weights)
        self.optimizer = build_optimizer(cfg, self.model)
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        tokens = self.model.files.family.tokens
        self.banned = tokens.banned_ids(tokenizer)
        config = self.model.config
        share = Share(self.parallel.cp_size, self.parallel.cp_rank)
        self.packing = PackingSpec(
            family=self.model.files.family,
            image_pad_id=tokens.id_of(tokens.picture_pad, tokenizer, cfg.model.path),
            merge=self.model.files.pictures.merge,
            multiple=batches.multiple(
                self.parallel.tp_size if cfg.megatron.sequence_parallel else 1,
                share,
                fp8.ALIGN if cfg.megatron.fp8 != "none" else 1,
            ),
            budget=cfg.megatron.tokens_per_microbatch,
            rates=shares.Rates(
                config.hidden_size, stages.picture_cost(self.model.files.config, trains_tower=not cfg.model.vision_frozen)
            ),
            banned=frozenset(self.banned),
            device=platform.device(),
            shared=shares_prefixes(cfg),
            share=share,
        )
        self.images = images
        self.memory = DeviceMemory()
        self._named: str | None = None  # the weights that were released
        self.guard = Guard(self.model.chunks, self.parallel, Path(cfg.output), cfg.train.max_skipped_updates)
        self.policy = self._forward_backward(self.model, frozen=cfg.model.vision_frozen)
        self.reference: ForwardBackward | None = None
        self.reference_step = 0  # the step of whose policy the reference has the weights; 0: those that it was loaded with
        self.kl_coef = cfg.algorithm.kl_coef
        self.algorithm = compose(cfg.algorithm)
        if "reference" in self.algorithm.needs:
            self.reference = self._build_reference()
        # The libraries' hundred thousands of objects need not be looked at again at every full collection.
        gc.collect()
        gc.freeze()

    # ------------------------------------------------------------------------------------------------------- training
    def train_step(self, trajectories: Sequence[Trajectory], advantages: Sequence[float | Tensor] | None) -> dict[str, float]:
        """One step over the global batch, a list as long on every rank: `updates_per_step` optimizer updates, or one (SFT).
        A rank needs whole only what `owners` gives to its replica; of the others outlines will do.

        `advantages` has a number a trajectory, or one for each of its sampled tokens (None for SFT). Metrics are means over the
        step's updates, the same on every rank. An update in which nothing was sampled is left out; a step of which nothing is
        left trains nothing but counts. One whose gradients are not finite is skipped on all ranks alike (`nonfinite.Guard`).
        Raises UsageError for a trajectory that cannot be trained on or a missing advantage, RunError for too many skipped.
        """
        started = time.perf_counter()
        supervised = self.algorithm.supervised
        if not supervised and (advantages is None or len(advantages) != len(trajectories)):
            raise UsageError(f"there must be an advantage for each of {len(trajectories)} trajectories")
        batches.check(trajectories, self.packing, self.model.config.vocab_size)
        rate = learning_rate(self.cfg.optimizer, self.step, self.total_steps)
        given: Sequence[float | Tensor] = [0.0] * len(trajectories) if advantages is None else advantages
        values = [np.asarray(a, dtype=np.float32) for a in given]
        for t, a in zip(trajectories, values, strict=True):
            if a.ndim and a.shape != (t.sampled_tokens,):
                raise UsageError(f"{t.prompt_id}#{t.sample_index}: {a.shape} advantages for {t.sampled_tokens} sampled tokens")
        updates = 1 if supervised else self.cfg.algorithm.updates_per_step
        parts = shares.update_parts(len(trajectories), updates)
        work = [
            u for part in parts if not (u := Update(self, [trajectories[i] for i in part], [values[i] for i in part])).empty
        ]
        old = len(work) > 1 and "old" in self.algorithm.needs
        for update in work:
            update.score_first(old=old, reference=self.reference if "reference" in self.algorithm.needs else None)
        reports = [update.run(rate) for update in work]
        self.step += 1
        tokens = sum(len(t) for t in trajectories)
        platform.synchronize()
        seconds = time.perf_counter() - started
        done = [r for r in reports if r]
        mean = {k: float(np.mean([r[k] for r in done])) for k in done[0]} if done else {"loss_tokens": 0.0}
        mine = sum(b.computed for u in work for b in u.objective.batches) if self.parallel.speaks_for_replica else 0
        self._follow(mean)
        if supervised:
            mean = {k: v for k, v in mean.items() if k in ("loss", "entropy", "grad_norm", "loss_tokens")}
        peak = self.parallel.max([float(platform.peak_memory_bytes())])[0]
        return mean | {
            "lr": rate,
            "tokens": float(tokens),
            "tokens_computed": self.parallel.sum([float(mine)])[0],
            "skipped_updates": float(len(reports) - len(done)),
            "tokens_per_s": tokens / seconds,
            "train_seconds": seconds,
            "peak_memory_gib": peak / 2**30,
        }

    def _follow(self, metrics: dict[str, float]) -> None:
        """After a step: the KL's coefficient and its reference, where the config lets them move."""
        a = self.cfg.algorithm
        if self.algorithm.supervised:
            return
        if a.kl_target is not None and "kl" in metrics:
            metrics["kl_coef"] = self.kl_coef  # the one that this step had
            self.kl_coef = adapted(self.kl_coef, metrics["kl"], a.kl_target, a.kl_gain)
        if self.reference is not None and a.reference_interval and self.step % a.reference_interval == 0:
            self.reference.model.load_state_dict(self.model.state_dict())
            self.reference.vision.clear()
            self.reference_step = self.step

    # -------------------------------------------------------------------------------------------------------- scoring
    def log_probs(
        self, trajectories: Sequence[Trajectory], which: Literal["policy", "reference"] = "policy"
    ) -> list[list[float]]:
        """Log-prob of each token given those before it, aligned to `token_ids`, on every rank.

        0 at position 0 and at vision tokens, which no model is asked for. `reference` loads the frozen reference if training
        has not needed it.
        """
        if which == "reference" and self.reference is None:
            self.reference = self._build_reference()
        runner = self.policy if which == "policy" else self.reference
        assert runner is not None
        batches.check(trajectories, self.packing, self.model.config.vocab_size)
        mine = self.micro_batches(trajectories, every_token=True)
        scores = runner.score(mine)
        found = [(b.owner, b.source, s[0].cpu().numpy()) for b, s in zip(mine, scores, strict=True)] if scores else []
        out = [np.zeros(len(t)) for t in trajectories]
        for owner, source, values in self.parallel.gather_from_speakers(found):
            for m in np.unique(owner):
                out[m][source[owner == m]] = values[owner == m]
        return [values.tolist() for values in out]

    def logits(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """float32 [T, V] a trajectory, on every rank; for tests: whole logits are large."""
        mine = self.micro_batches(trajectories)
        found: list[tuple[int, Tensor]] = []
        for b, z in zip(mine, self.policy.logits(mine), strict=False):
            found += zip(b.members, (z[at].cpu() for at in b.places), strict=True)
        return [z for _, z in sorted(self.parallel.gather_from_speakers(found), key=lambda item: item[0])]

    # ---------------------------------------------------------------------------------------------------- persistence
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight whole, on the CPU, by its Hugging Face name, one at a time. Collective: every rank goes to the end."""
        yield from self.model.bridge.export_hf_weights(self.model.chunks, cpu=True, show_progress=False)

    def export(self, directory: str | Path, *, step: int | None = None) -> None:
        """Write the policy as a Hugging Face checkpoint, complete or not at all (`export.py`)."""
        export.write(self.model, Path(self.cfg.model.path), Path(directory), self.parallel, step=step)

    def weights_id(self) -> str:
        """Collective. A name for the weights as they are now (`weights_id.py`). Of released ones it must have been asked for
        before."""
        if not self.memory.held:
            self._named = weights_id(self.model, self.parallel)
        if self._named is None:
            raise RuntimeError("the weights were released before anybody asked for their name")
        return self._named

    def save(self, directory: str | Path, extra: dict[str, Any]) -> None:
        """Write model, optimizer, step and generators with `extra`, complete or not at all, and make it the latest."""
        self.begin_save(directory, extra).finish()

    def begin_save(
        self,
        directory: str | Path,
        extra: dict[str, Any],
        beside: Callable[[Path], None] | None = None,
        memory: HostMemory | None = None,
    ) -> Save:
        """As `save`, up to where the disk is at work; its `finish` does the rest (`saving.py`)."""
        return checkpoint.begin(self, Path(directory), extra, beside, memory)

    def load(self, directory: str | Path) -> dict[str, Any]:
        """Resume from a checkpoint of any parallel layout; returns its `extra`. Raises RunError naming a damaged file."""
        extra = checkpoint.load(self, Path(directory))
        self.policy.vision.clear()
        return extra

    def latest(self, parent: str | Path) -> Path | None:
        """The newest complete checkpoint below `parent`, the same on every rank."""
        return checkpoint.latest(Path(parent), self.parallel)

    # --------------------------------------------------------------------------------------------------------- memory
    def release(self, *, weights: bool) -> None:
        """Device memory to engines on the same device: gradients and optimizer states, which a publication of the weights does
        not need, or with `weights` all that is held between steps. Nothing but `restore` and a `weights_id` asked for before
        works until `restore`."""
        own = [*weights_of(self.model)]
        kept, left = [*states_of(self.optimizer)], own
        if weights:
            kept, left = [*own, *kept, *self.policy.vision.cached()], []
            if self.reference is not None:
                kept += [*weights_of(self.reference.model), *self.reference.vision.cached()]
        self.memory.release(kept, gradients_of(self.model), left)

    def restore(self) -> None:
        """What was released, to the byte; gradients are zero, as each update begins."""
        self.memory.restore()
        self._named = None

    # -------------------------------------------------------------------------------------------------------- helpers
    def _forward_backward(self, model: Built, *, frozen: bool, adapters: bool = True) -> ForwardBackward:
        vision = VisionFeatures(self.images, model.files.pictures, frozen=frozen, device=platform.device())
        return ForwardBackward(
            model,
            vision,
            banned=self.banned,
            temperature=1.0 if self.cfg.algorithm.supervised else self.cfg.rollout.temperature or 1.0,
            chunk=self.cfg.megatron.logprob_chunk,
            adapters=adapters,
            entropy_gradient=bool(self.cfg.algorithm.entropy_coef),
        )

    def _build_reference(self) -> ForwardBackward:
        if self.cfg.reference_is_policy:
            runner = self._forward_backward(self.model, frozen=True, adapters=False)
            runner.vision = self.policy.vision
            return runner
        path = Path(self.cfg.model.reference or self.cfg.model.path)
        # One that takes over the policy's weights needs a place for its adapters.
        moves = bool(self.cfg.algorithm.reference_interval)
        model = build(self.cfg, path, trainable=False, key="model.reference", adapters=moves)
        for chunk in model.chunks:
            chunk.eval()
        runner = self._forward_backward(model, frozen=True)
        if path == Path(self.cfg.model.path) and self.cfg.model.vision_frozen:
            runner.vision = self.policy.vision  # the same tower: encode each image once
        return runner

    def owners(self, trajectories: Sequence[Trajectory]) -> list[int]:
        """The data-parallel rank that `train_step` gives each of these to, outlines or not. Others need its outline only."""
        updates = 1 if self.algorithm.supervised else self.cfg.algorithm.updates_per_step
        items = shares.sizes(trajectories, shared=self.packing.shared, merge=self.packing.merge)
        return shares.owners(items, updates, self.parallel.dp_size, self.packing.budget, self.packing.rates)

    def micro_batches(self, trajectories: Sequence[Trajectory], *, every_token: bool = False) -> list[MicroBatch]:
        """This replica's share, of each the part that this context-parallel rank holds. Interleaved pipeline stages get a
        multiple of their number, all of one length: megatron-core's schedule has no other for a pipeline of two."""
        p, g, m = self.parallel, self.packing, self.cfg.megatron
        interleaved = m.virtual_pipeline > 1
        sizes = shares.sizes(trajectories, shared=g.shared, merge=g.merge)
        packs = shares.plan(sizes, p.dp_size, g.budget, g.rates, p.pp_size if interleaved else 1)[p.dp_rank]
        made = [batches.collate(trajectories, members, g, every_token=every_token) for members in packs]
        if not interleaved:
            return made
        longest = max(b.padded for b in made)
        alike = replace(g, multiple=longest)
        return [
            b if b.padded == longest else batches.collate(trajectories, members, alike, every_token=every_token)
            for b, members in zip(made, packs, strict=True)
        ]
