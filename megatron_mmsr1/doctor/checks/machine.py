"""What is installed and what the machine has: the facts that a run keeps as environment.json."""

from __future__ import annotations

from megatron_mmsr1 import __version__
from megatron_mmsr1.doctor.check import Check, Finding, Level, Place, Who
from megatron_mmsr1.megatron.attention.choice import choose, situation
from megatron_mmsr1.procs import facts


def run(place: Place) -> list[Finding]:
    found = facts.collect()
    trainer = choose("auto", situation())
    m, c = found["machine"], found["cuda"]
    devices = [f"{d['name']} ({d['memory_gib']} GiB, sm {d['capability']})" for d in c["devices"]]
    counted = [f"{devices.count(d)} x {d}" for d in dict.fromkeys(devices)]
    versions = {"python": found["python"], "megatron-mmsr1": __version__, **found["packages"]}
    patches = ", ".join(f"{p['name']} ({p['package']} {p['version']})" for p in found["patches"])
    return [
        Finding("system", f"{m['system']}, {m['processor']}, {m['cores']} cores", data=found),
        Finding(
            "memory",
            f"{m['memory_free_gib']} of {m['memory_gib']} GiB free, /dev/shm {m['shared_memory_gib']} GiB, "
            f"disk {m['disk_free_gib']} GiB free here",
        ),
        Finding("GPUs", "; ".join(counted) or "none", alike=True),
        Finding("driver", c["driver"] or "none", alike=True),
        Finding("collectives", f"{c['backend']}, torch built for {c['torch_build'] or 'nothing'}", alike=True),
        *(Finding(package, version or "-", alike=True) for package, version in versions.items()),
        Finding("sgl_kernel", found["sgl_kernel"], alike=True),
        Finding("attention", f"engine: {found['attention']['engine']}; trainer, of a model in bfloat16: {trainer.reason}"),
        Finding("patches", f"of other packages' internals, each for one version: {patches}"),
        *(Finding("environment", "", Level.ERROR, advice) for advice in found["errors"]),
        *(Finding("environment", "", Level.WARNING, advice) for advice in found["warnings"]),
    ]


CHECK = Check("versions, devices, memory, kernels, patches, ports", Who.NODES, run)
