"""bigG/14 fine-tuning: 336 px, 32 text tokens, 131 million pairs, 40 % of the patches masked.

Command:   python scripts/train.py configs/bigg14_336px_t32.py --workdir runs/bigg14_336px_t32
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). Any number of devices that is a multiple of 16
           works.
Hours:     1,744 A100 hours, the difference of the published 23,742 for all three stages and 21,998 for the first
           two; not re-run here.
Expect:    83.0 % zero-shot ImageNet top-1 with DataComp-1B. Published by the reference, not re-run here.
Notes:     Decay and initializers are those of the reference's t5x branch, as in bigg14_70px_t8.py.
"""

from dataclasses import replace

from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.durations import Duration
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import DataConfig, DataSource, ExperimentConfig, InitConfig
from clipa_eqx.models.presets import preset
from clipa_eqx.optim import OptimConfig
from clipa_eqx.precision import Precision
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import MeshConfig


def config() -> ExperimentConfig:
    batch_size = 16_384
    steps = 131_072_000 // batch_size
    warmup_steps = 26_214_400 // batch_size
    model = preset("bigG/14", image_size=336, length=32)
    model = replace(
        model,
        image=replace(model.image, blocks=replace(model.image.blocks, remat="full", init="scaled"), mask_ratio=0.4),
        text=replace(model.text, blocks=replace(model.text.blocks, remat="full")),
    )
    return ExperimentConfig(
        model=model,
        data=DataConfig(
            sources=(DataSource(folder="data/datacomp1b"),),
            image=ImageConfig(size=(336, 336), color=ColorConfig()),
            # Per host; it changes no batch. Set it to what the hosts have.
            stream=StreamConfig(workers=32, threads=2),
        ),
        optim=OptimConfig(
            peak_lr=1e-7 * batch_size / 256,  # 6.4e-6
            # As the reference's t5x branch, which trained bigG/14: all but norms, biases, positions and temperature.
            decay=((r"(.*/)?(norm[12]?/weight|bias|position|log_temperature)", 0.0), (".*", 1.0)),
            schedules=((".*", Cosine(warmup=Duration(steps=warmup_steps))),),
            mu_dtype="bfloat16",
        ),
        batch_size=batch_size,
        duration=Duration(steps=steps),
        # Parameters and both moments take 23 GiB; each device holds a sixteenth.
        mesh=MeshConfig(fsdp=16),
        # On a TPU the reference multiplies in bfloat16 too, but keeps activations in float32.
        precision=Precision(compute="bfloat16"),
        init=InitConfig(source="runs/bigg14_224px_t32"),
        eval_image=EvalImageConfig(size=(336, 336), resize="squash"),
        zero_shot=(
            ZeroShotConfig(
                data="data/imagenet_val",
                class_names="imagenet",
                batch_size=1024,
                every_steps=1000,
            ),
        ),
        loss="sharded",
    )
