"""B/16 pre-training: 112 px (49 patches), 32 text tokens, 7 epochs of LAION-400M.

Command:   python scripts/train.py configs/b16_112px_t32.py --workdir runs/b16_112px_t32
Hardware:  TPU pod slice or GPUs; any number of devices that divides the batch.
Hours:     about 2 days on 8 A100 published for the nearest setting, fine-tuning included; not re-run here.
Expect:    no number published for 32 text tokens; with 16 tokens and 6 epochs 59.7 % zero-shot ImageNet top-1, 63.2
           % after fine-tuning.
Notes:     These recipes pool the class token.
"""

from dataclasses import replace

from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.durations import Duration
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import DataConfig, DataSource, ExperimentConfig
from clipa_eqx.models.presets import preset
from clipa_eqx.optim import OptimConfig
from clipa_eqx.precision import Precision
from clipa_eqx.schedules import Cosine


def config() -> ExperimentConfig:
    batch_size = 32_768
    model = preset("B/16", image_size=112, length=32)
    model = replace(
        model,
        image=replace(model.image, pool="tok"),
    )
    return ExperimentConfig(
        model=model,
        data=DataConfig(
            sources=(DataSource(folder="data/laion400m"),),
            image=ImageConfig(size=(112, 112)),
            # Per host; it changes no batch. Set it to what the hosts have.
            stream=StreamConfig(workers=32, threads=2),
        ),
        optim=OptimConfig(
            peak_lr=8e-6 * batch_size / 256,  # 1.024e-3
            schedules=((".*", Cosine(warmup=Duration(steps=1600))),),
        ),
        batch_size=batch_size,
        duration=Duration(epochs=7.0),
        # On a TPU the reference multiplies in bfloat16 too, but keeps activations in float32.
        precision=Precision(compute="bfloat16"),
        eval_image=EvalImageConfig(size=(112, 112)),
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
