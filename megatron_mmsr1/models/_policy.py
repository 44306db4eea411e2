"""A vision tower in front of megatron-core's language model: what every family's trainer half builds on."""

# pyright: standard
# megatron.bridge and megatron.core have no types.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.utils.common_utils import hook_hf_module_setattr_for_tp_grad_sync
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.parallel_state import get_tensor_model_parallel_group
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

# What the last stage makes of its hidden states, given the output layer's weight [vocabulary / tp, H].
Head = Callable[[Tensor, Tensor], Tensor]


class PolicyModel(MegatronModule):
    """One pipeline stage (or the whole) of a policy. The first stage holds the tower, whole on every tensor rank. Positions and
    image features come from the caller, so that no stage works them out again.

    A family overrides `build_tower`, and `encode`, `decoder_arguments` and `freeze_groups` where its tower is another.
    """

    has_tower = True
    visual: Any
    language_model: Any

    def __init__(self, config: Any, pre_process: bool = True, post_process: bool = True, vp_stage: int | None = None) -> None:
        super().__init__(config=config)
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        if pre_process and self.has_tower:
            # A tower is built in the dtype that config.json names, which need not be the run's (model.dtype).
            self.visual = self.build_tower(config.vision_config).to(config.params_dtype)
            # Every tensor rank sees the same pictures but its own share of the gradient.
            hook_hf_module_setattr_for_tp_grad_sync(self.visual)
        self.language_model = GPTModelProvider.provide(
            config, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage
        )
        # Positions come as this rank's share of them; megatron-core's split is of one sequence, not of packed ones.
        self.language_model.rotary_pos_emb.cp_group = None
        # megatron-core looks for these here when it sums the gradients of tied embeddings.
        self.share_embeddings_and_output_weights = config.share_embeddings_and_output_weights
        self.shared_embedding_or_output_weight = self.language_model.shared_embedding_or_output_weight

    def build_tower(self, vision_config: Any) -> nn.Module:
        """Tower and merger, from the checkpoint's vision configuration; their parameters are named as in the checkpoint."""
        raise NotImplementedError

    def encode(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """Features [N, H], a token a row, of pixels [patches, values] of pictures with grids int64 [pictures, 3]."""
        return self.visual(pixels, grid_thw=grids).pooler_output

    def decoder_arguments(self, features: Tensor, positions: Tensor, tokens: int) -> dict[str, Tensor]:
        """Further arguments of the decoder, in a family whose features [N, more than H] enter at deeper layers too. They stand
        at positions int64 [N] of this rank's `tokens` of a pack; the first H values of a feature are its embedding."""
        return {}

    def freeze_groups(self) -> dict[str, list[nn.Module]]:
        """What `model.freeze` names, as far as this stage holds it. Tied embeddings are one weight at both ends."""
        core = self.language_model
        groups: dict[str, list[nn.Module]] = {"tower": [], "merger": [], "language": [core.decoder], "embeddings": []}
        if self.pre_process:
            for name, child in self.visual.named_children() if self.has_tower else ():
                groups["merger" if "merger" in name else "tower"].append(child)
            groups["embeddings"].append(core.embedding)
        if self.post_process:
            groups["embeddings" if self.share_embeddings_and_output_weights else "language"].append(core.output_layer)
        return groups

    def freeze(self, names: frozenset[str]) -> None:
        """No gradients for these groups. KeyError for one that the family does not have."""
        groups = self.freeze_groups()
        for name in names:
            for module in groups[name]:
                module.requires_grad_(False)

    @property
    def decoder(self) -> Any:
        """The language model's layers, where megatron-core looks for them."""
        return getattr(self.language_model, "decoder", None)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """The hidden states of the stage before."""
        self.language_model.set_input_tensor(input_tensor)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        packed: PackedSeqParams,
        features: Tensor | None = None,
        feature_positions: Tensor | None = None,
        head: Head | None = None,
    ) -> Tensor:
        """input_ids int64 [1, T], position_ids int64 [3, 1, T]; features [N, H] (or more: `decoder_arguments`) stand at tokens
        feature_positions int64 [N]. T counts this rank's tokens, a context-parallel rank's share of a pack.

        Returns `head(hidden [T, 1, H] (T / tp under sequence parallelism), output weight)` on the last stage, the stage's
        hidden states on the others.
        """
        embeddings = None
        deeper: dict[str, Tensor] = {}
        if self.pre_process:
            embeddings = self.language_model.embedding(input_ids=input_ids, position_ids=None)  # [T, 1, H]
            if features is not None and feature_positions is not None:
                values = features[:, : self.config.hidden_size].to(embeddings.dtype).unsqueeze(1)
                deeper = self.decoder_arguments(features, feature_positions, len(embeddings))
                embeddings = embeddings.index_copy(0, feature_positions, values)
            if self.config.sequence_parallel:
                embeddings = scatter_to_sequence_parallel_region(embeddings, group=get_tensor_model_parallel_group())
            if self.config.recompute_granularity == "full" and torch.is_grad_enabled() and not embeddings.requires_grad:
                embeddings.requires_grad_()  # layers are computed again only for inputs that want a gradient
        return self.language_model(
            input_ids=None,
            position_ids=position_ids,
            attention_mask=None,
            decoder_input=embeddings,
            packed_seq_params=packed,
            extra_block_kwargs=deeper,
            output_processor=_with_head,
            output_processor_context=head,
        )


def _with_head(*, hidden_states: Tensor, output_layer: Any, output_weight: Tensor | None, context: Head, **_: Any) -> Tensor:
    return context(hidden_states, output_layer.weight if output_weight is None else output_weight)
