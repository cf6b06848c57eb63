"""L/14 fine-tuning: 336 px, 32 text tokens, 131 million pairs, 40 % of the patches masked.

Command:   python scripts/train.py configs/l14_336px_t32.py --workdir runs/l14_336px_t32
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). Any number of devices that is a multiple of 8
           works.
Hours:     512 A100 hours, the difference of the published 4,520 for all three stages and 4,008 for the first two;
           not re-run here.
Expect:    80.3 % zero-shot ImageNet top-1 with DataComp-1B. Published by the reference, not re-run here.
Notes:     The reference has no L/14 file. This one is assembled from its H/14 recipe of the same stage; only the
           model differs.
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
    model = preset("L/14", image_size=336, length=32)
    model = replace(
        model,
        image=replace(model.image, blocks=replace(model.image.blocks, remat="full"), mask_ratio=0.4),
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
            schedules=((".*", Cosine(warmup=Duration(steps=warmup_steps))),),
            mu_dtype="bfloat16",
        ),
        batch_size=batch_size,
        duration=Duration(steps=steps),
        # Parameters and both moments take 4 GiB; each device holds an eighth.
        mesh=MeshConfig(fsdp=8),
        # On a TPU the reference multiplies in bfloat16 too, but keeps activations in float32.
        precision=Precision(compute="bfloat16"),
        init=InitConfig(source="runs/l14_224px_t32"),
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
