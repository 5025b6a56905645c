"""Memory that each training stage needs at full size, with random weights.

    python -m benchmarks.stage_memory --batch 16 --seconds 16

On a CUDA device the peak of a run's second step at that batch size is measured. On a CPU the same
is done at two small batch sizes, each in a process of its own, and the peak is continued linearly
to the batch size asked for: activations grow with the batch, weights and optimizer states do not.
That is computed, not measured, and marked so in the output.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measuring import held_bytes, in_child, machine, peak_bytes

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"decoder": "vocos.yaml", "quantizer": "bsq.yaml"}
SMALL = (1, 3)  # batch sizes of the runs on a CPU


def peak_of_step(stage: str, rows: int, seconds: float, device: str) -> int:
    """Bytes at the peak of one training step, without what the interpreter and libraries take."""
    import speechbrain as sb
    from hyperpyyaml import load_hyperpyyaml

    from recipes.common.crops import Crops
    from recipes.common.dataio import collate
    from train_decoder import DecoderBrain
    from train_quantizer import QuantizerBrain

    held = 0 if device.startswith("cuda") else held_bytes()
    with tempfile.TemporaryDirectory() as folder:
        overrides = f"data_folder: none\noutput_folder: {folder}\ncost_steps: 0\n"
        with open(ROOT / "hparams" / STAGES[stage], encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file, overrides)
        brain_class = {"decoder": DecoderBrain, "quantizer": QuantizerBrain}[stage]
        brain = brain_class(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts={"device": device, "noprogressbar": True},
            checkpointer=hparams["checkpointer"],
        )
        num_samples = round(seconds * brain.encoder.sample_rate)
        crops = Crops(hparams.get("segment_frames", 1), hop_length=brain.encoder.hop_length)
        item = {"num_samples": num_samples, "sig": 0.1 * torch.randn(num_samples)}
        item["frames"] = crops.frames("", total=-(-num_samples // crops.hop_length))
        brain.loaders = {sb.Stage.TRAIN: [collate([item | {"id": str(i)} for i in range(rows)])]}
        brain.on_fit_start()
        brain.modules.train()
        brain.step = 1
        batch = brain.loaders[sb.Stage.TRAIN][0]
        brain.fit_batch(batch)  # makes the optimizer's moments
        peak = peak_bytes(lambda: brain.fit_batch(batch), device=torch.device(device))
        brain.run_log.close()
    return peak - held


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stage_memory", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--batch", type=int, default=16, help="utterances")
    parser.add_argument("--seconds", type=float, default=16.0, help="length of every utterance")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    print(f"{'stage':12}{'GiB at batch ' + str(arguments.batch):>20}  how")
    for stage in STAGES:
        if arguments.device.startswith("cuda"):
            peak = in_child(
                peak_of_step, stage, arguments.batch, arguments.seconds, arguments.device
            )
            how = f"measured on {machine(arguments.device)}"
        else:
            low, high = (
                in_child(peak_of_step, stage, size, arguments.seconds, "cpu") for size in SMALL
            )
            slope = (high - low) / (SMALL[1] - SMALL[0])
            peak = low + slope * (arguments.batch - SMALL[0])
            how = (
                f"computed from CPU peaks of {low / 2**30:.2f} and {high / 2**30:.2f} GiB at batch "
                f"{SMALL[0]} and {SMALL[1]}"
            )
        print(f"{stage:12}{peak / 2**30:20.1f}  {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
