"""The cases of each world size. Those of one rank come first and leave what the others compare with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from megatron_cases import behaviour, errors, layouts, lora, memory, persistence, saving, units
from megatron_cases.harness import LAYOUTS, Lab

Case = Callable[[Lab], None]


def over(model: str, case: Callable[..., None], **options: object) -> Case:
    """The case over another checkpoint."""
    return lambda lab: case(lab.of(model), **options)


second = partial(over, "qwen2_vl")
third = partial(over, "qwen3_vl")
mixture = partial(over, "qwen3_vl_moe")
odd = partial(over, "qwen3_vl_moe_odd")  # five layers, of which the first two stand beside the tower

ADAPTERS = {"name": "lora_", "model": {"lora": lora.LORA}}
elsewhere = partial(partial, persistence.load_elsewhere, model=ADAPTERS["model"])


CASES: dict[int, dict[str, Case]] = {
    1: {
        "log_prob_of_a_split_vocabulary": units.log_prob,
        "log_prob_memory": units.log_prob_memory,
        "attention_and_rope_of_a_pack": units.attention_and_rope,
        "logits_equal_transformers": layouts.logits_equal_transformers,
        "log_probs_equal_transformers": layouts.log_probs_equal_transformers,
        "gradients_equal_transformers": layouts.gradients_equal_transformers,
        "baseline_gradients": layouts.baseline,
        "baseline_gradients_tied": layouts.tied_baseline,
        "baseline_weights": layouts.baseline_weights,
        "released_memory": memory.released,
        "released_memory_plain_optimizer": lambda lab: memory.released(lab, distributed=False),
        "released_memory_bfloat16": lambda lab: memory.released(lab, dtype="bfloat16"),
        "own_family": layouts.own_family,
        "qwen2_vl_logits_equal_transformers": second(layouts.logits_equal_transformers),
        "qwen2_vl_log_probs_equal_transformers": second(layouts.log_probs_equal_transformers),
        "qwen2_vl_gradients_equal_transformers": second(layouts.gradients_equal_transformers),
        "qwen2_vl_baseline_gradients": second(layouts.baseline),
        "qwen2_vl_export_every_weight": second(persistence.export_every_weight),
        "qwen3_vl_logits_equal_transformers": third(layouts.logits_equal_transformers),
        "qwen3_vl_log_probs_equal_transformers": third(layouts.log_probs_equal_transformers),
        "qwen3_vl_gradients_equal_transformers": third(layouts.gradients_equal_transformers),
        "qwen3_vl_baseline_gradients": third(layouts.baseline),
        "qwen3_vl_recompute_full": third(layouts.recompute, mode="full"),
        "qwen3_vl_export_every_weight": third(persistence.export_every_weight),
        "qwen3_vl_freeze_groups": third(persistence.freeze_groups),
        "qwen3_vl_tied_logits_equal_transformers": over("qwen3_vl_tied", layouts.logits_equal_transformers),
        "qwen3_vl_tied_baseline_gradients": over("qwen3_vl_tied", layouts.baseline_gradients),
        "qwen3_vl_moe_logits_equal_transformers": mixture(layouts.logits_equal_transformers),
        "qwen3_vl_moe_gradients_equal_transformers": mixture(layouts.gradients_equal_transformers),
        "qwen3_vl_moe_baseline_gradients": mixture(layouts.baseline),
        "qwen3_vl_moe_export_every_weight": mixture(persistence.export_every_weight),
        "qwen3_vl_moe_odd_logits_equal_transformers": odd(layouts.logits_equal_transformers),
        "qwen3_vl_moe_odd_baseline_gradients": odd(layouts.baseline),
        "qwen3_vl_moe_models_refused": mixture(errors.moe_models),
        **{
            f"{family}_{name}": over(family, case)
            for family in ("qwen2", "qwen3")
            for name, case in {
                "logits_equal_transformers": layouts.logits_equal_transformers,
                "gradients_equal_transformers": layouts.gradients_equal_transformers,
                "baseline_gradients": layouts.baseline_gradients,
                "export_every_weight": persistence.export_every_weight,
            }.items()
        },
        "packed_equals_unpacked": layouts.packed_equals_unpacked,
        "a_group_alone": layouts.group_alone,
        "shared_prefixes": layouts.shared_prefixes,
        "shared_prefixes_recompute": partial(layouts.shared_prefixes, megatron={"recompute": "full"}),
        "qwen3_vl_a_group_alone": third(layouts.group_alone),
        "qwen3_vl_shared_prefixes": third(layouts.shared_prefixes),
        "recompute_full": partial(layouts.recompute, mode="full"),
        "recompute_selective": partial(layouts.recompute, mode="selective"),
        "each_image_encoded_once": behaviour.each_image_once,
        "sft_weights": behaviour.sft_weights,
        "several_updates": behaviour.several_updates,
        "reference_and_kl": behaviour.reference_and_kl,
        "not_finite": behaviour.not_finite,
        "nothing_to_train": behaviour.nothing_to_train,
        "decay_spares_norms_and_biases": behaviour.decay_spares_norms_and_biases,
        "lora_equals_transformers": lora.equals_transformers,
        "lora_merged_and_alone": partial(lora.merged_and_alone, layout="tp1"),
        "lora_first_is_base": partial(lora.first_is_base, layout="tp1"),
        "lora_reference": partial(lora.reference, layout="tp1"),
        "lora_exact_resume": partial(persistence.exact_resume, **ADAPTERS),
        "lora_refreshed_reference": partial(persistence.refreshed_reference, model=ADAPTERS["model"]),
        "lora_beside_a_trained_tower": lora.beside_a_trained_tower,
        "lora_bfloat16": lora.bfloat16,
        "lora_released_memory": partial(memory.released, lora=lora.LORA),  # the reference is the policy's own weights
        "lora_other_adapters": lora.other_adapters,
        "lora_recompute_full": partial(lora.same_weights, layout="tp1", recompute="full"),
        "lora_recompute_selective": partial(lora.same_weights, layout="tp1", recompute="selective"),
        "qwen3_vl_lora_equals_transformers": third(lora.equals_transformers),
        "tied_lora_equals_transformers": over("tied", lora.equals_transformers),
        "qwen3_vl_moe_lora_equals_transformers": mixture(lora.equals_transformers, targets=("qkv_proj", "o_proj")),
        "an_empty_share": behaviour.an_empty_share,
        "averages": behaviour.averages,
        "bfloat16": behaviour.bfloat16,
        "export_every_weight": persistence.export_every_weight,
        "exact_resume": persistence.exact_resume,
        "exact_resume_offload_bf16_moments": partial(
            persistence.exact_resume, layout="offload", optimizer=persistence.SCHEDULE | {"moments_dtype": "bfloat16"}
        ),
        "offloaded_inputs_of_layers": layouts.offloaded_inputs,
        "offload_weights_after_steps": partial(layouts.weights_after_steps, layout="offload"),
        "refreshed_reference": persistence.refreshed_reference,
        "export_says_its_dtype": persistence.export_says_its_dtype,
        "freeze_groups": persistence.freeze_groups,
        "qwen2_vl_freeze_groups": second(persistence.freeze_groups),
        "other_optimizer_refused": errors.other_optimizer,
        "freeze_refused": errors.freeze,
        "settings_refused": errors.settings,
        "checkpoints_refused": errors.checkpoints,
        "trajectories_refused": errors.trajectories,
        "torn_training_checkpoint": errors.torn_training_checkpoint,
        "steps_go_on_while_saving": partial(saving.steps_go_on, layout="tp1"),
        "complete_state": partial(saving.complete_state, layout="tp1"),
        "full_disk": partial(saving.full_disk, layout="tp1"),
    },
    2: {
        "log_prob_of_a_split_vocabulary": units.log_prob,
        "objects_and_shares_travel": units.objects,
        **{
            f"{name}_{what}": partial(getattr(layouts, what), layout=name)
            for name in ("tp2", "tp2_sp", "pp2", "dp2", "cp2")
            for what in ("logits_and_gradients", "steps", "selected")
        },
        **{
            f"qwen2_vl_{name}_logits_and_gradients": second(layouts.logits_and_gradients, layout=name)
            for name in ("tp2", "tp2_sp", "pp2")
        },
        **{
            f"{family}_cp2_logits_and_gradients": over(family, layouts.logits_and_gradients, layout="cp2")
            for family in ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3")
        },
        "qwen3_vl_moe_cp2_ep2_logits_and_gradients": mixture(layouts.logits_and_gradients, layout="cp2_ep2"),
        "cp2_weights_after_steps": partial(layouts.weights_after_steps, layout="cp2"),
        "qwen3_vl_recompute_full_cp2": third(layouts.recompute, mode="full", layout="cp2"),
        "qwen2_vl_export_every_weight_tp2": second(persistence.export_every_weight, layout="tp2"),
        "qwen2_vl_export_every_weight_pp2": second(persistence.export_every_weight, layout="pp2"),
        **{
            f"qwen3_vl_{name}_logits_and_gradients": third(layouts.logits_and_gradients, layout=name)
            for name in ("tp2", "tp2_sp", "pp2")
        },
        "qwen3_vl_tied_pp2_logits_and_gradients": over("qwen3_vl_tied", layouts.logits_and_gradients, layout="pp2"),
        "qwen3_vl_tied_export_every_weight_pp2": over("qwen3_vl_tied", persistence.export_every_weight, layout="pp2"),
        **{
            f"qwen3_vl_moe_{name}_logits_and_gradients": mixture(layouts.logits_and_gradients, layout=name)
            for name in ("tp2_sp", "pp2")
        },
        "qwen3_vl_moe_exact_resume_pp2": mixture(persistence.exact_resume, layout="pp2"),
        **{
            f"qwen3_vl_moe_ep2_{what}": mixture(getattr(layouts, what), layout="ep2")
            for what in ("logits_and_gradients", "steps", "plain_optimizer", "one_sequence")
        },
        **{f"lora_{n}": partial(lora.same_weights, layout=n) for n in ("tp2", "tp2_sp", "pp2", "vpp2", "cp2", "dp2")},
        **{f"lora_merged_and_alone_{n}": partial(lora.merged_and_alone, layout=n) for n in ("tp2_sp", "pp2")},
        **{f"lora_first_is_base_{n}": partial(lora.first_is_base, layout=n) for n in ("tp2_sp", "pp2")},
        **{f"lora_reference_{n}": partial(lora.reference, layout=n) for n in ("tp2_sp", "pp2")},
        "lora_exact_resume_tp2_sp": partial(persistence.exact_resume, layout="tp2_sp", **ADAPTERS),
        "lora_load_tp1_checkpoint_as_tp2_sp": elsewhere(source="lora_tp1", layout="tp2_sp"),
        "lora_load_tp2_sp_checkpoint_as_dp2": elsewhere(source="lora_tp2_sp", layout="dp2"),
        "lora_load_tp2_sp_checkpoint_as_pp2": elsewhere(source="lora_tp2_sp", layout="pp2"),
        "lora_beside_a_trained_tower_tp2_sp": partial(lora.beside_a_trained_tower, layout="tp2_sp", recompute="full"),
        "lora_recompute_full_tp2_sp": partial(lora.same_weights, layout="tp2_sp", recompute="full"),
        "qwen3_vl_lora_tp2_sp": third(lora.same_weights, layout="tp2_sp"),
        "tied_lora_pp2": over("tied", lora.same_weights, layout="pp2"),
        "qwen3_vl_moe_lora_etp1_tp2": mixture(lora.same_weights, layout="etp1_tp2", targets=("qkv_proj", "o_proj")),
        "pp2_uneven_logits_and_gradients": partial(layouts.logits_and_gradients, layout="pp2_uneven"),
        **{
            f"vpp2_{what}": partial(getattr(layouts, what), layout="vpp2")
            for what in ("logits_and_gradients", "steps", "selected")
        },
        "exact_resume_vpp2": partial(persistence.exact_resume, layout="vpp2"),
        "load_vpp2_checkpoint_as_pp2_uneven": partial(persistence.load_elsewhere, source="vpp2", layout="pp2_uneven"),
        "refreshed_reference_vpp2": partial(persistence.refreshed_reference, layout="vpp2"),
        "fewer_sequences_than_stages": partial(layouts.one_sequence, layout="vpp2"),
        "tied_embeddings_vpp2": partial(layouts.tied, layout="vpp2"),
        **{
            f"qwen3_vl_moe_odd_{name}_logits_and_gradients": odd(layouts.logits_and_gradients, layout=name)
            for name in ("pp2", "vpp2")
        },
        "qwen3_vl_moe_odd_export_every_weight_vpp2": odd(persistence.export_every_weight, layout="vpp2"),
        "qwen3_vl_moe_etp1_tp2_logits_and_gradients": mixture(layouts.logits_and_gradients, layout="etp1_tp2"),
        "qwen3_vl_moe_export_every_weight_ep2": mixture(persistence.export_every_weight, layout="ep2"),
        "qwen3_vl_moe_not_finite_ep2": mixture(behaviour.not_finite, layout="ep2"),
        "qwen3_vl_moe_exact_resume_ep2": mixture(persistence.exact_resume, layout="ep2"),
        "qwen3_vl_moe_load_pp2_checkpoint_as_ep2": mixture(persistence.load_elsewhere, source="pp2", layout="ep2"),
        "qwen3_vl_moe_ep2_released_memory": mixture(memory.released, layout="ep2"),
        "qwen3_vl_moe_ep2_plain_optimizer_elsewhere": mixture(persistence.plain_optimizer_elsewhere),
        "qwen3_vl_moe_load_ep2_checkpoint_as_dp2": mixture(persistence.load_elsewhere, source="ep2", layout="dp2"),
        "qwen3_vl_moe_layout_refused": mixture(errors.moe_layout),
        **{
            f"{family}_{name}_logits_and_gradients": over(family, layouts.logits_and_gradients, layout=name)
            for family in ("qwen2", "qwen3")
            for name in ("tp2_sp", "pp2")
        },
        **{
            f"shared_prefixes_{n}": partial(layouts.shared_prefixes, megatron=LAYOUTS[n])
            for n in ("tp2_sp", "pp2", "dp2", "cp2")
        },
        "qwen3_vl_shared_prefixes_tp2_sp": third(layouts.shared_prefixes, megatron=LAYOUTS["tp2_sp"]),
        **{f"not_finite_{n}": partial(behaviour.not_finite, layout=n) for n in ("tp2_sp", "pp2", "dp2")},
        "dp2_shares": partial(layouts.shares, layout="dp2"),
        "plain_optimizer_tp2_sp": partial(layouts.plain_optimizer, layout="tp2_sp"),
        "released_memory_dp2": partial(memory.released, layout="dp2"),
        **{f"overlapped_{name}": partial(behaviour.overlapped, layout=name) for name in ("dp2", "cp2")},
        "overlapped_plain_optimizer_dp2": partial(behaviour.overlapped, layout="dp2", distributed=False),
        "qwen3_vl_moe_overlapped_ep2": mixture(behaviour.overlapped, layout="ep2"),
        "plain_optimizer_dp2": partial(layouts.plain_optimizer, layout="dp2"),
        "tied_embeddings_tp2": partial(layouts.tied, layout="tp2"),
        "tied_embeddings_pp2": partial(layouts.tied, layout="pp2"),
        "fewer_sequences_than_ranks": partial(layouts.one_sequence, layout="dp2"),
        "export_every_weight_tp2": partial(persistence.export_every_weight, layout="tp2"),
        "export_every_weight_pp2": partial(persistence.export_every_weight, layout="pp2"),
        "exact_resume_tp2_sp": partial(persistence.exact_resume, layout="tp2_sp"),
        "load_tp1_checkpoint_as_tp2_sp": partial(persistence.load_elsewhere, source="tp1", layout="tp2_sp"),
        **{f"refreshed_reference_{n}": partial(persistence.refreshed_reference, layout=n) for n in ("tp2_sp", "pp2")},
        **{f"steps_go_on_while_saving_{n}": partial(saving.steps_go_on, layout=n) for n in ("tp2_sp", "dp2")},
        "replicas_share_the_writing": saving.replicas_share_the_writing,
        "complete_state_tp2_sp": partial(saving.complete_state, layout="tp2_sp"),
        "full_disk_pp2": partial(saving.full_disk, layout="pp2"),
        "a_mistake_while_saving": saving.other_failures,
        "exact_resume_dp2": partial(persistence.exact_resume, layout="dp2", distributed=False),
        "qwen3_vl_offloaded_inputs_tp2_sp": third(layouts.recompute, mode="full", layout="tp2_sp_inputs"),
        "load_tp1_checkpoint_as_offload": partial(persistence.load_elsewhere, source="tp1", layout="offload"),
        "load_tp2_sp_checkpoint_as_pp2": partial(persistence.load_elsewhere, source="tp2_sp", layout="pp2"),
        "load_tp2_sp_checkpoint_as_dp2": partial(persistence.load_elsewhere, source="tp2_sp", layout="dp2"),
    },
    4: {
        "shares_travel_in_replicas": units.shares,
        **{
            f"{name}_{what}": partial(getattr(layouts, what), layout=name)
            for name in ("tp2_pp2", "tp2_pp2_sp", "tp2_dp2_sp", "tp2_cp2_sp", "pp2_cp2")
            for what in ("logits_and_gradients", "steps")
        },
        "cp2_dp2_logits_and_gradients": partial(layouts.logits_and_gradients, layout="cp2_dp2"),
        "cp4_logits_and_gradients": partial(layouts.logits_and_gradients, layout="cp4"),
        "cp2_dp2_weights_after_steps": partial(layouts.weights_after_steps, layout="cp2_dp2"),
        **{
            f"qwen3_vl_{n}_logits_and_gradients": third(layouts.logits_and_gradients, layout=n)
            for n in ("tp2_cp2_sp", "pp2_cp2")
        },
        "qwen2_vl_tp2_pp2_logits_and_gradients": second(layouts.logits_and_gradients, layout="tp2_pp2"),
        "qwen2_vl_tp2_pp2_sp_steps": second(layouts.steps, layout="tp2_pp2_sp"),
        "qwen2_vl_export_every_weight_tp2_pp2": second(persistence.export_every_weight, layout="tp2_pp2"),
        "qwen3_vl_tp2_pp2_logits_and_gradients": third(layouts.logits_and_gradients, layout="tp2_pp2"),
        "qwen3_vl_tp2_pp2_sp_steps": third(layouts.steps, layout="tp2_pp2_sp"),
        "qwen3_vl_export_every_weight_tp2_pp2": third(persistence.export_every_weight, layout="tp2_pp2"),
        "qwen3_vl_moe_tp2_pp2_sp_steps": mixture(layouts.steps, layout="tp2_pp2_sp"),
        "qwen3_vl_moe_export_every_weight_tp2_pp2_sp": mixture(persistence.export_every_weight, layout="tp2_pp2_sp"),
        **{
            f"qwen3_vl_moe_{name}_steps": mixture(layouts.steps, layout=name)
            for name in ("ep2_edp2", "ep2_pp2", "ep2_tp2", "ep2_etp2_tp2")
        },
        "vpp2_tp2_sp_steps": partial(layouts.steps, layout="vpp2_tp2_sp"),
        "overlapped_pp2_dp2": partial(behaviour.overlapped, layout="pp2"),
        "overlapped_vpp2_dp2": partial(behaviour.overlapped, layout="vpp2"),
        "qwen3_vl_moe_odd_ep2_vpp2_steps": odd(layouts.steps, layout="ep2_vpp2"),
        "qwen3_vl_moe_ep2_pp2_logits_and_gradients": mixture(layouts.logits_and_gradients, layout="ep2_pp2"),
        "qwen3_vl_moe_ep2_etp2_tp2_logits_and_gradients": mixture(layouts.logits_and_gradients, layout="ep2_etp2_tp2"),
        "qwen3_vl_moe_export_every_weight_ep2_etp2_tp2": mixture(persistence.export_every_weight, layout="ep2_etp2_tp2"),
        "qwen3_vl_moe_export_every_weight_ep2_pp2": mixture(persistence.export_every_weight, layout="ep2_pp2"),
        "qwen3_vl_moe_load_ep2_checkpoint_as_ep2_pp2": mixture(persistence.load_elsewhere, source="ep2", layout="ep2_pp2"),
        "qwen3_vl_layout_refused": third(errors.deepstack_layout),
        "fewer_sequences_than_ranks": partial(layouts.one_sequence, layout="tp2_dp2_sp"),
        "fewer_sequences_than_ranks_cp2": partial(layouts.one_sequence, layout="cp2_dp2"),
        **{f"shared_prefixes_{n}": partial(layouts.shared_prefixes, megatron=LAYOUTS[n]) for n in ("tp2_pp2_sp", "tp2_cp2_sp")},
        **{f"{n}_shares": partial(layouts.shares, layout=n) for n in ("tp2_dp2_sp", "cp2_dp2")},
        "export_every_weight_cp2_dp2": partial(persistence.export_every_weight, layout="cp2_dp2"),
        "load_tp1_checkpoint_as_cp2_dp2": partial(persistence.load_elsewhere, source="tp1", layout="cp2_dp2"),
        "exact_resume_cp2_dp2": partial(persistence.exact_resume, layout="cp2_dp2"),
        "load_cp2_dp2_checkpoint_as_dp4": partial(persistence.load_elsewhere, source="cp2_dp2", layout="dp4"),
        "export_every_weight_tp2_pp2": partial(persistence.export_every_weight, layout="tp2_pp2"),
        "steps_go_on_while_saving_tp2_dp2_sp": partial(saving.steps_go_on, layout="tp2_dp2_sp"),
        "load_tp2_sp_checkpoint_as_tp2_pp2": partial(persistence.load_elsewhere, source="tp2_sp", layout="tp2_pp2_sp"),
        "bfloat16_tp2_pp2_sp": partial(behaviour.bfloat16, layout="tp2_pp2_sp"),
        "layout_refused": errors.layout,
        "lora_tp2_pp2_sp": partial(lora.same_weights, layout="tp2_pp2_sp"),
    },
}

# By world: what says more of a layout, or of a family in it, that others of these cases compare already; minutes of CPU
# together. Only where slow tests are asked for.
SLOW = {
    1: {
        "released_memory_plain_optimizer",
        "released_memory_bfloat16",
        "lora_refreshed_reference",
        "lora_beside_a_trained_tower",
        "lora_bfloat16",
        "lora_released_memory",
        "lora_recompute_selective",
        "tied_lora_equals_transformers",
    },
    2: {
        "tp2_logits_and_gradients",
        "tp2_selected",
        "qwen2_vl_tp2_logits_and_gradients",
        "qwen2_vl_export_every_weight_tp2",
        "qwen3_vl_tp2_logits_and_gradients",
        "qwen3_vl_tied_export_every_weight_pp2",
        "qwen3_vl_recompute_full_cp2",
        "qwen2_pp2_logits_and_gradients",
        "not_finite_pp2",
        "plain_optimizer_tp2_sp",
        "refreshed_reference_pp2",
        "qwen3_vl_moe_odd_pp2_logits_and_gradients",
        "lora_merged_and_alone_tp2_sp",
        "lora_first_is_base_pp2",
        "lora_reference_pp2",
        "lora_beside_a_trained_tower_tp2_sp",
        "lora_recompute_full_tp2_sp",
        "tied_lora_pp2",
        "overlapped_cp2",
        "overlapped_plain_optimizer_dp2",
        "qwen3_vl_moe_overlapped_ep2",
        "qwen3_vl_moe_ep2_released_memory",
        *(f"lora_{n}" for n in ("tp2", "vpp2", "cp2", "dp2")),
        "lora_merged_and_alone_pp2",
        "lora_first_is_base_tp2_sp",
        "lora_reference_tp2_sp",
        *(f"lora_load_tp2_sp_checkpoint_as_{n}" for n in ("dp2", "pp2")),
        "qwen3_vl_lora_tp2_sp",
        "qwen3_vl_moe_lora_etp1_tp2",
        "cp2_selected",
        "cp2_weights_after_steps",
        "qwen2_vl_cp2_logits_and_gradients",
        "qwen3_cp2_logits_and_gradients",
        "qwen3_vl_moe_cp2_logits_and_gradients",
        "shared_prefixes_cp2",
        "vpp2_selected",
        "vpp2_steps",
        "refreshed_reference_vpp2",
        "tied_embeddings_vpp2",
        "qwen3_vl_moe_odd_vpp2_logits_and_gradients",
        "qwen3_vl_moe_odd_export_every_weight_vpp2",
        "qwen3_vl_moe_ep2_plain_optimizer",
        "qwen3_vl_moe_ep2_plain_optimizer_elsewhere",
        "qwen3_vl_moe_export_every_weight_ep2",
        "qwen3_vl_moe_not_finite_ep2",
        "qwen3_vl_moe_exact_resume_ep2",
        "qwen3_vl_moe_load_ep2_checkpoint_as_dp2",
        "steps_go_on_while_saving_dp2",
    },
    4: {
        "tp2_pp2_logits_and_gradients",
        "tp2_dp2_sp_logits_and_gradients",
        "tp2_dp2_sp_shares",
        "qwen2_vl_tp2_pp2_sp_steps",
        "qwen3_vl_tp2_pp2_logits_and_gradients",
        "qwen3_vl_export_every_weight_tp2_pp2",
        "qwen3_vl_layout_refused",
        "qwen3_vl_moe_tp2_pp2_sp_steps",
        "qwen3_vl_moe_export_every_weight_tp2_pp2_sp",
        "qwen3_vl_moe_ep2_tp2_steps",
        "shared_prefixes_tp2_cp2_sp",
        "qwen2_vl_tp2_pp2_logits_and_gradients",
        "qwen2_vl_export_every_weight_tp2_pp2",
        "qwen3_vl_tp2_cp2_sp_logits_and_gradients",
        "fewer_sequences_than_ranks_cp2",
        "cp2_dp2_shares",
        "overlapped_pp2_dp2",
        "overlapped_vpp2_dp2",
        "lora_tp2_pp2_sp",
        "tp2_cp2_sp_steps",
        "pp2_cp2_steps",
        "cp4_logits_and_gradients",
        "cp2_dp2_weights_after_steps",
        "qwen3_vl_pp2_cp2_logits_and_gradients",
        "export_every_weight_cp2_dp2",
        "load_tp1_checkpoint_as_cp2_dp2",
        "exact_resume_cp2_dp2",
        "load_cp2_dp2_checkpoint_as_dp4",
        "qwen3_vl_moe_ep2_edp2_steps",
        "qwen3_vl_moe_ep2_pp2_logits_and_gradients",
        "qwen3_vl_moe_ep2_etp2_tp2_logits_and_gradients",
        "qwen3_vl_moe_export_every_weight_ep2_etp2_tp2",
        "qwen3_vl_moe_export_every_weight_ep2_pp2",
        "qwen3_vl_moe_load_ep2_checkpoint_as_ep2_pp2",
        "qwen3_vl_moe_odd_ep2_vpp2_steps",
        "steps_go_on_while_saving_tp2_dp2_sp",
    },
}
assert all(SLOW[world] <= CASES[world].keys() for world in SLOW)
